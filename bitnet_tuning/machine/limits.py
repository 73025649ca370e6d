"""What this process may use: CPUs of the affinity mask, nodes, priorities, locked memory."""

from __future__ import annotations

import os

from bitnet_tuning.machine.root import Root, as_integer, parse_list, parse_mask, parse_or_none
from bitnet_tuning.namedtuple import NamedTuple

_STATUS = "proc/self/status"

_CAP_IPC_LOCK, _CAP_SYS_NICE = 1 << 14, 1 << 23
"""Bits of CapEff (linux/capability.h)."""


class Privileges(NamedTuple):
    """What this process may ask of the kernel."""

    lowest_nice: int
    """The lowest niceness (highest priority) that it may set, -20 to 20."""
    lockable: int | None
    """Bytes of memory that it may lock; None for no limit."""


def read_privileges(root: Root | None = None) -> Privileges:
    """Return what the resource limits and capabilities of this process allow."""
    try:
        import resource  # noqa: PLC0415
    except ImportError:  # Windows
        return Privileges(0, 0)
    held = _capabilities(root or Root())
    memlock = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    # setpriority(2): the ceiling of niceness is 20 minus this limit.
    ceiling = resource.getrlimit(resource.RLIMIT_NICE)[0] if hasattr(resource, "RLIMIT_NICE") else 0
    any_nice = held & _CAP_SYS_NICE or ceiling == resource.RLIM_INFINITY
    any_lock = held & _CAP_IPC_LOCK or memlock == resource.RLIM_INFINITY
    return Privileges(-20 if any_nice else 20 - ceiling, None if any_lock else memlock)


def _capabilities(root: Root) -> int:
    """Return the effective capabilities that count for priorities and locks.

    Root in a container lacks some, and those that a user namespace grants do not count.
    Where the kernel shows none, root may do everything.
    """
    try:
        effective = int(root.fields(_STATUS)["CapEff"], 16)
    except (KeyError, ValueError):
        return -1 if os.geteuid() == 0 else 0
    mapped = (root.read("proc/self/uid_map") or "").split()
    return effective if mapped in ([], ["0", "0", "4294967295"]) else 0


def read_allowed_cpus(root: Root, online: frozenset[int]) -> frozenset[int]:
    """Return the online CPUs in the affinity mask of this process (of the recording one, for
    a recorded machine); all of them if that leaves none or is unknown."""
    if root.live:
        try:
            mask = frozenset(os.sched_getaffinity(0))
        except (AttributeError, OSError):
            return online
        return mask & online or online
    stated = root.fields(_STATUS)
    listed = parse_or_none(parse_list, stated.get("Cpus_allowed_list"))
    if listed is None:
        listed = parse_or_none(parse_mask, stated.get("Cpus_allowed"))
    return (listed or frozenset()) & online or online


def read_allowed_nodes(root: Root) -> frozenset[int] | None:
    """Return the NUMA nodes whose memory this process may use (cpuset(7)); None where the
    kernel does not say."""
    return parse_or_none(parse_list, root.fields(_STATUS).get("Mems_allowed_list")) or None


def read_lock_limit(root: Root) -> float | None:
    """Return how many bytes this process, or the recorded one, may lock in memory: infinity
    for no limit, None if unknown."""
    if root.live:
        lockable = read_privileges(root).lockable
        return None if os.name == "nt" else float("inf") if lockable is None else lockable
    for line in (root.read("proc/self/limits") or "").splitlines():
        if line.startswith("Max locked memory"):
            soft = line.split()[3:4]
            return float("inf") if soft == ["unlimited"] else as_integer("".join(soft))
    return None
