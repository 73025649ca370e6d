"""How much memory this process may lock."""

from __future__ import annotations

import os

from bitnet_tuning.host.limits import read_privileges
from bitnet_tuning.host.root import Root, as_integer
from bitnet_tuning.records import NamedTuple


class LockLimit(NamedTuple):
    """``size`` in bytes; None for no limit."""

    size: int | None


def read_lock_limit(root: Root) -> LockLimit | None:
    """This process's own on a live system, else what ``proc/self/limits`` recorded. None
    where neither tells."""
    if root.live:
        return None if os.name == "nt" else LockLimit(read_privileges(root).lockable)
    return lock_limit_in(root, "proc/self")


def lock_limit_in(root: Root, folder: str) -> LockLimit | None:
    """What the kernel shows for one process."""
    for line in (root.read(f"{folder}/limits") or "").splitlines():
        if line.startswith("Max locked memory"):
            words = line.split()
            soft = words[3] if len(words) > 3 else ""
            size = as_integer(soft)
            return LockLimit(size) if size is not None or soft == "unlimited" else None
    return None
