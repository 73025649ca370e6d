"""Reading kernel files below a root folder, which need not be the live one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable

_ENOUGH = 1 << 16
"""Bytes read of a file; only /proc/cpuinfo of a large host is longer."""

_INTEGER = re.compile(r"-?[0-9]{1,20}", re.ASCII)


class Root:
    """A folder that holds ``sys`` and ``proc``.

    Every reader answers ``None`` for a file that is absent, unreadable or not in
    the form asked for: a fact that is not there is no error.
    """

    def __init__(self, path: str = "/") -> None:
        self.path = path
        self.live = os.path.realpath(path) == "/"
        self._prefix = path.rstrip("/") + "/"

    def read(self, name: str, limit: int = _ENOUGH) -> str | None:
        """The text of a file, at most ``limit`` bytes, without white space and NULs around it."""
        try:
            handle = os.open(self._prefix + name, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except (OSError, ValueError):
            return None
        try:
            return _drain(handle, limit).decode("utf-8", "replace").strip(" \t\r\n\0")
        except OSError:
            return None
        finally:
            os.close(handle)

    def fields(self, name: str) -> dict[str, str]:
        """Return the ``key: value`` lines of a file; empty where it does not exist."""
        pairs = (line.partition(":") for line in (self.read(name) or "").splitlines())
        return {key.strip(): value.strip() for key, _, value in pairs}

    def names(self, folder: str) -> list[str]:
        """What a folder holds; empty where it does not exist."""
        try:
            return os.listdir(self._prefix + folder)
        except OSError:
            return []

    def exists(self, name: str) -> bool:
        return os.path.exists(self._prefix + name)

    def integer(self, name: str) -> int | None:
        return as_integer(self.read(name))

    def cpus(self, name: str) -> frozenset[int] | None:
        """A CPU list such as ``0-3,8``; an empty file is an empty set."""
        return _cpu_set(self.read(name), parse_list)

    def cpus_of(self, *names: str) -> frozenset[int] | None:
        """The first CPU set among several files, ``…_list`` files as lists, others as masks."""
        for name in names:
            parse = parse_list if name.endswith("list") else parse_mask
            found = _cpu_set(self.read(name), parse)
            if found:
                return found
        return None


def as_integer(text: str | None) -> int | None:
    """A decimal number of at most 64 bits, which all of the kernel's are, or None."""
    value = int(text) if text and _INTEGER.fullmatch(text) else None
    return value if value is not None and abs(value) < 1 << 64 else None


def unescape(path: str) -> str:
    """A path from a mount table, where the kernel writes a space as ``\\040``."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), path)


def _drain(handle: int, limit: int) -> bytes:
    chunks: list[bytes] = []
    left = limit
    while left > 0 and (chunk := os.read(handle, left)):
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


def _cpu_set(text: str | None, parse: Callable[[str], frozenset[int]]) -> frozenset[int] | None:
    try:
        return None if text is None else parse(text)
    except ValueError:
        return None


MAX_CPU = 1 << 16
"""Ids from here on are taken for nonsense: the kernel's NR_CPUS ends at 8192."""


def parse_list(text: str) -> frozenset[int]:
    """``"0-3,8"`` -> {0, 1, 2, 3, 8}; an empty text is the empty set.

    Raises ValueError for anything that is not a CPU list.
    """
    cpus: set[int] = set()
    for part in text.strip().split(","):
        if part.strip():
            cpus.update(_parse_range(part.strip()))
    return frozenset(cpus)


def _parse_range(part: str) -> range:
    first, dash, last = part.partition("-")
    low = int(first)
    high = int(last) if dash else low
    if not 0 <= low <= high < MAX_CPU:
        raise ValueError(f"not a CPU range: {part!r}")
    return range(low, high + 1)


def parse_mask(text: str) -> frozenset[int]:
    """``"00000000,00001c07"`` -> {0, 1, 2, 10, 11, 12}: words of 32 bits, highest first.

    Raises ValueError for anything that is not a mask.
    """
    value = 0
    for word in text.strip().split(","):
        value = value << 32 | int(word, 16)
    if value < 0 or value.bit_length() > MAX_CPU:
        raise ValueError("not a CPU mask")
    return frozenset(cpu for cpu in range(value.bit_length()) if value >> cpu & 1)


def format_list(cpus: Iterable[int]) -> str:
    """{0, 1, 2, 3, 8} -> ``"0-3,8"``, the form that taskset and numactl take."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(f"{low}-{high}" if high > low else f"{low}" for low, high in runs)


def read_boot_id(root: Root) -> str:
    """Another one after each start; empty where the kernel does not say (random(4))."""
    return root.read("proc/sys/kernel/random/boot_id") or ""
