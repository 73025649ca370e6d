"""Whether memory can be had in huge pages: what the kernel and the C library offer."""

from __future__ import annotations

import mmap
import os
import re

from bitnet_tuning.machine.root import Root
from bitnet_tuning.namedtuple import NamedTuple


class HugePages(NamedTuple):
    transparent: str | None
    """``always``, ``madvise`` or ``never``; None for a kernel without."""
    glibc: tuple[int, int] | None
    """Version of the C library of this program, which is the system's; None for another's."""


def read_huge_pages(root: Root) -> HugePages:
    return HugePages(read_kernel_settings(root).huge_pages, glibc_version())


def glibc_version() -> tuple[int, int] | None:
    try:
        return parse_glibc(os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (AttributeError, OSError, ValueError):
        return None


def parse_glibc(text: str) -> tuple[int, int] | None:
    """``glibc 2.36`` -> (2, 36)."""
    name, _, version = text.partition(" ")
    parts = version.split(".")
    numbers = [int(part) for part in parts[:2] if part.isdecimal()]
    return (numbers[0], numbers[1]) if name == "glibc" and len(numbers) == 2 else None


_HUGE_PAGES = "sys/kernel/mm/transparent_hugepage/enabled"
_BALANCING = "proc/sys/kernel/numa_balancing"


class KernelSettings(NamedTuple):
    """None for what this kernel does not show."""

    huge_pages: str | None
    """Transparent huge pages: ``always``, ``madvise`` or ``never``."""
    numa_balancing: bool | None
    """Whether the kernel moves pages between NUMA nodes by itself."""


def read_kernel_settings(root: Root) -> KernelSettings:
    chosen = re.search(r"\[(\w+)\]", root.read(_HUGE_PAGES) or "", re.ASCII)
    balancing = root.integer(_BALANCING)
    return KernelSettings(
        chosen[1] if chosen else None, None if balancing is None else balancing != 0
    )


_SAMPLES = 64
_PAGE = mmap.PAGESIZE
_COUNT = re.compile(r"\bN(\d+)=(\d+)", re.ASCII)


def cached_nodes(root: Root, path: str) -> dict[int, int] | None:
    """Node -> how many pages of a sample it holds; empty for a file that is not in the cache.

    None where the kernel does not tell. Nothing is read from disk: only pages that are in
    the cache already are touched, so that the kernel maps them and counts them by node in
    numa_maps (proc(5)); it maps their neighbours with them, which makes the sample larger.
    """
    if not root.exists("proc/self/numa_maps"):
        return None
    try:
        with open(path, "rb") as file:
            cached = _cached_offsets(file.fileno(), os.path.getsize(path))
            if not cached:
                return {}
            with mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
                for offset in cached:
                    mapped[offset]
                return parse_numa_maps(root.read("proc/self/numa_maps", 1 << 24) or "", path)
    except (AttributeError, OSError, ValueError):
        return None


def _cached_offsets(handle: int, size: int) -> list[int]:
    """Those of evenly spread pages that can be read without a disk (preadv2(2), RWF_NOWAIT)."""
    step = max(_PAGE, size // _SAMPLES // _PAGE * _PAGE)
    return [offset for offset in range(0, size, step) if _is_cached(handle, offset)]


def _is_cached(handle: int, offset: int) -> bool:
    try:
        return os.preadv(handle, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False


def parse_numa_maps(text: str, path: str) -> dict[int, int]:
    """Pages by node over all mappings of the file: lines such as
    ``7f… default file=/models/a\\040b.gguf mapped=16 N0=12 N1=4 kernelpagesize_kB=4``."""
    name = os.path.realpath(path).replace("\\", "\\134").replace(" ", "\\040")
    counts: dict[int, int] = {}
    for line in text.splitlines():
        if f"file={name}" in line.split():
            for node, pages in _COUNT.findall(line):
                counts[int(node)] = counts.get(int(node), 0) + int(pages)
    return counts
