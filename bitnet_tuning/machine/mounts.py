"""Which file system a path lies in."""

from __future__ import annotations

import re

from bitnet_tuning.machine.root import Root, unescape
from bitnet_tuning.namedtuple import NamedTuple

_TABLE_BYTES = 1 << 20

_DRIVE = re.compile(r"[A-Za-z]:")


class FileSystem(NamedTuple):
    """One mount."""

    point: str
    kind: str
    """As the kernel names it: ``ext4``, ``9p``."""
    source: str
    options: str

    @property
    def windows(self) -> bool:
        """Whether it is a drive of the Windows around WSL: ``drvfs`` in version 1, in
        version 2 a 9p or virtiofs share whose source or options name the drive."""
        named = "drvfs" in f"{self.source} {self.options}" or _DRIVE.match(self.source)
        return self.kind == "drvfs" or (self.kind in ("9p", "virtiofs") and bool(named))


def read_mounts(root: Root) -> tuple[FileSystem, ...]:
    """In the order in which they were mounted; empty where there is no table."""
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


def holding(path: str, mounts: tuple[FileSystem, ...]) -> FileSystem | None:
    """The mount with the longest point above an absolute ``path``; of several on the same
    point the last, which hides the others."""
    above = [mount for mount in mounts if f"{path}/".startswith(f"{mount.point.rstrip('/')}/")]
    return max(reversed(above), key=lambda mount: len(mount.point), default=None)


def _from_mountinfo(line: str) -> FileSystem | None:
    """``36 35 0:31 ORIGIN POINT options … - kind source super-options`` (proc(5))."""
    left, dash, right = line.partition(" - ")
    fields, tail = left.split(), right.split()
    if not dash or len(fields) < 5 or len(tail) < 3:
        return None
    return FileSystem(unescape(fields[4]), tail[0], unescape(tail[1]), tail[2])


def _from_mounts(line: str) -> FileSystem | None:
    fields = line.split()
    if len(fields) < 4:
        return None
    return FileSystem(unescape(fields[1]), fields[2], unescape(fields[0]), fields[3])
