"""Checks of governor, clock, power source, temperature and other programs."""

from __future__ import annotations

from bitnet_tuning.console import counted
from bitnet_tuning.doctor.case import Case, Check, Finding, bad, good, moot, unknown, warn, warned
from bitnet_tuning.machine import warnings
from bitnet_tuning.machine.load import Neighbours
from bitnet_tuning.plan.threads import free_cores

BASE_BAD, BASE_WARN = 0.5, 0.9
"""Shares of the base clock below which the clock under load is bad, or worth a warning. A healthy
processor holds its base clock on all cores indefinitely."""

HIGHEST_BAD, HIGHEST_WARN = 0.4, 0.6
"""The same as shares of the highest clock, where the base clock is not known. One busy core comes
near the highest clock, and laptops have base clocks from a third of it."""

SLOWEST = 1000.0
"""Clock in MHz below which the clock is bad where neither other clock is known. Only a few 5 W
processors with AVX2 have a lower base clock."""


def _governor(case: Case) -> Finding:
    seen = case.conditions
    if seen.governor is None and case.host.wsl:
        plan = "choose Windows' power plan High performance: powercfg.exe /setactive SCHEME_MIN"
        return unknown("WSL shows no governor: Windows' power plan sets the clock", plan)
    if seen.governor is None:
        return moot("the host of this virtual machine, or the firmware, sets the clock")
    if lowest := case.warning(warnings.LOWEST_CLOCK):
        return bad(lowest.cause, lowest.remedy)
    return warned(case, warnings.GOVERNOR) or good(f"governor {seen.governor}")


def _clock_limit(case: Case) -> Finding | None:
    seen = case.conditions.clock
    if seen is None or seen.limit_mhz is None:
        return None
    return warned(case, warnings.CLOCK) or good(f"the clock may rise to {seen.limit_mhz:.0f} MHz")


def _clock(case: Case) -> Finding:
    seen, governor = case.conditions.clock, case.conditions.governor
    if seen is None:
        return moot("this machine does not show its clock")
    now, compared = seen.max_mhz, ""
    worse = bad if now < SLOWEST else None
    for reference, name, lowest_warn, lowest_good in (
        (seen.highest_mhz, "highest", HIGHEST_BAD, HIGHEST_WARN),
        (case.base_clock, "base", BASE_BAD, BASE_WARN),
    ):
        if reference:  # the base clock decides if it is known
            share = now / reference
            worse = bad if share < lowest_warn else warn if share < lowest_good else None
            compared = f", {name} clock {reference:.0f} MHz"
    if worse is None:
        return good(f"{now:.0f} MHz{compared}")
    if governor == "performance":
        compared += ", although the governor is performance"
    elif not case.live:
        return moot(f"{now:.0f} MHz{compared}, recorded without a load")
    advice = "check the cooling, the power adapter and the power limits in the firmware"
    advice = advice if case.host.wsl else f"powerprofilesctl set performance; {advice}"
    return worse(f"only {now:.0f} MHz under load{compared}", advice)


def _power(case: Case) -> Finding:
    if case.conditions.on_battery is None:
        return moot("no power supply is shown, as on most desktops, servers, virtual machines")
    return warned(case, warnings.BATTERY) or good("the machine runs on mains power")


def _heat(case: Case) -> Finding:
    seen = case.conditions.temperature
    if seen is None:
        return moot("no temperature is shown")
    return warned(case, warnings.HEAT) or good(f"{seen.celsius:.0f} °C ({seen.sensor})")


def _others(case: Case) -> Finding:
    # Never bad: other programs come and go.
    used, cpus = case.conditions.other_load_cpus, case.conditions.online_cpus
    if used is None:
        return moot("the load of other processes is not shown")
    found = warned(case, warnings.LOAD)
    if found is None:
        return good(f"other processes use {used:.1f} of {cpus} CPUs")
    free, wanted = free_cores(case.host, Neighbours(used)), case.wanted_threads
    if free >= wanted:
        return found
    now = f"a run would now use {counted(free, 'thread')} instead of {wanted}"
    return found._replace(text=f"{found.text}; {now}")


CHECKS: tuple[Check, ...] = (
    ("governor", _governor, "kernel: admin-guide/pm/cpufreq and intel_pstate"),
    ("clock limit", _clock_limit, "kernel: scaling_max_freq, compared with cpuinfo_max_freq"),
    ("clock under load", _clock, "the clock after 30 ms of work, and the base or highest clock"),
    ("power source", _power, "kernel: class/power_supply"),
    ("temperature", _heat, "kernel: hwmon and thermal zones; processors slow down at 95-105 °C"),
    ("other programs", _others, "observed for 0.5 s; every step waits for its slowest thread"),
)
