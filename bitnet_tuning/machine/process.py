"""Read the threads, environment and memory of running processes."""

from __future__ import annotations

from collections.abc import Mapping

from bitnet_tuning.machine.load import hertz, read_stat
from bitnet_tuning.machine.memory import read_numa_maps
from bitnet_tuning.machine.root import Root, as_integer, parse_list, parse_or_none
from bitnet_tuning.namedtuple import NamedTuple

_ENVIRONMENT = 1 << 22
"""Bytes to read of an environment. Linux limits it, with the arguments, to a quarter of the
stack limit (execve(2)), which is usually 2 MiB."""

_GROUP, _USER_TICKS, _NICENESS = 2, 11, 16
"""Positions among the words of ``stat`` after the program's name (proc_pid_stat(5))."""


class Thread(NamedTuple):
    """One thread of a process, and its times since it started or between two readings."""

    id: int
    ran: float
    """Seconds of CPU time."""
    waited: float
    """Seconds of waiting for a busy CPU; 0 if the kernel counts none (CONFIG_SCHED_INFO)."""
    cpus: frozenset[int] | None
    """CPUs in the affinity mask of the thread; None if unknown."""
    niceness: int | None = None

    @property
    def wanted(self) -> float:
        """Seconds for which the thread ran or waited for a CPU."""
        return self.ran + self.waited


class Process(NamedTuple):
    """One running process. Sizes are in bytes; None stands for what the kernel does not show."""

    id: int
    variables: Mapping[str, str] | None
    """Environment of the process when its program started."""
    threads: tuple[Thread, ...]
    resident: int | None = None
    """Memory of the process that is in RAM."""
    locked: int | None = None
    """Memory that the process has locked."""
    huge: int | None = None
    """Memory in huge pages, if they were counted."""
    nodes: Mapping[int, int] | None = None
    """Memory on each NUMA node, if it was counted."""


def shows_programs(root: Root) -> bool:
    """Return whether the root folder shows running programs and their threads."""
    return root.exists("proc/self/task")


class Family:
    """A process with its descendants and its process group."""

    def __init__(self, root: Root, leader: int) -> None:
        self._root = root
        self._leader = leader
        self._members = {leader}
        # A large host has thousands of other processes. Each is examined only once.
        self._others: set[int] = set()

    def look(self, huge: bool = False, nodes: bool = False) -> tuple[Process, ...]:
        """Return the running members in the order of their ids; empty if the kernel shows none.
        ``huge`` counts huge pages, ``nodes`` the pages on each NUMA node: each takes about 30 ms
        per GiB of memory, all the rest 1 ms."""
        listed = {int(name) for name in self._root.names("proc") if name.isdecimal()}
        # A child has a higher id than its parent, except after the ids wrap around.
        for process in sorted(listed - self._members - self._others):
            words = read_stat(self._root, f"proc/{process}")[1]
            is_member = len(words) > _GROUP and (
                int(words[1]) in self._members or int(words[_GROUP]) == self._leader
            )
            (self._members if is_member else self._others).add(process)
        self._members &= listed | {self._leader}
        self._others &= listed
        found = (_read(self._root, member, huge, nodes) for member in sorted(self._members))
        return tuple(process for process in found if process is not None)


def _read(root: Root, process: int, huge: bool, nodes: bool) -> Process | None:
    folder = f"proc/{process}"
    # Z is a zombie, which has ended and was not waited for; X is dead (proc_pid_stat(5)).
    if read_stat(root, folder)[1][:1] in ([], ["Z"], ["X"]):
        return None
    environ = root.read(f"{folder}/environ", _ENVIRONMENT)
    pairs = (entry.partition("=") for entry in (environ or "").split("\0"))
    variables = {name: value for name, equals, value in pairs if equals}
    names = sorted(int(name) for name in root.names(f"{folder}/task") if name.isdecimal())
    threads = (_thread(root, f"{folder}/task/{name}", name) for name in names)
    status = root.numbers(f"{folder}/status")
    # Pages that an administrator reserved count as well as transparent ones.
    pages = root.numbers(f"{folder}/smaps_rollup").get("AnonHugePages") if huge else None
    return Process(
        process,
        None if environ is None else variables,
        tuple(thread for thread in threads if thread is not None),
        status.get("VmRSS"),
        status.get("VmLck"),
        None if pages is None else pages + status.get("HugetlbPages", 0),
        read_numa_maps(root, str(process)) if nodes else None,
    )


def _thread(root: Root, folder: str, name: int) -> Thread | None:
    """Return a thread, or None if it is gone."""
    _, words = read_stat(root, folder)
    # schedstat has nanoseconds (scheduler/sched-stats.rst). It is missing or all zeros in kernels
    # without CONFIG_SCHED_INFO; stat has coarser ticks and no time of waiting.
    counted = (root.read(f"{folder}/schedstat") or "").split()
    ran, waited = ([as_integer(word) or 0 for word in counted[:2]] + [0, 0])[:2]
    seconds = (ran / 1e9, waited / 1e9)
    if not ran and not waited:
        if len(words) < _USER_TICKS + 2:
            return None
        ticks = words[_USER_TICKS : _USER_TICKS + 2]  # those of the system, too
        seconds = (sum(as_integer(word) or 0 for word in ticks) / hertz(), 0.0)
    niceness = as_integer(words[_NICENESS]) if len(words) > _NICENESS else None
    cpus = root.fields(f"{folder}/status").get("Cpus_allowed_list")
    return Thread(name, *seconds, parse_or_none(parse_list, cpus), niceness)
