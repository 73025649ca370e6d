"""The frequency governor."""

from __future__ import annotations

import re

from bitnet_tuning.host.root import Root
from bitnet_tuning.host.topology import CPU

_NAME = re.compile(r"[\w-]{1,16}", re.ASCII)
"""The kernel allows 16 bytes (CPUFREQ_NAME_LEN)."""


def read_governor(root: Root, cpus: frozenset[int]) -> str | None:
    """The governor of ``cpus``; several are joined by commas, most frequent first.

    None where the kernel shows none, as in virtual machines and WSL.
    """
    counts: dict[str, int] = {}
    for cpu in sorted(cpus):
        # CPUs without cpufreq may come before ones that have it.
        name = root.read(f"{CPU}/cpu{cpu}/cpufreq/scaling_governor") or ""
        if _NAME.fullmatch(name):
            counts[name] = counts.get(name, 0) + 1
    return ",".join(sorted(counts, key=lambda name: -counts[name])) or None
