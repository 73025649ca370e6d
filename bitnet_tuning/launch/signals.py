"""Send and handle signals, and stop a long command without losing its results."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType

Handler = Callable[[int, FrameType | None], object] | int


def send(target: int, number: int) -> None:
    """Send a signal to a process, or a group by its negative id (kill(2)), unless it has ended."""
    with suppress(ProcessLookupError):
        os.kill(target, number)


def present(*names: str) -> tuple[signal.Signals, ...]:
    """Return the named signals that this system has."""
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


@contextmanager
def handling(handlers: Mapping[int, Handler], always: Container[int] = ()) -> Iterator[None]:
    """Install signal handlers for the block. A signal that is ignored, as by nohup, stays ignored
    unless it is in ``always``."""
    before = {}
    try:
        for number, handler in handlers.items():
            if number in always or signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def pausing(target: int) -> dict[int, Handler]:
    """Return a handler for Ctrl-Z that stops this process together with ``target``, which is
    outside the terminal's process group."""

    def pause(_number: int, _frame: FrameType | None) -> None:
        send(target, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        send(target, signal.SIGCONT)

    return dict.fromkeys(present("SIGTSTP"), pause)


PATIENT = 3
"""Number of signals that ``Stop`` may defer. One more ends the program at once, which damages no
results: they are always saved as whole files."""


class Stopped(KeyboardInterrupt):
    """A signal asked the program to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Stop:
    """A context manager in which SIGINT, SIGTERM and SIGHUP interrupt only marked blocks. At any
    other time, as while results are saved, a signal takes effect at the next marked block."""

    def __init__(self) -> None:
        self._armed = False
        self._pending: int | None = None
        self._count = 0
        numbers = present("SIGINT", "SIGTERM", "SIGHUP")
        self._handled = handling(dict.fromkeys(numbers, self._on_signal))

    def __enter__(self) -> Stop:
        self._handled.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._handled.__exit__(None, None, None)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Raise Stopped in the block when a signal comes, or if one came before it."""
        self._armed = True
        try:
            self._raise_pending()
            yield
        finally:
            self._armed = False

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._pending = self._pending or number
        self._count += 1
        if self._count > PATIENT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if self._armed:
            self._raise_pending()

    def _raise_pending(self) -> None:
        if self._pending is not None:
            self._armed = False  # a second signal must not interrupt the clean-up
            raise Stopped(self._pending)
