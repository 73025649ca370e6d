"""Read and parse the files of a Linux kernel below a root folder: "/" or a recorded machine."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable

from bitnet_tuning.store.codec import Annotated, Via

_ENOUGH = 1 << 16
"""Bytes to read of a file by default. Few files are longer, such as /proc/cpuinfo."""

_LONGEST_INTEGER = 21
"""Characters of the longest 64-bit integer with its sign."""

_SIZE = r"(?ai)([0-9]{1,15})\s*([KMGT]?)B?"
_FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Root:
    """A folder with the ``sys`` and ``proc`` of the running system or of a recorded machine. For a
    file that is missing, unreadable or malformed, the methods return None or an empty result."""

    def __init__(self, path: str = "/") -> None:
        self.path = path
        self.live = os.path.realpath(path) == "/"
        self._prefix = path.rstrip("/") + "/"

    @property
    def foreign(self) -> bool:
        """True for the running system if that is not Linux."""
        return self.live and not sys.platform.startswith("linux")

    def read(self, name: str, limit: int = _ENOUGH) -> str | None:
        """Return the start of a file as text without white space and null bytes around it."""
        try:
            handle = os.open(self._prefix + name, os.O_RDONLY)
        except (OSError, ValueError):
            return None
        data = bytearray()
        try:
            while len(data) < limit and (more := os.read(handle, limit - len(data))):
                data += more
        except OSError:
            return None
        finally:
            os.close(handle)
        return data.decode("utf-8", "replace").strip(" \t\r\n\0")

    def pairs(self, name: str, limit: int = _ENOUGH) -> list[tuple[str, str]]:
        """Return the keys and values in the ``key: value`` lines of a file, in their order."""
        lines = (self.read(name, limit) or "").splitlines()
        parts = (line.partition(":") for line in lines)
        return [(key.strip(), value.strip()) for key, _, value in parts]

    def fields(self, name: str) -> dict[str, str]:
        """Return the ``key: value`` lines of a file as a dict; the last value of a key counts."""
        return dict(self.pairs(name))

    def numbers(self, name: str, separator: str = ":") -> dict[str, int]:
        """Return the numbers in the ``key: number`` lines of a file; sizes in kB become bytes."""
        found = {}
        for line in (self.read(name) or "").splitlines():
            key, _, value = line.partition(separator)
            digits, _, unit = value.strip().partition(" ")
            if digits.isdecimal() and unit in ("", "kB") and len(digits) < 20:
                found[key.strip()] = int(digits) * (1024 if unit else 1)
        return found

    def names(self, folder: str) -> list[str]:
        """Return the names of the files and folders in a folder."""
        try:
            return os.listdir(self._prefix + folder)
        except OSError:
            return []

    def exists(self, name: str) -> bool:
        return os.path.exists(self._prefix + name)

    def integer(self, name: str) -> int | None:
        return as_integer(self.read(name))

    def cpus(self, *names: str) -> frozenset[int] | None:
        """Return the first CPU set that is not empty among several files, or None."""
        # The kernel has a list such as "0-3,8" in some files and a bit mask in others.
        for name in names:
            parse = parse_list if name.endswith(("list", "/online", "/cpus")) else parse_mask
            if found := parse_or_none(parse, self.read(name)):
                return found
        return None


def as_integer(text: str | None) -> int | None:
    """Return the decimal integer in ``text``, or None if it is none of at most 64 bits."""
    if not text or len(text) > _LONGEST_INTEGER or not text.isascii():
        return None
    value = int(text) if text.removeprefix("-").isdecimal() else None
    return value if value is not None and abs(value) < 1 << 64 else None


def as_size(text: str | None) -> int | None:
    """Return the bytes in a size such as ``512``, ``32768K`` or ``4 GB`` (GiB), or None."""
    found = re.fullmatch(_SIZE, (text or "").strip())
    return int(found[1]) * _FACTORS[found[2].upper()] if found else None


MAX_CPU = 1 << 16
"""Limit for the ids of CPUs and NUMA nodes; kernels are built for at most 8192 CPUs (NR_CPUS)."""


def parse_list(text: str) -> frozenset[int]:
    """Return the ids in a CPU list: ``"0-3,8"`` -> {0, 1, 2, 3, 8}; an empty text is an empty
    set. Raise ValueError if the text is not a CPU list."""
    cpus: set[int] = set()
    for part in filter(None, map(str.strip, text.split(","))):
        first, dash, last = part.partition("-")
        low, high = int(first), int(last if dash else first)
        if not 0 <= low <= high < MAX_CPU:
            raise ValueError(f"not a CPU range: {part!r}")
        cpus.update(range(low, high + 1))
    return frozenset(cpus)


def parse_mask(text: str) -> frozenset[int]:
    """Return the ids in a CPU mask, which consists of hexadecimal words of 32 bits, the highest
    first: ``"00000000,00001c07"`` -> {0, 1, 2, 10, 11, 12}. Raise ValueError for other texts."""
    value = 0
    for word in text.strip().split(","):
        value = value << 32 | int(word, 16)
    if value < 0 or value.bit_length() > MAX_CPU:
        raise ValueError("not a CPU mask")
    return frozenset(cpu for cpu in range(value.bit_length()) if value >> cpu & 1)


def parse_or_none(
    parse: Callable[[str], frozenset[int]], text: str | None
) -> frozenset[int] | None:
    """Return the CPU set that ``parse`` reads from ``text``, or None if there is none."""
    try:
        return None if text is None else parse(text)
    except ValueError:
        return None


def format_list(cpus: Iterable[int]) -> str:
    """Return the CPU list for taskset and numactl: {0, 1, 2, 3, 8} -> ``"0-3,8"``."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(f"{low}-{high}" if high > low else f"{low}" for low, high in runs)


_LISTED = "[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*"
CpuList = Annotated[str, {"pattern": f"^({_LISTED})?$", "examples": ["0-3,8"]}]
"""A CPU list as text, such as ``0-3,8``."""
CpuSet = Annotated[
    frozenset[int],
    Via(
        Annotated[str, {"pattern": f"^{_LISTED}$", "examples": ["0-3,8"]}], parse_list, format_list
    ),
]
"""The ids of at least one CPU or NUMA node; in JSON a list such as ``0-3,8``."""


def read_boot_id(root: Root) -> str:
    """Return an id that changes when the system starts (random(4)); empty if there is none."""
    return root.read("proc/sys/kernel/random/boot_id") or ""
