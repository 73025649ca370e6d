"""Instruction set flags and the vendor, from /proc/cpuinfo."""

from __future__ import annotations

from bitnet_tuning.host.root import Root
from bitnet_tuning.records import NamedTuple

_FIRST_PROCESSORS = 1 << 14
"""Bytes that hold the first processor's entry; a large host's file runs to megabytes."""

_FLAG_KEYS = ("flags", "features", "isa")
"""As x86, ARM and s390, and RISC-V name the line."""


class Isa(NamedTuple):
    vendor: str | None
    flags: tuple[str, ...]


def read_isa(root: Root) -> Isa:
    vendor: str | None = None
    flags: tuple[str, ...] = ()
    for line in (root.read("proc/cpuinfo", _FIRST_PROCESSORS) or "").splitlines():
        key, _, value = line.partition(":")
        key = key.strip().lower()
        if key == "vendor_id" and vendor is None:
            vendor = value.strip() or None
        elif key in _FLAG_KEYS and not flags:
            flags = tuple(
                sorted(set(value.replace("_", " ").split() if key == "isa" else value.split()))
            )
    return Isa(vendor, flags)
