"""What a running program has received of the kernel, as far as it was asked for."""

from __future__ import annotations

import re

from bitnet_tuning.cpulist import parse_list
from bitnet_tuning.host.locking import LockLimit, lock_limit_in
from bitnet_tuning.host.root import Root, as_integer
from bitnet_tuning.host.running import Family, read_stat, read_variables
from bitnet_tuning.records import NamedTuple

_MAPS = 1 << 24
"""Bytes read of a ``numa_maps``; a mapping takes about 100."""

_PAGES = re.compile(r"\bN(\d+)=(\d+)")
_PAGE_SIZE = re.compile(r"\bkernelpagesize_kB=(\d+)")

_NICENESS = 16
"""Its place among the words of ``stat`` behind the program's name."""


class Received(NamedTuple):
    """One process. Sizes in bytes; None where the kernel does not say."""

    process: int
    cpus: tuple[frozenset[int], ...]
    """That each thread may use."""
    niceness: tuple[int, ...]
    """Of each thread."""
    resident: int | None
    locked: int | None
    """In memory for good."""
    huge: int | None
    """In pages larger than the usual ones; None also where it was not asked for."""
    variables: dict[str, str] | None
    """Its environment as it was when its program started."""
    lock_limit: LockLimit | None
    nodes: dict[int, int]
    """In each node's memory; empty where it was not asked for."""


def read_received(
    root: Root, family: Family, huge: bool = False, nodes: bool = False
) -> Received | None:
    """Of the member that computes: of all it has most threads, or else most memory. None
    where there is none. For ``huge`` pages and for the ``nodes`` the kernel counts every
    page, 30 ms for a GiB each, against 1 ms for all the rest."""
    found = {member: _status(root, member) for member in family.members()}
    running = {member: status for member, status in found.items() if "VmRSS" in status}
    if not running:
        return None
    process = max(running, key=lambda member: _size(running[member]))
    received = _read(root, process, running[process])
    folder = f"proc/{process}"
    return received._replace(
        huge=_huge(root, folder, running[process]) if huge else None,
        nodes=_nodes(root, folder) if nodes else {},
    )


def _size(status: dict[str, str]) -> tuple[int, int]:
    return as_integer(status.get("Threads")) or 0, _bytes(status, "VmRSS") or 0


def _read(root: Root, process: int, status: dict[str, str]) -> Received:
    folder = f"proc/{process}"
    tasks = [f"{folder}/task/{name}" for name in root.names(f"{folder}/task")]
    cpus = (_allowed(_fields(root, f"{task}/status")) for task in tasks)
    niceness = (_niceness(root, task) for task in tasks)
    return Received(
        process=process,
        cpus=tuple(mask for mask in cpus if mask),
        niceness=tuple(value for value in niceness if value is not None),
        resident=_bytes(status, "VmRSS"),
        locked=_bytes(status, "VmLck"),
        huge=None,
        variables=read_variables(root, process),
        lock_limit=lock_limit_in(root, folder),
        nodes={},
    )


def _status(root: Root, process: int) -> dict[str, str]:
    return _fields(root, f"proc/{process}/status")


def _fields(root: Root, name: str) -> dict[str, str]:
    """``key: value`` lines."""
    pairs = (line.partition(":") for line in (root.read(name) or "").splitlines())
    return {key: value.strip() for key, _, value in pairs}


def _bytes(fields: dict[str, str], key: str) -> int | None:
    kilobytes = as_integer(fields.get(key, "").removesuffix("kB").strip())
    return None if kilobytes is None else kilobytes * 1024


def _allowed(status: dict[str, str]) -> frozenset[int] | None:
    try:
        return parse_list(status["Cpus_allowed_list"])
    except (KeyError, ValueError):
        return None


def _niceness(root: Root, folder: str) -> int | None:
    words = read_stat(root, f"{folder}/stat")
    return as_integer(words[_NICENESS]) if len(words) > _NICENESS else None


def _huge(root: Root, folder: str, status: dict[str, str]) -> int | None:
    """Transparent ones, and those that were set aside for it."""
    transparent = _bytes(_fields(root, f"{folder}/smaps_rollup"), "AnonHugePages")
    return None if transparent is None else transparent + (_bytes(status, "HugetlbPages") or 0)


def _nodes(root: Root, folder: str) -> dict[int, int]:
    held: dict[int, int] = {}
    for line in (root.read(f"{folder}/numa_maps", _MAPS) or "").splitlines():
        size = _PAGE_SIZE.search(line)
        for node, pages in _PAGES.findall(line):
            held[int(node)] = held.get(int(node), 0) + int(pages) * int(size[1] if size else 4)
    return {node: kilobytes * 1024 for node, kilobytes in held.items()}
