"""Keep small records between runs, each in a JSON file of its own, which is replaced atomically, so
that other processes see only complete records. A damaged file is renamed, and a record that cannot
be written leads to a warning: neither stops a run."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping

from bitnet_tuning.errors import MissingError
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.store.codec import DamagedError, from_json, to_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, BinaryIO, TypeVar

    T = TypeVar("T")

SCHEMA = 1
"""Version of the format that all files share: a key, the record's own version, and its fields."""
_LARGEST = 1 << 22
"""Largest size of a file in bytes."""
_FAR = 1 << 40
"""Place to lock in a file that is written: on Windows nobody else can write a locked byte."""
_MODULUS = (1 << 64) - 59
"""The largest prime number of 64 bits."""


def default_folder(environ: Mapping[str, str]) -> str:
    """Return the folder for records: BITNET_TUNING_HOME, or one in the user's cache folder."""
    if named := environ.get("BITNET_TUNING_HOME"):
        return os.path.abspath(os.path.expanduser(named))
    cache = environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):  # then it must be ignored (XDG base directory specification)
        cache = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(cache, "bitnet-tuning")


class State:
    """Records in a folder, by default ``default_folder``. ``warning`` is the first problem."""

    def __init__(self, folder: str = "") -> None:
        self.folder = folder or default_folder(os.environ)
        self.warning: str | None = None

    def load(self, kind: str, key: str, record: type[T], version: int = 1) -> T | None:
        """Return the record stored under ``key``, or None. A file of another version is left alone,
        a damaged one is renamed."""
        stored, found = self._read(self.path(kind, digest(key)), record, version)
        return found if stored == key else None

    def holds(self, kind: str) -> bool:
        """Return whether there may be records of a kind, by the names of the files."""
        try:
            return any(name.startswith(f"{kind}-") for name in os.listdir(self.folder))
        except OSError:
            return False

    def load_all(self, kind: str, record: type[T], version: int = 1) -> dict[str, T]:
        """Return all records of a kind by the digests of their keys, as ``load`` reads them."""
        from glob import escape, glob  # noqa: PLC0415 (only few commands list records)

        found = {}
        for path in sorted(glob(os.path.join(escape(self.folder), f"{kind}-*.json"))):
            key, read = self._read(path, record, version)
            if read is not None and path == self.path(kind, digest(key)):
                found[digest(key)] = read
        return found

    def _read(self, path: str, record: type[T], version: int) -> tuple[str, T | None]:
        """Return the key and the record in a file; an empty key and None if there is none."""
        try:
            with open(path, "rb") as file:
                fields: Any = _read_json(file.read(_LARGEST).decode())
            if not isinstance(fields, dict):
                raise DamagedError("not a JSON object")
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
            self.set_aside(path, "not JSON")
        return "", None

    def store(self, kind: str, key: str, record: object, version: int = 1) -> bool:
        """Store a record under ``key``, in place of an earlier one. Return whether that worked."""
        path = self.path(kind, digest(key))
        import json  # noqa: PLC0415 (most runs find all their records and write none)

        fields = {"schema": SCHEMA, "version": version, "key": key, **to_json(record)}
        try:
            os.makedirs(self.folder, exist_ok=True)
            write_atomically(path, json.dumps(fields, indent=1).encode())
        except OSError as error:
            remedy = "set BITNET_TUNING_HOME to a folder that can be written"
            self.warn(f"cannot save what was found in {self.folder} ({error.strerror}); {remedy}")
            return False
        return True

    def path(self, kind: str, mark: str) -> str:
        """Return the path of the record whose key has the digest ``mark``."""
        return os.path.join(self.folder, f"{kind}-{mark}.json")

    def set_aside(self, path: str, why: str) -> None:
        """Append ``.broken`` to the name of a file that cannot be used, and warn about it."""
        self.warn(f"{path} cannot be used ({why}); renamed to {os.path.basename(path)}.broken")
        with contextlib.suppress(OSError):
            os.replace(path, path + ".broken")

    def warn(self, text: str) -> None:
        """Set ``warning`` unless there is one already."""
        self.warning = self.warning or text


def _read_json(text: str) -> Any:
    """Return the value of a JSON text. Raise ValueError if it is not JSON."""
    # Importing ``json`` compiles regular expressions, which takes 1 ms at every start, so this
    # calls CPython's scanner directly.
    try:
        from _json import make_scanner  # noqa: PLC0415 (only CPython has it)
    except ImportError:
        import json  # noqa: PLC0415

        return json.loads(text)
    text = text.strip()
    try:
        value, end = make_scanner(_Scanner)(text, 0)  # type: ignore[arg-type]
    except (StopIteration, SystemError) as error:
        # Before Python 3.12, the scanner fails with SystemError unless ``json`` is imported.
        raise ValueError("not JSON") from error
    if end != len(text):
        raise ValueError("something follows the JSON text")
    return value


class _Scanner:
    """The attributes of a ``json.JSONDecoder`` that the scanner reads."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int, parse_constant = float, int, float


def digest(key: str) -> str:
    """Return 16 hexadecimal digits that identify a key."""
    # Importing hashlib would slow the start. Two keys have the same digest with a probability of
    # 2**-64, unless somebody makes them so; then one replaces the other.
    return f"{int.from_bytes(os.fsencode(key), 'big') % _MODULUS:016x}"


def moment(ago: float = 0) -> str:
    """Return the time some seconds ago as a ``Moment`` of the codec."""
    return moment_of(time.time() - ago)


def moment_of(seconds: float) -> str:
    """Return seconds since 1970 as a ``Moment``. Raise OverflowError, ValueError or OSError if
    there is no such date."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def read_file(path: str, what: str, remedy: str, most: int = -1) -> bytes:
    """Return a file's first ``most`` bytes, by default all. Raise MissingError, which names the
    file as ``what``, if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(most)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise MissingError(f"cannot read {what}: {why}", remedy) from error


def _is_stdout(path: str) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(sys.stdout.fileno()))
    except (AttributeError, OSError, ValueError):
        return False


def is_special(path: str) -> bool:
    """Return whether ``path`` is a device, a pipe or our stdout instead of a file to replace."""
    return _is_stdout(path) or (os.path.exists(path) and not os.path.isfile(path))


def write_atomically(path: str, data: bytes) -> None:
    """Replace the file ``path`` in one step, or write into what ``is_special``; links stay. Raise
    OSError on failure, and leave no other file."""
    if is_special(path):
        is_ours = _is_stdout(path)  # only its own handle knows the place in a file
        if is_ours:
            sys.stdout.flush()
        with open(sys.stdout.fileno() if is_ours else path, "wb", closefd=not is_ours) as file:
            file.write(data)
        return
    path = os.path.realpath(path)
    # A process id would not be unique: containers that share the folder may all run as process 1.
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
    """Take the lock on the file ``path`` for the block; yield False if another process holds it.
    Yield True if the file cannot be created or locked at all. The file is not removed."""
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
    """Take the lock on an open file until it is closed; return False if another process holds it.
    Return True if the file system has no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt  # noqa: PLC0415

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl  # noqa: PLC0415

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass
    return True


def hold_named(file: BinaryIO, path: str) -> bool:
    """Take the lock on an open file until it is closed. Return False if another process has it, or
    has given the file another name than ``path`` meanwhile."""
    file.seek(_FAR)
    try:
        return hold(file.fileno()) and os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


class FileIdentity(NamedTuple):
    """What tells a file from earlier and later versions of it."""

    path: str
    size: int
    """Size in bytes."""
    modified: int
    """Modification time in nanoseconds since 1970."""


def identity(path: str) -> FileIdentity:
    """Return the present identity of a file. Raise OSError if it cannot be read."""
    seen = os.stat(path)
    return FileIdentity(path, seen.st_size, seen.st_mtime_ns)


def change_of(path: str, size: int, modified: int) -> str | None:
    """Return how a file changed since it had this identity, None if it did not."""
    try:
        return None if identity(path) == (path, size, modified) else f"{path} was replaced"
    except (OSError, ValueError):
        return f"{path} no longer exists"
