"""What the control groups of this process allow, by both versions of the interface."""

from __future__ import annotations

from bitnet_tuning.machine.mounts import Mount, read_mounts
from bitnet_tuning.machine.root import Root, as_integer
from bitnet_tuning.namedtuple import NamedTuple

_NO_LIMIT = 1 << 60
"""Version 1 writes "no limit" as about 2**63 rounded down to a page."""

_UNIFIED = ""
"""Stands for version 2, as in ``proc/self/cgroup``."""

_PERIOD = 100_000
"""Microseconds of a quota's period where none is stated."""


class Cgroups(NamedTuple):
    """Folders (relative to the root folder) of each hierarchy; of each mount innermost first.

    Every level up to the root of its hierarchy limits this process.
    """

    unified: tuple[str, ...] = ()
    """Version 2."""
    cpu: tuple[str, ...] = ()
    memory: tuple[str, ...] = ()


class Throttling(NamedTuple):
    """Counters of one level since that group was made."""

    level: str
    """The group's folder, which tells levels apart."""
    periods: int
    """Periods in which anything of the group ran."""
    throttled: int
    """Those of them in which the quota was used up."""
    seconds: float
    """How long CPUs stood still for it, summed over CPUs."""


class MemoryLimit(NamedTuple):
    """Bytes of one level."""

    limit: int
    used: int
    """Without inactive page cache, which the kernel drops before it denies memory."""


def read_cgroups(root: Root) -> Cgroups:
    """Return the levels of every hierarchy that limits CPUs or memory."""
    mounts = [mount for mount in read_mounts(root) if mount.kind in ("cgroup", "cgroup2")]
    mounts = mounts or _customary(root)
    paths = _paths(root)

    def levels(controller: str) -> tuple[str, ...]:
        showing = [mount for mount in mounts if controller in _controllers(mount)]
        return _levels(showing, paths.get(controller, "/"))

    return Cgroups(levels(_UNIFIED), levels("cpu"), levels("memory"))


def _controllers(mount: Mount) -> list[str]:
    return [_UNIFIED] if mount.kind == "cgroup2" else mount.options.split(",")


def _customary(root: Root) -> list[Mount]:
    """Return where distributions mount them, for a root folder without a mount table:
    version 2 alone or beside version 1, whose folders are named after their controllers."""
    base = "sys/fs/cgroup"
    found = [Mount(point, "cgroup2", "", "") for point in (base, f"{base}/unified")]
    names = sorted(root.names(base))
    return found + [Mount(f"{base}/{name}", "cgroup", "", name) for name in names]


def _paths(root: Root) -> dict[str, str]:
    """Return controller -> path of this process's group within its hierarchy."""
    paths: dict[str, str] = {}
    for line in (root.read("proc/self/cgroup") or "").splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3:
            paths.update((controller, fields[2]) for controller in fields[1].split(","))
    return paths


def _levels(mounts: list[Mount], path: str) -> tuple[str, ...]:
    """Return the group's folder and each one above it up to the mount point, for every mount
    that shows the group; a hierarchy may be mounted twice.

    Where none does ("/..", or a path of another container's namespace), the first mount's
    point is the only folder that may be ours.
    """
    showing = [mount for mount in mounts if _below(path, mount.origin) is not None] or mounts[:1]
    levels = []
    for mount in showing:
        parts = [part for part in (_below(path, mount.origin) or "").split("/") if part]
        point = mount.point.strip("/")
        levels += ["/".join([point, *parts[:depth]]) for depth in range(len(parts), -1, -1)]
    return tuple(dict.fromkeys(levels))


def _below(path: str, origin: str) -> str | None:
    """Return ``path`` as seen from ``origin``, or None where it lies elsewhere."""
    base = origin.rstrip("/")
    if ".." in path.split("/") or not f"{path}/".startswith(f"{base}/"):
        return None
    return path[len(base) :]


def read_quota(root: Root, groups: Cgroups) -> float | None:
    """Return the tightest CFS quota over this process, in CPUs; None where there is none.

    One file of version 2 says "quota period" or "max period", in microseconds.
    """
    stated = [(root.read(f"{level}/cpu.max") or "").split() for level in groups.unified]
    pairs = [(words[0], words[1] if len(words) > 1 else None) for words in stated if words]
    for level in groups.cpu:
        quota = root.read(f"{level}/cpu.cfs_quota_us") or ""
        pairs.append((quota, root.read(f"{level}/cpu.cfs_period_us")))
    numbers = [(as_integer(quota) or 0, as_integer(period)) for quota, period in pairs]
    quotas = [(quota, _PERIOD if period is None else period) for quota, period in numbers]
    return min(
        (quota / period for quota, period in quotas if quota > 0 and period > 0), default=None
    )


def read_memory_limits(root: Root, groups: Cgroups) -> list[MemoryLimit]:
    """Return the limit of each level that has one, and what is used of it."""
    found = []
    for version, levels in ((2, groups.unified), (1, groups.memory)):
        for level in levels:
            statistics = root.numbers(f"{level}/memory.stat", " ")
            if version == 2:
                stated = [root.integer(f"{level}/memory.{name}") for name in ("max", "high")]
                usage, dropped = "memory.current", statistics.get("inactive_file", 0)
            else:
                # The second is what levels outside of a container's mount leave.
                limit = root.integer(f"{level}/memory.limit_in_bytes")
                stated = [limit, statistics.get("hierarchical_memory_limit")]
                usage, dropped = "memory.usage_in_bytes", statistics.get("total_inactive_file", 0)
            limits = [limit for limit in stated if limit is not None and 0 <= limit < _NO_LIMIT]
            if limits:
                used = root.integer(f"{level}/{usage}") or 0
                found.append(MemoryLimit(min(limits), max(0, used - dropped)))
    return found


def read_throttling(root: Root, groups: Cgroups) -> tuple[Throttling, ...]:
    """Return the counters of every level that counts periods, innermost first.

    Version 2 gives ``throttled_usec``, version 1 ``throttled_time`` in nanoseconds.
    """
    found = []
    for level in (*groups.unified, *groups.cpu):
        stated = root.numbers(f"{level}/cpu.stat", " ")
        if {"nr_periods", "nr_throttled"} <= stated.keys():
            lost = stated.get("throttled_usec", 0) / 1e6 + stated.get("throttled_time", 0) / 1e9
            found.append(Throttling(level, stated["nr_periods"], stated["nr_throttled"], lost))
    return tuple(found)
