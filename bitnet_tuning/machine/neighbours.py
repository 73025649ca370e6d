"""Measure what other programs take of the CPUs, in the moment before an engine starts."""

from __future__ import annotations

import time

from bitnet_tuning.machine.cgroups import read_cgroups, read_used_seconds
from bitnet_tuning.machine.load import growth, read_cpu_times, read_processes, read_stat, shares
from bitnet_tuning.machine.root import Root, as_integer
from bitnet_tuning.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bitnet_tuning.machine.cgroups import Cgroups
    from bitnet_tuning.machine.host import Host
    from bitnet_tuning.machine.load import ProcessTime

_GLANCE, _WATCH = 0.03, 0.1
"""Seconds after which a machine that turned out to be quiet is no longer watched, and seconds for
which any other is. /proc/stat counts in steps of 0.01 s."""

QUIET = 0.25
"""CPUs that other programs may use on a quiet machine."""

_LASTING_SECONDS, _LASTING_SHARE = 1.0, 0.3
"""CPU time that a program must have used, in seconds and as a share of its age, to be expected to
go on. Of the processes that have run for a second, half run for at least as long again
(Harchol-Balter and Downey 1997, "Exploiting process lifetime distributions"); younger ones seldom
do."""

_LEAST_SHARE, _MOST_NAMED = 0.1, 3
"""Share of a CPU from which a program is looked at, and most programs that are named."""

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
    busiest = tuple(dict.fromkeys(names))[:_MOST_NAMED]
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
    times = read_cpu_times(root, host.allowed)
    if times is None:
        return None
    group = read_used_seconds(root, groups) if groups else None
    return _Look(time.monotonic(), time.process_time(), times.busy, times.steal, group)


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
        if process is None:
            break
        if process.family >= max(_LASTING_SECONDS, _LASTING_SHARE * process.age):
            return True
        pid = process.parent
    return False
