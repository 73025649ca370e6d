#!/usr/bin/env python3
"""Compute like a busy program beside a measurement, until stdin ends.

    python3 -IS benchmarks/neighbour.py KIND [--nice N [--session]]

It leaves the process that started it: whoever looks at its parents, to tell a build from a blink,
must not find the benchmark, whose children compute all the time. It keeps the process group, and
prints its process id as soon as it really runs. It uses nothing but the standard library, so that
it starts at once. benchmarks/weather.py starts and ends it.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SLICE = 0.05
"""Seconds of computing, or of a pause, between two looks at stdin."""

BLOCK = 256 << 20
"""Bytes that the memory-bound program reads again and again, more than caches hold: the largest
last-level cache that one core can use has 96 MiB (AMD EPYC 9684X, per core complex)."""

BLINK = 0.1
"""Seconds that a short program computes, as a cron job or a shell prompt does."""
BETWEEN_BLINKS = (0.9, 1.9)
"""Shortest and longest pause between two of them, in seconds."""
COMPILED = (0.3, 1.0)
"""Seconds that one program of a chain computes, as ``make -j1`` starts them."""

Alive = Callable[[], bool]


def compute(seconds: float) -> None:
    """Keep one CPU busy for ``seconds`` of wall time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def spin(alive: Alive) -> None:
    runs()
    while alive():
        compute(SLICE)


def burst(alive: Alive) -> None:
    # Several programs do not burst in step.
    time.sleep(random.uniform(0, 2 * SLICE))
    runs()
    while alive():
        compute(SLICE)
        time.sleep(SLICE)


def memory(alive: Alive) -> None:
    # Written, because pages that were only read would all be the same zero page in the cache.
    block = bytearray(b"\xff") * BLOCK
    runs()
    while alive():
        block.find(b"\0")


def blink(alive: Alive) -> None:
    runs()
    while alive():
        time.sleep(random.uniform(*BETWEEN_BLINKS))
        program(BLINK)


def compile_(alive: Alive) -> None:
    runs()
    while alive():
        program(random.uniform(*COMPILED))


def program(seconds: float) -> None:
    """Start a program that computes for ``seconds``, and wait for its end."""
    subprocess.run([sys.executable, "-IS", __file__, "once", "--for", str(seconds)], check=False)


def lower_session(nice: int) -> None:
    """Let the niceness count against all programs, as it does against those of the same session."""
    # With autogroups, sessions share the CPUs first, by the niceness that this file has, and the
    # programs of a session its part (sched(7)). Kernels without them have no such file.
    try:
        Path("/proc/self/autogroup").write_text(str(nice))
    except OSError:
        pass


def is_wanted() -> bool:
    """Return whether the program that started this one still holds the other end of stdin."""
    return not select.select([sys.stdin], [], [], 0)[0]


def runs() -> None:
    # After a slice of CPU time, the program is among those that the kernel gives turns.
    while time.process_time() < SLICE:
        pass
    print(os.getpid(), flush=True)


KINDS = {"spin": spin, "burst": burst, "memory": memory, "blink": blink, "compile": compile_}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=(*KINDS, "once"), help="how it computes")
    parser.add_argument("--nice", type=int, default=0, help="niceness to add")
    session = "let the niceness count within this program's session only"
    parser.add_argument("--session", action="store_true", help=session)
    parser.add_argument("--for", type=float, default=BLINK, dest="seconds", help="seconds of once")
    options = parser.parse_args()
    if options.nice:
        os.nice(options.nice)
        if not options.session:
            lower_session(options.nice)
    if options.kind == "once":
        compute(options.seconds)
    else:
        if os.fork():
            os._exit(0)
        KINDS[options.kind](is_wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
