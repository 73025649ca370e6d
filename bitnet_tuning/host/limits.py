"""What this process may use of the CPUs: affinity and CFS quotas."""

from __future__ import annotations

import os

from bitnet_tuning.cpulist import parse_list
from bitnet_tuning.host.cgroups import Cgroups
from bitnet_tuning.host.root import Root


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
