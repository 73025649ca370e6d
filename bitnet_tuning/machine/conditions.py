"""The machine's state at one moment, what happened between two, and their JSON; pure."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any, NamedTuple

from bitnet_tuning.machine.activity import (
    CpuTimes,
    Process,
    own_cpu_seconds,
    read_cpu_times,
    read_processes,
)
from bitnet_tuning.machine.cgroups import read_cgroups, read_throttling
from bitnet_tuning.machine.clock import read_clock, read_driver, read_governor
from bitnet_tuning.machine.foreign import read_foreign_state
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.memory import read_memory, read_swap
from bitnet_tuning.machine.power import read_on_battery, read_temperature, read_throttle_events
from bitnet_tuning.machine.root import Root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.machine.cgroups import Throttling
    from bitnet_tuning.machine.clock import Clock
    from bitnet_tuning.machine.memory import Memory, Swap
    from bitnet_tuning.machine.power import Temperature


_SHOWN = 3
"""Programs that are named."""
_LEAST = 0.01
"""CPUs that a program must use to be named."""


class Busy(NamedTuple):
    """The processes of one program name."""

    name: str
    cpus: float


class Conditions(NamedTuple):
    """None for what this machine does not show."""

    time: float
    """Seconds since the epoch."""
    online_cpus: int
    other_load: float | None
    """CPUs that other processes used while this was taken."""
    busiest: tuple[Busy, ...]
    """Who used most of them, at most three; empty without psutil."""
    times: CpuTimes | None
    own_seconds: float
    """CPU time that the benchmark has spent so far, its finished engines included."""
    clock: Clock | None
    governor: str | None
    driver: str | None
    """What sets the clock, such as ``intel_pstate``."""
    temperature: Temperature | None
    throttle_events: int | None
    """How often heat lowered the clock; only its growth means something."""
    throttling: tuple[Throttling, ...]
    """By quota, of every control group level that counts it."""
    memory: Memory
    swap: Swap | None
    on_battery: bool | None


class Meanwhile(NamedTuple):
    """What happened from one snapshot to a later one of the same process."""

    seconds: float
    other_load: float | None
    """CPUs that other processes used on average."""
    steal_share: float | None
    """Of the time in which CPUs had work, the part that the hypervisor took."""
    periods: int
    """Quota periods of the level that was throttled most."""
    throttled: int
    throttled_seconds: float
    throttle_events: int | None
    swapped_in: int | None
    """Bytes that came back from swap."""


def load(before: CpuTimes, after: CpuTimes, own_seconds: float, seconds: float) -> float | None:
    """CPUs that others used in ``seconds`` of wall time, in which we used ``own_seconds``
    of CPU time. None where counters or the clock went back."""
    busy = after.busy - before.busy
    if seconds <= 0 or busy < 0 or own_seconds < 0:
        return None
    return max(0.0, busy - own_seconds) / seconds


def busiest(
    before: Mapping[int, Process], after: Mapping[int, Process], seconds: float
) -> tuple[Busy, ...]:
    """Programs by the CPU time of their processes between two listings, most first.

    One that began in between counts from its beginning; one that ended is not seen.
    """
    used: dict[str, float] = {}
    for pid, process in after.items():
        earlier = before.get(pid)
        # Less than before is another process with the number of one that ended.
        known = earlier is not None and earlier.seconds <= process.seconds
        start = earlier.seconds if earlier and known else 0.0
        used[process.name] = used.get(process.name, 0.0) + process.seconds - start
    if seconds <= 0:
        return ()
    rates = [Busy(name, spent / seconds) for name, spent in used.items()]
    rates.sort(key=lambda program: (-program.cpus, program.name))
    return tuple(program for program in rates[:_SHOWN] if program.cpus >= _LEAST)


def between(before: Conditions, after: Conditions) -> Meanwhile:
    """Differences of the counters; what one of the two lacks is None, or 0 for the quota."""
    seconds = after.time - before.time
    others = steal = None
    if before.times and after.times:
        own = after.own_seconds - before.own_seconds
        others = load(before.times, after.times, own, seconds)
        steal = _steal_share(before.times, after.times)
    quota = _most_throttled(before, after)
    return Meanwhile(
        seconds=seconds,
        other_load=others,
        steal_share=steal,
        periods=quota.periods if quota else 0,
        throttled=quota.throttled if quota else 0,
        throttled_seconds=quota.seconds if quota else 0.0,
        throttle_events=_growth(before.throttle_events, after.throttle_events),
        swapped_in=_growth(_read_back(before.swap), _read_back(after.swap)),
    )


def _steal_share(before: CpuTimes, after: CpuTimes) -> float | None:
    """None for too little work to tell, or counters that went back."""
    busy, stolen = after.busy - before.busy, after.steal - before.steal
    return stolen / (busy + stolen) if busy >= 0 and stolen >= 0 and busy + stolen >= 1 else None


def _most_throttled(before: Conditions, after: Conditions) -> Throttling | None:
    earlier = {level.level: level for level in before.throttling}
    grown = [
        level._replace(
            periods=max(0, level.periods - earlier[level.level].periods),
            throttled=max(0, level.throttled - earlier[level.level].throttled),
            seconds=max(0.0, level.seconds - earlier[level.level].seconds),
        )
        for level in after.throttling
        if level.level in earlier
    ]
    return max(grown, key=lambda level: level.throttled, default=None)


def _growth(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(0, after - before)


def _read_back(swap: Swap | None) -> int | None:
    return swap.read_back if swap else None


def as_json(conditions: Conditions) -> dict[str, Any]:
    """Units are in the names; bytes for memory and swap."""
    seen = conditions
    return {
        "time": _utc(seen.time),
        "online_cpus": seen.online_cpus,
        "other_load_cpus": seen.other_load,
        "busiest": [{"name": program.name, "cpus": program.cpus} for program in seen.busiest],
        "busy_cpu_seconds": seen.times.busy if seen.times else None,
        "steal_cpu_seconds": seen.times.steal if seen.times else None,
        "own_cpu_seconds": seen.own_seconds,
        "clock": _clock_json(seen.clock),
        "governor": seen.governor,
        "frequency_driver": seen.driver,
        "temperature": _temperature_json(seen.temperature),
        "throttle_events": seen.throttle_events,
        "quota_throttling": [level._asdict() for level in seen.throttling],
        "memory_total": seen.memory.total,
        "memory_available": seen.memory.available,
        "swap_used": seen.swap.used if seen.swap else None,
        "swap_read_back": _read_back(seen.swap),
        "on_battery": seen.on_battery,
    }


def _utc(time: float) -> str:
    return datetime.fromtimestamp(time, timezone.utc).isoformat(timespec="seconds")


def _clock_json(clock: Clock | None) -> dict[str, Any] | None:
    """MHz."""
    if clock is None:
        return None
    return {
        "mean_mhz": clock.mean,
        "min_mhz": clock.minimum,
        "max_mhz": clock.maximum,
        "limit_mhz": clock.limit,
        "highest_mhz": clock.highest,
    }


def _temperature_json(temperature: Temperature | None) -> dict[str, Any] | None:
    return temperature._asdict() if temperature else None


def meanwhile_as_json(meanwhile: Meanwhile) -> dict[str, Any]:
    return {
        "seconds": meanwhile.seconds,
        "other_load_cpus": meanwhile.other_load,
        "steal_share": meanwhile.steal_share,
        "quota_periods": meanwhile.periods,
        "quota_throttled_periods": meanwhile.throttled,
        "quota_throttled_seconds": meanwhile.throttled_seconds,
        "throttle_events": meanwhile.throttle_events,
        "swapped_in": meanwhile.swapped_in,
    }


LOAD_SECONDS = 0.5
"""How long the load of others is watched: 50 of the kernel's ticks, so a resolution of 2 %
of a CPU, and little enough to wait for."""
_SPIN_SECONDS = 0.03
"""An idle CPU shows a low clock. After 30 ms of work any governor has raised it (schedutil
decides every few milliseconds, ondemand every 10), so that two snapshots can be compared."""


def take(
    host: Host,
    root: Root | None = None,
    seconds: float = LOAD_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
) -> Conditions:
    """The state now, after ``seconds`` of watching others. To be taken while no engine runs."""
    root = root or Root()
    first = _sample(root)
    sleep(seconds)
    second = _sample(root)
    conditions = _facts(root, host, second)
    elapsed = second.at - first.at
    if first.times and second.times:
        own = second.own - first.own
        others = load(first.times, second.times, own, elapsed)
        conditions = conditions._replace(other_load=others)
    return conditions._replace(busiest=busiest(first.processes, second.processes, elapsed))


class _Sample(NamedTuple):
    """Counters of one moment."""

    at: float
    """Monotonic seconds."""
    wall: float
    times: CpuTimes | None
    own: float
    processes: dict[int, Process]


def _sample(root: Root) -> _Sample:
    """Processes are those of this machine: a dump has none."""
    return _Sample(
        at=time.monotonic(),
        wall=time.time(),
        times=read_foreign_state().times if _foreign(root) else read_cpu_times(root),
        own=own_cpu_seconds(),
        processes=read_processes() if root.live else {},
    )


def _foreign(root: Root) -> bool:
    return root.live and not sys.platform.startswith("linux")


def _facts(root: Root, host: Host, sample: _Sample) -> Conditions:
    spin(_SPIN_SECONDS)
    groups = read_cgroups(root)
    conditions = Conditions(
        time=sample.wall,
        online_cpus=len(host.online),
        other_load=None,
        busiest=(),
        times=sample.times,
        own_seconds=sample.own,
        clock=read_clock(root, host.allowed),
        governor=read_governor(root, host.allowed),
        driver=read_driver(root, host.allowed),
        temperature=read_temperature(root),
        throttle_events=read_throttle_events(root, host.allowed),
        throttling=read_throttling(root, groups),
        memory=read_memory(root, groups),
        swap=read_swap(root),
        on_battery=read_on_battery(root),
    )
    return _with_foreign(conditions) if _foreign(root) else conditions


def _with_foreign(conditions: Conditions) -> Conditions:
    seen = read_foreign_state()
    return conditions._replace(
        clock=seen.clock, memory=seen.memory, swap=seen.swap, on_battery=seen.on_battery
    )


def spin(seconds: float) -> None:
    """Keeps this CPU busy."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
