"""Read the machine's facts into one ``Host``."""

from __future__ import annotations

import sys

from bitnet_tuning.machine.cgroups import read_cgroups, read_quota
from bitnet_tuning.machine.clock import read_governor
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.limits import read_allowed_cpus, read_allowed_nodes
from bitnet_tuning.machine.memory import read_memory
from bitnet_tuning.machine.root import Root
from bitnet_tuning.machine.topology import read_kinds, read_topology
from bitnet_tuning.machine.wsl import read_wsl
from bitnet_tuning.namedtuple import NamedTuple

_FIRST_PROCESSORS = 1 << 14
"""Bytes of /proc/cpuinfo that hold the first processor's entry; a large host's file runs to
megabytes."""

_FLAG_KEYS = ("flags", "features", "isa")
"""As x86, ARM and s390, and RISC-V name the line."""

_BRAND_KEYS = ("model name", "cpu model", "processor", "hardware", "uarch", "cpu")
"""As x86 and LoongArch, MIPS, 32-bit ARM (two), RISC-V, and POWER name the line."""


class Processor(NamedTuple):
    """What /proc/cpuinfo says of the first processor."""

    vendor: str | None
    flags: tuple[str, ...]
    """Instruction sets, sorted."""
    brand: str | None
    """What the processor is called."""


def read_host(root: str = "/") -> Host:
    """Read the machine below ``root``; on macOS and Windows, ask the system instead.

    Never fails: what cannot be read is None, or assumed to be the plainest case.
    """
    if root == "/" and not sys.platform.startswith("linux"):
        from bitnet_tuning.machine.foreign import read_foreign_host  # noqa: PLC0415

        return read_foreign_host()
    return _read_linux(Root(root))


def read_flags() -> tuple[str, ...]:
    """Return the instruction sets of the CPU that this program runs on, as ``Host.isa``."""
    if sys.platform.startswith("linux"):
        return _read_processor(Root()).flags
    return read_host().isa


def _read_linux(root: Root) -> Host:
    topology = read_topology(root)
    processor = _read_processor(root)
    hybrid, cores = read_kinds(root, topology.cores, processor.vendor)
    groups = read_cgroups(root)
    allowed = read_allowed_cpus(root, topology.online)
    return Host(
        online=topology.online,
        allowed=allowed,
        cores=cores,
        nodes=topology.nodes,
        hybrid=hybrid,
        quota=read_quota(root, groups),
        governor=read_governor(root, allowed),
        wsl=read_wsl(root),
        memory=read_memory(root, groups),
        vendor=processor.vendor,
        isa=processor.flags,
        topology_known=topology.complete,
        brand=processor.brand,
        mems=read_allowed_nodes(root) if len(topology.nodes) > 1 else None,
    )


def _read_processor(root: Root) -> Processor:
    stated: dict[str, str] = {}
    for key, value in root.pairs("proc/cpuinfo", limit=_FIRST_PROCESSORS):
        if value and not (value.isdecimal() and key.startswith("processor")):
            stated.setdefault(key.lower(), value)
    line = next((key for key in _FLAG_KEYS if key in stated), "")
    flags = stated.get(line, "")
    flags = flags.replace("_", " ") if line == "isa" else flags
    return Processor(stated.get("vendor_id"), tuple(sorted(set(flags.split()))), _brand(stated))


def _brand(stated: dict[str, str]) -> str | None:
    """Return the processor's name; on 64-bit ARM, the numbers that identify it."""
    named = next((stated[key] for key in _BRAND_KEYS if key in stated), None)
    if named is None and "cpu part" in stated:
        return f"ARM implementer {stated.get('cpu implementer', '?')}, part {stated['cpu part']}"
    return named and " ".join(named.split())
