"""Small JSON records kept between runs, one file per record.

Every file is written beside its place and moved into it, so that readers and
other writers see whole records only. A record that cannot be read is set aside,
one that cannot be written is a warning: a run never fails over its memory.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping

from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.store.codec import DamagedError, from_json, to_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar

    T = TypeVar("T")

SCHEMA = 1
"""Version of the form that all records share: a key, a version of their own, and fields."""
_LARGEST = 1 << 22
_MODULUS = (1 << 64) - 59
"""The largest prime of 64 bits."""


def default_folder(environ: Mapping[str, str]) -> str:
    """Return BITNET_TUNING_HOME, else ``bitnet-tuning`` in the user's cache folder."""
    named = environ.get("BITNET_TUNING_HOME")
    if named:
        return os.path.abspath(named)
    cache = environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):  # to be ignored then (XDG base directory specification)
        cache = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(cache, "bitnet-tuning")


class State:
    """Records by kind and key. ``warning`` is set, once, when something could not be kept."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.warning: str | None = None

    def load(self, kind: str, key: str, record: type[T], version: int = 1) -> T | None:
        """Return the record stored under ``key``, or None. One of another version stays where
        it is; one that is damaged is set aside."""
        stored, found = self._read(self.path(kind, digest(key)), record, version)
        return found if stored == key else None

    def holds(self, kind: str) -> bool:
        """Return whether there may be records of a kind, at the cost of one look at the folder."""
        try:
            return any(name.startswith(f"{kind}-") for name in os.listdir(self.folder))
        except OSError:
            return False

    def load_all(self, kind: str, record: type[T], version: int = 1) -> dict[str, T]:
        """Return every record of a kind by the digest of its key, read as ``load`` does."""
        try:
            names = sorted(os.listdir(self.folder))
        except OSError:
            return {}
        found = {}
        for name in names:
            if name.startswith(f"{kind}-") and name.endswith(".json"):
                mark = name[len(kind) + 1 : -5]
                key, read = self._read(self.path(kind, mark), record, version)
                if read is not None and digest(key) == mark:
                    found[mark] = read
        return found

    def _read(self, path: str, record: type[T], version: int) -> tuple[str, T | None]:
        """Return the key as well."""
        try:
            with open(path, "rb") as file:
                fields: Any = read_json(file.read(_LARGEST).decode())
            if not isinstance(fields, dict):
                raise DamagedError("not an object")
            if (fields.pop("schema", None), fields.pop("version", 1)) != (SCHEMA, version):
                return "", None
            key = fields.pop("key", None)
            if not isinstance(key, str):
                raise DamagedError("missing", ".key")
            return key, from_json(record, fields)
        except FileNotFoundError:
            pass
        except OSError as error:
            self.warn(f"cannot read {path}: {error.strerror}")
        except DamagedError as error:
            self.set_aside(path, str(error))
        except (ValueError, RecursionError):
            self.set_aside(path, "no JSON")
        return "", None

    def store(self, kind: str, key: str, record: object, version: int = 1) -> bool:
        """Replace what is stored under ``key``. Return whether it could be kept."""
        path = self.path(kind, digest(key))
        import json  # noqa: PLC0415 (a run whose cache is full writes nothing)

        fields = {"schema": SCHEMA, "version": version, "key": key, **to_json(record)}
        try:
            os.makedirs(self.folder, exist_ok=True)
            write_atomically(path, json.dumps(fields, indent=1).encode())
        except OSError as error:
            self.warn(f"cannot keep what was found in {self.folder}: {error.strerror}")
            return False
        return True

    def path(self, kind: str, mark: str) -> str:
        """Return the file of the record whose key has this digest."""
        return os.path.join(self.folder, f"{kind}-{mark}.json")

    def set_aside(self, path: str, why: str) -> None:
        """Rename a file that is of no use, for whoever wants to look at it."""
        self.warn(f"{path} cannot be used ({why}): set aside as {os.path.basename(path)}.broken")
        try:
            os.replace(path, path + ".broken")
        except OSError:
            pass

    def warn(self, text: str) -> None:
        """Keep the first warning."""
        self.warning = self.warning or text


def read_json(text: str) -> Any:
    """Return what a JSON text holds. Raise ValueError for anything else.

    Importing ``json`` compiles its patterns, which takes a start a whole millisecond, so
    CPython's scanner is called without it.
    """
    try:
        from _json import make_scanner  # noqa: PLC0415 (other Pythons have none)
    except ImportError:
        import json  # noqa: PLC0415

        return json.loads(text)
    text = text.strip()
    try:
        value, end = make_scanner(_Scanner)(text, 0)  # type: ignore[arg-type]
    except StopIteration as error:
        raise ValueError("no JSON") from error
    if end != len(text):
        raise ValueError("something follows the JSON text")
    return value


class _Scanner:
    """What the scanner asks of a ``json.JSONDecoder``."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int, parse_constant = float, int, float


def digest(key: str) -> str:
    """Return 16 hexadecimal digits; unlike hashlib's, at no cost for an import. Two keys that
    were not made for it meet once in 2**64."""
    return f"{int.from_bytes(os.fsencode(key), 'big') % _MODULUS:016x}"


def write_atomically(path: str, data: bytes) -> None:
    """Replace ``path`` in one step. Raise OSError and leave nothing behind on failure."""
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


@contextlib.contextmanager
def alone(path: str) -> Iterator[bool]:
    """Hold the lock on the file ``path`` for the block. Yield False if another process holds
    it; True as well where nothing can be locked. The file stays."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        yield True
        return
    try:
        yield hold(handle)
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


if sys.platform == "win32":
    import msvcrt

    def _take(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _take(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


class FileIdentity(NamedTuple):
    """How a file is told from its later versions."""

    path: str
    size: int
    """Bytes."""
    modified: int
    """Nanoseconds since 1970."""


def identity(path: str) -> FileIdentity:
    """Return what the file is like now. Raise OSError."""
    seen = os.stat(path)
    return FileIdentity(path, seen.st_size, seen.st_mtime_ns)
