"""Ending a benchmark early without losing what was measured."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

PATIENT = 3
"""More signals than that, and the program ends at once, whatever it is doing: results in
their file are whole at any moment."""

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class Stopped(KeyboardInterrupt):
    """A signal asked for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Stop:
    """Signals interrupt a measurement at once, but nothing else: results are saved and the
    search is told in peace, and a signal that came meanwhile is obeyed right after."""

    def __init__(self) -> None:
        self._armed = False
        self._pending: int | None = None
        self._before: dict[int, Any] = {}
        self._came = 0

    def __enter__(self) -> Stop:
        for name in SIGNALS:
            number = getattr(signal, name, None)
            # A background job under nohup ignores SIGHUP on purpose.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._come)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside, a signal raises Stopped; so does one that came before."""
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
            self.__exit__()
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if self._armed:
            self._obey()

    def _obey(self) -> None:
        if self._pending is not None:
            self._armed = False  # one is enough: what cleans up is not to be interrupted
            raise Stopped(self._pending)
