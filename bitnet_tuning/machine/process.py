"""Running programs, seen from outside: their threads, and the environment that they have."""

from __future__ import annotations

import re

from bitnet_tuning.machine.limits import LockLimit, lock_limit_in
from bitnet_tuning.machine.root import Root, as_integer, parse_list
from bitnet_tuning.namedtuple import NamedTuple

_ENVIRONMENT = 1 << 22
"""Bytes read of an environment. Linux takes a quarter of the stack's limit for it and the
arguments (execve(2)), 2 MiB as it is usually set."""

_TICKS = 100
"""Per second, in which ``stat`` shows times on all but a few old machines. Threads are only
compared with each other, for which any number would do."""


class Thread(NamedTuple):
    """One thread of a process."""

    id: int
    ran: float
    """Seconds since its start."""
    waited: float
    """Seconds in which it was kept from running because its CPU was busy; 0 where the
    kernel does not count them (CONFIG_SCHED_INFO)."""
    cpus: frozenset[int] | None
    """CPUs that it may use."""


class Process(NamedTuple):
    id: int
    variables: dict[str, str]
    """Its environment as it was when its program started."""
    threads: tuple[Thread, ...]


def shows_programs(root: Root) -> bool:
    """Whether there is a ``proc`` that shows programs with their threads."""
    return root.exists("proc/self/task")


class Family:
    """A process, what descends from it and what is in its process group. Whoever is no
    member when first seen is not looked at again: on a large host there are thousands."""

    def __init__(self, root: Root, leader: int) -> None:
        self._root = root
        self._leader = leader
        self._members = {leader}
        self._strangers: set[int] = set()

    def look(self) -> tuple[Process, ...]:
        """All members that run, by their ids; nothing where ``proc`` is not mounted."""
        found = (_read_process(self._root, member) for member in self.members())
        return tuple(process for process in found if process is not None)

    def members(self) -> list[int]:
        """Their ids, with those of members that have ended and were not waited for yet."""
        self._welcome()
        return sorted(self._members)

    def _welcome(self) -> None:
        listed = {int(name) for name in self._root.names("proc") if name.isdecimal()}
        # A child has a higher id than its parent, but where ids began anew.
        for newcomer in sorted(listed - self._members - self._strangers):
            kin = self._is_kin(newcomer)
            (self._members if kin else self._strangers).add(newcomer)
        self._members &= listed | {self._leader}
        self._strangers &= listed

    def _is_kin(self, process: int) -> bool:
        words = read_stat(self._root, f"proc/{process}/stat")
        if len(words) < 3:
            return False
        return int(words[1]) in self._members or int(words[2]) == self._leader


def _read_process(root: Root, process: int) -> Process | None:
    """None for one that is gone, or has ended and was not asked for its exit code yet."""
    folder = f"proc/{process}"
    if read_stat(root, f"{folder}/stat")[:1] in ([], ["Z"], ["X"]):
        return None
    names = sorted(int(name) for name in root.names(f"{folder}/task") if name.isdecimal())
    threads = (_read_thread(root, f"{folder}/task/{name}", name) for name in names)
    return Process(
        process,
        read_variables(root, process) or {},
        tuple(thread for thread in threads if thread is not None),
    )


def read_variables(root: Root, process: int) -> dict[str, str] | None:
    """The environment of a process; None where it is not shown."""
    text = root.read(f"proc/{process}/environ", _ENVIRONMENT)
    if text is None:
        return None
    pairs = (entry.partition("=") for entry in text.split("\0"))
    return {name: value for name, equals, value in pairs if equals}


def _read_thread(root: Root, folder: str, name: int) -> Thread | None:
    times = _times(root, folder)
    return None if times is None else Thread(name, *times, _allowed(root, folder))


def _times(root: Root, folder: str) -> tuple[float, float] | None:
    """Nanoseconds in ``schedstat``: running, and waiting; or the coarser ticks in ``stat``."""
    counted = (root.read(f"{folder}/schedstat") or "").split()
    nanoseconds = [as_integer(word) or 0 for word in counted[:2]]
    if any(nanoseconds):
        return nanoseconds[0] / 1e9, sum(nanoseconds[1:]) / 1e9
    words = read_stat(root, f"{folder}/stat")
    if len(words) < 13:
        return None
    return sum(as_integer(word) or 0 for word in words[11:13]) / _TICKS, 0.0


def _allowed(root: Root, folder: str) -> frozenset[int] | None:
    for line in (root.read(f"{folder}/status") or "").splitlines():
        if line.startswith("Cpus_allowed_list:"):
            try:
                return parse_list(line.partition(":")[2])
            except ValueError:
                return None
    return None


def read_stat(root: Root, name: str) -> list[str]:
    """The words behind the program's name, which may hold spaces and brackets itself: the
    state, the parent's id, the group's (proc_pid_stat(5)); user and system ticks stand at
    11 and 12."""
    return (root.read(name) or "").rpartition(")")[2].split()


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
    cpus = (_received_allowed(_fields(root, f"{task}/status")) for task in tasks)
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


def _received_allowed(status: dict[str, str]) -> frozenset[int] | None:
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
