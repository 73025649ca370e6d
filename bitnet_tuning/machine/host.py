"""The facts about a machine for a plan, for saved profiles and for other programs."""

from __future__ import annotations

from bitnet_tuning.machine.memory import Memory
from bitnet_tuning.machine.root import CpuList, format_list
from bitnet_tuning.machine.topology import Core, Hybrid, Node
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.store.codec import Count, Moment, Positive, Text


class Crowding(NamedTuple):
    """The result of a trial that shows whether a hypervisor runs all CPUs of a host at once. Under
    one that does not, threads wait for others that do not run, and the kernel shows no reason."""

    tried: Moment
    planned: Count
    """Threads that the host's facts suggest."""
    threads: Count | None
    """Most threads that are not slower than one; None if other load made the trial worthless."""
    slowdown: Positive = 1.0
    """Factor by which the planned threads were slower than one, at least."""
    confirmed: bool = False
    """True if an earlier trial found a limit, too."""

    @property
    def limits(self) -> bool:
        """True if fewer threads than planned should run."""
        return self.threads is not None and 0 < self.threads < self.planned


class Host(NamedTuple):
    """One machine and what this process may use of it."""

    online: frozenset[int]
    """Ids of the logical CPUs that are online."""
    allowed: frozenset[int]
    """Ids of the online CPUs in the affinity mask of this process."""
    cores: tuple[Core, ...]
    """Physical cores that have an online CPU."""
    nodes: tuple[Node, ...]
    hybrid: Hybrid | None = None
    """The two kinds of cores; None if all cores are of one kind."""
    quota: float | None = None
    """Smallest CPU quota that applies, in CPUs; None without a quota."""
    governor: str | None = None
    """Governors of the allowed CPUs, separated by commas; None if the kernel shows none."""
    wsl: int | None = None
    """Version of WSL, 1 or 2; None outside WSL."""
    memory: Memory = Memory(None, None)
    vendor: str | None = None
    isa: tuple[str, ...] = ()
    """Instruction sets, sorted by name."""
    topology_known: bool = True
    """False if the kernel does not tell which CPUs share a core."""
    brand: str | None = None
    """Name of the processor."""
    mems: frozenset[int] | None = None
    """NUMA nodes whose memory this process may use; None if the machine has only one."""
    cores_hidden: bool = False
    """True if a hypervisor shows a hybrid CPU as cores that do not exist."""
    windows_cores: int | None = None
    """Number of physical cores, told by Windows, if WSL hides them; None if it is not known."""
    system: str = "linux"
    """The operating system, as in ``sys.platform``."""
    crowded: Crowding | None = None
    """The trial that found that fewer threads should run than there are cores; None without."""

    @property
    def packages(self) -> int:
        return len({core.package for core in self.cores})

    @property
    def threads_per_core(self) -> int:
        return max(len(core.cpus) for core in self.cores)

    @property
    def allowed_cores(self) -> tuple[Core, ...]:
        """Cores with at least one allowed CPU."""
        return tuple(core for core in self.cores if core.cpus & self.allowed)

    def cores_in(self, cpus: frozenset[int] | None) -> int:
        """Return how many cores have a CPU in ``cpus``, or in the affinity mask if that is None.
        Every CPU counts as a core if the cores are hidden."""
        mask = self.allowed if cpus is None else cpus
        if self.cores_hidden:
            return len(mask & self.online)
        return sum(1 for core in self.cores if core.cpus & mask)

    @property
    def quota_binds(self) -> bool:
        """True if the quota is smaller than the number of allowed cores."""
        return self.quota is not None and self.quota < self.cores_in(None)

    def quota_stops(self, threads: int) -> bool:
        """Return whether this number of running threads would use up the quota."""
        return self.quota_binds or (self.quota is not None and threads > self.quota)

    @property
    def quota_threads(self) -> int | None:
        """The quota rounded to the nearest number of threads, but at least 1; None without one."""
        # bitnet.cpp, 2B-4T, tokens/s with 1 and 2 threads: quota 1.0: 21.3 and 14.5; 1.25: 21.9
        # and 21.5; 1.5: 21.9 and 26.2; 1.75: 21.6 and 30.8.
        return None if self.quota is None else max(1, int(self.quota + 0.5))

    def exceeds_quota(self, threads: int) -> bool:
        """Return whether this many threads are more than the quota is enough for."""
        return self.quota_threads is not None and threads > self.quota_threads

    @property
    def usable_cores(self) -> int:
        """The smallest of: allowed cores (CPUs if a hypervisor hides the cores), ``quota_threads``,
        ``windows_cores``, and the threads that a trial found to be enough."""
        enough = self.crowded.threads if self.crowded else None
        limits = (self.cores_in(None), self.quota_threads, self.windows_cores, enough)
        return min(limit for limit in limits if limit is not None)


class Fingerprint(NamedTuple):
    """The facts on which a measurement depends: a profile applies only to a host with the same
    fingerprint. What changes from run to run, such as free memory, is not included."""

    brand: Text | None
    online: CpuList
    allowed: CpuList
    quota: Positive | None
    """CPU quota, in CPUs."""
    cores: Text
    """The CPUs of each core, joined by commas; cores are separated by spaces."""
    speeds: dict[Text, CpuList]
    """CPUs by the relative speed of their cores."""
    nodes: dict[Text, CpuList]
    """CPUs by NUMA node."""
    performance_cpus: CpuList | None


def fingerprint(host: Host) -> Fingerprint:
    """Return the fingerprint that identifies ``host`` in saved profiles."""
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
    """The CPUs of one NUMA node."""

    id: int
    cpus: frozenset[int]


class HostFacts(NamedTuple):
    """A host as ``python3 -m bitnet_tuning host --json`` prints it for other programs."""

    # A field without a text is that of ``Host`` with the same name.

    logical_cpus: frozenset[int]
    """Ids of the CPUs that are online."""
    allowed_cpus: frozenset[int]
    """Ids of the online CPUs in the affinity mask."""
    physical_cores: int
    packages: int
    numa_nodes: tuple[NodeCpus, ...]
    hybrid: Hybrid | None
    threads_per_core: int
    """Largest number of online CPUs that share a core."""
    cpu_quota: float | None
    """CPU quota, in CPUs; null without a quota."""
    usable_cores: int
    """Number of allowed cores (of allowed CPUs, if a hypervisor hides the cores), or the quota
    rounded to the nearest if that is less, but at least 1."""
    governor: str | None
    wsl: int | None
    memory_total: int | None
    """Bytes of memory, or the memory limit of the control groups."""
    memory_available: int | None
    """Bytes of memory that new programs can use without swapping."""
    isa: tuple[str, ...]
    vendor: str | None
    brand: str | None
    topology_known: bool


def host_facts(host: Host) -> HostFacts:
    """Return the facts about ``host`` that other programs may rely on."""
    same = {name: getattr(host, name) for name in HostFacts._fields if hasattr(host, name)}
    return HostFacts(
        logical_cpus=host.online,
        allowed_cpus=host.allowed,
        physical_cores=len(host.cores),
        numa_nodes=tuple(NodeCpus(node.id, node.cpus) for node in host.nodes),
        cpu_quota=host.quota,
        memory_total=host.memory.total,
        memory_available=host.memory.available,
        **same,
    )
