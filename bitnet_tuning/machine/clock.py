"""How fast the processors run at the moment, and how fast they may."""

from __future__ import annotations

import re

from bitnet_tuning.machine.root import Root, as_integer
from bitnet_tuning.machine.topology import CPU
from bitnet_tuning.namedtuple import NamedTuple

_FASTEST = 20_000_000
"""kHz; more than any processor has run at, so a larger number is no clock."""


class Clock(NamedTuple):
    """MHz over a set of CPUs. A CPU that idles may show a low clock."""

    mean: float
    minimum: float
    maximum: float
    limit: float | None = None
    """The highest clock that the settings allow now, of the fastest CPU."""
    highest: float | None = None
    """The highest clock that the fastest CPU can run at."""


def read_clock(root: Root, cpus: frozenset[int]) -> Clock | None:
    """From cpufreq, else from ``proc/cpuinfo``; None where neither tells, as on most ARM
    machines without cpufreq."""
    now = _kilohertz(root, cpus, "scaling_cur_freq") or _from_cpuinfo(root, cpus)
    if not now:
        return None
    return Clock(
        mean=sum(now) / len(now) / 1000,
        minimum=min(now) / 1000,
        maximum=max(now) / 1000,
        limit=_highest(_kilohertz(root, cpus, "scaling_max_freq")),
        highest=_highest(_kilohertz(root, cpus, "cpuinfo_max_freq")),
    )


def read_driver(root: Root, cpus: frozenset[int]) -> str | None:
    """What sets the clock, such as ``intel_pstate``: the same governor name means another
    thing with some drivers."""
    for cpu in sorted(cpus):
        name = root.read(f"{CPU}/cpu{cpu}/cpufreq/scaling_driver") or ""
        if name and name.isprintable() and len(name) <= 16:
            return name
    return None


def _kilohertz(root: Root, cpus: frozenset[int], name: str) -> list[int]:
    found = (root.integer(f"{CPU}/cpu{cpu}/cpufreq/{name}") for cpu in sorted(cpus))
    return [value for value in found if value is not None and 0 < value <= _FASTEST]


def _highest(kilohertz: list[int]) -> float | None:
    return max(kilohertz) / 1000 if kilohertz else None


def _from_cpuinfo(root: Root, cpus: frozenset[int]) -> list[float]:
    """The ``cpu MHz`` of x86; ``clock : 3800.000000MHz`` of POWER."""
    found: list[float] = []
    cpu: int | None = None
    for line in (root.read("proc/cpuinfo", 1 << 24) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "processor":
            cpu = as_integer(value.strip())
        elif key.strip() in ("cpu MHz", "clock") and cpu in cpus:
            found += _megahertz(value.strip().removesuffix("MHz"))
    return found


def _megahertz(text: str) -> list[float]:
    """Its kHz, or nothing for what is no clock."""
    try:
        kilohertz = float(text) * 1000
    except ValueError:
        return []
    return [kilohertz] if 0 < kilohertz <= _FASTEST else []


_IN_BRAND = re.compile(r"@ *([0-9.]{1,6}) *GHz", re.ASCII)
_BASE_CLOCK_FASTEST = 10_000
"""MHz; a larger base clock is none."""


def read_base_clock(root: Root, cpus: frozenset[int], brand: str | None) -> float | None:
    """MHz of the fastest of ``cpus``: intel_pstate's file in kHz, ACPI's in MHz, else what
    the brand says (``@ 2.10GHz``). None where none does."""
    for name, factor in (("cpufreq/base_frequency", 1000), ("acpi_cppc/nominal_freq", 1)):
        stated = (root.integer(f"{CPU}/cpu{cpu}/{name}") for cpu in sorted(cpus))
        known = [value / factor for value in stated if value is not None]
        known = [megahertz for megahertz in known if 0 < megahertz <= _BASE_CLOCK_FASTEST]
        if known:
            return max(known)
    named = _IN_BRAND.search(brand or "")
    try:
        return float(named[1]) * 1000 if named else None
    except ValueError:
        return None


SET_PERFORMANCE = f"echo performance | sudo tee /{CPU}/cpu*/cpufreq/scaling_governor"
"""Shell command that sets the governor of every CPU; needs no tool to install."""

_NAME = re.compile(r"[\w-]{1,16}", re.ASCII)
"""The kernel allows 16 bytes (CPUFREQ_NAME_LEN)."""


def read_governor(root: Root, cpus: frozenset[int]) -> str | None:
    """Return the governor of ``cpus``; several are joined by commas, most frequent first.

    None where the kernel shows none, as in virtual machines and WSL.
    """
    counts: dict[str, int] = {}
    for cpu in sorted(cpus):
        # CPUs without cpufreq may come before ones that have it.
        name = root.read(f"{CPU}/cpu{cpu}/cpufreq/scaling_governor") or ""
        if _NAME.fullmatch(name):
            counts[name] = counts.get(name, 0) + 1
    return ",".join(sorted(counts, key=lambda name: -counts[name])) or None
