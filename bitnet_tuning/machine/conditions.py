"""Snapshots of the machine's state, and what changed between two of them."""

from __future__ import annotations

import time
from datetime import datetime, timezone

from bitnet_tuning.machine import load, sensors
from bitnet_tuning.machine.cgroups import Throttling, read_cgroups, read_throttling
from bitnet_tuning.machine.detect import read_governor
from bitnet_tuning.machine.foreign import read_foreign_busy, read_foreign_state
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.load import Busy, ProcessTime
from bitnet_tuning.machine.memory import read_memory, read_swap
from bitnet_tuning.machine.root import Root
from bitnet_tuning.machine.sensors import Clock, Temperature
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.store.codec import Annotated, Via

LOAD_SECONDS = 0.5
"""Seconds for which other programs are watched; ticks of 10 ms then resolve 2 % of a CPU."""

_SPIN_SECONDS = 0.03
"""Seconds of work before the clock, which is low on an idle CPU, is read. In 30 ms every governor
raises it (schedutil decides in a few milliseconds, ondemand in 10): snapshots can be compared."""


Seconds = Annotated[
    float,
    Via(
        str,
        lambda text: datetime.fromisoformat(text).timestamp(),
        lambda moment: datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="seconds"),
    ),
]
"""Seconds since 1970; in JSON an ISO 8601 time in UTC."""


class Conditions(NamedTuple):
    """The machine's state at one moment. Sizes are in bytes; None stands for unknown values."""

    time: Seconds
    online_cpus: int
    other_load_cpus: float | None
    """CPUs that other processes used during the snapshot, on average."""
    busiest: tuple[Busy, ...]
    """The three other programs that used the most CPU time."""
    busy_cpu_seconds: float | None
    """CPU time of all processes since the system started."""
    steal_cpu_seconds: float | None
    """CPU time that the hypervisor took since the system started."""
    own_cpu_seconds: float
    """CPU time that the benchmark and its finished engines have used so far."""
    clock: Clock | None
    governor: str | None
    frequency_driver: str | None
    """The cpufreq driver, such as ``intel_pstate``."""
    temperature: Temperature | None
    throttle_events: int | None
    """Counter of the times that heat lowered the clock; only its growth is meaningful."""
    quota_throttling: tuple[Throttling, ...]
    """CPU quota counters of each control group that has them."""
    memory_total: int | None
    memory_available: int | None
    swap_used: int | None
    swap_read_back: int | None
    """Read back from swap since the system started."""
    on_battery: bool | None


class Meanwhile(NamedTuple):
    """What happened between two snapshots that one process took."""

    seconds: float
    other_load_cpus: float | None
    """CPUs that other processes used on average."""
    steal_share: float | None
    """Share of the needed CPU time that the hypervisor gave to other machines."""
    quota_periods: int
    """Number of quota periods, in the control group that was throttled most."""
    quota_throttled_periods: int
    """Number of those periods in which the group used up its quota."""
    quota_throttled_seconds: float
    """Seconds for which the group was throttled, summed over CPUs."""
    throttle_events: int | None
    """How often heat lowered the clock."""
    swapped_in: int | None
    """Bytes read back from swap."""


class _Sample(NamedTuple):
    at: float
    """Monotonic time in seconds."""
    busy: float | None
    steal: float | None
    own: float
    processes: dict[int, ProcessTime]


def take(host: Host, root: Root | None = None, seconds: float = LOAD_SECONDS) -> Conditions:
    """Return the machine's state after watching other programs for ``seconds``. The load is only
    right if this process runs no engine meanwhile."""
    root = root or Root()
    first = _sample(root)
    time.sleep(seconds)
    second = _sample(root)
    now, elapsed = time.time(), second.at - first.at
    busy_until = time.perf_counter() + _SPIN_SECONDS
    while time.perf_counter() < busy_until:
        pass
    groups = read_cgroups(root)
    busy, own = load.growth(first.busy, second.busy), load.growth(first.own, second.own)
    if root.foreign:
        clock, memory, swap, on_battery = read_foreign_state()
    else:
        clock, on_battery = sensors.read_clock(root, host.allowed), sensors.read_on_battery(root)
        memory, swap = read_memory(root, groups), read_swap(root)
    return Conditions(
        time=now,
        online_cpus=len(host.online),
        other_load_cpus=load.other_load(busy, own, elapsed),
        busiest=load.busiest(first.processes, second.processes, elapsed),
        busy_cpu_seconds=second.busy,
        steal_cpu_seconds=second.steal,
        own_cpu_seconds=second.own,
        clock=clock,
        governor=read_governor(root, host.allowed),
        frequency_driver=sensors.read_driver(root, host.allowed),
        temperature=sensors.read_temperature(root),
        throttle_events=sensors.read_throttle_events(root, host.allowed),
        quota_throttling=read_throttling(root, groups),
        memory_total=memory.total,
        memory_available=memory.available,
        swap_used=swap.used if swap else None,
        swap_read_back=swap.read_back if swap else None,
        on_battery=on_battery,
    )


def _sample(root: Root) -> _Sample:
    at = time.monotonic()
    busy, steal = (read_foreign_busy(), None) if root.foreign else load.read_cpu_times(root)
    processes = load.read_processes(root) if root.live else {}
    return _Sample(at, busy, steal, load.own_cpu_seconds(), processes)


def between(before: Conditions, after: Conditions) -> Meanwhile:
    """Return by how much the counters grew. A counter that was reset, or that one snapshot lacks,
    becomes None; those of the quota become 0."""
    seconds = after.time - before.time
    busy = load.growth(before.busy_cpu_seconds, after.busy_cpu_seconds)
    own = load.growth(before.own_cpu_seconds, after.own_cpu_seconds)
    stolen = load.growth(before.steal_cpu_seconds, after.steal_cpu_seconds)
    earlier = {level.level: level for level in before.quota_throttling}
    grown = [
        level._replace(
            periods=max(0, level.periods - earlier[level.level].periods),
            throttled=max(0, level.throttled - earlier[level.level].throttled),
            seconds=max(0.0, level.seconds - earlier[level.level].seconds),
        )
        for level in after.quota_throttling
        if level.level in earlier
    ]
    quota = max(grown, key=lambda level: level.throttled, default=Throttling("", 0, 0, 0.0))
    return Meanwhile(
        seconds=seconds,
        other_load_cpus=load.other_load(busy, own, seconds),
        steal_share=load.steal_share(busy, stolen),
        quota_periods=quota.periods,
        quota_throttled_periods=quota.throttled,
        quota_throttled_seconds=quota.seconds,
        throttle_events=load.growth(before.throttle_events, after.throttle_events),
        swapped_in=load.growth(before.swap_read_back, after.swap_read_back),
    )
