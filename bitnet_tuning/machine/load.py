"""CPU time: of everyone, of other programs, and of this process."""

from __future__ import annotations

import os

from bitnet_tuning.machine.root import Root, as_integer
from bitnet_tuning.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeVar

    Number = TypeVar("Number", int, float)

_BUSY = (0, 1, 2, 5, 6)
"""Columns of a ``cpu`` line that are work: user, nice, system, irq, softirq. Guests are
counted in user already (proc_stat(5))."""
_STEAL = 7

_MOST_NAMED = 3
_LEAST_NAMED = 0.01
"""CPUs that a program must use to be named."""


class CpuTimes(NamedTuple):
    """Seconds since the start of the system, summed over all CPUs."""

    busy: float
    steal: float
    """Time in which a virtual machine's CPU had work but the hypervisor ran something else."""


class ProcessTime(NamedTuple):
    """The CPU time that a process has used so far."""

    name: str
    seconds: float


class Busy(NamedTuple):
    """The processes of one program name."""

    name: str
    cpus: float
    """CPUs that they used on average."""


def read_cpu_times(root: Root) -> CpuTimes | None:
    """Return the times in ``proc/stat``, None where there is none. A container sees those of
    the whole machine."""
    lines = (root.read("proc/stat") or "").splitlines()
    words = lines[0].split() if lines else []
    if len(words) < 5 or words[0] != "cpu":
        return None
    ticks = [as_integer(word) or 0 for word in words[1:]]
    hertz = _hertz()
    busy = sum(ticks[column] for column in _BUSY if column < len(ticks))
    return CpuTimes(busy / hertz, ticks[_STEAL] / hertz if len(ticks) > _STEAL else 0.0)


def _hertz() -> int:
    """Return the ticks per second of the kernel's times: 100 on all but a few old machines."""
    try:
        return os.sysconf("SC_CLK_TCK")
    except (AttributeError, OSError, ValueError):
        return 100


def own_cpu_seconds() -> float:
    """Return the CPU time of this process and of those of its children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def read_processes() -> dict[int, ProcessTime]:
    """Return by id the processes that psutil shows, without this one and its children. Empty
    without psutil, and shorter in a container."""
    try:
        import psutil  # noqa: PLC0415
    except ImportError:
        return {}
    me = psutil.Process()
    ours = {me.pid}
    try:
        ours |= {child.pid for child in me.children(recursive=True)}
    except psutil.Error:
        pass
    found: dict[int, ProcessTime] = {}
    for process in psutil.process_iter(["name", "cpu_times"]):
        times = process.info["cpu_times"]
        if process.pid not in ours and times is not None:
            name = _printable(process.info["name"] or "")
            found[process.pid] = ProcessTime(name, times.user + times.system)
    return found


def _printable(name: str) -> str:
    """Return a name that cannot move a terminal's cursor: a process chooses its own. Kernel
    workers lose the part that changes with their work (``kworker/0:1-events``)."""
    name = "kworker" if name.startswith("kworker/") else name[:40]
    return "".join(letter if letter.isprintable() else "?" for letter in name) or "?"


def growth(before: Number | None, after: Number | None) -> Number | None:
    """Return by how much a counter grew; None where it is missing or went back."""
    return None if before is None or after is None or after < before else after - before


def other_load(busy: float | None, own: float | None, seconds: float) -> float | None:
    """Return the CPUs that others used in ``seconds`` of wall time, of ``busy`` seconds of CPU
    time of which ``own`` were ours; None where that is unknown."""
    if busy is None or own is None or seconds <= 0:
        return None
    return max(0.0, busy - own) / seconds


def steal_share(busy: float | None, stolen: float | None) -> float | None:
    """Return the part of the CPU time with work to do that the hypervisor took; None for less
    than a second of it, or where it is not known."""
    if busy is None or stolen is None or busy + stolen < 1:
        return None
    return stolen / (busy + stolen)


def busiest(
    before: Mapping[int, ProcessTime], after: Mapping[int, ProcessTime], seconds: float
) -> tuple[Busy, ...]:
    """Return the programs whose processes used most CPU time between two listings, at most
    three.

    A process that began in between counts from its beginning; one that ended is not seen.
    """
    used: dict[str, float] = {}
    for pid, process in after.items():
        earlier = before.get(pid)
        # Less than before is another process with the number of one that ended.
        known = earlier is not None and earlier.seconds <= process.seconds
        start = earlier.seconds if earlier and known else 0.0
        used[process.name] = used.get(process.name, 0.0) + process.seconds - start
    if seconds <= 0:
        return ()
    rates = [Busy(name, spent / seconds) for name, spent in used.items()]
    rates.sort(key=lambda program: (-program.cpus, program.name))
    return tuple(program for program in rates[:_MOST_NAMED] if program.cpus >= _LEAST_NAMED)
