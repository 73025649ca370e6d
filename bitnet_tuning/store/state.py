"""Small JSON records kept between runs, one file per record.

Every file is written beside its place and moved into it, so that readers and
other writers see whole records only. A record that cannot be read is set aside,
one that cannot be written is a warning: a run never fails over its memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Record = dict[str, Any]
    Shape = Mapping[str, type | tuple[type, ...]]


SCHEMA = 1
_LARGEST = 1 << 22
_MODULUS = (1 << 64) - 59
"""The largest prime of 64 bits."""


def default_folder(environ: Mapping[str, str]) -> str:
    """BITNET_TUNING_HOME, else ``bitnet-tuning`` in the user's cache folder."""
    named = environ.get("BITNET_TUNING_HOME")
    if named:
        return os.path.abspath(named)
    cache = environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):  # to be ignored then (XDG base directory specification)
        cache = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(cache, "bitnet-tuning")


ABSENT = type(None)
"""In a shape: what null becomes."""


class State:
    """Records by kind and key. ``warning`` is set, once, when something could not be kept."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.warning: str | None = None

    def load(self, kind: str, key: str, shape: Shape | None = None) -> Record | None:
        """The record stored under ``key``, or None. One without the fields of ``shape``, or
        with others' types in them, is set aside."""
        record = self._read(self.path(kind, digest(key)), shape or {})
        return record if record is not None and record["key"] == key else None

    def load_all(self, kind: str, shape: Shape) -> dict[str, Record]:
        """Every record of a kind by the digest of its key, read as ``load`` does."""
        try:
            names = sorted(os.listdir(self.folder))
        except OSError:
            return {}
        marks = [
            name[len(kind) + 1 : -5]
            for name in names
            if name.startswith(f"{kind}-") and name.endswith(".json")
        ]
        found = {mark: self._read(self.path(kind, mark), shape) for mark in marks}
        return {mark: record for mark, record in found.items() if record is not None}

    def _read(self, path: str, shape: Shape) -> Record | None:
        try:
            with open(path, "rb") as file:
                record: Record = json.loads(file.read(_LARGEST))
        except FileNotFoundError:
            return None
        except OSError as error:
            self.warn(f"cannot read {path}: {error.strerror}")
            return None
        except (ValueError, RecursionError):
            self.set_aside(path)
            return None
        if isinstance(record, dict) and record.get("schema") != SCHEMA:
            return None
        if not _fits(record, {"key": str, **shape}):
            self.set_aside(path)
            return None
        return record

    def store(self, kind: str, key: str, record: Mapping[str, Any]) -> bool:
        """Whether it could be kept; replaces what is stored under ``key``."""
        path = self.path(kind, digest(key))
        text = json.dumps({"schema": SCHEMA, "key": key, **record}, indent=1)
        try:
            os.makedirs(self.folder, exist_ok=True)
            write_atomically(path, text.encode())
        except OSError as error:
            self.warn(f"cannot keep what was found in {self.folder}: {error.strerror}")
            return False
        return True

    def path(self, kind: str, mark: str) -> str:
        """The file of the record whose key has this digest."""
        return os.path.join(self.folder, f"{kind}-{mark}.json")

    def set_aside(self, path: str) -> None:
        self.warn(f"{path} was damaged and is set aside as {os.path.basename(path)}.broken")
        try:
            os.replace(path, path + ".broken")
        except OSError:
            pass

    def warn(self, text: str) -> None:
        self.warning = self.warning or text


def digest(key: str) -> str:
    """16 hexadecimal digits; unlike hashlib's, at no cost for an import. Two keys that were
    not made for it meet once in 2**64."""
    return f"{int.from_bytes(os.fsencode(key), 'big') % _MODULUS:016x}"


def _fits(record: object, shape: Shape) -> bool:
    return isinstance(record, dict) and all(
        name in record and isinstance(record[name], kinds) for name, kinds in shape.items()
    )


def write_atomically(path: str, data: bytes) -> None:
    """Replaces ``path`` in one step; raises OSError and leaves nothing behind on failure."""
    # Process ids are not enough: containers that share the folder may all be number 1.
    draft = f"{path}.{os.urandom(6).hex()}.tmp"
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        with open(handle, "wb") as file:
            file.write(data)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


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
        return not hold(handle)
    finally:
        os.close(handle)


def hold(handle: int) -> bool:
    """Take the lock on an open file until it is closed; return False if another process holds
    it, and True as well if the file system knows no locks."""
    try:
        _take(handle)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass
    return True


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


def identity(path: str) -> list[object]:
    """Path, size in bytes and modification time in nanoseconds; raises OSError."""
    seen = os.stat(path)
    return [path, seen.st_size, seen.st_mtime_ns]
