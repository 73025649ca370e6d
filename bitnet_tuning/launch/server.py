"""A server that runs beside its launcher: launch's own part for those."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

from bitnet_tuning.launch.lifeline import Lifeline, send
from bitnet_tuning.launch.program import Launch, cannot_start
from bitnet_tuning.launch.run import inherited

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
def serving(launch: Launch, unset: frozenset[str]) -> Iterator[Service]:
    """As ``launch.serve``, which is the way to it."""
    lifeline = None if os.name == "nt" else Lifeline()
    try:
        child = _start(launch, unset, lifeline)
    except BaseException:
        if lifeline:
            lifeline.drop()
        raise
    try:
        if lifeline:
            lifeline.tie(-child.pid)
        service = Service(child)
        with _paused_together(child.pid):
            yield service
    finally:
        if child.poll() is None:
            _kill(child)
        if lifeline:
            lifeline.cut()


def _kill(child: subprocess.Popen[bytes]) -> None:
    """It and, where it is a script, the engine behind it. It has nothing to save."""
    if os.name == "nt":
        child.kill()
    else:
        send(-child.pid, signal.SIGKILL)
    child.wait()


def _start(
    launch: Launch, unset: frozenset[str], lifeline: Lifeline | None
) -> subprocess.Popen[bytes]:
    """In a group of its own, as one that must not get the terminal's Ctrl-C. Raises
    UnsupportedError."""
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    try:
        with inherited(launch.cpus, launch.nice):
            return subprocess.Popen(
                launch.argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**kept, **launch.variables},
                pass_fds=(lifeline.far,) if lifeline else (),
                start_new_session=True,
            )
    except OSError as error:
        raise cannot_start(launch.argv, error) from error


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


def serve(launch: Launch, unset: frozenset[str] = frozenset()) -> AbstractContextManager[Service]:
    """Runs a server beside this program until the end of the block, its log kept and its
    environment without ``unset``. It dies with this process, however that ends. Raises
    UnsupportedError where it cannot be started."""
    from bitnet_tuning.launch.server import serving  # noqa: PLC0415

    return serving(launch, unset)
