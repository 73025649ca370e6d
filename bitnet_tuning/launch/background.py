"""Programs that run while this one goes on: servers, and those whose output is captured."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager

from bitnet_tuning.errors import UnsupportedError
from bitnet_tuning.launch.program import Launch, shell_code
from bitnet_tuning.launch.signals import handling, pausing, send
from bitnet_tuning.launch.start import Lifeline, fill_standard_handles, popen
from bitnet_tuning.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from subprocess import Popen
    from typing import IO


LOG_KEPT = 1 << 16
"""Bytes of a server's log to keep, its end."""

WATCH_SECONDS = 0.01
"""Seconds from one call of what watches a captured program to the next."""

_CHUNK = 1 << 14
_KILL_GRACE = 3
"""Seconds that a killed program has to be gone."""

_LOG_PATIENCE = 1.0
"""Seconds that the end of a log has to arrive once its writer is gone."""


@contextmanager
def _running(launch: Launch, stderr: int) -> Iterator[Popen[bytes]]:
    """Run a program until the end of the block, without input, with a pipe for its stdout and
    in a session of its own.

    It and all of its group are killed at the end of the block, and also if this process is
    gone before. Raise UnsupportedError if it cannot be started.
    """
    from subprocess import DEVNULL, PIPE  # noqa: PLC0415 (2 ms)

    fill_standard_handles()
    lifeline = None if os.name == "nt" else Lifeline()
    try:
        child = popen(launch, (DEVNULL, PIPE, stderr), lifeline, getattr(os, "setsid", None))
        try:
            yield child
        finally:
            if child.poll() is None:
                _kill(child)
                child.wait()
    finally:
        if lifeline:
            lifeline.cut()


def _kill(child: Popen[bytes]) -> None:
    """Kill the child and, if it is a script, the engine behind it."""
    if os.name == "nt":
        child.kill()
    else:
        send(-child.pid, signal.SIGKILL)


class Captured(NamedTuple):
    """What a program printed."""

    code: int | None
    """As ``shell_code`` has it; None if it ran out of time."""
    stdout: str
    stderr: str


def capture(
    argv: tuple[str, ...],
    variables: Mapping[str, str] | None = None,
    seconds: float = 15,
    *,
    unset: frozenset[str] = frozenset(),
    cpus: frozenset[int] | None = None,
    nice: int = 0,
    watch: Callable[[int], None] | None = None,
) -> Captured:
    """Run a program without input and return what it printed.

    A program that cannot be started has code 127. Nothing of it is left when the call ends,
    also by an exception, or when this process is gone. ``watch`` is called again and again
    while it runs, with its process id, which on POSIX systems is its group's as well.
    """
    from subprocess import PIPE, TimeoutExpired  # noqa: PLC0415 (2 ms)

    launch = Launch(argv, variables or {}, cpus, nice=nice, unset=unset)
    try:
        with _running(launch, PIPE) as child:
            try:
                output, log = _printed(child, seconds, watch)
                return Captured(shell_code(child.returncode), _text(output), _text(log))
            except TimeoutExpired:
                _kill(child)
            try:
                output, log = child.communicate(timeout=_KILL_GRACE)
            except TimeoutExpired as late:
                # A descendant that left its group holds the pipes open: do not wait for it.
                output, log = late.stdout or b"", late.stderr or b""
            return Captured(None, _text(output), _text(log))
    except UnsupportedError as error:
        return Captured(127, "", error.cause)


def _printed(
    child: Popen[bytes], seconds: float, watch: Callable[[int], None] | None
) -> tuple[bytes, bytes]:
    """Return its stdout and stderr. Raise TimeoutExpired."""
    if watch is None:
        return child.communicate(timeout=seconds)
    import time  # noqa: PLC0415
    from subprocess import TimeoutExpired  # noqa: PLC0415

    end = time.monotonic() + seconds
    while True:
        try:
            # Called again after a timeout, communicate goes on and loses nothing.
            return child.communicate(timeout=WATCH_SECONDS)
        except TimeoutExpired:
            if time.monotonic() >= end:
                raise
            watch(child.pid)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


class Service:
    """A running server. Its stdout and stderr are both its log."""

    def __init__(self, child: Popen[bytes]) -> None:
        from threading import Thread  # noqa: PLC0415

        assert child.stdout is not None
        self._child = child
        self._log = bytearray()
        self._reader = Thread(target=self._read, args=(child.stdout,), daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._child.pid

    def ended(self, seconds: float = 0) -> int | None:
        """Return its exit code, as ``shell_code`` has it; None if it still runs ``seconds``
        from now."""
        from subprocess import TimeoutExpired  # noqa: PLC0415

        try:
            return shell_code(self._child.wait(seconds))
        except TimeoutExpired:
            return None

    def log(self) -> str:
        """Return the end of what it wrote so far."""
        if self._child.poll() is not None:
            self._reader.join(_LOG_PATIENCE)
        return _text(bytes(self._log))

    def _read(self, stream: IO[bytes]) -> None:
        while data := os.read(stream.fileno(), _CHUNK):
            self._log += data
            if len(self._log) > 2 * LOG_KEPT:
                del self._log[:-LOG_KEPT]


@contextmanager
def serve(launch: Launch) -> Iterator[Service]:
    """Run a server until the end of the block and keep its log. It dies with this process,
    however that ends. Raise UnsupportedError if it cannot be started."""
    from subprocess import STDOUT  # noqa: PLC0415 (2 ms)

    with _running(launch, STDOUT) as child, handling(pausing(-child.pid)):
        yield Service(child)
