"""What would spoil a measurement, or has: one line each, cause and remedy; pure."""

from __future__ import annotations

from collections.abc import Iterator

from bitnet_tuning.machine.conditions import Busy, Conditions, between

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.machine.clock import Clock
    from bitnet_tuning.machine.host import Host
    from bitnet_tuning.machine.power import Temperature


BUSY_SHARE, BUSY_LEAST, BUSY_MOST = 0.05, 0.1, 0.5
"""Load of others that is worth a word: a twentieth of all CPUs, which moves a result by as
much as gains that matter; below a tenth of a CPU is a desktop at rest. Half a CPU matters
on any machine: an engine's threads wait for the slowest one."""

STEAL_SHARE = 0.05
"""Of the time with work to do, what the hypervisor may take."""

THROTTLED_SHARE = 0.05
"""Of the quota's periods. One in twenty may be the engine's start."""

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
"""Bytes back from swap that take a disk a noticeable moment."""

_DYNAMIC = ("intel_pstate", "amd-pstate-epp")
"""Drivers whose ``powersave`` is no lowest clock but follows the load (kernel documentation,
admin-guide/pm)."""
_GOVERNOR_REMEDY = "sudo cpupower frequency-set -g performance"


def warnings_before(
    conditions: Conditions, host: Host, model_size: int | None = None
) -> tuple[str, ...]:
    """What is in the way now. ``model_size`` in bytes."""
    return (
        *_load(conditions.other_load, conditions.online_cpus, conditions.busiest, "use"),
        *_governor(conditions.governor, conditions.driver),
        *_clock_limit(conditions.clock),
        *_heat(conditions.temperature),
        *_memory(conditions.memory.available, model_size),
        *_battery(conditions.on_battery),
        *_quota(host),
    )


def warnings_after(before: Conditions, after: Conditions) -> tuple[str, ...]:
    """What happened meanwhile, or is in the way since."""
    seen = between(before, after)
    return (
        *_load(seen.other_load, after.online_cpus, (), "used on average"),
        *_steal(seen.steal_share),
        *_throttled(seen.throttled, seen.periods, seen.throttled_seconds),
        *_clock_fall(before.clock, after.clock),
        *_throttle_events(seen.throttle_events),
        *_heat(after.temperature),
        *_swapped(seen.swapped_in),
        *_changes(before, after),
    )


def _load(others: float | None, cpus: int, busiest: tuple[Busy, ...], verb: str) -> Iterator[str]:
    """Figures with one decimal; programs that would show as 0.0 are not named."""
    bearable = max(BUSY_LEAST, min(BUSY_MOST, BUSY_SHARE * cpus))
    if others is None or others <= bearable:
        return
    named = ", ".join(f"{it.name} {it.cpus:.1f}" for it in busiest if it.cpus >= 0.05)
    who = f" ({named})" if named else ""
    yield f"other processes {verb} {others:.1f} of {cpus} CPUs{who}: close them or wait"


def _governor(governor: str | None, driver: str | None) -> Iterator[str]:
    names = (governor or "").split(",")
    if "powersave" in names and driver not in _DYNAMIC:
        yield f"governor powersave keeps the lowest clock: {_GOVERNOR_REMEDY}"
    elif driver not in _DYNAMIC and {"ondemand", "conservative", "schedutil"} & set(names):
        yield f"governor {governor} raises the clock only after load begins: {_GOVERNOR_REMEDY}"
    elif "powersave" in names:
        yield f"governor powersave of {driver} may hold the clock back: {_GOVERNOR_REMEDY}"


def _clock_limit(clock: Clock | None) -> Iterator[str]:
    if clock and clock.limit and clock.highest and clock.limit < CLOCK_LIMIT * clock.highest:
        yield (
            f"the clock is limited to {clock.limit:.0f} of {clock.highest:.0f} MHz: "
            f"sudo cpupower frequency-set -u {clock.highest:.0f}MHz"
        )


def _clock_fall(before: Clock | None, after: Clock | None) -> Iterator[str]:
    """Of the fastest CPU, which was busy at both moments; others may idle."""
    if before and after and after.maximum < CLOCK_FALL * before.maximum:
        yield (
            f"the clock fell from {before.maximum:.0f} to {after.maximum:.0f} MHz: "
            "let the machine cool and measure again"
        )


def _heat(temperature: Temperature | None) -> Iterator[str]:
    if temperature is None:
        return
    critical = temperature.critical
    if temperature.celsius >= (HOT if critical is None else critical - HOT_MARGIN):
        seen = f"{temperature.celsius:.0f} °C ({temperature.sensor})"
        yield f"the processor is hot, {seen}: let it cool, clear its air vents"


def _throttle_events(events: int | None) -> Iterator[str]:
    if events:
        yield (
            "the processor lowered its clock because of heat: "
            "later figures are too low, let it cool and measure again"
        )


def _memory(available: int | None, model_size: int | None) -> Iterator[str]:
    if available is None or model_size is None or available >= MEMORY_FACTOR * model_size:
        return
    free, needed = _gigabytes(available), _gigabytes(MEMORY_FACTOR * model_size)
    yield (
        f"{free} of memory are free and the model needs about {needed}: "
        "it may be read from disk again and again; close programs or take a smaller model"
    )


def _swapped(size: int | None) -> Iterator[str]:
    if size is not None and size >= SWAPPED:
        yield f"{size / 1e6:.0f} MB came back from swap: close programs that need memory"


def _battery(on_battery: bool | None) -> Iterator[str]:
    if on_battery:
        yield "the machine runs on its battery, with a lower clock: plug it in"


def _quota(host: Host) -> Iterator[str]:
    if host.quota is not None and host.quota_binds:
        yield (
            f"a quota allows {host.quota:g} of {len(host.allowed)} CPUs, and more threads are "
            "stopped in every period: raise it (docker run --cpus) to use the machine"
        )


def _throttled(throttled: int, periods: int, seconds: float) -> Iterator[str]:
    if periods and throttled > THROTTLED_SHARE * periods:
        yield (
            f"throttled in {throttled} of {periods} periods by quota, {seconds:.1f} s in all: "
            "settings with more threads than the quota has CPUs suffer most; raise it to compare"
        )


def _steal(share: float | None) -> Iterator[str]:
    if share is not None and share > STEAL_SHARE:
        yield (
            f"the hypervisor gave {100 * share:.0f} % of the CPU time to others (steal): "
            "measure again at a quieter time"
        )


def _changes(before: Conditions, after: Conditions) -> Iterator[str]:
    if after.on_battery and not before.on_battery:
        yield "the machine went over to its battery: plug it in and measure again"
    if before.governor != after.governor:
        yield (
            f"the governor changed from {before.governor or 'none'} to "
            f"{after.governor or 'none'}: measure again"
        )


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
