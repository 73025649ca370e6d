"""The table of mounted file systems."""

from __future__ import annotations

import re

from bitnet_tuning.machine.root import Root
from bitnet_tuning.namedtuple import NamedTuple

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


def read_mounts(root: Root) -> tuple[Mount, ...]:
    """Return the mounts in the order in which they were made; empty where there is no table."""
    for name, parse in (
        ("proc/self/mountinfo", _from_mountinfo),
        ("proc/self/mounts", _from_mounts),
        ("proc/mounts", _from_mounts),
    ):
        lines = (root.read(name, _TABLE_BYTES) or "").splitlines()
        found = tuple(mount for line in lines if (mount := parse(line)))
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
