"""Read all facts about this machine, or about one dumped below a root folder."""

from __future__ import annotations

import sys

from bitnet_tuning.machine.cgroups import read_cgroups
from bitnet_tuning.machine.clock import read_governor
from bitnet_tuning.machine.cpuinfo import read_isa
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.limits import allowed_cpus, cpu_quota, memory_nodes
from bitnet_tuning.machine.memory import read_memory
from bitnet_tuning.machine.root import Root
from bitnet_tuning.machine.topology import read_kinds, read_topology
from bitnet_tuning.machine.wsl import read_wsl


def read_host(root: str = "/") -> Host:
    """Reads ``root``; on a live system that is not Linux, asks that system instead.

    Never fails: what cannot be read is None, or counts as the plainest case.
    """
    if root == "/" and not sys.platform.startswith("linux"):
        from bitnet_tuning.machine.foreign import read_foreign_host  # noqa: PLC0415

        return read_foreign_host()
    return _read_linux(Root(root))


def read_flags() -> tuple[str, ...]:
    """Instruction set flags of the live CPU, as ``Host.isa``."""
    if sys.platform.startswith("linux"):
        return read_isa(Root("/")).flags
    return read_host().isa


def _read_linux(root: Root) -> Host:
    topology = read_topology(root)
    isa = read_isa(root)
    hybrid, cores = read_kinds(root, topology.cores, isa.vendor)
    groups = read_cgroups(root)
    allowed = allowed_cpus(root, topology.online)
    return Host(
        online=topology.online,
        allowed=allowed,
        cores=cores,
        nodes=topology.nodes,
        hybrid=hybrid,
        quota=cpu_quota(root, groups),
        governor=read_governor(root, allowed),
        wsl=read_wsl(root),
        memory=read_memory(root, groups),
        vendor=isa.vendor,
        isa=isa.flags,
        topology_known=topology.complete,
        brand=isa.brand,
        mems=memory_nodes(root) if len(topology.nodes) > 1 else None,
    )
