"""How often CFS quotas stopped the processes of this process's control groups."""

from __future__ import annotations

from bitnet_tuning.host.cgroups import Cgroups
from bitnet_tuning.host.root import Root, as_integer
from bitnet_tuning.records import NamedTuple


class Throttling(NamedTuple):
    """Counters of one level, since that group was made."""

    level: str
    """The group's folder, which tells levels apart."""
    periods: int
    """Periods in which anything of the group ran."""
    throttled: int
    """Those of them in which the quota was used up."""
    seconds: float
    """How long CPUs stood still for it, summed over CPUs."""


def read_throttling(root: Root, groups: Cgroups) -> tuple[Throttling, ...]:
    """Every level that counts periods, innermost first; both versions of the interface."""
    levels = (_level(root, level) for level in (*groups.unified, *groups.cpu))
    return tuple(level for level in levels if level is not None)


def _level(root: Root, level: str) -> Throttling | None:
    """Version 2 gives ``throttled_usec``, version 1 ``throttled_time`` in nanoseconds."""
    stated: dict[str, int] = {}
    for line in (root.read(f"{level}/cpu.stat") or "").splitlines():
        key, _, value = line.partition(" ")
        number = as_integer(value.strip())
        if number is not None and number >= 0:
            stated[key] = number
    if not {"nr_periods", "nr_throttled"} <= stated.keys():
        return None
    seconds = stated.get("throttled_usec", 0) / 1e6 + stated.get("throttled_time", 0) / 1e9
    return Throttling(level, stated["nr_periods"], stated["nr_throttled"], seconds)
