"""Where the control groups of this process lie, for both versions of the interface."""

from __future__ import annotations

from bitnet_tuning.machine.root import Root, as_integer, unescape
from bitnet_tuning.namedtuple import NamedTuple


class Cgroups(NamedTuple):
    """Folders (relative to the root folder) of each hierarchy; of each mount innermost first."""

    unified: tuple[str, ...]
    cpu: tuple[str, ...]
    memory: tuple[str, ...]


class Mount(NamedTuple):
    point: str
    origin: str
    """The part of the hierarchy that is mounted: "/" but in containers."""
    version: int
    controllers: frozenset[str]
    """Of version 1; version 2 has all of them in one hierarchy."""


def read_cgroups(root: Root) -> Cgroups:
    mounts = _mounts(root)
    paths = _paths(root)
    return Cgroups(
        _folders([mount for mount in mounts if mount.version == 2], paths.get("", "/")),
        _folders([mount for mount in mounts if "cpu" in mount.controllers], paths.get("cpu", "/")),
        _folders(
            [mount for mount in mounts if "memory" in mount.controllers], paths.get("memory", "/")
        ),
    )


def _folders(mounts: list[Mount], path: str) -> tuple[str, ...]:
    """The levels of each mount that shows the group; a hierarchy may be mounted twice.

    Where none does ("/..", or a path of another container's namespace), the first mount's
    point is the only folder that may be ours.
    """
    showing = [mount for mount in mounts if _below(path, mount.origin) is not None] or mounts[:1]
    levels = (level for mount in showing for level in _levels(mount, path))
    return tuple(dict.fromkeys(levels))


def _paths(root: Root) -> dict[str, str]:
    """Controller -> path within its hierarchy; "" stands for version 2."""
    paths: dict[str, str] = {}
    for line in (root.read("proc/self/cgroup") or "").splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3:
            paths.update((controller, fields[2]) for controller in fields[1].split(","))
    return paths


def _levels(mount: Mount, path: str) -> tuple[str, ...]:
    """The group's folder and each one above it up to the mount point."""
    parts = [part for part in (_below(path, mount.origin) or "").split("/") if part]
    point = mount.point.strip("/")
    return tuple("/".join([point, *parts[:depth]]) for depth in range(len(parts), -1, -1))


def _below(path: str, origin: str) -> str | None:
    """``path`` as seen from ``origin``, or None where it lies elsewhere."""
    base = origin.rstrip("/")
    if ".." in path.split("/") or not f"{path}/".startswith(f"{base}/"):
        return None
    return path[len(base) :]


def _mounts(root: Root) -> list[Mount]:
    for name, parse in (
        ("proc/self/mountinfo", _from_mountinfo),
        ("proc/self/mounts", _from_mounts),
        ("proc/mounts", _from_mounts),
    ):
        lines = (root.read(name, 1 << 20) or "").splitlines()
        mounts = [mount for line in lines if (mount := parse(line))]
        if mounts:
            return mounts
    return _customary(root)


def _from_mountinfo(line: str) -> Mount | None:
    """``36 35 0:31 ORIGIN POINT options … - cgroup source super-options`` (proc(5))."""
    left, dash, right = line.partition(" - ")
    fields, tail = left.split(), right.split()
    if not dash or len(fields) < 5 or len(tail) < 3:
        return None
    return _mount(fields[4], fields[3], tail[0], tail[2])


def _from_mounts(line: str) -> Mount | None:
    fields = line.split()
    return _mount(fields[1], "/", fields[2], fields[3]) if len(fields) >= 4 else None


def _mount(point: str, origin: str, kind: str, options: str) -> Mount | None:
    if kind not in ("cgroup", "cgroup2"):
        return None
    if kind == "cgroup2":
        return Mount(unescape(point), unescape(origin), 2, frozenset())
    return Mount(unescape(point), unescape(origin), 1, frozenset(options.split(",")))


def _customary(root: Root) -> list[Mount]:
    """Where distributions mount them, for a root folder without a mount table: version 2
    alone or beside version 1, whose folders are named after their controllers."""
    base = "sys/fs/cgroup"
    found = [Mount(point, "/", 2, frozenset()) for point in (base, f"{base}/unified")]
    found += [
        Mount(f"{base}/{name}", "/", 1, frozenset(name.split(",")))
        for name in sorted(root.names(base))
    ]
    return found


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
