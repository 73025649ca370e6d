"""The clock of the processors: what it is, what it may be, and what sets it."""

from __future__ import annotations

import re

from bitnet_tuning.machine.root import Root, as_integer
from bitnet_tuning.machine.topology import CPU, read_per_cpu
from bitnet_tuning.namedtuple import NamedTuple

_HIGHEST_MHZ = 20_000
"""No processor has run faster, so a larger number is not a clock."""
_HIGHEST_BASE_MHZ = 10_000

_IN_BRAND = r"@ *([0-9.]{1,6}) *GHz"


SET_PERFORMANCE = f"echo performance | sudo tee /{CPU}/cpu*/cpufreq/scaling_governor"
"""Shell command that sets the governor of every CPU; needs no tool to install."""


class Clock(NamedTuple):
    """MHz over a set of CPUs. A CPU that idles may show a low clock."""

    mean_mhz: float
    min_mhz: float
    max_mhz: float
    limit_mhz: float | None = None
    """The highest clock that the settings allow now, of the fastest CPU."""
    highest_mhz: float | None = None
    """The highest clock that the fastest CPU can run at."""


def read_clock(root: Root, cpus: frozenset[int]) -> Clock | None:
    """Return the clock from cpufreq, else from ``proc/cpuinfo``; None where neither has it, as
    on most ARM machines without cpufreq."""
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
    """Return MHz; the kernel's files hold kHz."""
    clocks = [value / 1000 for value in read_per_cpu(root, cpus, f"cpufreq/{name}")]
    return [clock for clock in clocks if 0 < clock <= _HIGHEST_MHZ]


def _from_cpuinfo(root: Root, cpus: frozenset[int]) -> list[float]:
    """Return the ``cpu MHz`` of x86, or the ``clock : 3800.000000MHz`` of POWER."""
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
    """Return the base clock of the fastest of ``cpus`` in MHz: intel_pstate's file in kHz,
    ACPI's in MHz, else what the brand says (``@ 2.10GHz``). None where none of them says."""
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
    """Return the driver that sets the clock, such as ``intel_pstate``: what a governor's name
    means depends on it."""
    for cpu in sorted(cpus):
        name = root.read(f"{CPU}/cpu{cpu}/cpufreq/scaling_driver") or ""
        if name and name.isprintable() and len(name) <= 16:
            return name
    return None
