"""Send and handle signals; end a long command early without losing what it has."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Mapping
    from types import FrameType
    from typing import Any

    Handler = Callable[[int, FrameType | None], Any] | int


def send(target: int, number: int) -> None:
    """Send a signal to a process, or to a group by its negative number, as kill(2) has it.
    Do nothing if it has ended."""
    try:
        os.kill(target, number)
    except ProcessLookupError:
        pass


def present(*names: str) -> tuple[signal.Signals, ...]:
    """Return those of the named signals that this system has."""
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


@contextmanager
def handling(handlers: Mapping[int, Handler], always: Container[int] = ()) -> Iterator[None]:
    """Handle signals for the block. One that was ignored from the start, as by nohup, stays
    ignored unless it is in ``always``."""
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
    """Return the handler for Ctrl-Z that stops a program outside the terminal's group, as in
    ``send``, together with this one."""

    def pause(_number: int, _frame: FrameType | None) -> None:
        send(target, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        send(target, signal.SIGCONT)

    return dict.fromkeys(present("SIGTSTP"), pause)


PATIENT = 3
"""Signals that ``Stop`` takes; one more ends the program at once, whatever it is doing: files
of results are whole at any moment."""


class Stopped(KeyboardInterrupt):
    """Say that a signal asked for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Stop:
    """Let SIGINT, SIGTERM and SIGHUP interrupt marked blocks only.

    Elsewhere, as while results are saved, a signal is remembered and obeyed at the next
    marked block. Use it as a context manager.
    """

    def __init__(self) -> None:
        self._armed = False
        self._pending: int | None = None
        self._came = 0
        numbers = present("SIGINT", "SIGTERM", "SIGHUP")
        self._handled = handling(dict.fromkeys(numbers, self._come))

    def __enter__(self) -> Stop:
        self._handled.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._handled.__exit__(None, None, None)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Raise Stopped in the block if a signal comes, or came before it."""
        self._armed = True
        try:
            self._obey()
            yield
        finally:
            self._armed = False

    def _come(self, number: int, _frame: FrameType | None) -> None:
        self._pending = self._pending or number
        self._came += 1
        if self._came > PATIENT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if self._armed:
            self._obey()

    def _obey(self) -> None:
        if self._pending is not None:
            self._armed = False  # cleaning up is not to be interrupted again
            raise Stopped(self._pending)
