"""What the control groups of this process allow, by both versions of the interface."""

from __future__ import annotations

import re

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
    mounts = [each for each in read_mounts(root, "cgroup") if each.kind in ("cgroup", "cgroup2")]
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


_TABLE_BYTES = 1 << 20


class Mount(NamedTuple):
    """One line of the table."""

    point: str
    kind: str
    """File system as the kernel names it: ``ext4``, ``9p``, ``cgroup2``."""
    source: str
    options: str
    """Options of the file system; controllers, for version 1 control groups."""
    origin: str = "/"
    """The part of the file system that is mounted: "/" except in containers and bind mounts."""

    @property
    def windows(self) -> bool:
        """Whether it is a drive of the Windows around WSL: ``drvfs`` in version 1, in
        version 2 a 9p or virtiofs share whose source or options name the drive."""
        drive = self.source[1:2] == ":" and self.source[:1].isalpha()
        named = drive or "drvfs" in f"{self.source} {self.options}"
        return self.kind == "drvfs" or (self.kind in ("9p", "virtiofs") and named)


def read_mounts(root: Root, word: str = "") -> tuple[Mount, ...]:
    """Return the mounts whose line has ``word``, in the order in which they were made."""
    for name, parse in (
        ("proc/self/mountinfo", _from_mountinfo),
        ("proc/self/mounts", _from_mounts),
        ("proc/mounts", _from_mounts),
    ):
        lines = (root.read(name, _TABLE_BYTES) or "").splitlines()
        found = tuple(mount for line in lines if word in line and (mount := parse(line)))
        if found:
            return found
    return ()


def mount_holding(path: str, mounts: tuple[Mount, ...]) -> Mount | None:
    """Return the mount with the longest point above an absolute ``path``; of several on the
    same point the last, which hides the others."""
    above = [mount for mount in mounts if f"{path}/".startswith(f"{mount.point.rstrip('/')}/")]
    return max(reversed(above), key=lambda mount: len(mount.point), default=None)


def _from_mountinfo(line: str) -> Mount | None:
    """Parse ``36 35 0:31 ORIGIN POINT options … - kind source super-options`` (proc(5))."""
    left, dash, right = line.partition(" - ")
    fields, tail = left.split(), right.split()
    if not dash or len(fields) < 5 or len(tail) < 3:
        return None
    return _mount(fields[4], tail[0], tail[1], tail[2], fields[3])


def _from_mounts(line: str) -> Mount | None:
    fields = line.split()
    if len(fields) < 4:
        return None
    return _mount(fields[1], fields[2], fields[0], fields[3], "/")


def _mount(point: str, kind: str, source: str, options: str, origin: str) -> Mount:
    return Mount(_unescape(point), kind, _unescape(source), options, _unescape(origin))


def _unescape(path: str) -> str:
    """Replace the octal escapes that the kernel writes for spaces (``\\040``) and the like."""
    if "\\" not in path:
        return path
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), path)
