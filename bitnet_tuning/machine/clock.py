"""Read the clock rates of the CPUs, their limits and the driver that sets them."""

from __future__ import annotations

import re

from bitnet_tuning.machine.root import Root, as_integer
from bitnet_tuning.machine.topology import CPU, read_per_cpu
from bitnet_tuning.namedtuple import NamedTuple

_HIGHEST_MHZ, _HIGHEST_BASE_MHZ = 20_000, 10_000
"""Highest plausible clock and base clock; a larger value in a file is an error."""

_IN_BRAND = r"@ *([0-9.]{1,6}) *GHz"

SET_PERFORMANCE = f"echo performance | sudo tee /{CPU}/cpu*/cpufreq/scaling_governor"
"""Shell command that selects the performance governor on every CPU, without extra tools."""


class Clock(NamedTuple):
    """The clock rates of a set of CPUs. An idle CPU may show a low rate."""

    mean_mhz: float
    min_mhz: float
    max_mhz: float
    limit_mhz: float | None = None
    """Highest clock that the current settings allow the fastest CPU."""
    highest_mhz: float | None = None
    """Highest clock that the hardware of the fastest CPU supports."""


def read_clock(root: Root, cpus: frozenset[int]) -> Clock | None:
    """Return the clock rates of ``cpus`` from cpufreq or ``proc/cpuinfo``; None if neither shows
    them, as on most ARM machines without cpufreq."""
    now = _cpufreq(root, cpus, "scaling_cur_freq") or _from_cpuinfo(root, cpus)
    if not now:
        return None
    return Clock(
        mean_mhz=sum(now) / len(now),
        min_mhz=min(now),
        max_mhz=max(now),
        limit_mhz=max(_cpufreq(root, cpus, "scaling_max_freq"), default=None),
        highest_mhz=max(_cpufreq(root, cpus, "cpuinfo_max_freq"), default=None),
    )


def _cpufreq(root: Root, cpus: frozenset[int], name: str) -> list[float]:
    # The files of cpufreq are in kHz (admin-guide/pm/cpufreq.rst).
    clocks = [value / 1000 for value in read_per_cpu(root, cpus, f"cpufreq/{name}")]
    return [clock for clock in clocks if 0 < clock <= _HIGHEST_MHZ]


def _from_cpuinfo(root: Root, cpus: frozenset[int]) -> list[float]:
    # x86 writes "cpu MHz : 3800.000", POWER writes "clock : 3800.000000MHz".
    found: list[float] = []
    cpu: int | None = None
    for key, value in root.pairs("proc/cpuinfo", limit=1 << 24):
        if key == "processor":
            cpu = as_integer(value)
        elif key in ("cpu MHz", "clock") and cpu in cpus:
            try:
                clock = float(value.removesuffix("MHz"))
            except ValueError:
                continue
            if 0 < clock <= _HIGHEST_MHZ:
                found.append(clock)
    return found


def read_base_clock(root: Root, cpus: frozenset[int], brand: str | None) -> float | None:
    """Return the base clock of the fastest of ``cpus`` in MHz from intel_pstate, ACPI, or the
    processor's name ``brand`` (``… @ 2.10GHz``); None if it is unknown."""
    # kHz in admin-guide/pm/intel_pstate.rst, MHz in admin-guide/acpi/cppc_sysfs.rst.
    for name, factor in (("cpufreq/base_frequency", 1000), ("acpi_cppc/nominal_freq", 1)):
        clocks = [value / factor for value in read_per_cpu(root, cpus, name)]
        known = [clock for clock in clocks if 0 < clock <= _HIGHEST_BASE_MHZ]
        if known:
            return max(known)
    named = re.search(_IN_BRAND, brand or "", re.ASCII)
    try:
        return float(named[1]) * 1000 if named else None
    except ValueError:
        return None


def read_driver(root: Root, cpus: frozenset[int]) -> str | None:
    """Return the cpufreq driver, which decides what a governor does, or None if there is none."""
    for cpu in sorted(cpus):
        name = root.read(f"{CPU}/cpu{cpu}/cpufreq/scaling_driver") or ""
        if name and name.isprintable() and len(name) <= 16:
            return name
    return None
