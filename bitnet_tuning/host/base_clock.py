"""The clock that a processor is sold with: it holds that for any length of time."""

from __future__ import annotations

import re

from bitnet_tuning.host.root import Root
from bitnet_tuning.host.topology import CPU

_IN_BRAND = re.compile(r"@ *([0-9.]{1,6}) *GHz", re.ASCII)
_FASTEST = 10_000
"""MHz; a larger base clock is none."""


def read_base_clock(root: Root, cpus: frozenset[int], brand: str | None) -> float | None:
    """MHz of the fastest of ``cpus``: intel_pstate's file in kHz, ACPI's in MHz, else what
    the brand says (``@ 2.10GHz``). None where none does."""
    for name, factor in (("cpufreq/base_frequency", 1000), ("acpi_cppc/nominal_freq", 1)):
        stated = (root.integer(f"{CPU}/cpu{cpu}/{name}") for cpu in sorted(cpus))
        known = [value / factor for value in stated if value is not None]
        known = [megahertz for megahertz in known if 0 < megahertz <= _FASTEST]
        if known:
            return max(known)
    named = _IN_BRAND.search(brand or "")
    try:
        return float(named[1]) * 1000 if named else None
    except ValueError:
        return None
