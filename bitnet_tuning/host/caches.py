"""The last-level caches."""

from __future__ import annotations

import re

from bitnet_tuning.host.root import Root
from bitnet_tuning.host.topology import CPU

_SIZE = re.compile(r"([0-9]{1,9})([KMG]?)", re.ASCII)
_FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def read_last_level_caches(root: Root, cpus: frozenset[int]) -> tuple[int, ...]:
    """Bytes of each last-level data cache that ``cpus`` use, largest first; empty where the
    kernel does not tell, as on many ARM boards."""
    found: dict[tuple[int, ...], int] = {}
    for cpu in sorted(cpus):
        last = max((_cache(root, cpu, index) for index in _indexes(root, cpu)), default=None)
        if last is not None and last[1] > 0:
            _, size, sharing = last
            found[sharing] = size
    return tuple(sorted(found.values(), reverse=True))


def _indexes(root: Root, cpu: int) -> list[str]:
    names = root.names(f"{CPU}/cpu{cpu}/cache")
    return [name for name in names if name.startswith("index")]


def _cache(root: Root, cpu: int, index: str) -> tuple[int, int, tuple[int, ...]]:
    """Level, bytes and the CPUs that share it; level and bytes 0 for what holds no data."""
    folder = f"{CPU}/cpu{cpu}/cache/{index}"
    kind, level = root.read(f"{folder}/type"), root.integer(f"{folder}/level")
    size = _SIZE.fullmatch(root.read(f"{folder}/size") or "")
    if kind == "Instruction" or level is None or size is None:
        return 0, 0, (cpu,)
    sharing = root.cpus_of(f"{folder}/shared_cpu_list", f"{folder}/shared_cpu_map") or {cpu}
    return level, int(size[1]) * _FACTORS[size[2]], tuple(sorted(sharing))
