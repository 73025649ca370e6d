"""Measure how fast this machine's memory can be read by so many threads."""

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
"""Bytes: more than the last-level cache of all but the largest servers."""
CACHE_FACTOR = 4
"""Times the last-level caches: a pass finds at most a quarter of the buffer in them, and
with caches that drop the oldest line nothing."""
MEMORY_SHARE = 4
"""At most this part of the free memory is taken."""
SLICE = 16 << 20
"""Bytes of a thread at least: several times any processor's cache of one core."""

_LEAST_FACTOR = 2
"""Times the caches; from less, much of the buffer would be read from them."""
_CLEARLY_FASTER = 1.5
"""From its cache, a reader must be so much faster than from memory to be no limit itself."""


class Absent(NamedTuple):
    """Stands where a figure would: a machine that does not show it is no error."""

    reason: str
    """Half a sentence, with the remedy where there is one."""


class Bandwidth(NamedTuple):
    """Bytes per second that ``threads`` threads read together."""

    median: float
    low: float
    high: float
    """Slowest and fastest pass."""
    threads: int
    samples: tuple[float, ...]
    buffer: int
    """Bytes, of all threads together."""
    reader: str
    """The function that read them."""
    reader_limits: bool
    """Whether the function may be slower than memory: then memory gives at least this."""


def measure_bandwidth(
    threads: int,
    host: Host,
    cpus: frozenset[int] | None = None,
    root: Root | None = None,
) -> Bandwidth | Absent:
    """Read a buffer much larger than the caches, in parallel; it takes about a second.

    ``cpus`` are those that may be used, all allowed ones by default. Every thread stays on a
    CPU of its own, physical cores first; with more threads than CPUs, as many as CPUs read.

    glibc's ``memchr`` and ``memcmp`` are bound by memory, not by themselves: on a virtual
    machine with two CPUs of an AMD EPYC (Zen 4) they read 90 GB/s from the second-level
    cache, and from memory 24 to 28 GB/s with one thread and 31 to 34 GB/s with two. So do
    loops of AVX2 and AVX-512 loads (23 to 26, 30 to 31) and numpy's sum (25, 33). For some
    seconds now and then, two threads read 50 to 58 GB/s there, whatever the buffer: one
    measurement is a glimpse, and ``pooled`` joins two. musl's functions look at 8 bytes or
    one at a time, which ``reader_limits`` tells.
    """
    usable = (host.allowed if cpus is None else cpus & host.allowed) or host.allowed
    team = places(host, usable, min(threads, len(usable)))
    size = buffer_size(len(team), host, usable, root or Root())
    if size is None:
        return Absent("there is too little free memory to measure the memory's bandwidth")
    reader = fastest_reader()
    if reader is None:
        return Absent("the memory's bandwidth is not measured: no C library was found")
    try:
        rates = Team(team, size // len(team), reader.read).run()
    except ReadError as error:
        return Absent(f"the memory's bandwidth could not be measured: {error}")
    return summary(rates, len(team), size, reader)._replace(threads=threads)


def summary(rates: Sequence[float], threads: int, buffer: int, reader: Reader) -> Bandwidth:
    """Summarise the passes' bytes per second."""
    middle = median(rates)
    limits = reader.from_cache * threads < middle * _CLEARLY_FASTER
    low, high = min(rates), max(rates)
    return Bandwidth(middle, low, high, threads, tuple(rates), buffer, reader.name, limits)


def pooled(first: Bandwidth, second: Bandwidth) -> Bandwidth:
    """Summarise the passes of two measurements with as many threads, such as one before a
    benchmark and one after it."""
    samples, limits = (*first.samples, *second.samples), first.reader_limits or second.reader_limits
    rates = Bandwidth(median(samples), min(samples), max(samples), *first[3:])
    return rates._replace(samples=samples, reader_limits=limits)


def buffer_size(threads: int, host: Host, cpus: frozenset[int], root: Root) -> int | None:
    """Return bytes, or None where memory has no room for enough of them. A thread fills one cache
    at a time, so no more caches count than threads."""
    caches = sum(read_last_level_caches(root, cpus)[:threads])
    least = max(SLICE * threads, _LEAST_FACTOR * caches)
    wanted = max(LEAST_BUFFER, least, CACHE_FACTOR * caches)
    free = host.memory.available
    size = wanted if free is None else min(wanted, free // MEMORY_SHARE)
    return size if size >= least else None


def places(host: Host, cpus: frozenset[int], threads: int) -> Places:
    """Return the CPUs of each thread: all of them where there are too few."""
    order = spread(host, cpus)
    if len(order) < threads:
        return (cpus,) * threads
    return tuple(frozenset((cpu,)) for cpu in order[:threads])


def spread(host: Host, cpus: frozenset[int]) -> tuple[int, ...]:
    """Return CPUs in the order in which threads take them: one of every core, the fastest cores
    first, then the others."""
    cores = sorted(host.cores, key=lambda core: (-core.speed, min(core.cpus)))
    usable = [sorted(core.cpus & cpus) for core in cores]
    widest = max((len(core) for core in usable), default=0)
    return tuple(core[rank] for rank in range(widest) for core in usable if len(core) > rank)


FILL = 1
"""Every byte of what is read, so that the search never ends early."""
_ABSENT_BYTE = 2

_TRIAL = 256 << 10
"""Bytes: fits the second-level cache of every processor that runs these models."""
_TRIAL_PASSES = 40

Read = Callable[[int, int], None]
"""Reads so many bytes from this address on."""


class ReadError(Exception):
    """Why memory could not be read; half a sentence."""


class Reader(NamedTuple):
    name: str
    read: Read
    from_cache: float
    """Bytes per second from the second-level cache, with one thread."""


def fastest_reader() -> Reader | None:
    """Return ``memchr`` for a byte that is not there, or ``memcmp`` of two equal halves, whichever
    is faster from the cache. None where no C library is found."""
    readers = _readers(_library())
    buffer = (ctypes.c_char * _TRIAL).from_buffer(bytearray([FILL]) * _TRIAL)
    address = ctypes.addressof(buffer)
    found = [Reader(name, read, _rate(read, address)) for name, read in readers.items()]
    return max(found, key=lambda reader: reader.from_cache, default=None)


def _readers(library: ctypes.CDLL | None) -> Mapping[str, Read]:
    """Return functions by name; ctypes lets other threads run during each call."""
    if library is None:
        return {}
    memchr, memcmp = library.memchr, library.memcmp
    memchr.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    memchr.restype = ctypes.c_void_p
    memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)

    def search(address: int, size: int) -> None:
        if memchr(address, _ABSENT_BYTE, size) is not None:
            raise ReadError("memchr found a byte that is not there")

    def compare(address: int, size: int) -> None:
        if memcmp(address, address + size // 2, size // 2) != 0:
            raise ReadError("memcmp found equal bytes different")

    return {"memchr": search, "memcmp": compare}


def _library() -> ctypes.CDLL | None:
    """Return this program's own C library; Windows has it under a name."""
    try:
        return ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)
    except (OSError, TypeError):
        return None


def _rate(read: Read, address: int) -> float:
    """Return the rate of the fastest pass: what the loop can do when nothing disturbs it."""
    times: list[float] = []
    for _ in range(_TRIAL_PASSES):
        start = time.perf_counter()
        read(address, _TRIAL)
        times.append(time.perf_counter() - start)
    return _TRIAL / max(min(times), 1e-9)


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
        """Return the bytes per second of each pass, all threads together, from the first
        one's start to the last one's end. Raises ReadError."""
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
        """Decide, in one thread while all wait, whether there is another pass."""
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
    """Bind this thread alone. A CPU that is not to be had leaves it where it is."""
    if hasattr(os, "sched_setaffinity"):
        try:
            os.sched_setaffinity(0, cpus)
        except OSError:
            pass


def _duration(spans: Sequence[tuple[float, float]]) -> float:
    return max(max(end for _, end in spans) - min(begin for begin, _ in spans), 1e-9)
