"""Running programs seen from outside: their threads, environment and memory."""

from __future__ import annotations

from bitnet_tuning.machine.memory import read_numa_maps
from bitnet_tuning.machine.root import Root, as_integer, parse_list, parse_or_none
from bitnet_tuning.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


_ENVIRONMENT = 1 << 22
"""Bytes to read of an environment. Linux takes a quarter of the stack's limit for it and the
arguments (execve(2)), 2 MiB as it is usually set."""

_TICKS = 100
"""Per second, in which ``stat`` shows times on all but a few old machines. Threads are only
compared with each other, for which any number would do."""

_GROUP, _USER_TICKS, _NICENESS = 2, 11, 16
"""Places among the words of ``stat`` behind the program's name (proc_pid_stat(5))."""


class Thread(NamedTuple):
    """One thread of a process, until now or between two looks."""

    id: int
    ran: float
    """Seconds."""
    waited: float
    """Seconds in which its CPU was busy with something else; 0 where the kernel does not
    count them (CONFIG_SCHED_INFO)."""
    cpus: frozenset[int] | None
    """CPUs that it may use; None where that is not known."""
    niceness: int | None = None

    @property
    def wanted(self) -> float:
        """Seconds in which it would have run."""
        return self.ran + self.waited


class Process(NamedTuple):
    """One process. Sizes in bytes; None where the kernel does not say."""

    id: int
    variables: Mapping[str, str] | None
    """Its environment as it was when its program started."""
    threads: tuple[Thread, ...]
    resident: int | None = None
    locked: int | None = None
    """Locked in memory."""
    huge: int | None = None
    """In pages larger than the usual ones; None also where they were not counted."""
    nodes: Mapping[int, int] | None = None
    """In the memory of each NUMA node; None also where they were not counted."""


def shows_programs(root: Root) -> bool:
    """Return whether there is a ``proc`` that shows programs with their threads."""
    return root.exists("proc/self/task")


class Family:
    """A process, what descends from it and what is in its process group. Whoever is no
    member when first seen is not looked at again: on a large host there are thousands."""

    def __init__(self, root: Root, leader: int) -> None:
        self._root = root
        self._leader = leader
        self._members = {leader}
        self._strangers: set[int] = set()

    def look(self, huge: bool = False, nodes: bool = False) -> tuple[Process, ...]:
        """Return all members that run, by their ids; nothing where ``proc`` is not mounted.

        For ``huge`` pages and for ``nodes`` the kernel counts every page, 30 ms for a GiB
        each, against 1 ms for all the rest.
        """
        self._welcome()
        found = (_read(self._root, member, huge, nodes) for member in sorted(self._members))
        return tuple(process for process in found if process is not None)

    def _welcome(self) -> None:
        listed = {int(name) for name in self._root.names("proc") if name.isdecimal()}
        # A child has a higher id than its parent, but where ids began anew.
        for newcomer in sorted(listed - self._members - self._strangers):
            kin = self._is_kin(newcomer)
            (self._members if kin else self._strangers).add(newcomer)
        self._members &= listed | {self._leader}
        self._strangers &= listed

    def _is_kin(self, process: int) -> bool:
        words = _stat(self._root, f"proc/{process}")
        if len(words) <= _GROUP:
            return False
        return int(words[1]) in self._members or int(words[_GROUP]) == self._leader


def _read(root: Root, process: int, huge: bool, nodes: bool) -> Process | None:
    """Return None for one that is gone, or has ended and was not waited for yet."""
    folder = f"proc/{process}"
    if _stat(root, folder)[:1] in ([], ["Z"], ["X"]):
        return None
    names = sorted(int(name) for name in root.names(f"{folder}/task") if name.isdecimal())
    threads = (_thread(root, f"{folder}/task/{name}", name) for name in names)
    status = root.numbers(f"{folder}/status")
    return Process(
        process,
        _variables(root, folder),
        tuple(thread for thread in threads if thread is not None),
        status.get("VmRSS"),
        status.get("VmLck"),
        _huge(root, folder, status) if huge else None,
        read_numa_maps(root, str(process)) if nodes else None,
    )


def _stat(root: Root, folder: str) -> list[str]:
    """Return the words behind the program's name, which may hold spaces and brackets itself:
    the state, the parent's id, the group's and so on."""
    return (root.read(f"{folder}/stat") or "").rpartition(")")[2].split()


def _variables(root: Root, folder: str) -> dict[str, str] | None:
    text = root.read(f"{folder}/environ", _ENVIRONMENT)
    if text is None:
        return None
    pairs = (entry.partition("=") for entry in text.split("\0"))
    return {name: value for name, equals, value in pairs if equals}


def _thread(root: Root, folder: str, name: int) -> Thread | None:
    words = _stat(root, folder)
    times = _times(root, folder, words)
    if times is None:
        return None
    niceness = as_integer(words[_NICENESS]) if len(words) > _NICENESS else None
    cpus = root.fields(f"{folder}/status").get("Cpus_allowed_list")
    return Thread(name, *times, parse_or_none(parse_list, cpus), niceness)


def _times(root: Root, folder: str, words: list[str]) -> tuple[float, float] | None:
    """Return the nanoseconds of ``schedstat``, running and waiting, as seconds; else the
    coarser ticks of ``stat``."""
    counted = (root.read(f"{folder}/schedstat") or "").split()
    nanoseconds = [as_integer(word) or 0 for word in counted[:2]]
    if any(nanoseconds):
        return nanoseconds[0] / 1e9, sum(nanoseconds[1:]) / 1e9
    if len(words) < _USER_TICKS + 2:
        return None
    system_too = words[_USER_TICKS : _USER_TICKS + 2]
    return sum(as_integer(word) or 0 for word in system_too) / _TICKS, 0.0


def _huge(root: Root, folder: str, status: Mapping[str, int]) -> int | None:
    """Return the size of transparent huge pages and of those reserved by an administrator."""
    transparent = root.numbers(f"{folder}/smaps_rollup").get("AnonHugePages")
    return None if transparent is None else transparent + status.get("HugetlbPages", 0)
