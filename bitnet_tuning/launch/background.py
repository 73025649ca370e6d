"""Run programs beside this one: servers, and programs whose output is captured."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack, contextmanager, suppress

from bitnet_tuning.errors import UnsupportedError, shortage
from bitnet_tuning.launch.signals import handling, pausing, present, send
from bitnet_tuning.launch.start import Launch, Lifeline, fill_standard_handles, popen, shell_code
from bitnet_tuning.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from subprocess import Popen
    from typing import IO

LOG_KEPT = 1 << 16
"""Bytes at the end of a server's log that are kept."""

WATCH_SECONDS = 0.01
"""Seconds between two calls of the function that watches a captured program."""

_CHUNK = 1 << 14
_KILL_GRACE = 3
"""Seconds to wait for the output of a killed program to end."""

_LOG_PATIENCE = 1.0
"""Seconds to wait for the end of a log after the server has exited."""


@contextmanager
def _running(launch: Launch, stderr: int) -> Iterator[Popen[bytes]]:
    """Run a program in a session of its own, without input and with a pipe for its stdout. It and
    its process group are killed at the end of the block, or when this process dies before. Raise
    UnsupportedError if it cannot be started, ShortageError if no program can."""
    from subprocess import DEVNULL, PIPE  # noqa: PLC0415 (2 ms)

    fill_standard_handles()
    try:
        lifeline = None if os.name == "nt" else Lifeline()
    except OSError as error:  # too many open files
        raise launch.error(error) from error
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
    if os.name == "nt":
        child.kill()
    else:  # its whole group, because the child may be a script that runs the engine
        send(-child.pid, signal.SIGKILL)


class Captured(NamedTuple):
    """The exit code and the output of a program."""

    code: int | None
    """Exit code in the form of ``shell_code``; None after the time limit."""
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
    """Run a program without input for at most ``seconds`` and return its output. A program that
    cannot be started has the exit code 127 and the error as its stderr. ``watch`` is called
    repeatedly with the id of the running process, which on POSIX systems is also its group's. Both
    are killed when the call ends, even by an exception, and when this process dies. Raise
    ShortageError if no program can be started."""
    from subprocess import PIPE, TimeoutExpired  # noqa: PLC0415 (2 ms)

    launch = Launch(argv, variables or {}, cpus, nice=nice, unset=unset)
    try:
        with ExitStack() as pipes, _running(launch, PIPE) as child:
            for stream in filter(None, (child.stdout, child.stderr)):
                pipes.callback(stream.close)
            end = time.monotonic() + seconds
            step = seconds if watch is None else WATCH_SECONDS
            while not (watch and time.monotonic() >= end):
                try:
                    # It may be called again after a timeout without losing output.
                    output, log = child.communicate(timeout=step)
                    return Captured(shell_code(child.returncode), _text(output), _text(log))
                except TimeoutExpired:
                    if watch is None:
                        break
                    watch(child.pid)
            _kill(child)
            try:
                output, log = child.communicate(timeout=_KILL_GRACE)
            except TimeoutExpired as late:
                # A descendant that left the process group keeps the pipes open; ignore it.
                output, log = late.stdout or b"", late.stderr or b""
            return Captured(None, _text(output), _text(log))
    except UnsupportedError as error:
        return Captured(127, "", str(error))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


class Service:
    """A running server, whose log is all that it writes to stdout and stderr."""

    def __init__(self, child: Popen[bytes]) -> None:
        from threading import Thread  # noqa: PLC0415

        assert child.stdout is not None
        self._child = child
        self._log = bytearray()
        self._reader = Thread(target=self._read, args=(child.stdout,), daemon=True)
        try:
            self._reader.start()
        except RuntimeError as error:
            raise shortage(error, "cannot read a server's log") or error from error

    @property
    def pid(self) -> int:
        return self._child.pid

    def ended(self, seconds: float = 0) -> int | None:
        """Wait at most ``seconds`` for the server to exit. Return its exit code in the form of
        ``shell_code``, or None if it still runs."""
        from subprocess import TimeoutExpired  # noqa: PLC0415

        try:
            return shell_code(self._child.wait(seconds))
        except TimeoutExpired:
            return None

    def pause(self) -> None:
        """Stop the server's processes, so that they neither compute nor spin."""
        self._send("SIGSTOP")

    def resume(self) -> None:
        """Let the server's processes go on."""
        self._send("SIGCONT")

    def _send(self, name: str) -> None:
        for number in present(name):  # Windows has neither
            with suppress(PermissionError):  # a sandbox may forbid it
                send(-self.pid, number)

    def log(self) -> str:
        """Return the end of the log so far."""
        if self._child.poll() is not None:
            self._reader.join(_LOG_PATIENCE)
        return _text(bytes(self._log))

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            while data := os.read(stream.fileno(), _CHUNK):
                self._log += data
                if len(self._log) > 2 * LOG_KEPT:
                    del self._log[:-LOG_KEPT]


@contextmanager
def serve(launch: Launch, follows: bool = True) -> Iterator[Service]:
    """Run a server until the end of the block, or until this process dies, and keep its log. If it
    ``follows``, Ctrl-Z stops it as well. Raise UnsupportedError if it cannot be started."""
    from subprocess import STDOUT  # noqa: PLC0415 (2 ms)

    with _running(launch, STDOUT) as child, handling(pausing(-child.pid) if follows else {}):
        yield Service(child)
