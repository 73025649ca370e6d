"""Performance and efficiency cores, and how fast each is against the fastest."""

from __future__ import annotations

from itertools import pairwise

from bitnet_tuning.host.root import Root
from bitnet_tuning.host.topology import CPU, Core
from bitnet_tuning.records import NamedTuple

APART = 1.2
"""Ratio of neighbouring speeds from which on they are two kinds of core.

Favoured cores of one kind differ by up to 1.09 (Ryzen 7950X3D: 5.7 and 5.25 GHz);
kinds by at least 1.25 (Core Ultra 155U: 4.8 and 3.8 GHz; GB10: capacities 997 and 731).
"""

INTEL_EFFICIENCY_SHARE = 0.5
"""Work per clock of an Intel efficiency core on 256-bit integer code, against a
performance core: its vector units are 128 bits wide (Intel Optimization Manual)."""

INTEL_EFFICIENCY_SPEED = 0.4
"""The same with a typical clock ratio of 0.8, for hosts that show no frequencies."""


class Hybrid(NamedTuple):
    performance_cores: int
    efficiency_cores: int
    performance_cpus: frozenset[int]
    efficiency_cpus: frozenset[int]


def read_kinds(
    root: Root, cores: tuple[Core, ...], vendor: str | None
) -> tuple[Hybrid | None, tuple[Core, ...]]:
    """The split into kinds, or None, and the cores with their speeds filled in.

    Asked in turn: the kernel's own lists on Intel, the scheduler's capacities on
    ARM, maximum frequencies.
    """
    frequencies = _per_core(root, cores, "cpufreq/cpuinfo_max_freq")
    listed = _intel_efficiency_cpus(root, cores)
    if listed:
        return _split(cores, _intel_speeds(cores, listed, frequencies), listed)
    capacities = _per_core(root, cores, "cpu_capacity")
    slow = _slower_kind(cores, capacities)
    if capacities and slow:
        return _split(cores, capacities, slow)
    slow = _slower_kind(cores, frequencies)
    if not frequencies or not slow:
        return None, cores
    is_intel = vendor == "GenuineIntel"
    return _split(cores, _intel_speeds(cores, slow, frequencies) if is_intel else frequencies, slow)


def _intel_efficiency_cpus(root: Root, cores: tuple[Core, ...]) -> frozenset[int]:
    """CPUs of cpu_atom and cpu_lowpower, where both these and cpu_core have some online."""
    online = frozenset(cpu for core in cores for cpu in core.cpus)
    fast = root.cpus("sys/devices/cpu_core/cpus") or frozenset()
    atom = root.cpus("sys/devices/cpu_atom/cpus") or frozenset()
    low_power = root.cpus("sys/devices/cpu_lowpower/cpus") or frozenset()
    slow = (atom | low_power) & online - fast
    return slow if fast & online else frozenset()


def _per_core(root: Root, cores: tuple[Core, ...], name: str) -> list[float]:
    """One figure per core (the largest of its CPUs), or nothing where any core has none:
    a missing figure must not pass for a slow core."""
    values: list[float] = []
    for core in cores:
        read = (root.integer(f"{CPU}/cpu{cpu}/{name}") for cpu in sorted(core.cpus))
        known = [value for value in read if value is not None and value > 0]
        if not known:
            return []
        values.append(float(max(known)))
    return values


def _slower_kind(cores: tuple[Core, ...], values: list[float]) -> frozenset[int]:
    """CPUs below the first clear gap from the top; capacities differ from CPU to CPU
    within a kind, so a value is no kind."""
    ranked = sorted(set(values), reverse=True)
    for above, below in pairwise(ranked):
        if above / below >= APART:
            slow = (core.cpus for core, value in zip(cores, values, strict=True) if value <= below)
            return frozenset().union(*slow)
    return frozenset()


def _intel_speeds(
    cores: tuple[Core, ...], slow: frozenset[int], frequencies: list[float]
) -> list[float]:
    if not frequencies:
        return [INTEL_EFFICIENCY_SPEED if core.cpus & slow else 1.0 for core in cores]
    return [
        hertz * (INTEL_EFFICIENCY_SHARE if core.cpus & slow else 1.0)
        for core, hertz in zip(cores, frequencies, strict=True)
    ]


def _split(
    cores: tuple[Core, ...], speeds: list[float], slow: frozenset[int]
) -> tuple[Hybrid, tuple[Core, ...]]:
    """Within the fast kind all speeds count as equal: favoured cores are no kind."""
    top = max(speeds)
    rated = tuple(
        core._replace(speed=speed / top if core.cpus & slow else 1.0)
        for core, speed in zip(cores, speeds, strict=True)
    )
    efficient = [core for core in cores if core.cpus & slow]
    fast = frozenset(cpu for core in cores for cpu in core.cpus) - slow
    return Hybrid(len(cores) - len(efficient), len(efficient), fast, slow), rated
