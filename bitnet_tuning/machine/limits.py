"""What this process may use of the CPUs: affinity and CFS quotas."""

from __future__ import annotations

import os

from bitnet_tuning.machine.cgroups import Cgroups
from bitnet_tuning.machine.root import Root, as_integer, parse_list, parse_mask
from bitnet_tuning.namedtuple import NamedTuple

_CAP_IPC_LOCK, _CAP_SYS_NICE = 1 << 14, 1 << 23
"""Bits of CapEff (linux/capability.h)."""


class Privileges(NamedTuple):
    """What this process may ask of the kernel."""

    lowest_nice: int
    """The lowest niceness (highest priority) that it may set, -20 to 20."""
    lockable: int | None
    """Bytes of memory that it may lock; None for no limit."""


def read_privileges(root: Root | None = None) -> Privileges:
    """From the resource limits and capabilities of this process."""
    try:
        import resource  # noqa: PLC0415
    except ImportError:  # Windows
        return Privileges(0, 0)
    held = _capabilities(root or Root())
    memlock = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    # setpriority(2): the ceiling of niceness is 20 minus this limit.
    ceiling = resource.getrlimit(resource.RLIMIT_NICE)[0] if hasattr(resource, "RLIMIT_NICE") else 0
    any_nice = held & _CAP_SYS_NICE or ceiling == resource.RLIM_INFINITY
    any_lock = held & _CAP_IPC_LOCK or memlock == resource.RLIM_INFINITY
    return Privileges(-20 if any_nice else 20 - ceiling, None if any_lock else memlock)


def _capabilities(root: Root) -> int:
    """The effective ones: root in a container lacks some, and those that a user namespace
    grants do not count for priorities and locks. Where there are none, root may do all."""
    try:
        effective = int(root.fields("proc/self/status")["CapEff"], 16)
    except (KeyError, ValueError):
        return -1 if os.geteuid() == 0 else 0
    mapped = (root.read("proc/self/uid_map") or "").split()
    return effective if mapped in ([], ["0", "0", "4294967295"]) else 0


def allowed_cpus(root: Root, online: frozenset[int]) -> frozenset[int]:
    """Online CPUs in the affinity mask of this process (or of the dump's ``proc/self``)."""
    mask = _live_affinity() if root.live else _recorded_affinity(root)
    return (mask & online if mask else frozenset()) or online


def memory_nodes(root: Root) -> frozenset[int] | None:
    """NUMA nodes whose memory this process may use (cpuset(7)); None where not stated."""
    try:
        return parse_list(root.fields("proc/self/status")["Mems_allowed_list"]) or None
    except (KeyError, ValueError):
        return None


def _live_affinity() -> frozenset[int] | None:
    try:
        return frozenset(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return None


def _recorded_affinity(root: Root) -> frozenset[int] | None:
    stated = root.fields("proc/self/status")
    for key, parse in (("Cpus_allowed_list", parse_list), ("Cpus_allowed", parse_mask)):
        try:
            return parse(stated[key])
        except (KeyError, ValueError):
            continue
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
    quota = as_integer(words[0]) if words else None
    period = as_integer(words[1]) if len(words) > 1 else None
    return None if quota is None else _ratio(quota, 100_000 if period is None else period)


def _quota_v1(root: Root, folder: str) -> float | None:
    quota = root.integer(f"{folder}/cpu.cfs_quota_us")
    period = root.integer(f"{folder}/cpu.cfs_period_us")
    return None if quota is None else _ratio(quota, 100_000 if period is None else period)


def _ratio(quota: int, period: int) -> float | None:
    return quota / period if quota > 0 and period > 0 else None


class LockLimit(NamedTuple):
    """``size`` in bytes; None for no limit."""

    size: int | None


def read_lock_limit(root: Root) -> LockLimit | None:
    """This process's own on a live system, else what ``proc/self/limits`` recorded. None
    where neither tells."""
    if root.live:
        return None if os.name == "nt" else LockLimit(read_privileges(root).lockable)
    for line in (root.read("proc/self/limits") or "").splitlines():
        if line.startswith("Max locked memory"):
            words = line.split()
            soft = words[3] if len(words) > 3 else ""
            size = as_integer(soft)
            return LockLimit(size) if size is not None or soft == "unlimited" else None
    return None
