"""What may skew a measurement, or has: the cause and the remedy of each; pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from bitnet_tuning.machine.conditions import Conditions, between

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.machine.host import Host


BUSY_SHARE, BUSY_LEAST, BUSY_MOST = 0.05, 0.1, 0.5
"""Load of others that is reported: a twentieth of all CPUs, which changes a result by as much
as gains that matter. Less than a tenth of a CPU is an idle desktop; half a CPU matters on any
machine, because an engine's threads wait for the slowest one."""

STEAL_SHARE = 0.05
"""Share of the time with work to do that the hypervisor may take."""

THROTTLED_SHARE = 0.05
"""Share of the quota's periods. One in twenty may be the engine's start."""

CLOCK_LIMIT = 0.95
"""A lower limit than this share of the highest clock is a setting, not rounding: clock
steps are 100 MHz or less."""
CLOCK_FALL = 0.9
"""Speed follows the clock; a fall by a tenth is as large as the differences looked for."""

HOT = 90.0
"""Degrees Celsius, without a critical point. Processors lower their clock at 95 to 105."""
HOT_MARGIN = 10.0
"""Degrees below the critical point."""

MEMORY_FACTOR = 1.15
"""Memory for a model's size: BitNet b1.58 2B-4T's cache of 2048 tokens is 30 layers x 2 x
640 values x 2 bytes x 2048 = 157 MB, 13 % of its 1.2 GB."""

SWAPPED = 16 << 20
"""Bytes from swap that a disk needs a noticeable time to read."""

_DYNAMIC = ("intel_pstate", "amd-pstate-epp")
"""Drivers whose ``powersave`` is not the lowest clock but follows the load (kernel
documentation, admin-guide/pm)."""
_GOVERNOR_REMEDY = "sudo cpupower frequency-set -g performance"

LOAD, LOWEST_CLOCK, GOVERNOR, CLOCK, HEAT = "load", "lowest clock", "governor", "clock", "heat"
MEMORY, BATTERY, QUOTA, STEAL = "memory", "battery", "quota", "steal"
"""Kinds of warnings: what of the machine is in the way."""


class MachineWarning(NamedTuple):
    """One thing that skews results."""

    kind: str
    cause: str
    remedy: str

    @property
    def text(self) -> str:
        return f"{self.cause}: {self.remedy}"


def warnings_before(
    conditions: Conditions, host: Host, model_size: int | None = None
) -> tuple[MachineWarning, ...]:
    """Return what would skew a measurement now. ``model_size`` in bytes."""
    return (
        *_load(conditions.other_load_cpus, conditions, "use"),
        *_governor(conditions),
        *_clock_limit(conditions),
        *_heat(conditions),
        *_memory(conditions.memory_available, model_size),
        *_battery(conditions),
        *_quota(host),
    )


def warnings_after(before: Conditions, after: Conditions) -> tuple[MachineWarning, ...]:
    """Return what skewed a measurement between two snapshots, or would skew the next one."""
    seen = between(before, after)
    return (
        *_load(seen.other_load_cpus, after._replace(busiest=()), "used on average"),
        *_steal(seen.steal_share),
        *_throttled(seen.quota_throttled_periods, seen.quota_periods, seen.quota_throttled_seconds),
        *_clock_fall(before, after),
        *_throttle_events(seen.throttle_events),
        *_heat(after),
        *_swapped(seen.swapped_in),
        *_changes(before, after),
    )


def _load(others: float | None, conditions: Conditions, verb: str) -> Iterator[MachineWarning]:
    """Name the busiest programs, without those whose share rounds to 0.0."""
    cpus = conditions.online_cpus
    bearable = max(BUSY_LEAST, min(BUSY_MOST, BUSY_SHARE * cpus))
    if others is None or others <= bearable:
        return
    programs = [program for program in conditions.busiest if program.cpus >= 0.05]
    named = ", ".join(f"{program.name} {program.cpus:.1f}" for program in programs)
    who = f" ({named})" if named else ""
    cause = f"other processes {verb} {others:.1f} of {cpus} CPUs{who}"
    yield MachineWarning(LOAD, cause, "close them or wait")


def _governor(conditions: Conditions) -> Iterator[MachineWarning]:
    governor, driver = conditions.governor, conditions.frequency_driver
    names, kind = (governor or "").split(","), GOVERNOR
    if "powersave" in names and driver not in _DYNAMIC:
        cause, kind = "governor powersave keeps the lowest clock", LOWEST_CLOCK
    elif driver not in _DYNAMIC and {"ondemand", "conservative", "schedutil"} & set(names):
        cause = f"governor {governor} raises the clock only after load begins"
    elif "powersave" in names:
        cause = f"governor powersave of {driver} may hold the clock back"
    else:
        return
    yield MachineWarning(kind, cause, _GOVERNOR_REMEDY)


def _clock_limit(conditions: Conditions) -> Iterator[MachineWarning]:
    clock = conditions.clock
    if clock is None or clock.limit_mhz is None or clock.highest_mhz is None:
        return
    if clock.limit_mhz < CLOCK_LIMIT * clock.highest_mhz:
        cause = f"the clock is limited to {clock.limit_mhz:.0f} of {clock.highest_mhz:.0f} MHz"
        remedy = f"sudo cpupower frequency-set -u {clock.highest_mhz:.0f}MHz"
        yield MachineWarning(CLOCK, cause, remedy)


def _clock_fall(before: Conditions, after: Conditions) -> Iterator[MachineWarning]:
    """Compare the fastest CPU, which was busy at both moments; others may idle."""
    if before.clock is None or after.clock is None:
        return
    first, last = before.clock.max_mhz, after.clock.max_mhz
    if last < CLOCK_FALL * first:
        cause = f"the clock fell from {first:.0f} to {last:.0f} MHz"
        yield MachineWarning(CLOCK, cause, "let the machine cool and measure again")


def _heat(conditions: Conditions) -> Iterator[MachineWarning]:
    seen = conditions.temperature
    if seen and seen.celsius >= (HOT if seen.critical is None else seen.critical - HOT_MARGIN):
        cause = f"the processor is hot, {seen.celsius:.0f} °C ({seen.sensor})"
        yield MachineWarning(HEAT, cause, "let it cool, clear its air vents")


def _throttle_events(events: int | None) -> Iterator[MachineWarning]:
    if events:
        cause = "the processor lowered its clock because of heat"
        remedy = "later figures are too low, let it cool and measure again"
        yield MachineWarning(HEAT, cause, remedy)


def _memory(available: int | None, model_size: int | None) -> Iterator[MachineWarning]:
    if available is None or model_size is None or available >= MEMORY_FACTOR * model_size:
        return
    free, needed = available / 1e9, MEMORY_FACTOR * model_size / 1e9
    yield MachineWarning(
        MEMORY,
        f"{free:.1f} GB of memory are free and the model needs about {needed:.1f} GB",
        "it may be read from disk again and again; close programs or take a smaller model",
    )


def _swapped(size: int | None) -> Iterator[MachineWarning]:
    if size is not None and size >= SWAPPED:
        cause = f"{size / 1e6:.0f} MB came back from swap"
        yield MachineWarning(MEMORY, cause, "close programs that need memory")


def _battery(conditions: Conditions) -> Iterator[MachineWarning]:
    if conditions.on_battery:
        cause = "the machine runs on its battery, with a lower clock"
        yield MachineWarning(BATTERY, cause, "plug it in")


def _quota(host: Host) -> Iterator[MachineWarning]:
    if host.quota is not None and host.quota_binds:
        yield MachineWarning(
            QUOTA,
            f"a quota allows {host.quota:g} of {len(host.allowed)} CPUs, and more threads are "
            "stopped in every period",
            "raise it (docker run --cpus) to use the machine",
        )


def _throttled(throttled: int, periods: int, seconds: float) -> Iterator[MachineWarning]:
    if periods and throttled > THROTTLED_SHARE * periods:
        yield MachineWarning(
            QUOTA,
            f"throttled in {throttled} of {periods} periods by quota, {seconds:.1f} s in all",
            "settings with more threads than the quota has CPUs suffer most; raise it to compare",
        )


def _steal(share: float | None) -> Iterator[MachineWarning]:
    if share is not None and share > STEAL_SHARE:
        cause = f"the hypervisor gave {100 * share:.0f} % of the CPU time to others (steal)"
        yield MachineWarning(STEAL, cause, "measure again at a quieter time")


def _changes(before: Conditions, after: Conditions) -> Iterator[MachineWarning]:
    if after.on_battery and not before.on_battery:
        cause = "the machine switched to its battery"
        yield MachineWarning(BATTERY, cause, "plug it in and measure again")
    if before.governor != after.governor:
        old, new = before.governor or "none", after.governor or "none"
        cause = f"the governor changed from {old} to {new}"
        yield MachineWarning(GOVERNOR, cause, "measure again")
