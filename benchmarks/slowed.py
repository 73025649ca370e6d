#!/usr/bin/env python3
"""Run a program that is slower by a known share of its time: it is stopped again and again.

    python3 benchmarks/slowed.py SHARE PROGRAM [ARGUMENT ...]

The time in which the script's process group is stopped does not count.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from types import FrameType

PERIOD = 0.08
"""Seconds from one stop to the next."""


class Slowed:
    """A running program that is stopped for a share of its time."""

    def __init__(self, share: float, child: subprocess.Popen[bytes]) -> None:
        self._rate = share / (1 - share)
        self._child = child
        self._since = time.monotonic()
        """Start of the time for which the program has not been stopped yet."""
        signal.signal(signal.SIGCONT, self._resumed)

    def _resumed(self, _number: int, _frame: FrameType | None) -> None:
        self._since = time.monotonic()

    def step(self) -> None:
        """Let the program run for a period, and stop it for the share of the time it ran."""
        time.sleep(PERIOD)
        ran = time.monotonic() - self._since
        self._child.send_signal(signal.SIGSTOP)
        time.sleep(self._rate * ran)
        self._child.send_signal(signal.SIGCONT)
        self._since = time.monotonic()


def main() -> int:
    child = subprocess.Popen(sys.argv[2:])
    slowed = Slowed(float(sys.argv[1]), child)
    while child.poll() is None:
        slowed.step()
    return 128 - child.returncode if child.returncode < 0 else child.returncode


if __name__ == "__main__":
    sys.exit(main())
