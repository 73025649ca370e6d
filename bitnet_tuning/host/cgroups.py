"""Where the control groups of this process lie, for both versions of the interface."""

from __future__ import annotations

import re
from typing import NamedTuple

from bitnet_tuning.host.root import Root


class Cgroups(NamedTuple):
    """Folders (relative to the root folder) of each hierarchy, innermost first."""

    unified: tuple[str, ...]
    cpu: tuple[str, ...]
    memory: tuple[str, ...]


class Mount(NamedTuple):
    point: str
    origin: str
    """The part of the hierarchy that is mounted: "/" but in containers."""
    version: int
    controllers: frozenset[str]


def read_cgroups(root: Root) -> Cgroups:
    mounts = _mounts(root)
    paths = _paths(root)
    return Cgroups(
        _levels(_find(mounts, 2, ""), paths.get("", "/")),
        _levels(_find(mounts, 1, "cpu"), paths.get("cpu", "/")),
        _levels(_find(mounts, 1, "memory"), paths.get("memory", "/")),
    )


def _find(mounts: list[Mount], version: int, controller: str) -> Mount | None:
    for mount in mounts:
        if mount.version == version and (version == 2 or controller in mount.controllers):
            return mount
    return None


def _paths(root: Root) -> dict[str, str]:
    """Controller -> path within its hierarchy; "" stands for version 2."""
    paths: dict[str, str] = {}
    for line in (root.read("proc/self/cgroup") or "").splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3:
            paths.update((controller, fields[2]) for controller in fields[1].split(","))
    return paths


def _levels(mount: Mount | None, path: str) -> tuple[str, ...]:
    """The group's folder and each one above it up to the mount point."""
    if mount is None:
        return ()
    # A path that starts outside of what is mounted ("/..", or another container's)
    # leaves the mount point itself as the only folder that is certainly ours.
    inside = _below(path, mount.origin)
    parts = [part for part in inside.split("/") if part]
    if ".." in parts:
        parts = []
    point = mount.point.strip("/")
    return tuple("/".join([point, *parts[:depth]]) for depth in range(len(parts), -1, -1))


def _below(path: str, origin: str) -> str:
    if origin == "/":
        return path
    if path == origin or path.startswith(origin + "/"):
        return path[len(origin) :]
    return "/"


def _mounts(root: Root) -> list[Mount]:
    text = root.read("proc/self/mountinfo", 1 << 20)
    if text:
        return [mount for line in text.splitlines() if (mount := _from_mountinfo(line))]
    text = root.read("proc/self/mounts", 1 << 20) or root.read("proc/mounts", 1 << 20)
    mounts = [mount for line in (text or "").splitlines() if (mount := _from_mounts(line))]
    return mounts or _customary(root)


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
    version = 2 if kind == "cgroup2" else 1
    return Mount(_unescape(point), _unescape(origin), version, frozenset(options.split(",")))


def _unescape(path: str) -> str:
    """The kernel writes a space as ``\\040``."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), path)


def _customary(root: Root) -> list[Mount]:
    """Where distributions mount them, for a root folder without a mount table."""
    base = "sys/fs/cgroup"
    found = [Mount(base, "/", 2, frozenset())] if root.exists(f"{base}/cgroup.controllers") else []
    for name in ("cpu", "cpu,cpuacct", "memory"):
        if root.exists(f"{base}/{name}"):
            found.append(Mount(f"{base}/{name}", "/", 1, frozenset(name.split(","))))
    return found
