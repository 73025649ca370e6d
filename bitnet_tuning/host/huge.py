"""Whether memory can be had in huge pages: what the kernel and the C library offer."""

from __future__ import annotations

import os

from bitnet_tuning.host.kernel_settings import read_kernel_settings
from bitnet_tuning.host.root import Root
from bitnet_tuning.records import NamedTuple


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
