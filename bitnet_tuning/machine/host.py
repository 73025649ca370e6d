"""The machine as a plan needs to know it: one frozen ``Host``.

Nothing outside this package reads ``/proc`` or ``/sys`` to learn about the host.
"""

from __future__ import annotations

from bitnet_tuning.machine.memory import Memory
from bitnet_tuning.machine.root import CpuList, format_list
from bitnet_tuning.machine.topology import Core, Hybrid, Node
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.store.codec import Positive, Text


class Host(NamedTuple):
    """Facts about one machine and what this process may use of it."""

    online: frozenset[int]
    """Ids of the logical CPUs that are online."""
    allowed: frozenset[int]
    """Those of them in the affinity mask."""
    cores: tuple[Core, ...]
    """Every physical core with a CPU online."""
    nodes: tuple[Node, ...]
    hybrid: Hybrid | None = None
    quota: float | None = None
    """CPUs, from the tightest CFS quota."""
    governor: str | None = None
    wsl: int | None = None
    memory: Memory = Memory(None, None)
    vendor: str | None = None
    isa: tuple[str, ...] = ()
    topology_known: bool = True
    """False where the kernel did not say which CPUs share a core."""
    brand: str | None = None
    """The processor's name."""
    mems: frozenset[int] | None = None
    """NUMA nodes whose memory may be used; None where there is only one."""

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
        """Return whether so many threads, all awake, would use up the quota."""
        return self.quota_binds or (self.quota is not None and threads > self.quota)

    @property
    def usable_cores(self) -> int:
        """Allowed cores, cut down to the quota (1.5 -> 1, 0.5 -> 1)."""
        cores = len(self.allowed_cores)
        return cores if self.quota is None else max(1, min(cores, int(self.quota)))


class Fingerprint(NamedTuple):
    """What of a host makes a measurement hold: topology, limits, brand. Not what varies
    from run to run, such as free memory and the governor."""

    brand: Text | None
    online: CpuList
    allowed: CpuList
    quota: Positive | None
    cores: Text
    """CPUs with commas, cores with spaces in between."""
    speeds: dict[Text, CpuList]
    """CPUs by their cores' speed."""
    nodes: dict[Text, CpuList]
    """CPUs by NUMA node."""
    performance_cpus: CpuList | None


def fingerprint(host: Host) -> Fingerprint:
    """Return what tells this host from others."""
    speeds: dict[str, set[int]] = {}
    for core in host.cores:
        speeds.setdefault(f"{core.speed:.2f}", set()).update(core.cpus)
    return Fingerprint(
        brand=host.brand,
        online=format_list(host.online),
        allowed=format_list(host.allowed),
        quota=host.quota,
        cores=" ".join(",".join(map(str, sorted(core.cpus))) for core in host.cores),
        speeds={speed: format_list(cpus) for speed, cpus in speeds.items()},
        nodes={str(node.id): format_list(node.cpus) for node in host.nodes},
        performance_cpus=format_list(host.hybrid.performance_cpus) if host.hybrid else None,
    )


class NodeCpus(NamedTuple):
    """A NUMA node and its CPUs."""

    id: int
    cpus: frozenset[int]


class HostFacts(NamedTuple):
    """A host as ``python3 -m bitnet_tuning host --json`` prints it; other programs rely on it."""

    logical_cpus: frozenset[int]
    """Ids of the CPUs that are online."""
    allowed_cpus: frozenset[int]
    physical_cores: int
    packages: int
    numa_nodes: tuple[NodeCpus, ...]
    hybrid: Hybrid | None
    threads_per_core: int
    cpu_quota: float | None
    """CPUs."""
    usable_cores: int
    governor: str | None
    wsl: int | None
    memory_total: int | None
    """Bytes."""
    memory_available: int | None
    """Bytes."""
    isa: tuple[str, ...]
    vendor: str | None
    brand: str | None
    """The processor's name for people."""
    topology_known: bool


def host_facts(host: Host) -> HostFacts:
    """Return what other programs may rely on."""
    return HostFacts(
        logical_cpus=host.online,
        allowed_cpus=host.allowed,
        physical_cores=len(host.cores),
        packages=host.packages,
        numa_nodes=tuple(NodeCpus(node.id, node.cpus) for node in host.nodes),
        hybrid=host.hybrid,
        threads_per_core=host.threads_per_core,
        cpu_quota=host.quota,
        usable_cores=host.usable_cores,
        governor=host.governor,
        wsl=host.wsl,
        memory_total=host.memory.total,
        memory_available=host.memory.available,
        isa=host.isa,
        vendor=host.vendor,
        brand=host.brand,
        topology_known=host.topology_known,
    )
