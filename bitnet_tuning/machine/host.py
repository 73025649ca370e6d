"""The machine as a plan needs to know it, read once into a frozen ``Host``.

Nothing outside this package reads ``/proc`` or ``/sys`` to learn about the host.
"""

from __future__ import annotations

import sys

from bitnet_tuning.machine.cgroups import read_cgroups
from bitnet_tuning.machine.clock import read_governor
from bitnet_tuning.machine.cpuinfo import read_isa
from bitnet_tuning.machine.limits import (
    allowed_cpus,
    cpu_quota,
    memory_nodes,
)
from bitnet_tuning.machine.memory import Memory, read_memory
from bitnet_tuning.machine.root import Root
from bitnet_tuning.machine.topology import Core, Hybrid, Node, read_kinds, read_topology
from bitnet_tuning.machine.wsl import read_wsl
from bitnet_tuning.namedtuple import NamedTuple


class Host(NamedTuple):
    """Facts about one machine and what this process may use of it."""

    online: frozenset[int]
    """Ids of the logical CPUs that are online."""
    allowed: frozenset[int]
    """Those of them in the affinity mask."""
    cores: tuple[Core, ...]
    """Every physical core with a CPU online."""
    nodes: tuple[Node, ...]
    hybrid: Hybrid | None
    quota: float | None
    """CPUs, from the tightest CFS quota."""
    governor: str | None
    wsl: int | None
    memory: Memory
    vendor: str | None
    isa: tuple[str, ...]
    topology_known: bool = True
    """False where the kernel did not say which CPUs share a core."""
    brand: str | None = None
    """What the processor is called."""
    mems: frozenset[int] | None = None
    """NUMA nodes whose memory may be used; None where the only one is."""

    @property
    def packages(self) -> int:
        return len({core.package for core in self.cores})

    @property
    def threads_per_core(self) -> int:
        return max(len(core.cpus) for core in self.cores)

    @property
    def allowed_cores(self) -> tuple[Core, ...]:
        """Cores of which at least one CPU may be used."""
        return tuple(core for core in self.cores if core.cpus & self.allowed)

    @property
    def quota_binds(self) -> bool:
        """Whether the quota leaves less than the allowed cores."""
        return self.quota is not None and self.quota < len(self.allowed_cores)

    def quota_stops(self, threads: int) -> bool:
        """Whether so many threads, all awake, would use up the quota."""
        return self.quota_binds or (self.quota is not None and threads > self.quota)

    @property
    def usable_cores(self) -> int:
        """Allowed cores, cut down to the quota (1.5 -> 1, 0.5 -> 1)."""
        cores = len(self.allowed_cores)
        return cores if self.quota is None else max(1, min(cores, int(self.quota)))


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
