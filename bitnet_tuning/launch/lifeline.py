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


_MANY_HANDLES = 1 << 16
"""File descriptors that the watcher closes, open or not."""


class Lifeline:
    """A pipe whose writing end the launcher alone holds, so that it closes with the launcher.

    An engine is tied to it before it is executed, so a launcher that is killed at any moment
    leaves nothing behind. On Linux the engine inherits the reading end, set up so that the
    kernel sends SIGKILL to its owner, the engine, when the other end is closed (fcntl(2),
    F_SETSIG). That does what prctl's parent-death signal does, which Python reaches only
    through ctypes. Elsewhere a small process watches that end.
    """

    def __init__(self) -> None:
        self.far, self.near = os.pipe()
        self.by_kernel = self._arm()

    def _arm(self) -> bool:
        try:
            import fcntl  # noqa: PLC0415

            fcntl.fcntl(self.far, fcntl.F_SETSIG, int(signal.SIGKILL))
            fcntl.fcntl(self.far, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        except (ImportError, AttributeError, OSError):
            return False
        return True

    def tie(self, engine: int) -> None:
        """Kill ``engine``, as in ``send``, once the launcher is gone.

        To be called before a child executes the engine. Until then the child holds the near
        end as well: a launcher that is killed meanwhile counts as gone at that moment.
        """
        if self.by_kernel:
            import fcntl  # noqa: PLC0415

            fcntl.fcntl(self.far, fcntl.F_SETOWN, engine)
            os.set_inheritable(self.far, True)
        else:
            _watch(self.far, engine)

    def cut(self) -> None:
        """Let go of an engine that has ended. One that still runs is killed."""
        # Without another reader, closing the far end first lets no signal arise.
        os.close(self.far)
        os.close(self.near)


def _watch(far: int, engine: int) -> None:
    """Fork a process that kills ``engine``, as in ``send``, once the launcher's end is closed."""
    if os.fork():
        return
    try:
        os.setsid()  # signals to the engine's group are not for the watcher
        # An open end of a pipe here would keep its reader waiting.
        os.closerange(0, far)
        os.closerange(far + 1, _MANY_HANDLES)
        os.read(far, 1)
        send(engine, signal.SIGKILL)
    finally:
        os._exit(0)
