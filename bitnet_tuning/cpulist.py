"""CPU lists and masks as the kernel writes them; nothing here reads a file."""

from __future__ import annotations

from collections.abc import Iterable

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


def format_mask(cpus: Iterable[int]) -> str:
    """{0, 1, 8} -> ``"0x103"``, the form that llama.cpp's --cpu-mask takes."""
    return hex(sum(1 << cpu for cpu in set(cpus)))
