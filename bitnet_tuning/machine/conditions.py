"""The machine's state at one moment, and what happened between two."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone

from bitnet_tuning.machine.cgroups import Throttling, read_cgroups, read_throttling
from bitnet_tuning.machine.clock import Clock, read_clock, read_driver
from bitnet_tuning.machine.detect import read_governor
from bitnet_tuning.machine.foreign import read_foreign_busy, read_foreign_state
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.load import (
    Busy,
    ProcessTime,
    busiest,
    growth,
    other_load,
    own_cpu_seconds,
    read_cpu_times,
    read_processes,
    steal_share,
)
from bitnet_tuning.machine.memory import read_memory, read_swap
from bitnet_tuning.machine.root import Root
from bitnet_tuning.machine.sensors import (
    Temperature,
    read_on_battery,
    read_temperature,
    read_throttle_events,
)
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.store.codec import Annotated, Via

LOAD_SECONDS = 0.5
"""How long the load of others is watched: 50 of the kernel's ticks, so a resolution of 2 %
of a CPU, and little enough to wait for."""

_SPIN_SECONDS = 0.03
"""An idle CPU shows a low clock. After 30 ms of work any governor has raised it (schedutil
decides every few milliseconds, ondemand every 10), so that two snapshots can be compared."""


def _utc(moment: float) -> str:
    return datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="seconds")


Seconds = Annotated[float, Via(str, lambda text: datetime.fromisoformat(text).timestamp(), _utc)]
"""Since the epoch; in JSON a moment in UTC."""


class Conditions(NamedTuple):
    """One snapshot. None for what this machine does not show; memory and swap in bytes."""

    time: Seconds
    online_cpus: int
    other_load_cpus: float | None
    """CPUs that other processes used while this was taken."""
    busiest: tuple[Busy, ...]
    """The programs that used most of them, at most three; empty without psutil."""
    busy_cpu_seconds: float | None
    """CPU time of everyone since the start of the system."""
    steal_cpu_seconds: float | None
    """CPU time that the hypervisor took since then."""
    own_cpu_seconds: float
    """CPU time that the benchmark has spent so far, its finished engines included."""
    clock: Clock | None
    governor: str | None
    frequency_driver: str | None
    """What sets the clock, such as ``intel_pstate``."""
    temperature: Temperature | None
    throttle_events: int | None
    """How often heat lowered the clock; only its growth means something."""
    quota_throttling: tuple[Throttling, ...]
    """By every control group level that counts it."""
    memory_total: int | None
    memory_available: int | None
    swap_used: int | None
    swap_read_back: int | None
    """Read back from swap since the start of the system."""
    on_battery: bool | None


class Meanwhile(NamedTuple):
    """What happened from one snapshot to a later one of the same process."""

    seconds: float
    other_load_cpus: float | None
    """CPUs that other processes used on average."""
    steal_share: float | None
    """Of the time in which CPUs had work, the part that the hypervisor took."""
    quota_periods: int
    """Quota periods of the level that was throttled most."""
    quota_throttled_periods: int
    quota_throttled_seconds: float
    throttle_events: int | None
    swapped_in: int | None
    """Bytes that came back from swap."""


class _Sample(NamedTuple):
    """Counters of one moment."""

    at: float
    """Monotonic seconds."""
    busy: float | None
    steal: float | None
    own: float
    processes: dict[int, ProcessTime]
    """Those of this machine: a recorded one has none."""


def take(
    host: Host,
    root: Root | None = None,
    seconds: float = LOAD_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
) -> Conditions:
    """Return the state now, after ``seconds`` of watching others. No engine may run
    meanwhile."""
    root = root or Root()
    first = _sample(root)
    sleep(seconds)
    second = _sample(root)
    now, elapsed = time.time(), second.at - first.at
    spin(_SPIN_SECONDS)
    groups = read_cgroups(root)
    if _foreign(root):
        clock, memory, swap, on_battery = read_foreign_state()
    else:
        clock, on_battery = read_clock(root, host.allowed), read_on_battery(root)
        memory, swap = read_memory(root, groups), read_swap(root)
    return Conditions(
        time=now,
        online_cpus=len(host.online),
        other_load_cpus=other_load(
            growth(first.busy, second.busy), growth(first.own, second.own), elapsed
        ),
        busiest=busiest(first.processes, second.processes, elapsed),
        busy_cpu_seconds=second.busy,
        steal_cpu_seconds=second.steal,
        own_cpu_seconds=second.own,
        clock=clock,
        governor=read_governor(root, host.allowed),
        frequency_driver=read_driver(root, host.allowed),
        temperature=read_temperature(root),
        throttle_events=read_throttle_events(root, host.allowed),
        quota_throttling=read_throttling(root, groups),
        memory_total=memory.total,
        memory_available=memory.available,
        swap_used=swap.used if swap else None,
        swap_read_back=swap.read_back if swap else None,
        on_battery=on_battery,
    )


def _sample(root: Root) -> _Sample:
    at = time.monotonic()
    times = (read_foreign_busy(), None) if _foreign(root) else read_cpu_times(root)
    busy, steal = times or (None, None)
    return _Sample(at, busy, steal, own_cpu_seconds(), read_processes() if root.live else {})


def _foreign(root: Root) -> bool:
    return root.live and not sys.platform.startswith("linux")


def spin(seconds: float) -> None:
    """Keep this CPU busy."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def between(before: Conditions, after: Conditions) -> Meanwhile:
    """Return by how much the counters grew; None, or 0 for the quota, for what one of the two
    lacks and for counters that started anew."""
    seconds = after.time - before.time
    busy = growth(before.busy_cpu_seconds, after.busy_cpu_seconds)
    own = growth(before.own_cpu_seconds, after.own_cpu_seconds)
    quota = _most_throttled(before, after)
    return Meanwhile(
        seconds=seconds,
        other_load_cpus=other_load(busy, own, seconds),
        steal_share=steal_share(busy, growth(before.steal_cpu_seconds, after.steal_cpu_seconds)),
        quota_periods=quota.periods,
        quota_throttled_periods=quota.throttled,
        quota_throttled_seconds=quota.seconds,
        throttle_events=growth(before.throttle_events, after.throttle_events),
        swapped_in=growth(before.swap_read_back, after.swap_read_back),
    )


def _most_throttled(before: Conditions, after: Conditions) -> Throttling:
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
    return max(grown, key=lambda level: level.throttled, default=Throttling("", 0, 0, 0.0))
