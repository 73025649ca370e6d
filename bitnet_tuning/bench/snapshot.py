"""Taking a snapshot of the machine's state."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from bitnet_tuning.bench.conditions import Conditions, busiest, load
from bitnet_tuning.host import Host
from bitnet_tuning.host.activity import (
    CpuTimes,
    Process,
    own_cpu_seconds,
    read_cpu_times,
    read_processes,
)
from bitnet_tuning.host.cgroups import read_cgroups
from bitnet_tuning.host.clock import read_clock, read_driver
from bitnet_tuning.host.foreign_state import read_foreign_state
from bitnet_tuning.host.memory import read_memory
from bitnet_tuning.host.power import read_governor
from bitnet_tuning.host.root import Root
from bitnet_tuning.host.supply import read_on_battery
from bitnet_tuning.host.swap import read_swap
from bitnet_tuning.host.thermal import read_temperature, read_throttle_events
from bitnet_tuning.host.throttling import read_throttling

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
