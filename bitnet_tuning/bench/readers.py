"""Reading memory with the C library's own fast loops, for lack of a compiler."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

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
    """``memchr`` for a byte that is not there, or ``memcmp`` of two equal halves, whichever
    is faster from the cache. None where no C library is found."""
    readers = _readers(_library())
    buffer = (ctypes.c_char * _TRIAL).from_buffer(bytearray([FILL]) * _TRIAL)
    address = ctypes.addressof(buffer)
    found = [Reader(name, read, _rate(read, address)) for name, read in readers.items()]
    return max(found, key=lambda reader: reader.from_cache, default=None)


def _readers(library: ctypes.CDLL | None) -> Mapping[str, Read]:
    """By name; ctypes lets other threads run during each call."""
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
    """This program's own C library; Windows has it under a name."""
    try:
        return ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)
    except (OSError, TypeError):
        return None


def _rate(read: Read, address: int) -> float:
    """The fastest of some passes: what the loop can do when nothing disturbs it."""
    times: list[float] = []
    for _ in range(_TRIAL_PASSES):
        start = time.perf_counter()
        read(address, _TRIAL)
        times.append(time.perf_counter() - start)
    return _TRIAL / max(min(times), 1e-9)
