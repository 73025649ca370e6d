"""How much the processors do: for everyone, for others, and for this process."""

from __future__ import annotations

import os

from bitnet_tuning.machine.root import Root, as_integer
from bitnet_tuning.namedtuple import NamedTuple

_BUSY = (0, 1, 2, 5, 6)
"""Columns of a ``cpu`` line that are work: user, nice, system, irq, softirq. Guests are
counted in user already (proc_stat(5))."""
_STEAL = 7


class CpuTimes(NamedTuple):
    """Seconds since the start of the system, summed over all CPUs."""

    busy: float
    steal: float
    """When a CPU of a virtual machine had work but the hypervisor ran something else."""


class Process(NamedTuple):
    name: str
    seconds: float
    """CPU time that it has used so far."""


def read_cpu_times(root: Root) -> CpuTimes | None:
    """From ``proc/stat``; None where there is none. A container sees the whole machine's."""
    lines = (root.read("proc/stat") or "").splitlines()
    words = lines[0].split() if lines else []
    if len(words) < 5 or words[0] != "cpu":
        return None
    ticks = [as_integer(word) or 0 for word in words[1:]]
    hertz = _hertz()
    busy = sum(ticks[column] for column in _BUSY if column < len(ticks))
    return CpuTimes(busy / hertz, ticks[_STEAL] / hertz if len(ticks) > _STEAL else 0.0)


def _hertz() -> int:
    """Ticks per second in which the kernel shows times: 100 on all but a few old machines."""
    try:
        return os.sysconf("SC_CLK_TCK")
    except (AttributeError, OSError, ValueError):
        return 100


def own_cpu_seconds() -> float:
    """CPU time of this process and of those of its children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def read_processes() -> dict[int, Process]:
    """Every other process of this system that psutil shows, by its id; ours and our
    children's left out. Empty without psutil, and shorter in a container."""
    try:
        import psutil  # noqa: PLC0415
    except ImportError:
        return {}
    ours = _family()
    found: dict[int, Process] = {}
    for process in psutil.process_iter(["name", "cpu_times"]):
        times = process.info["cpu_times"]
        if process.pid not in ours and times is not None:
            name = _printable(process.info["name"] or "")
            found[process.pid] = Process(name, times.user + times.system)
    return found


def _family() -> set[int]:
    import psutil  # noqa: PLC0415

    me = psutil.Process()
    try:
        return {me.pid, *(child.pid for child in me.children(recursive=True))}
    except psutil.Error:
        return {me.pid}


def _printable(name: str) -> str:
    """A process chooses its own name: nothing of it may move a terminal's cursor. The
    kernel's workers are told apart by what they do at the moment (``kworker/0:1-events``)."""
    name = "kworker" if name.startswith("kworker/") else name[:40]
    return "".join(letter if letter.isprintable() else "?" for letter in name) or "?"
