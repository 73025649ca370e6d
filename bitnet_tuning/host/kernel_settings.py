"""Settings of the kernel that concern memory."""

from __future__ import annotations

import re

from bitnet_tuning.host.root import Root
from bitnet_tuning.records import NamedTuple

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
