"""Measure how fast a given number of threads can read this machine's memory."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.root import Root
from bitnet_tuning.machine.topology import read_last_level_caches
from bitnet_tuning.namedtuple import NamedTuple

LEAST_BUFFER = 256 << 20
"""Smallest buffer, in bytes: larger than the last-level cache of all but the largest servers."""
CACHE_FACTOR = 4
"""Size of the buffer as a multiple of the last-level caches: when a pass begins, at most a
quarter of the buffer is still cached."""
MEMORY_SHARE = 4
"""Divisor of the free memory: the buffer takes at most a quarter of it."""
SLICE = 16 << 20
"""Smallest part of the buffer that one thread reads, in bytes: several times the private caches
of a core."""

_LEAST_FACTOR = 2
"""Smallest multiple of the last-level caches: much of a smaller buffer would stay in them."""
_CLEARLY_FASTER = 1.5
"""How many times faster than memory a function must read cached data to count as no limit."""


class Absent(NamedTuple):
    """Why this machine does not show a figure. That is not an error."""

    reason: str
    """Half a sentence, with a remedy if there is one."""


class Bandwidth(NamedTuple):
    """How fast ``threads`` threads together read memory, in bytes/s."""

    median: float
    low: float
    high: float
    """``low`` and ``high`` are the slowest and the fastest pass."""
    threads: int
    samples: tuple[float, ...]
    buffer: int
    """Bytes that all threads together read in a pass."""
    reader: str
    """Name of the C function that read them."""
    reader_limits: bool
    """Whether that function may be slower than memory. If so, memory delivers at least this."""


def measure_bandwidth(
    threads: int,
    host: Host,
    cpus: frozenset[int] | None = None,
    root: Root | None = None,
) -> Bandwidth | Absent:
    """Read a buffer much larger than the caches in parallel. This takes about a second.

    ``cpus`` are the logical CPUs to use; None means all allowed ones. Every thread stays on a
    CPU of its own, on separate physical cores as far as possible. With more threads than CPUs,
    only as many threads as CPUs read.

    The functions that read are glibc's ``memchr`` and ``memcmp``: memory limits them, not
    their own speed. On a virtual machine with two CPUs of an AMD EPYC (Zen 4) they read
    90 GB/s from the L2 cache, but 24 to 28 GB/s (one thread) and 31 to 34 GB/s (two threads)
    from memory, and so do loops of AVX2 and AVX-512 loads (23 to 26, 30 to 31) and numpy's
    sum (25, 33). Now and then two threads read 50 to 58 GB/s there for some seconds, whatever
    the buffer, so a benchmark measures twice and joins both with ``pooled``. musl's functions
    look at only 1 or 8 bytes at a time; ``reader_limits`` tells.
    """
    usable = (host.allowed if cpus is None else cpus & host.allowed) or host.allowed
    team = places(host, usable, min(threads, len(usable)))
    size = buffer_size(len(team), host, usable, root or Root())
    if size is None:
        return Absent(
            "there is too little free memory to measure its bandwidth; close other programs"
        )
    reader = fastest_reader()
    if reader is None:
        return Absent("memory bandwidth was not measured: no C library was found")
    try:
        rates = Team(team, size // len(team), reader.read).run()
    except ReadError as error:
        return Absent(f"memory bandwidth could not be measured: {error}")
    return summary(rates, len(team), size, reader)._replace(threads=threads)


def summary(rates: Sequence[float], threads: int, buffer: int, reader: Reader) -> Bandwidth:
    """Summarise the speeds of all passes, in bytes/s."""
    middle = median(rates)
    limits = reader.from_cache * threads < middle * _CLEARLY_FASTER
    low, high = min(rates), max(rates)
    return Bandwidth(middle, low, high, threads, tuple(rates), buffer, reader.name, limits)


def pooled(first: Bandwidth, second: Bandwidth) -> Bandwidth:
    """Join two measurements with the same number of threads, such as one before and one after
    a benchmark."""
    samples, limits = (*first.samples, *second.samples), first.reader_limits or second.reader_limits
    rates = Bandwidth(median(samples), min(samples), max(samples), *first[3:])
    return rates._replace(samples=samples, reader_limits=limits)


def buffer_size(threads: int, host: Host, cpus: frozenset[int], root: Root) -> int | None:
    """Return the size of the buffer in bytes; None if too little memory is free."""
    # A thread fills one last-level cache at a time, so no more caches count than threads.
    caches = sum(read_last_level_caches(root, cpus)[:threads])
    least = max(SLICE * threads, _LEAST_FACTOR * caches)
    wanted = max(LEAST_BUFFER, least, CACHE_FACTOR * caches)
    free = host.memory.available
    size = wanted if free is None else min(wanted, free // MEMORY_SHARE)
    return size if size >= least else None


def places(host: Host, cpus: frozenset[int], threads: int) -> Places:
    """Return the CPUs of each thread: one each, or all of them if there are too few."""
    order = spread(host, cpus)
    if len(order) < threads:
        return (cpus,) * threads
    return tuple(frozenset((cpu,)) for cpu in order[:threads])


def spread(host: Host, cpus: frozenset[int]) -> tuple[int, ...]:
    """Return the CPUs in the order in which threads take them: first one CPU of each core, the
    fastest core first, then the cores' other SMT threads."""
    cores = sorted(host.cores, key=lambda core: (-core.speed, min(core.cpus)))
    usable = [sorted(core.cpus & cpus) for core in cores]
    widest = max((len(core) for core in usable), default=0)
    return tuple(core[rank] for rank in range(widest) for core in usable if len(core) > rank)


FILL = 1
"""Value of every byte in the buffer. ``memchr`` looks for another one and never ends early."""
_ABSENT_BYTE = 2

_TRIAL = 256 << 10
"""Bytes read to time a function on cached data: they fit into any L2 cache."""
_TRIAL_PASSES = 40

Read = Callable[[int, int], None]
"""Takes an address and a number of bytes, and reads them."""


class ReadError(Exception):
    """Memory could not be read; the text is half a sentence."""


class Reader(NamedTuple):
    """A C function that reads memory."""

    name: str
    read: Read
    from_cache: float
    """Speed from the L2 cache with one thread, in bytes/s."""


def fastest_reader() -> Reader | None:
    """Return ``memchr`` for a byte that does not occur, or ``memcmp`` of two equal halves,
    whichever reads cached data faster. Return None if there is no C library."""
    buffer = (ctypes.c_char * _TRIAL).from_buffer(bytearray([FILL]) * _TRIAL)
    address = ctypes.addressof(buffer)
    found = [Reader(name, read, _rate(read, address)) for name, read in readers().items()]
    return max(found, key=lambda reader: reader.from_cache, default=None)


def readers() -> Mapping[str, Read]:
    """Return the C functions that read memory, by name; none without a C library."""
    library = _library()
    # ctypes.CDLL releases Python's global lock during a call, so that threads read in parallel.
    if library is None:
        return {}
    memchr, memcmp = library.memchr, library.memcmp
    memchr.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    memchr.restype = ctypes.c_void_p
    memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)

    def search(address: int, size: int) -> None:
        if memchr(address, _ABSENT_BYTE, size) is not None:
            raise ReadError("memchr found a byte that does not occur")

    def compare(address: int, size: int) -> None:
        if memcmp(address, address + size // 2, size // 2) != 0:
            raise ReadError("memcmp found a difference between equal bytes")

    return {"memchr": search, "memcmp": compare}


def _library() -> ctypes.CDLL | None:
    # None stands for this program, which has its C library loaded; Windows needs a name.
    try:
        return ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)
    except (OSError, TypeError):
        return None


def _rate(read: Read, address: int) -> float:
    """Return the bytes/s of the fastest pass, which nothing disturbed."""
    times: list[float] = []
    for _ in range(_TRIAL_PASSES):
        start = time.perf_counter()
        read(address, _TRIAL)
        times.append(time.perf_counter() - start)
    return _TRIAL / max(min(times), 1e-9)


_PASSES = (3, 25)
"""Fewest and most passes that are timed."""
SECONDS = 0.6
"""Seconds after which no further pass begins."""
PASS_SECONDS = 0.02
"""Seconds that a pass should take, by reading the slices several times: Python's global lock
wakes the threads one after the other, and that time must not matter."""
_MOST_REPEATS = 64

Places = tuple[frozenset[int], ...]
"""The CPUs of each thread."""


class Team:
    """Threads that each read a slice of memory of their own, pass after pass.

    Each thread first writes its slice, so that Linux allocates it on the NUMA node of the
    thread's CPU.
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
        """Return the bytes/s of each pass: all threads together, from the start of the first
        to the end of the last. Raise ReadError if a thread failed."""
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
        """Decide whether there is another pass. One thread runs this while the others wait."""
        if self._begun == 0:
            self._deadline = time.perf_counter() + SECONDS
            wanted = math.ceil(PASS_SECONDS / max(median(self._warm_up), 1e-9))
            self._repeats = max(1, min(_MOST_REPEATS, wanted))
        fewest, most = _PASSES
        late = time.perf_counter() >= self._deadline
        self._go_on = self._begun < most and (self._begun < fewest or not late)
        self._begun += 1

    def _guarded(self, number: int) -> None:
        try:
            self._work(number)
        except threading.BrokenBarrierError:
            pass  # another thread failed and said why
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
                del start  # a mapping with a pointer to it cannot be closed

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
    """Bind the calling thread, or leave it where it is if the CPUs are not available."""
    if hasattr(os, "sched_setaffinity"):
        try:
            os.sched_setaffinity(0, cpus)
        except OSError:
            pass


def _duration(spans: Sequence[tuple[float, float]]) -> float:
    return max(max(end for _, end in spans) - min(begin for begin, _ in spans), 1e-9)
