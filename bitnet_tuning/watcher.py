"""Looking at an engine while it runs, beside the thread that waits for its end."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

FIRST_SECONDS, LAST_SECONDS, GROWTH = 0.01, 5.0, 1.5
"""From one look to the next: soon at first, for what a short run does, and seldom later."""

LOOK_SHARE = 0.1
"""Of one CPU's time that looks may take at the start, when they are many: to count the pages
of a large model takes 30 ms. Once they are seldom, it is less than a hundredth."""


@contextlib.contextmanager
def watching(watch: Callable[[int], None], process: int) -> Iterator[None]:
    """Calls ``watch`` again and again within the block, and never after it."""
    ended = threading.Event()
    thread = threading.Thread(target=_look_on, args=(watch, process, ended), daemon=True)
    # A signal that this thread took would not wake the one that waits for the engine.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _look_on(watch: Callable[[int], None], process: int, ended: threading.Event) -> None:
    pause = FIRST_SECONDS
    while not ended.wait(pause):
        start = time.thread_time()
        try:
            watch(process)
        except Exception:
            return
        least = (time.thread_time() - start) / LOOK_SHARE
        pause = max(least, min(LAST_SECONDS, pause * GROWTH))
