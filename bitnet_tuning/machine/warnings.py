"""Warn about whatever in the machine's state skews a measurement, and say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from bitnet_tuning.console import size_text
from bitnet_tuning.machine.conditions import Conditions, between
from bitnet_tuning.machine.detect import SET_PERFORMANCE
from bitnet_tuning.machine.host import Host

BUSY_SHARE, BUSY_LEAST, BUSY_MOST = 0.05, 0.1, 0.5
"""Load of other programs that is reported: 5 % of all CPUs, as much as a good setting gains, but
at least 0.1 CPU, as an idle desktop uses, and at most 0.5, because threads wait for the slowest."""

STEAL_SHARE = 0.05
"""Share of the needed CPU time above which steal is reported."""

THROTTLED_SHARE = 0.05
"""Share of throttled quota periods that is reported. An engine's start may use up 1 of 20."""

CLOCK_LIMIT = 0.95
"""Share of the highest clock below which a limit is reported; steps of 100 MHz may round it."""
CLOCK_FALL = 0.9
"""Share of the first clock below which a fall is reported; 10 % is what a good setting gains."""

HOT = 90.0
"""Lowest °C to report without a critical temperature; processors slow down at 95 to 105 °C."""
HOT_MARGIN = 10.0
"""Degrees below the critical temperature from which heat is reported."""

MEMORY_FACTOR = 1.15
"""Memory that a run needs, relative to the size of the model. The cache of BitNet b1.58 2B-4T
for 2048 tokens is 30 layers x 2 x 640 values x 2 bytes x 2048 = 150 MiB, 13 % of the model."""

SWAPPED = 16 << 20
"""Bytes read back from swap that are reported: reading them from a disk takes noticeable time."""

_DYNAMIC = ("intel_pstate", "amd-pstate-epp")
"""Drivers whose ``powersave`` governor follows the load instead of keeping the lowest clock
(admin-guide/pm/intel_pstate.rst, admin-guide/pm/amd-pstate.rst)."""

LOAD, LOWEST_CLOCK, GOVERNOR, CLOCK, HEAT = "load", "lowest clock", "governor", "clock", "heat"
MEMORY, BATTERY, QUOTA, STEAL = "memory", "battery", "quota", "steal"
"""Kinds of warnings."""


class MachineWarning(NamedTuple):
    """One property of the machine that skews results, and its remedy."""

    kind: str
    cause: str
    remedy: str

    @property
    def text(self) -> str:
        return f"{self.cause}: {self.remedy}"


def warnings_before(
    conditions: Conditions, host: Host, model_size: int | None = None
) -> Iterator[MachineWarning]:
    """Yield warnings about what would skew a measurement that starts now. ``model_size`` is the
    size of the model file in bytes; None leaves out memory."""
    yield from _load(conditions.other_load_cpus, conditions, "use")
    yield from _governor(conditions)
    clock = conditions.clock
    limit, highest = (clock.limit_mhz, clock.highest_mhz) if clock else (None, None)
    if limit is not None and highest is not None and limit < CLOCK_LIMIT * highest:
        cause = f"cpufreq limits the clock to {limit:.0f} of {highest:.0f} MHz"
        yield MachineWarning(CLOCK, cause, f"sudo cpupower frequency-set -u {highest:.0f}MHz")
    yield from _heat(conditions)
    available, needed = conditions.memory_available, MEMORY_FACTOR * (model_size or 0)
    if available is not None and available < needed:
        has = f"only {size_text(available)} of memory is available"
        cause = f"{has}, but the model needs about {size_text(needed)}"
        remedy = "it may be read from disk again and again; close programs or use a smaller model"
        yield MachineWarning(MEMORY, cause, remedy)
    if conditions.on_battery:
        cause = "the machine runs on battery, which lowers the clock"
        yield MachineWarning(BATTERY, cause, "plug it in")
    if host.quota_binds:
        yield MachineWarning(
            QUOTA,
            f"a CPU quota allows {host.quota:g} of {len(host.allowed)} CPUs, and the kernel pauses "
            "an engine that uses more",
            "raise the quota (docker run --cpus) to use all CPUs",
        )


def warnings_after(before: Conditions, after: Conditions) -> Iterator[MachineWarning]:
    """Yield warnings about what skewed a measurement between two snapshots."""
    seen = between(before, after)
    yield from _load(seen.other_load_cpus, after._replace(busiest=()), "used on average")
    if seen.steal_share is not None and seen.steal_share > STEAL_SHARE:
        stolen = f"{100 * seen.steal_share:.0f} % of the CPU time"
        cause = f"the hypervisor gave {stolen} to other machines (steal)"
        yield MachineWarning(STEAL, cause, "measure again at a quieter time")
    if seen.quota_throttled_periods > THROTTLED_SHARE * seen.quota_periods:
        yield MachineWarning(
            QUOTA,
            f"the CPU quota paused the engine in {seen.quota_throttled_periods} of "
            f"{seen.quota_periods} periods, for {seen.quota_throttled_seconds:.1f} s in all",
            "settings with more threads than the quota allows suffer most; raise the quota to "
            "compare them fairly",
        )
    if before.clock is not None and after.clock is not None:
        # The fastest CPU was busy in both snapshots; the others may be idle.
        first, last = before.clock.max_mhz, after.clock.max_mhz
        if last < CLOCK_FALL * first:
            cause = f"the clock fell from {first:.0f} to {last:.0f} MHz"
            yield MachineWarning(CLOCK, cause, "let the machine cool and measure again")
    if seen.throttle_events:
        cause = "the processor lowered its clock because of heat"
        remedy = "the later speeds are too low; let it cool and measure again"
        yield MachineWarning(HEAT, cause, remedy)
    yield from _heat(after)
    if seen.swapped_in is not None and seen.swapped_in >= SWAPPED:
        cause = f"the system read {size_text(seen.swapped_in)} back from swap"
        yield MachineWarning(MEMORY, cause, "close programs that use a lot of memory")
    if after.on_battery and not before.on_battery:
        remedy = "plug it in and measure again"
        yield MachineWarning(BATTERY, "the machine switched to battery", remedy)
    if before.governor != after.governor:
        old, new = before.governor or "none", after.governor or "none"
        cause = f"the governor changed from {old} to {new}"
        yield MachineWarning(GOVERNOR, cause, "measure again")


def _load(others: float | None, conditions: Conditions, verb: str) -> Iterator[MachineWarning]:
    cpus = conditions.online_cpus
    bearable = max(BUSY_LEAST, min(BUSY_MOST, BUSY_SHARE * cpus))
    if others is None or others <= bearable:
        return
    # A smaller share would show as 0.0.
    programs = [program for program in conditions.busiest if program.cpus >= 0.05]
    named = ", ".join(f"{program.name} {program.cpus:.1f}" for program in programs)
    who = f" ({named})" if named else ""
    cause = f"other processes {verb} {others:.1f} of {cpus} CPUs{who}"
    yield MachineWarning(LOAD, cause, "close them or wait")


def _governor(conditions: Conditions) -> Iterator[MachineWarning]:
    governor, driver = conditions.governor, conditions.frequency_driver
    names, kind = (governor or "").split(","), GOVERNOR
    late = [name for name in names if name in ("ondemand", "conservative", "schedutil")]
    if "powersave" in names and driver not in _DYNAMIC:
        cause, kind = "the powersave governor keeps the CPUs at their lowest clock", LOWEST_CLOCK
    elif driver not in _DYNAMIC and late:
        cause = f"the {' and '.join(late)} governor raises the clock only after work has begun"
    elif "powersave" in names:
        cause = f"the powersave governor of {driver} may hold the clock back"
    else:
        return
    yield MachineWarning(kind, cause, SET_PERFORMANCE)


def _heat(conditions: Conditions) -> Iterator[MachineWarning]:
    seen = conditions.temperature
    if seen and seen.celsius >= (HOT if seen.critical is None else seen.critical - HOT_MARGIN):
        cause = f"the processor is hot ({seen.celsius:.0f} °C, sensor {seen.sensor})"
        yield MachineWarning(HEAT, cause, "let it cool and check its fans and air vents")
