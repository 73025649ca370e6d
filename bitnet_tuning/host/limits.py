"""What this process may use of the CPUs: affinity and CFS quotas."""

from __future__ import annotations

import os
from typing import NamedTuple

from bitnet_tuning.cpulist import parse_list
from bitnet_tuning.host.cgroups import Cgroups
from bitnet_tuning.host.root import Root


class Privileges(NamedTuple):
    """What this process may ask of the kernel."""

    lowest_nice: int
    """The lowest niceness (highest priority) that it may set, -20 to 20."""
    lockable: int | None
    """Bytes of memory that it may lock; None for no limit."""


def read_privileges() -> Privileges:
    """From the resource limits of this process; root is bound by neither."""
    try:
        import resource  # noqa: PLC0415
    except ImportError:  # Windows
        return Privileges(0, 0)
    if os.geteuid() == 0:
        return Privileges(-20, None)
    memlock = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    # setpriority(2): the ceiling of niceness is 20 minus this limit.
    ceiling = resource.getrlimit(resource.RLIMIT_NICE)[0] if hasattr(resource, "RLIMIT_NICE") else 0
    lowest = -20 if ceiling == resource.RLIM_INFINITY else 20 - ceiling
    return Privileges(lowest, None if memlock == resource.RLIM_INFINITY else memlock)


def allowed_cpus(root: Root, online: frozenset[int]) -> frozenset[int]:
    """Online CPUs in the affinity mask of this process (or of the dump's ``proc/self``)."""
    mask = _live_affinity() if root.live else _recorded_affinity(root)
    return (mask & online if mask else frozenset()) or online


def _live_affinity() -> frozenset[int] | None:
    try:
        return frozenset(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return None


def _recorded_affinity(root: Root) -> frozenset[int] | None:
    for line in (root.read("proc/self/status") or "").splitlines():
        key, _, value = line.partition(":")
        if key == "Cpus_allowed_list":
            try:
                return parse_list(value)
            except ValueError:
                return None
    return None


def cpu_quota(root: Root, groups: Cgroups) -> float | None:
    """The tightest CFS quota over this process, in CPUs; None where there is none.

    Every level up to the root of the hierarchy binds, not only the innermost.
    """
    quotas = [_quota_v2(root, level) for level in groups.unified]
    quotas += [_quota_v1(root, level) for level in groups.cpu]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_v2(root: Root, folder: str) -> float | None:
    """``cpu.max`` is "quota period" in microseconds, or "max period"."""
    words = (root.read(f"{folder}/cpu.max") or "").split()
    if not words or not words[0].isdecimal():
        return None
    period = int(words[1]) if len(words) > 1 and words[1].isdecimal() else 100_000
    return _ratio(int(words[0]), period)


def _quota_v1(root: Root, folder: str) -> float | None:
    quota = root.integer(f"{folder}/cpu.cfs_quota_us")
    period = root.integer(f"{folder}/cpu.cfs_period_us")
    return None if quota is None else _ratio(quota, 100_000 if period is None else period)


def _ratio(quota: int, period: int) -> float | None:
    return quota / period if quota > 0 and period > 0 else None
