"""Programs that run beside their launcher: servers, and what is captured."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from threading import Thread

from bitnet_tuning.launch.lifeline import Lifeline, send
from bitnet_tuning.launch.posix import Inherited, fill_standard_handles
from bitnet_tuning.launch.program import Launch, cannot_start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from types import FrameType
    from typing import IO


LOG_KEPT = 1 << 16
"""Bytes of a server's log that are kept, its end."""

_CHUNK = 1 << 14
_LOG_PATIENCE = 1.0
"""Seconds that the end of a log has to arrive once its writer is gone."""


class Service:
    """A running server. Its stdout and stderr are both its log."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout is not None
        self._child = child
        self._log = bytearray()
        self._reader = Thread(target=self._read, args=(child.stdout,), daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._child.pid

    def ended(self, seconds: float = 0) -> int | None:
        """The exit code as a shell would see it, 128 + N after signal N; None where it still
        runs ``seconds`` from now."""
        try:
            code = self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        return 128 - code if code < 0 and os.name != "nt" else code

    def log(self) -> str:
        """The end of what it wrote so far."""
        if self._child.poll() is not None:
            self._reader.join(_LOG_PATIENCE)
        return bytes(self._log).decode("utf-8", "replace")

    def _read(self, stream: IO[bytes]) -> None:
        while data := os.read(stream.fileno(), _CHUNK):
            self._log += data
            if len(self._log) > 2 * LOG_KEPT:
                del self._log[:-LOG_KEPT]


@contextmanager
def beside(launch: Launch, unset: frozenset[str], stderr: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program beside this one until the end of the block, in a session of its own.

    It has this process's environment but for ``unset`` and with the launch's variables, no
    input, and a pipe for its stdout. It and all of its group are killed at the end of the
    block, and also if this process is gone before. Raise UnsupportedError if it cannot be
    started.
    """
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    fill_standard_handles()
    lifeline = None if os.name == "nt" else Lifeline()
    try:
        child = _start(launch, {**kept, **launch.variables}, stderr, lifeline)
        try:
            yield child
        finally:
            if child.poll() is None:
                kill(child)
                child.wait()
    finally:
        if lifeline:
            lifeline.cut()


def _start(
    launch: Launch, environ: dict[str, str], stderr: int, lifeline: Lifeline | None
) -> subprocess.Popen[bytes]:
    try:
        with inherited(launch.cpus, launch.nice):
            return subprocess.Popen(
                launch.argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environ,
                pass_fds=(lifeline.far,) if lifeline else (),
                start_new_session=True,
                # Safe beside threads: nothing in it takes a lock.
                preexec_fn=partial(_tie, lifeline) if lifeline else None,  # noqa: PLW1509
            )
    except OSError as error:
        raise cannot_start(launch.argv, error) from error
    except ValueError as error:  # a null byte
        raise cannot_start(launch.argv, OSError(str(error))) from error


def _tie(lifeline: Lifeline) -> None:
    """In a child that leads its session: tie it and its group."""
    lifeline.tie(-os.getpid())


def inherited(cpus: frozenset[int] | None, nice: int) -> AbstractContextManager[object]:
    """Give what is started inside these CPUs and this niceness, if the system can do that."""
    return nullcontext() if os.name == "nt" or not (cpus or nice) else Inherited(cpus, nice)


def kill(child: subprocess.Popen[bytes]) -> None:
    """Kill the child and, where it is a script, the engine behind it."""
    if os.name == "nt":
        child.kill()
    else:
        send(-child.pid, signal.SIGKILL)


@contextmanager
def serve(launch: Launch, unset: frozenset[str] = frozenset()) -> Iterator[Service]:
    """Run a server beside this program until the end of the block, and keep its log.

    Its environment is without ``unset``. It dies with this process, however that ends. Raise
    UnsupportedError if it cannot be started.
    """
    with beside(launch, unset, subprocess.STDOUT) as child, _paused_together(child.pid):
        yield Service(child)


@contextmanager
def _paused_together(leader: int) -> Iterator[None]:
    """Ctrl-Z: the server's group is not the terminal's, so it is stopped from here."""
    if os.name == "nt":
        yield
        return

    def pause(_number: int, _frame: FrameType | None) -> None:
        send(-leader, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        send(-leader, signal.SIGCONT)

    before = signal.getsignal(signal.SIGTSTP)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGTSTP, pause)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, before)
