"""How fast this machine's memory can be read by so many threads."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

from bitnet_tuning.bench.absent import Absent
from bitnet_tuning.bench.readers import Reader, ReadError, fastest_reader
from bitnet_tuning.bench.team import Places, Team
from bitnet_tuning.host import Host
from bitnet_tuning.host.caches import read_last_level_caches
from bitnet_tuning.host.root import Root

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
    bind: bool = True,
) -> Bandwidth | Absent:
    """Reads a buffer much larger than the caches, in parallel; takes about a second.

    ``cpus`` are those that may be used, all allowed ones by default. With ``bind`` every
    thread stays on a CPU of its own, physical cores first. More threads than CPUs read no
    faster: then as many as there are CPUs do it.

    glibc's ``memchr`` and ``memcmp`` are bound by memory, not by themselves: on a virtual
    machine with two CPUs of an AMD EPYC (Zen 4) they read 90 GB/s from the second-level
    cache, and from memory 24 to 28 GB/s with one thread and 31 to 34 GB/s with two. So do
    loops of AVX2 and AVX-512 loads (23 to 26, 30 to 31) and numpy's sum (25, 33). For some
    seconds now and then, two threads read 50 to 58 GB/s there, whatever the buffer: one
    measurement is a glimpse, and ``pooled`` joins two. musl's functions look at 8 bytes or
    one at a time, which ``reader_limits`` tells.
    """
    usable = (host.allowed if cpus is None else cpus & host.allowed) or host.allowed
    team = places(host, usable, min(threads, len(usable)), bind)
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
    """Of the passes' bytes per second."""
    middle = median(rates)
    limits = reader.from_cache * threads < middle * _CLEARLY_FASTER
    low, high = min(rates), max(rates)
    return Bandwidth(middle, low, high, threads, tuple(rates), buffer, reader.name, limits)


def pooled(first: Bandwidth, second: Bandwidth) -> Bandwidth:
    """Over the passes of two measurements with as many threads, such as one before a
    benchmark and one after it."""
    samples = (*first.samples, *second.samples)
    return first._replace(
        median=median(samples),
        low=min(samples),
        high=max(samples),
        samples=samples,
        reader_limits=first.reader_limits or second.reader_limits,
    )


def as_json(bandwidth: Bandwidth) -> dict[str, Any]:
    """Rates in bytes per second, the buffer in bytes."""
    facts = bandwidth._asdict()
    facts["samples"] = list(bandwidth.samples)
    return facts


def buffer_size(threads: int, host: Host, cpus: frozenset[int], root: Root) -> int | None:
    """Bytes, or None where memory has no room for enough of them. A thread fills one cache
    at a time, so no more caches count than threads."""
    caches = sum(read_last_level_caches(root, cpus)[:threads])
    least = max(SLICE * threads, _LEAST_FACTOR * caches)
    wanted = max(LEAST_BUFFER, least, CACHE_FACTOR * caches)
    free = host.memory.available
    size = wanted if free is None else min(wanted, free // MEMORY_SHARE)
    return size if size >= least else None


def places(host: Host, cpus: frozenset[int], threads: int, bind: bool) -> Places:
    """The CPUs of each thread: all of them without ``bind`` or where there are too few."""
    order = spread(host, cpus)
    if not bind or len(order) < threads:
        return (cpus,) * threads
    return tuple(frozenset((cpu,)) for cpu in order[:threads])


def spread(host: Host, cpus: frozenset[int]) -> tuple[int, ...]:
    """CPUs in the order in which threads take them: one of every core, the fastest cores
    first, then the others."""
    cores = sorted(host.cores, key=lambda core: (-core.speed, min(core.cpus)))
    usable = [sorted(core.cpus & cpus) for core in cores]
    widest = max((len(core) for core in usable), default=0)
    return tuple(core[rank] for rank in range(widest) for core in usable if len(core) > rank)
