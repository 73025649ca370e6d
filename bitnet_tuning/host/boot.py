"""Which start of the kernel this is."""

from __future__ import annotations

from bitnet_tuning.host.root import Root


def read_boot_id(root: Root) -> str:
    """Another one after each start; empty where the kernel does not say (random(4))."""
    return root.read("proc/sys/kernel/random/boot_id") or ""
