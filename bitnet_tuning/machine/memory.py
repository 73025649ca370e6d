"""Read memory and swap, huge pages, and the NUMA nodes whose memory holds a file or a process."""

from __future__ import annotations

import os
import re

from bitnet_tuning.machine.cgroups import Cgroups, read_memory_limits
from bitnet_tuning.machine.root import Root
from bitnet_tuning.namedtuple import NamedTuple


class Memory(NamedTuple):
    """Memory of the machine in bytes; None if unknown."""

    total: int | None
    available: int | None
    """Memory that new programs can use without swapping."""


class Swap(NamedTuple):
    """Use of swap in bytes."""

    used: int
    """Bytes in swap now, which alone slow nothing down."""
    read_back: int | None = None
    """Bytes read back since the system started; a program had to wait for each of them."""


class HugePages(NamedTuple):
    """The properties of the system that decide whether programs can use huge pages."""

    transparent: str | None
    """Mode of transparent huge pages: ``always``, ``madvise`` or ``never``; None for a kernel
    without them (admin-guide/mm/transhuge.rst)."""
    glibc: tuple[int, int] | None
    """Version of the GNU C library; None for another C library."""


def read_memory(root: Root, groups: Cgroups) -> Memory:
    """Return the memory of the machine, reduced to what the limits of ``groups`` leave."""
    stated = root.numbers("proc/meminfo")
    # Kernels before 3.14 have no MemAvailable (proc_meminfo(5)); free and cached come near it.
    parts = [stated.get(key, 0) for key in ("MemFree", "Buffers", "Cached")]
    guess = sum(parts) if "MemFree" in stated else None
    total, available = stated.get("MemTotal"), stated.get("MemAvailable", guess)
    for limit, used in read_memory_limits(root, groups):
        total = limit if total is None else min(total, limit)
        left = max(0, limit - used)
        available = left if available is None else min(available, left)
    return Memory(total, available)


def read_swap(root: Root) -> Swap | None:
    """Return the use of swap, or None if the kernel does not show it."""
    from mmap import PAGESIZE  # noqa: PLC0415

    memory = root.numbers("proc/meminfo")
    if "SwapTotal" not in memory or "SwapFree" not in memory:
        return None
    pages = root.numbers("proc/vmstat", " ").get("pswpin")
    used = max(0, memory["SwapTotal"] - memory["SwapFree"])
    return Swap(used, None if pages is None else pages * PAGESIZE)


def read_huge_pages(root: Root) -> HugePages:
    """Return what the kernel and the C library offer for huge pages."""
    enabled = root.read("sys/kernel/mm/transparent_hugepage/enabled") or ""
    chosen = re.search(r"\[(\w+)\]", enabled, re.ASCII)
    try:
        library = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, OSError, ValueError):
        library = ""
    version = re.match(r"(?a)glibc (\d+)\.(\d+)(?!\w)", library)
    glibc = (int(version[1]), int(version[2])) if version else None
    return HugePages(chosen[1] if chosen else None, glibc)


def read_numa_balancing(root: Root) -> bool | None:
    """Return whether the kernel moves pages between NUMA nodes, or None if unknown."""
    balancing = root.integer("proc/sys/kernel/numa_balancing")
    return None if balancing is None else balancing != 0


_SAMPLES = 64
"""Number of places in a file at which the page cache is looked up."""
_MAPS = 1 << 24
"""Bytes to read of a ``numa_maps`` file. A mapping takes about 100."""
_PAGES = r"(?a)\bN(\d+)=(\d+)"
_PAGE_SIZE = r"(?a)\bkernelpagesize_kB=(\d+)"


def cached_nodes(root: Root, path: str) -> dict[int, int] | None:
    """Return how many bytes of a sample of the file each NUMA node has in its page cache: nothing
    for a file that is not cached, None if the kernel does not tell. The disk is not read."""
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
            # Touching a cached page maps it, and numa_maps counts mapped pages by node (numa(7)).
            # The kernel maps neighbouring cached pages too, which makes the sample larger
            # (do_fault_around in mm/memory.c).
            with mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
                for offset in cached:
                    mapped[offset]
                return read_numa_maps(root, "self", path)
    except (AttributeError, OSError, ValueError):
        return None


def _is_cached(handle: int, offset: int) -> bool:
    # preadv2(2): with RWF_NOWAIT a read fails if the data is not available immediately.
    try:
        return os.preadv(handle, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False


def read_numa_maps(root: Root, process: str, path: str | None = None) -> dict[int, int] | None:
    """Return the bytes that a process has mapped on each NUMA node, of one file if ``path`` is
    given; None if the kernel does not tell."""
    text = root.read(f"proc/{process}/numa_maps", _MAPS)
    if text is None:
        return None
    name = os.path.realpath(path or "").replace("\\", "\\134").replace(" ", "\\040")
    # numa(7): 7f… default file=/models/a\040b.gguf N0=12 N1=4 kernelpagesize_kB=4
    held: dict[int, int] = {}
    for line in text.splitlines():
        if path is None or f"file={name}" in line.split():
            size = re.search(_PAGE_SIZE, line)
            for node, pages in re.findall(_PAGES, line):
                bytes_there = int(pages) * int(size[1] if size else 4) * 1024
                held[int(node)] = held.get(int(node), 0) + bytes_there
    return held


def file_in_memory(text: bytes) -> str | None:
    """Return the path of a file with a text that ends with this process; None if none can be."""
    if not hasattr(os, "memfd_create"):
        return None
    handle = os.memfd_create("prompt")
    with open(handle, "wb", closefd=False) as file:
        file.write(text)
    path = f"/proc/{os.getpid()}/fd/{handle}"  # the engine inherits no handles
    return path if os.path.isfile(path) else None
