"""Memory and swap, huge pages, and on which NUMA nodes the page cache holds a file."""

from __future__ import annotations

import os
import re

from bitnet_tuning.machine.cgroups import Cgroups, read_memory_limits
from bitnet_tuning.machine.root import Root
from bitnet_tuning.namedtuple import NamedTuple


class Memory(NamedTuple):
    """Bytes; ``None`` where unknown."""

    total: int | None
    available: int | None


class Swap(NamedTuple):
    """Bytes."""

    used: int
    """In swap now; that alone slows nothing down."""
    read_back: int | None = None
    """Fetched back since boot; each time something waited."""


class HugePages(NamedTuple):
    """What memory in huge pages depends on."""

    transparent: str | None
    """``always``, ``madvise`` or ``never``; None for a kernel without."""
    glibc: tuple[int, int] | None
    """Version of this program's C library, the system's; None for another C library."""


def read_memory(root: Root, groups: Cgroups) -> Memory:
    """Return MemTotal and MemAvailable, reduced to what every level of the control groups
    leaves."""
    stated = root.numbers("proc/meminfo")
    # Kernels before 3.14 have no MemAvailable; free and page cache come near it.
    parts = [stated.get(key, 0) for key in ("MemFree", "Buffers", "Cached")]
    guess = sum(parts) if "MemFree" in stated else None
    total, available = stated.get("MemTotal"), stated.get("MemAvailable", guess)
    for limit, used in read_memory_limits(root, groups):
        total = limit if total is None else min(total, limit)
        left = max(0, limit - used)
        available = left if available is None else min(available, left)
    return Memory(total, available)


def read_swap(root: Root) -> Swap | None:
    """Return the swap in use, from ``proc/meminfo`` and ``proc/vmstat``; None where they do
    not tell."""
    memory = root.numbers("proc/meminfo")
    if "SwapTotal" not in memory or "SwapFree" not in memory:
        return None
    pages = root.numbers("proc/vmstat", " ").get("pswpin")
    used = max(0, memory["SwapTotal"] - memory["SwapFree"])
    return Swap(used, None if pages is None else pages * _page_size())


def _page_size() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 4096


def read_huge_pages(root: Root) -> HugePages:
    """Return what the kernel and the C library offer."""
    enabled = root.read("sys/kernel/mm/transparent_hugepage/enabled") or ""
    chosen = re.search(r"\[(\w+)\]", enabled, re.ASCII)
    try:
        library = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, OSError, ValueError):
        library = ""
    return HugePages(chosen[1] if chosen else None, parse_glibc(library))


def parse_glibc(text: str) -> tuple[int, int] | None:
    """Return (2, 36) for ``glibc 2.36``; None for anything else."""
    name, _, version = text.partition(" ")
    numbers = [int(part) for part in version.split(".")[:2] if part.isdecimal()]
    return (numbers[0], numbers[1]) if name == "glibc" and len(numbers) == 2 else None


def read_numa_balancing(root: Root) -> bool | None:
    """Return whether the kernel moves pages between NUMA nodes; None where it does not say."""
    balancing = root.integer("proc/sys/kernel/numa_balancing")
    return None if balancing is None else balancing != 0


_SAMPLES = 64
_MAPS = 1 << 24
"""Bytes to read of a ``numa_maps``; a mapping takes about 100."""
_PAGES = r"(?a)\bN(\d+)=(\d+)"
_PAGE_SIZE = r"(?a)\bkernelpagesize_kB=(\d+)"


def cached_nodes(root: Root, path: str) -> dict[int, int] | None:
    """Return node -> bytes of a sample of the file that are cached there; empty for a file
    that is not in the page cache, None where the kernel does not tell.

    Nothing is read from disk: only pages that are in the cache already are touched, so that
    the kernel maps them and counts them by node in numa_maps (proc(5)); it maps their
    neighbours with them, which makes the sample larger.
    """
    import mmap  # noqa: PLC0415

    if not root.exists("proc/self/numa_maps"):
        return None
    try:
        with open(path, "rb") as file:
            size = os.path.getsize(path)
            step = max(mmap.PAGESIZE, size // _SAMPLES // mmap.PAGESIZE * mmap.PAGESIZE)
            cached = [at for at in range(0, size, step) if _is_cached(file.fileno(), at)]
            if not cached:
                return {}
            with mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
                for offset in cached:
                    mapped[offset]
                return read_numa_maps(root, "self", path)
    except (AttributeError, OSError, ValueError):
        return None


def _is_cached(handle: int, offset: int) -> bool:
    """Return whether a page can be read without a disk (preadv2(2), RWF_NOWAIT)."""
    try:
        return os.preadv(handle, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False


def read_numa_maps(root: Root, process: str, path: str | None = None) -> dict[int, int] | None:
    """Return the bytes that a process has mapped by NUMA node, or those that it has mapped of
    one file; None where the kernel does not tell.

    Lines look like ``7f… default file=/models/a\\040b.gguf N0=12 N1=4 kernelpagesize_kB=4``.
    """
    text = root.read(f"proc/{process}/numa_maps", _MAPS)
    if text is None:
        return None
    name = os.path.realpath(path or "").replace("\\", "\\134").replace(" ", "\\040")
    held: dict[int, int] = {}
    for line in text.splitlines():
        if path is None or f"file={name}" in line.split():
            size = re.search(_PAGE_SIZE, line)
            for node, pages in re.findall(_PAGES, line):
                bytes_there = int(pages) * int(size[1] if size else 4) * 1024
                held[int(node)] = held.get(int(node), 0) + bytes_there
    return held
