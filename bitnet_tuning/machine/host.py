"""The machine as a plan needs to know it: one frozen ``Host``.

Nothing outside this package reads ``/proc`` or ``/sys`` to learn about the host.
"""

from __future__ import annotations

from bitnet_tuning.machine.memory import Memory
from bitnet_tuning.machine.root import format_list
from bitnet_tuning.machine.topology import Core, Hybrid, Node
from bitnet_tuning.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


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


def fingerprint(host: Host) -> dict[str, Any]:
    """Return what of a host makes a measurement hold: topology, limits, brand. Not what
    varies from run to run, such as free memory and the governor."""
    speeds: dict[str, set[int]] = {}
    for core in host.cores:
        speeds.setdefault(f"{core.speed:.2f}", set()).update(core.cpus)
    return {
        "brand": host.brand,
        "online": format_list(host.online),
        "allowed": format_list(host.allowed),
        "quota": host.quota,
        "cores": " ".join(",".join(map(str, sorted(core.cpus))) for core in host.cores),
        "speeds": {speed: format_list(cpus) for speed, cpus in speeds.items()},
        "nodes": {str(node.id): format_list(node.cpus) for node in host.nodes},
        "performance_cpus": host.hybrid and format_list(host.hybrid.performance_cpus),
    }


def host_facts(host: Host) -> dict[str, Any]:
    """Return what ``host --json`` prints; other programs may rely on it."""
    kinds = host.hybrid
    return {
        "logical_cpus": sorted(host.online),
        "allowed_cpus": sorted(host.allowed),
        "physical_cores": len(host.cores),
        "packages": host.packages,
        "numa_nodes": [{"id": node.id, "cpus": sorted(node.cpus)} for node in host.nodes],
        "hybrid": kinds
        and {
            "performance_cores": kinds.performance_cores,
            "efficiency_cores": kinds.efficiency_cores,
            "performance_cpus": sorted(kinds.performance_cpus),
            "efficiency_cpus": sorted(kinds.efficiency_cpus),
        },
        "threads_per_core": host.threads_per_core,
        "cpu_quota": host.quota,
        "usable_cores": host.usable_cores,
        "governor": host.governor,
        "wsl": host.wsl,
        "memory_total": host.memory.total,
        "memory_available": host.memory.available,
        "isa": list(host.isa),
        "vendor": host.vendor,
        "brand": host.brand,
        "topology_known": host.topology_known,
    }
