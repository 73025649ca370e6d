"""How much memory there is for this process, control groups respected."""

from __future__ import annotations

import os

from bitnet_tuning.machine.cgroups import Cgroups
from bitnet_tuning.machine.root import Root, as_integer
from bitnet_tuning.namedtuple import NamedTuple

_NO_LIMIT = 1 << 60
"""Version 1 writes "no limit" as about 2**63 rounded down to a page."""


class Memory(NamedTuple):
    """Bytes; ``None`` where unknown."""

    total: int | None
    available: int | None


def read_memory(root: Root, groups: Cgroups) -> Memory:
    """MemTotal and MemAvailable, each cut down to what every level of the groups leaves."""
    machine = _meminfo(root)
    total, available = machine.total, machine.available
    for limit, used in _limits(root, groups):
        total = limit if total is None else min(total, limit)
        left = max(0, limit - used)
        available = left if available is None else min(available, left)
    return Memory(total, available)


def _meminfo(root: Root) -> Memory:
    kilobytes: dict[str, int] = {}
    for key, value in root.fields("proc/meminfo").items():
        number = as_integer(value.removesuffix("kB").strip())
        if number is not None and 0 <= number < _NO_LIMIT >> 10:
            kilobytes[key] = number
    # Kernels before 3.14 have no MemAvailable; free and page cache come near it.
    free = ("MemFree", "Buffers", "Cached")
    guess = sum(kilobytes.get(key, 0) for key in free) if "MemFree" in kilobytes else None
    available = kilobytes.get("MemAvailable", guess)
    return Memory(_bytes(kilobytes.get("MemTotal")), _bytes(available))


def _bytes(kilobytes: int | None) -> int | None:
    return None if kilobytes is None else kilobytes * 1024


def _limits(root: Root, groups: Cgroups) -> list[tuple[int, int]]:
    """(limit, bytes in use that cannot be dropped) of each level that has a limit.

    Inactive page cache is what the kernel drops before it denies memory.
    """
    found: list[tuple[int, int]] = []
    for level in groups.unified:
        limit = _smallest(root.integer(f"{level}/memory.max"), root.integer(f"{level}/memory.high"))
        if limit is not None:
            used = root.integer(f"{level}/memory.current") or 0
            found.append((limit, used - (_statistic(root, level, "inactive_file") or 0)))
    for level in groups.memory:
        # The second is what levels outside of a container's mount leave.
        limit = _smallest(
            root.integer(f"{level}/memory.limit_in_bytes"),
            _statistic(root, level, "hierarchical_memory_limit"),
        )
        if limit is not None:
            used = root.integer(f"{level}/memory.usage_in_bytes") or 0
            found.append((limit, used - (_statistic(root, level, "total_inactive_file") or 0)))
    return [(limit, max(0, used)) for limit, used in found]


def _smallest(*limits: int | None) -> int | None:
    stated = [limit for limit in limits if limit is not None and 0 <= limit < _NO_LIMIT]
    return min(stated, default=None)


def _statistic(root: Root, level: str, key: str) -> int | None:
    for line in (root.read(f"{level}/memory.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return as_integer(value.strip())
    return None


class Swap(NamedTuple):
    """Bytes."""

    used: int
    """What lies there now; that alone slows nothing down."""
    read_back: int | None = None
    """What was fetched back since the start of the system: each time something waited."""


def read_swap(root: Root) -> Swap | None:
    """From ``proc/meminfo`` and ``proc/vmstat``; None where they do not tell."""
    memory = _numbers(root, "proc/meminfo", ":")
    if "SwapTotal" not in memory or "SwapFree" not in memory:
        return None
    pages = _numbers(root, "proc/vmstat", " ").get("pswpin")
    used = max(0, memory["SwapTotal"] - memory["SwapFree"]) * 1024
    return Swap(used, None if pages is None else pages * _page_size())


def _numbers(root: Root, name: str, separator: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for line in (root.read(name) or "").splitlines():
        key, _, value = line.partition(separator)
        number = as_integer(value.removesuffix("kB").strip())
        if number is not None and number >= 0:
            found[key] = number
    return found


def _page_size() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 4096
