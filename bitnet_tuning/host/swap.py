"""Memory that was moved to disk."""

from __future__ import annotations

import os

from bitnet_tuning.host.root import Root, as_integer
from bitnet_tuning.records import NamedTuple


class Swap(NamedTuple):
    """Bytes."""

    used: int
    """What lies there now; that alone slows nothing down."""
    read_back: int | None = None
    """What was fetched back since the start of the system: each time something waited."""


def read_swap(root: Root) -> Swap | None:
    """From ``proc/meminfo`` and ``proc/vmstat``; None where they do not tell."""
    memory = _numbers(root, "proc/meminfo", ":")
    if "SwapTotal" not in memory or "SwapFree" not in memory:
        return None
    pages = _numbers(root, "proc/vmstat", " ").get("pswpin")
    used = max(0, memory["SwapTotal"] - memory["SwapFree"]) * 1024
    return Swap(used, None if pages is None else pages * _page_size())


def _numbers(root: Root, name: str, separator: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for line in (root.read(name) or "").splitlines():
        key, _, value = line.partition(separator)
        number = as_integer(value.removesuffix("kB").strip())
        if number is not None and number >= 0:
            found[key] = number
    return found


def _page_size() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 4096
