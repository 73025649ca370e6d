"""A lock between processes, on a folder. It ends with its holder, however that ends."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator

_NAP = 0.02
"""Seconds between two tries."""


@contextlib.contextmanager
def locked(path: str, patience: float = 5.0) -> Iterator[bool]:
    """Whether the lock on the file ``path`` was had within ``patience`` seconds; it is held
    until the end of the block. The file stays."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        yield False
        return
    try:
        yield _patiently(handle, patience)
    finally:
        os.close(handle)


@contextlib.contextmanager
def alone(path: str) -> Iterator[bool]:
    """Whether no other process holds the lock on ``path``, which this one holds meanwhile;
    true as well where nothing can be locked."""
    with locked(path, 0.0) as held:
        yield held or not _is_held(path)


def _is_held(path: str) -> bool:
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        _take(handle)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def _patiently(handle: int, patience: float) -> bool:
    until = time.monotonic() + patience
    while True:
        try:
            _take(handle)
        except (BlockingIOError, PermissionError):
            if time.monotonic() > until:
                return False
            time.sleep(_NAP)
        except OSError:  # a file system without locks
            return False
        else:
            return True


if sys.platform == "win32":
    import msvcrt

    def _take(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _take(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
