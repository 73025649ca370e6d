"""Governor, clock under load, power source, heat, other programs; pure."""

from __future__ import annotations

from collections.abc import Callable

from bitnet_tuning.doctor.case import Case, Knob, Verdict, bad, good, unknown, warn
from bitnet_tuning.machine import warnings

BASE_BAD, BASE_WARN = 0.5, 0.9
"""Shares of the base clock, which a healthy processor holds on all cores for ever."""

HIGHEST_BAD, HIGHEST_WARN = 0.4, 0.6
"""Shares of the highest clock, where the base clock is not known: one busy core comes near
the highest, and base clocks of laptops begin at a third of it."""

SLOWEST = 1000.0
"""MHz; where nothing to compare with is known. Below it no processor with AVX2 has its base
clock but for a few of 5 watts."""

_WINDOWS_POWER = "in Windows: powercfg.exe /setactive SCHEME_MIN (High performance)"
_CLOCK_REMEDY = (
    "sudo cpupower frequency-set -g performance; powerprofilesctl set performance; look at "
    "heat, the power adapter and power limits in the firmware"
)


def _governor(case: Case) -> Verdict:
    seen = case.conditions
    if seen.governor is None and case.host.wsl:
        return unknown("WSL shows no governor: Windows' power mode decides", _WINDOWS_POWER)
    if seen.governor is None:
        return unknown(
            "no governor is visible, as in virtual machines and where the firmware decides",
            "in a virtual machine set it on the host: sudo cpupower frequency-set -g performance",
        )
    said = case.warning(warnings.GOVERNOR)
    if said is None:
        return good(f"governor {seen.governor}")
    # The lowest clock is a loss for certain, a clock that rises late only at the start.
    worse = bad if "lowest" in said.cause else warn
    return worse(said.cause, said.remedy)


def _clock_limit(case: Case) -> Verdict | None:
    said = case.warning(warnings.CLOCK)
    if said:
        return warn(said.cause, said.remedy)
    seen = case.conditions.clock
    if seen is None or seen.limit_mhz is None:
        return None
    return good(f"settings allow {seen.limit_mhz:.0f} MHz")


def _clock(case: Case) -> Verdict:
    seen = case.conditions.clock
    if seen is None:
        return unknown("the clock is not visible here", "compare speeds with another machine")
    now = seen.max_mhz
    judge, compared = _judge(case, now)
    if judge is None:
        return good(f"{now:.0f} MHz{compared}")
    if not case.live and case.conditions.governor != "performance":
        return unknown(f"{now:.0f} MHz{compared}, but recorded without a load")
    if case.conditions.governor == "performance":
        compared += ", although the governor is performance"
    return judge(f"only {now:.0f} MHz under load{compared}", _clock_remedy(case))


def _judge(case: Case, now: float) -> tuple[Callable[[str, str], Verdict] | None, str]:
    """How bad a clock of ``now`` MHz is, None for good, and what it was compared with."""
    highest = case.conditions.clock.highest_mhz if case.conditions.clock else None
    for reference, limits, name in (
        (case.base_clock, (BASE_BAD, BASE_WARN), "base"),
        (highest, (HIGHEST_BAD, HIGHEST_WARN), "highest"),
    ):
        if reference:
            share, compared = now / reference, f", {name} clock {reference:.0f} MHz"
            judge = bad if share < limits[0] else warn if share < limits[1] else None
            return judge, compared
    return bad if now < SLOWEST else None, ""


def _clock_remedy(case: Case) -> str:
    return _WINDOWS_POWER if case.host.wsl else _CLOCK_REMEDY


def _power(case: Case) -> Verdict:
    said = case.warning(warnings.BATTERY)
    if said:
        return warn(said.cause, said.remedy)
    if case.conditions.on_battery is None:
        return unknown("no power supply is shown, as on most desktops, servers, virtual machines")
    return good("the machine runs on mains power")


def _heat(case: Case) -> Verdict:
    seen = case.conditions.temperature
    said = case.warning(warnings.HEAT)
    if said:
        return warn(said.cause, said.remedy)
    if seen is None:
        return unknown("no temperature is shown")
    return good(f"{seen.celsius:.0f} °C ({seen.sensor})")


def _others(case: Case) -> Verdict:
    """Never bad: it is the state of a moment, and goes by."""
    said = case.warning(warnings.LOAD)
    seen = case.conditions
    if seen.other_load_cpus is None:
        return unknown("how busy other processes are is not known")
    if said:
        return warn(said.cause, said.remedy)
    return good(f"other processes use {seen.other_load_cpus:.1f} of {seen.online_cpus} CPUs")


KNOBS = (
    Knob("governor", _governor, "kernel: admin-guide/pm/cpufreq and intel_pstate"),
    Knob("clock limit", _clock_limit, "kernel: scaling_max_freq against cpuinfo_max_freq"),
    Knob("clock under load", _clock, "read after 30 ms of work, against base or highest clock"),
    Knob("power source", _power, "kernel: class/power_supply"),
    Knob(
        "temperature", _heat, "kernel: hwmon and thermal zones; processors slow down at 95-105 °C"
    ),
    Knob(
        "other programs",
        _others,
        "watched for half a second; every step waits for its slowest thread",
    ),
)
