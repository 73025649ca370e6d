"""Kill the engine when its launcher ends, however that comes (POSIX)."""

from __future__ import annotations

import os
import signal


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
