"""Instruction set flags, the vendor and the brand, from /proc/cpuinfo."""

from __future__ import annotations

from bitnet_tuning.machine.root import Root
from bitnet_tuning.namedtuple import NamedTuple

_FIRST_PROCESSORS = 1 << 14
"""Bytes that hold the first processor's entry; a large host's file runs to megabytes."""

_FLAG_KEYS = ("flags", "features", "isa")
"""As x86, ARM and s390, and RISC-V name the line."""

_BRAND_KEYS = ("model name", "cpu model", "processor", "hardware", "uarch", "cpu")
"""As x86 and LoongArch, MIPS, 32-bit ARM (two), RISC-V, and POWER name the line."""


class Isa(NamedTuple):
    vendor: str | None
    flags: tuple[str, ...]
    brand: str | None
    """What the processor is called."""


def read_isa(root: Root) -> Isa:
    stated: dict[str, str] = {}
    for line in (root.read("proc/cpuinfo", _FIRST_PROCESSORS) or "").splitlines():
        key, _, value = line.partition(":")
        value = value.strip()
        if value and not (value.isdecimal() and key.startswith("processor")):
            stated.setdefault(key.strip().lower(), value)
    return Isa(stated.get("vendor_id"), _flags(stated), _brand(stated))


def _flags(stated: dict[str, str]) -> tuple[str, ...]:
    key = next((key for key in _FLAG_KEYS if key in stated), "")
    text = stated.get(key, "")
    return tuple(sorted(set((text.replace("_", " ") if key == "isa" else text).split())))


def _brand(stated: dict[str, str]) -> str | None:
    """64-bit ARM has no name there, but numbers that stand for one."""
    named = next((stated[key] for key in _BRAND_KEYS if key in stated), None)
    if named is None and "cpu part" in stated:
        return f"ARM implementer {stated.get('cpu implementer', '?')}, part {stated['cpu part']}"
    return named and " ".join(named.split())
