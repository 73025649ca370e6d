"""What acts when a launcher ends, however that comes (POSIX): no engine outlives it, and
what it changed is put back."""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


_MANY_HANDLES = 1 << 16
"""Where the system names no bound."""


def send(engine: int, number: int) -> None:
    """Sends a signal to an engine: its process id, or the negative of its group's, as
    kill(2) has it. One that has ended gets none."""
    try:
        os.kill(engine, number)
    except ProcessLookupError:
        pass


class Lifeline:
    """A pipe of which the launcher alone holds the writing end, until it is gone.

    On Linux the engine inherits the reading end, set up so that the kernel sends the
    engine SIGKILL when the other end is closed, however that came (fcntl(2), F_SETSIG).
    That does what prctl's parent-death signal does, which Python reaches only through
    ctypes and a slower kind of fork. Elsewhere a small process watches the reading end.
    """

    def __init__(self) -> None:
        self.far, self.near = os.pipe()
        self.watcher: int | None = None
        self.by_kernel = self._arm()

    def _arm(self) -> bool:
        try:
            import fcntl  # noqa: PLC0415

            fcntl.fcntl(self.far, fcntl.F_SETSIG, int(signal.SIGKILL))
            fcntl.fcntl(self.far, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        except (ImportError, AttributeError, OSError):
            return False
        os.set_inheritable(self.far, True)
        return True

    def tie(self, engine: int) -> None:
        """To be called as soon as the engine's process id, or group as in ``send``, is known."""
        if self.by_kernel:
            import fcntl  # noqa: PLC0415

            fcntl.fcntl(self.far, fcntl.F_SETOWN, engine)
        else:
            self.watcher = watch(self.far, self.near, engine)
        os.close(self.far)

    def drop(self) -> None:
        """The engine was never started."""
        os.close(self.far)
        os.close(self.near)

    def cut(self) -> None:
        """The engine has ended."""
        if self.watcher is not None:
            os.kill(self.watcher, signal.SIGKILL)
            os.waitpid(self.watcher, 0)
        os.close(self.near)


def watch(far: int, near: int, engine: int) -> int:
    """Forks a process that kills ``engine``, as in ``send``, once every ``near`` but its
    own is closed; answers its process id."""
    watcher = os.fork()
    if watcher:
        return watcher
    try:
        os.close(near)
        for handle in (0, 1, 2):
            os.close(handle)  # an open end of a pipe here would keep its reader waiting
        os.read(far, 1)
        send(engine, signal.SIGKILL)
    finally:
        os._exit(0)


class Guardian:
    """A process that does a task once this one is gone or dismisses it.

    It has a session of its own and lets no signal in, so that only SIGKILL ends it sooner.
    """

    def __init__(self, task: Callable[[], bool], keep: int) -> None:
        """``task`` answers whether it was done. Of all open handles the process has ``keep``
        only: an open end of a pipe would keep its reader waiting."""
        far, self._near = os.pipe()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        self._process = os.fork()
        if self._process == 0:
            _stand_guard(task, far, keep)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(far)

    def dismiss(self) -> bool:
        """Whether the task was done; returns once it is."""
        os.close(self._near)
        return os.waitpid(self._process, 0)[1] == 0


def _stand_guard(task: Callable[[], bool], far: int, keep: int) -> None:
    """Never returns."""
    done = False
    try:
        os.setsid()
        _close_all_but(far, keep)
        os.read(far, 1)
        done = task()
    finally:
        os._exit(0 if done else 1)


def _close_all_but(*kept: int) -> None:
    """Standard streams become /dev/null: whatever is opened next must not take their place."""
    null = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):
        if handle not in kept:
            os.dup2(null, handle)
    first = 3
    for handle in sorted(kept):
        os.closerange(first, handle)
        first = max(first, handle + 1)
    most = os.sysconf("SC_OPEN_MAX")
    os.closerange(first, most if most > 0 else _MANY_HANDLES)
