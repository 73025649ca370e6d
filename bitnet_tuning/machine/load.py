"""Read and compare the CPU time of the whole machine, of other programs and of this process, and
measure what others take in the moment before an engine starts."""

from __future__ import annotations

import os
import time

from bitnet_tuning.console import printable
from bitnet_tuning.machine.cgroups import Cgroups, read_cgroups, read_used_seconds
from bitnet_tuning.machine.root import Root, as_integer
from bitnet_tuning.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    from bitnet_tuning.machine.host import Host

    Number = TypeVar("Number", int, float)

_BUSY = (0, 1, 2, 5, 6)
"""Columns of a ``cpu`` line in which a CPU works: user, nice, system, irq, softirq. The user
time includes that of guests (proc_stat(5))."""
_STEAL = 7

_MOST_NAMED, UNNAMED = 3, "?"
_LEAST_NAMED = 0.01
"""CPUs that a program must use to be named."""


class ProcessTime(NamedTuple):
    """The name of a process and the CPU time that it has used so far, in seconds."""

    name: str
    seconds: float
    parent: int = 0
    """Process id of the parent."""
    family: float = 0.0
    """CPU time of the process and of its children that have ended, in seconds."""
    age: float = 0.0
    """Seconds since the process started."""
    nice: int = 0


class Busy(NamedTuple):
    """The CPU use of all processes with the same name."""

    name: str
    cpus: float
    """CPUs that these processes used on average."""


def read_cpu_times(
    root: Root, cpus: frozenset[int] | None = None
) -> tuple[float, float] | tuple[None, None]:
    """Return for how long some CPUs, by default all of the machine even in a container, worked, and
    had work while the hypervisor ran another machine: sums in seconds since the start, if known."""
    rows = [line.split() for line in (root.read("proc/stat") or "").splitlines()]
    rows = [row for row in rows if row and row[0].startswith("cpu") and len(row) > 4]
    if not rows or rows[0][0] != "cpu":
        return None, None
    names = {f"cpu{cpu}" for cpu in cpus or ()}
    # The first line is the sum, which is rounded only once.
    chosen = [row for row in rows if row[0] in names] if len(names) < len(rows) - 1 else []
    ticks = [[as_integer(word) or 0 for word in row[1:]] for row in chosen or rows[:1]]
    rate = hertz()
    busy = sum(row[column] for row in ticks for column in _BUSY if column < len(row))
    return busy / rate, sum(row[_STEAL] for row in ticks if len(row) > _STEAL) / rate


def hertz() -> int:
    """Return the number of ticks per second in which the kernel counts CPU time."""
    try:
        return os.sysconf("SC_CLK_TCK")
    except (AttributeError, OSError, ValueError):
        return 100


def own_cpu_seconds() -> float:
    """Return the CPU time in seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


def read_processes(root: Root) -> dict[int, ProcessTime]:
    """Return the other processes by process id, without the descendants of this one. A container
    shows its own processes only; systems other than Linux are asked through psutil."""
    # On Linux, psutil raises errors of many kinds where there is no /proc, as in some chroots.
    found = _ask_psutil() if root.foreign else _read_proc(root)
    ours = {os.getpid()}
    # A child usually has a higher id than its parent; ids that start again need more passes.
    while more := {pid for pid, each in found.items() if each.parent in ours} - ours:
        ours |= more
    return {pid: process for pid, process in found.items() if pid not in ours}


def _read_proc(root: Root) -> dict[int, ProcessTime]:
    rate = hertz()
    now = as_integer((root.read("proc/uptime") or "").partition(".")[0]) or 0
    found = {}
    for pid in filter(str.isdecimal, root.names("proc")):
        name, words = read_stat(root, f"proc/{pid}")
        numbers = [as_integer(word) or 0 for word in words]
        if len(numbers) > 19:
            used, family = sum(numbers[11:13]) / rate, sum(numbers[11:15]) / rate
            age = max(0.0, now - numbers[19] / rate)
            found[int(pid)] = ProcessTime(
                _printable(name), used, numbers[1], family, age, nice=numbers[16]
            )
    return found


def read_stat(root: Root, folder: str) -> tuple[str, list[str]]:
    """Return a program's name and the words after it: state, parent id, group id, …"""
    # proc_pid_stat(5): PID (NAME) STATE …; a name may contain anything.
    left, _, right = (root.read(f"{folder}/stat") or "").rpartition(")")
    return left.partition("(")[2], right.split()


def _ask_psutil() -> dict[int, ProcessTime]:
    try:
        import psutil  # noqa: PLC0415
    except ImportError:
        return {}
    found = {}
    for process in psutil.process_iter(["name", "cpu_times", "ppid"]):
        times, name = process.info["cpu_times"], process.info["name"] or ""
        if times is not None:
            used = times.user + times.system
            found[process.pid] = ProcessTime(_printable(name), used, process.info["ppid"] or 0)
    return found


def _printable(name: str) -> str:
    # Kernel workers have names that change with their work, such as kworker/0:1-events.
    name = "kworker" if name.startswith("kworker/") else name[:40]
    # A program that runs from memory has no file that could name it (memfd_create(2)).
    return UNNAMED if name.startswith("memfd:") else printable(name.replace("\n", "?")) or UNNAMED


def growth(before: Number | None, after: Number | None) -> Number | None:
    """Return by how much a counter grew, or None if a value is missing or the counter was reset."""
    return None if before is None or after is None or after < before else after - before


def other_load(busy: float | None, own: float | None, seconds: float) -> float | None:
    """Return the CPUs that other programs used on average in ``seconds`` of wall time, or None.
    ``busy`` is the CPU time of the whole machine, ``own`` that of this process, both in seconds."""
    if busy is None or own is None or seconds <= 0:
        return None
    return max(0.0, busy - own) / seconds


def steal_share(busy: float | None, stolen: float | None) -> float | None:
    """Return the share of the needed CPU time that the hypervisor took, or None if unknown."""
    # Below one second, a few ticks would make a large share.
    if busy is None or stolen is None or busy + stolen < 1:
        return None
    return stolen / (busy + stolen)


def shares(
    before: Mapping[int, ProcessTime], after: Mapping[int, ProcessTime], seconds: float
) -> dict[int, float]:
    """Return how many CPUs each process used on average between two listings of processes. One that
    started in between counts from its start; one that ended does not count."""
    used = {}
    for pid, process in after.items():
        # Less CPU time than before: the process ended, and a new one got its id.
        grown = growth(before[pid].seconds, process.seconds) if pid in before else None
        used[pid] = process.seconds if grown is None else grown
    return {pid: spent / seconds for pid, spent in used.items()} if seconds > 0 else {}


def busiest(
    before: Mapping[int, ProcessTime], after: Mapping[int, ProcessTime], seconds: float
) -> tuple[Busy, ...]:
    """Return the three programs that used the most CPU time between two listings of processes."""
    rates: dict[str, float] = {}
    for pid, cpus in shares(before, after, seconds).items():
        rates[after[pid].name] = rates.get(after[pid].name, 0.0) + cpus
    named = [Busy(name, cpus) for name, cpus in rates.items() if cpus >= _LEAST_NAMED]
    named = [each for each in named if each.name != UNNAMED]
    return tuple(sorted(named, key=lambda program: (-program.cpus, program.name))[:_MOST_NAMED])


_GLANCE, _WATCH = 0.03, 0.1
"""Seconds after which a machine that turned out to be quiet is no longer watched, and seconds for
which any other is. /proc/stat counts in steps of 0.01 s."""

QUIET = 0.25
"""CPUs that other programs may use on a quiet machine."""

_LASTING_SECONDS, _LASTING_SHARE = 1.0, 0.3
"""CPU time that a program must have used, in seconds and as a share of its age, to be expected to
go on. Of processes that have run for a second, half run for at least as long again, of younger ones
few (Harchol-Balter and Downey 1997, "Exploiting process lifetime distributions")."""

_LEAST_SHARE = 0.1
"""Share of a CPU from which a program is looked at."""

_YIELDING = 15
"""Difference in niceness from which a program gets at most 4 % of a CPU that another one wants (36
to 1024, sched_prio_to_weight in the kernel). Beside two spinning programs of niceness 19 in groups
of the same niceness, two threads made 13.5 tokens/s, as on an idle machine, and one 8.0."""


class Neighbours(NamedTuple):
    """What other programs that are likely to go on took of the CPUs of this process."""

    cpus: float
    """Average number of CPUs, including those that a hypervisor gave to other machines."""
    group: float = 0.0
    """Average number of CPUs that the other processes under the same CPU quota used."""
    programs: tuple[str, ...] = ()
    """Names of the busiest programs that this process can see."""


class _Look(NamedTuple):
    at: float
    own: float
    used: float
    stolen: float
    group: float | None


def watch(host: Host, root: Root, sleep: Callable[[float], None] = time.sleep) -> Neighbours | None:
    """Return what other programs take, after watching them for up to 0.1 s; None if they take
    next to nothing, or if it is unknown."""
    groups = read_cgroups(root) if host.quota is not None else None
    first = _look(host, root, groups)
    sleep(_GLANCE)
    second = _look(host, root, groups)
    if first is None or second is None or max(_rates(first, second)[:2]) < QUIET:
        return None
    started, before = time.monotonic(), read_processes(root)
    sleep(_WATCH - _GLANCE)
    seconds = time.monotonic() - started
    after, last = read_processes(root), _look(host, root, groups)
    if last is None:
        return None
    cpus, group, stolen = _rates(first, last)
    used = shares(before, after, seconds)
    used = {pid: share for pid, share in used.items() if share >= _LEAST_SHARE}
    yielding = {pid: share for pid, share in used.items() if _yields(root, pid, after[pid].nice)}
    counted = {pid: share for pid, share in used.items() if pid not in yielding}
    cpus, group = (max(0.0, each - sum(yielding.values())) for each in (cpus, group))
    if _load_average(root) < cpus / 2:
        # The machine was quiet in the last minute. What is busy now may be over in a moment.
        counted = {pid: share for pid, share in counted.items() if _lasts(pid, after)}
        cpus = min(cpus, sum(counted.values()) + stolen)
        group = min(group, sum(counted.values()))
    names = [after[pid].name for pid in sorted(counted, key=lambda pid: -counted[pid])]
    busiest = tuple(name for name in dict.fromkeys(names) if name != UNNAMED)[:_MOST_NAMED]
    return Neighbours(cpus, group, busiest) if max(cpus, group) >= QUIET else None


def _yields(root: Root, pid: int, nice: int) -> bool:
    """Return whether a program leaves the CPU to this one, if both want it."""
    own = as_integer((read_stat(root, "proc/self")[1] + [""] * 17)[16]) or 0
    # sched(7), "The autogroup feature": niceness counts within a session only; between sessions
    # it is that of their groups, "/autogroup-25 nice 0".
    theirs, mine = (
        (root.read(f"proc/{each}/autogroup") or "").partition(" nice ") for each in (pid, "self")
    )
    if root.read("proc/sys/kernel/sched_autogroup_enabled") == "1" and theirs[0] != mine[0]:
        nice, own = as_integer(theirs[2]) or 0, as_integer(mine[2]) or 0
    return nice - own >= _YIELDING


def _load_average(root: Root) -> float:
    try:
        return float((root.read("proc/loadavg") or "0").split()[0])
    except ValueError:
        return 0.0


def _look(host: Host, root: Root, groups: Cgroups | None) -> _Look | None:
    used, stolen = read_cpu_times(root, host.allowed)
    if used is None or stolen is None:
        return None
    group = read_used_seconds(root, groups) if groups else None
    return _Look(time.monotonic(), time.process_time(), used, stolen, group)


def _rates(before: _Look, after: _Look) -> tuple[float, float, float]:
    """Return the CPUs that others used, that others under the quota used, and stolen ones."""
    own, seconds = after.own - before.own, after.at - before.at
    stolen = growth(before.stolen, after.stolen) or 0.0
    used = (growth(before.used, after.used) or 0.0) + stolen - own
    group = (growth(before.group, after.group) or 0.0) - own
    return max(0.0, used) / seconds, max(0.0, group) / seconds, stolen / seconds


def _lasts(pid: int, processes: Mapping[int, ProcessTime]) -> bool:
    """Return whether a process, or one that started it, has computed for long. A build starts one
    short program after another; process 1 waits for all orphans, whatever they were."""
    for _ in range(16):  # ids that are used again could make a circle
        process = processes.get(pid) if pid != 1 else None
        if process and process.family >= max(_LASTING_SECONDS, _LASTING_SHARE * process.age):
            return True
        pid = process.parent if process else 1
    return False
