"""Measure how fast a given number of threads can read this machine's memory."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from statistics import median

from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.root import Root
from bitnet_tuning.machine.topology import read_last_level_caches
from bitnet_tuning.namedtuple import NamedTuple

LEAST_BUFFER = 256 << 20
"""Smallest buffer, in bytes: larger than the last-level cache of all but the largest servers."""
CACHE_FACTOR = 4
"""Size of the buffer in last-level caches: at most a quarter is still cached as a pass begins."""
MEMORY_SHARE = 4
"""Divisor of the free memory: the buffer takes at most a quarter of it."""
SLICE = 16 << 20
"""Fewest bytes of the buffer that one thread reads: several times the private caches of a core."""

_LEAST_FACTOR = 2
"""Smallest multiple of the last-level caches: much of a smaller buffer would stay in them."""
_CLEARLY_FASTER = 1.5
"""How many times faster than memory a function must read cached data to count as no limit."""

PASSES = 8
PASS_SECONDS = 0.1
_STEP = 4 << 20
"""Bytes read between two looks at the clock: 1 ms at most, so that all threads end together."""

Read = Callable[[int, int], None]
"""Takes an address and a number of bytes, and reads them."""


class AbsentError(Exception):
    """This machine does not show a figure, which is no fault. The text is half a sentence."""


class Bandwidth(NamedTuple):
    """How fast ``threads`` threads together read memory, in bytes/s."""

    median: float
    threads: int
    samples: tuple[float, ...]
    reader_limits: bool
    """Whether the function that reads may be slower than memory, which delivers at least this."""


def measure_bandwidth(threads: int, host: Host, root: Root | None = None) -> Bandwidth:
    """Read a buffer much larger than the caches in parallel. This takes about a second. Raise
    AbsentError if that is not possible.

    Every thread stays on an allowed CPU of its own, on separate physical cores as far as
    possible. With more threads than CPUs, only as many threads as CPUs read.

    The function that reads is the C library's ``memcmp``, which compares two halves of a buffer.
    Memory limits glibc's, not its own speed: on a virtual machine with two CPUs of an AMD EPYC it
    reads 60 GB/s from the L2 cache, but 18 GB/s (one thread) and 27 GB/s (two threads) from
    memory; ``memchr``, which reads one stream, gets only 13 and 25 GB/s. musl's function looks at
    1 byte at a time; ``reader_limits`` tells.
    """
    team = spread(host, host.allowed)[:threads]
    size = buffer_size(len(team), host, root or Root())
    if size is None:
        why = "there is too little free memory to measure its bandwidth; close other programs"
        raise AbsentError(why)
    read = reader()
    limit = cached_rate(read) * len(team)
    rates = read_together(team, size // len(team), read)
    middle = median(rates)
    return Bandwidth(middle, threads, tuple(rates), limit < middle * _CLEARLY_FASTER)


def buffer_size(threads: int, host: Host, root: Root) -> int | None:
    """Return the size of the buffer in bytes; None if too little memory is free."""
    # A thread fills one last-level cache at a time, so no more caches count than threads.
    caches = sum(read_last_level_caches(root, host.allowed)[:threads])
    least = max(SLICE * threads, _LEAST_FACTOR * caches)
    wanted = max(LEAST_BUFFER, least, CACHE_FACTOR * caches)
    free = host.memory.available
    size = wanted if free is None else min(wanted, free // MEMORY_SHARE)
    return size if size >= least else None


def spread(host: Host, cpus: frozenset[int]) -> tuple[int, ...]:
    """Return the CPUs in the order in which threads take them: first one CPU of each core, the
    fastest core first, then the cores' other SMT threads."""
    cores = sorted(host.cores, key=lambda core: (-core.speed, min(core.cpus)))
    usable = [sorted(core.cpus & cpus) for core in cores]
    widest = max((len(core) for core in usable), default=0)
    return tuple(core[rank] for rank in range(widest) for core in usable if len(core) > rank)


FILL = 1
"""Value of every byte in the buffer: ``memcmp`` finds no difference and never ends early."""


def reader() -> Read:
    """Return a function that reads memory. Raise AbsentError if there is no C library."""
    # None stands for this program, which has its C library loaded; Windows needs a name.
    try:
        memcmp = ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None).memcmp
    except (OSError, TypeError, AttributeError) as error:
        raise AbsentError("memory bandwidth was not measured: no C library was found") from error
    # ctypes.CDLL releases Python's global lock during a call, so that threads read in parallel.
    memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)

    def compare(address: int, size: int) -> None:
        if memcmp(address, address + size // 2, size // 2) != 0:
            raise ValueError("memcmp found a difference between equal bytes")

    return compare


def cached_rate(read: Read) -> float:
    """Return the bytes/s at which one thread reads from its L2 cache, in its fastest pass."""
    size, times = 256 << 10, []  # 256 KiB fit into any L2 cache
    buffer = (ctypes.c_char * size).from_buffer(bytearray([FILL]) * size)
    for _ in range(200):
        start = time.perf_counter()
        read(ctypes.addressof(buffer), size)
        times.append(time.perf_counter() - start)
    return size / max(min(times), 1e-9)


def read_together(cpus: Sequence[int], each: int, read: Read) -> list[float]:
    """Return the bytes/s of each pass, in which a thread on each CPU reads ``each`` bytes of its
    own again and again. Raise AbsentError if a thread fails."""
    rates: list[list[float]] = [[] for _ in cpus]
    problems: list[str] = []
    barrier = threading.Barrier(len(cpus))

    def work(number: int) -> None:
        try:
            if hasattr(os, "sched_setaffinity"):
                with contextlib.suppress(OSError):  # the CPU may not be available
                    os.sched_setaffinity(0, {cpus[number]})
            # Linux allocates the memory on the NUMA node of the thread that writes it first.
            memory = (ctypes.c_char * each).from_buffer(mmap.mmap(-1, each))
            ctypes.memset(memory, FILL, each)
            for _ in range(PASSES):
                barrier.wait()
                rates[number].append(_pass(ctypes.addressof(memory), each, read))
        except threading.BrokenBarrierError:
            pass  # another thread failed and said why
        except (OSError, ValueError, OverflowError, MemoryError) as error:
            problems.append(str(error) or type(error).__name__)
            barrier.abort()

    team = [threading.Thread(target=work, args=(at,), daemon=True) for at in range(len(cpus))]
    try:
        for thread in team:
            thread.start()
    except RuntimeError as error:
        problems.append(f"a thread did not start ({error})")
        barrier.abort()
    else:
        for thread in team:
            thread.join()
    if problems:
        raise AbsentError(f"memory bandwidth could not be measured: {problems[0]}")
    return [sum(found) for found in zip(*rates, strict=True)]


def _pass(address: int, each: int, read: Read) -> float:
    """Read for ``PASS_SECONDS``, step by step, and return the bytes/s."""
    done, start = 0, time.perf_counter()
    for offset in cycle(range(0, each, _STEP)):
        step = min(_STEP, each - offset)
        read(address + offset, step)
        done += step
        taken = time.perf_counter() - start
        if taken >= PASS_SECONDS:
            break
    return done / max(taken, 1e-9)
