"""Threads that read memory at the same time."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import threading
import time
from collections.abc import Sequence
from statistics import median

from bitnet_tuning.bench.readers import FILL, Read, ReadError

_PASSES = (3, 25)
"""Fewest and most that are timed."""
_SECONDS = 0.6
"""After so long no further pass begins."""
_PASS_SECONDS = 0.02
"""A pass reads the slices again until it takes about this long: waking the threads, one
after the other as Python's lock has it, must not count."""
_MOST_REPEATS = 64

Places = tuple[frozenset[int], ...]
"""The CPUs of each thread."""


class Team:
    """Each thread reads a slice of its own, pass after pass.

    It writes its slice first: memory lies on the node of the CPU that writes it first, and
    pages never written are all the same zeros, which one page in the cache holds.
    """

    def __init__(self, places: Places, each: int, read: Read) -> None:
        self._places, self._each, self._read = places, each, read
        self._spans: list[list[tuple[float, float]]] = [[] for _ in places]
        self._warm_up = [0.0 for _ in places]
        self._repeats = 1
        self._begun = 0
        self._deadline = math.inf
        self._go_on = True
        self._problems: list[str] = []
        self._barrier = threading.Barrier(len(places), action=self._decide)

    def run(self) -> list[float]:
        """Bytes per second of each pass, all threads together, from the first one's start
        to the last one's end. Raises ReadError."""
        self._start_and_wait()
        if self._problems:
            raise ReadError(self._problems[0])
        size = len(self._places) * self._each * self._repeats
        return [size / _duration(spans) for spans in zip(*self._spans, strict=True)]

    def _start_and_wait(self) -> None:
        team = [
            threading.Thread(target=self._guarded, args=(number,), daemon=True)
            for number in range(len(self._places))
        ]
        try:
            for thread in team:
                thread.start()
        except RuntimeError as error:
            self._barrier.abort()
            raise ReadError(f"a thread did not start ({error})") from error
        for thread in team:
            thread.join()

    def _decide(self) -> None:
        """Runs in one thread while all wait: is there another pass?"""
        if self._begun == 0:
            self._deadline = time.perf_counter() + _SECONDS
            wanted = math.ceil(_PASS_SECONDS / max(median(self._warm_up), 1e-9))
            self._repeats = max(1, min(_MOST_REPEATS, wanted))
        fewest, most = _PASSES
        late = time.perf_counter() >= self._deadline
        self._go_on = self._begun < most and (self._begun < fewest or not late)
        self._begun += 1

    def _guarded(self, number: int) -> None:
        try:
            self._work(number)
        except threading.BrokenBarrierError:
            pass  # another thread has said why
        except (ReadError, OSError, ValueError, OverflowError, MemoryError) as error:
            self._problems.append(str(error) or type(error).__name__)
            self._barrier.abort()

    def _work(self, number: int) -> None:
        _bind(self._places[number])
        with mmap.mmap(-1, self._each) as memory:
            start = ctypes.c_char.from_buffer(memory)
            try:
                self._passes(number, ctypes.addressof(start))
            finally:
                del start  # a mapping that is pointed to cannot be closed

    def _passes(self, number: int, address: int) -> None:
        ctypes.memset(address, FILL, self._each)
        begin, end = self._timed(address)
        self._warm_up[number] = end - begin
        while True:
            self._barrier.wait()
            if not self._go_on:
                return
            self._spans[number].append(self._timed(address))

    def _timed(self, address: int) -> tuple[float, float]:
        begin = time.perf_counter()
        for _ in range(self._repeats):
            self._read(address, self._each)
        return begin, time.perf_counter()


def _bind(cpus: frozenset[int]) -> None:
    """This thread alone. A CPU that is not to be had leaves it where it is."""
    if hasattr(os, "sched_setaffinity"):
        try:
            os.sched_setaffinity(0, cpus)
        except OSError:
            pass


def _duration(spans: Sequence[tuple[float, float]]) -> float:
    return max(max(end for _, end in spans) - min(begin for begin, _ in spans), 1e-9)
