"""The frequency governor."""

from __future__ import annotations

from bitnet_tuning.host.root import Root
from bitnet_tuning.host.topology import CPU


def read_governor(root: Root, cpus: frozenset[int]) -> str | None:
    """The governor of ``cpus``; several are joined by commas, most frequent first.

    None where the kernel shows none, as in virtual machines and WSL.
    """
    counts: dict[str, int] = {}
    for cpu in sorted(cpus):
        name = root.read(f"{CPU}/cpu{cpu}/cpufreq/scaling_governor")
        if name:
            counts[name] = counts.get(name, 0) + 1
        elif not counts and not root.exists(f"{CPU}/cpu{cpu}/cpufreq"):
            return None
    return ",".join(sorted(counts, key=lambda name: -counts[name])) or None
