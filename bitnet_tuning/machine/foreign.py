"""The same facts, with less detail, on macOS and Windows."""

from __future__ import annotations

import os
import sys
from itertools import pairwise

from bitnet_tuning.launch.background import capture
from bitnet_tuning.machine.clock import Clock
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.memory import Memory, Swap
from bitnet_tuning.machine.topology import Core, Hybrid, Node, cpus_of
from bitnet_tuning.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any


APPLE_EFFICIENCY_SPEED = 0.35
"""Throughput of an Apple efficiency core on NEON code against a performance core;
about a third in public M1 and M2 core comparisons. Low enough that performance
cores alone are taken unless there are very few of them."""

_BRAND = "machdep.cpu.brand_string"
_SYSCTL_FLAGS = {
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
}
"""Linux's names for sysctl's."""
_SYSCTL = (
    _BRAND,
    "hw.logicalcpu",
    "hw.physicalcpu",
    "hw.memsize",
    "hw.perflevel0.physicalcpu",
    "hw.perflevel1.physicalcpu",
    *_SYSCTL_FLAGS,
)


class ForeignState(NamedTuple):
    """What is known of these systems' conditions; all of it None without psutil."""

    clock: Clock | None = None
    memory: Memory = Memory(None, None)
    swap: Swap | None = None
    on_battery: bool | None = None


def read_foreign_host() -> Host:
    """Return what sysctl says on macOS, on anything else psutil where it is installed."""
    if sys.platform == "darwin":
        values = _sysctl()
        integers = {key: int(value) for key, value in values.items() if value.isdecimal()}
        return macos_host(integers, _memory())._replace(brand=values.get(_BRAND))
    return _psutil_host()._replace(brand=os.environ.get("PROCESSOR_IDENTIFIER"))


def macos_host(values: dict[str, int], memory: Memory) -> Host:
    """Return the host that sysctl's integers describe. macOS names no CPU, so cores are
    numbered in order, performance cores first."""
    physical = max(1, values.get("hw.physicalcpu", 0) or os.cpu_count() or 1)
    logical = max(physical, values.get("hw.logicalcpu", physical))
    fast = values.get("hw.perflevel0.physicalcpu", physical)
    slow = values.get("hw.perflevel1.physicalcpu", 0)
    cores = numbered_cores(physical, logical)
    hybrid = None
    if 0 < fast < physical and slow > 0:
        slower = tuple(core._replace(speed=APPLE_EFFICIENCY_SPEED) for core in cores[fast:])
        hybrid = Hybrid(fast, physical - fast, cpus_of(cores[:fast]), cpus_of(slower))
        cores = cores[:fast] + slower
    return _host(
        cores,
        hybrid=hybrid,
        memory=Memory(values.get("hw.memsize", memory.total), memory.available),
        isa=tuple(sorted(flag for key, flag in _SYSCTL_FLAGS.items() if values.get(key))),
    )


def numbered_cores(physical: int, logical: int) -> tuple[Core, ...]:
    """Return cores with made-up CPU ids, for systems that only say how many there are.

    Where the CPUs do not divide evenly, the first cores have one more: that is how
    Windows numbers a hybrid, whose performance cores alone have two threads.
    """
    count = min(physical, logical)
    each, wider = divmod(logical, count)
    firsts = [index * each + min(index, wider) for index in range(count + 1)]
    return tuple(Core(frozenset(range(low, high)), 0) for low, high in pairwise(firsts))


def _host(cores: tuple[Core, ...], **known: Any) -> Host:
    online = cpus_of(cores)
    return Host(online, online, cores, (Node(0, online),))._replace(**known)


def _sysctl() -> dict[str, str]:
    """Return the values that this machine has, by name."""
    done = capture(("/usr/sbin/sysctl", *_SYSCTL), seconds=5)
    pairs = (line.partition(":") for line in done.stdout.splitlines())
    return {key: value.strip() for key, _, value in pairs if value.strip()}


def _psutil_host() -> Host:
    """Return psutil's core counts and affinity; without it every logical CPU counts as a core."""
    logical = os.cpu_count() or 1
    psutil = _psutil()
    physical = psutil.cpu_count(logical=False) if psutil else None
    cores = numbered_cores(physical or logical, logical)
    host = _host(cores, memory=_memory(), topology_known=bool(physical))
    allowed = _ask(lambda psutil: psutil.Process().cpu_affinity()) or ()
    return host._replace(allowed=frozenset(allowed) & host.online or host.online)


def cpuinfo_flags() -> tuple[str, ...]:
    """Return py-cpuinfo's instruction set flags; takes over a second, so reports only."""
    try:
        import cpuinfo  # noqa: PLC0415
    except ImportError:
        return ()
    return tuple(sorted(cpuinfo.get_cpu_info().get("flags", ())))


def read_foreign_state() -> ForeignState:
    """Return the state now; Windows shows the nominal clock, not the present one, and does
    not count what was read back from swap."""
    clock = _ask(lambda psutil: psutil.cpu_freq())
    swap = _ask(lambda psutil: psutil.swap_memory())
    plugged = _ask(lambda psutil: psutil.sensors_battery().power_plugged)
    now = float(clock.current) if clock else 0.0
    return ForeignState(
        clock=Clock(now, now, now, None, float(clock.max) or None) if now else None,
        memory=_memory(),
        swap=Swap(int(swap.used), int(swap.sin) or None) if swap else None,
        on_battery=None if plugged is None else not plugged,
    )


def read_foreign_busy() -> float | None:
    """Return the CPU time of everyone since the start of the system. macOS has user, nice,
    system, idle; Windows user, system, idle, interrupt, dpc, and counts the last two in
    system already."""
    seen = _ask(lambda psutil: psutil.cpu_times()._asdict())
    return None if seen is None else sum(seen.get(key, 0.0) for key in ("user", "nice", "system"))


def _memory() -> Memory:
    seen = _ask(lambda psutil: psutil.virtual_memory())
    return Memory(int(seen.total), int(seen.available)) if seen else Memory(None, None)


def _psutil() -> ModuleType | None:
    try:
        import psutil  # noqa: PLC0415
    except ImportError:
        return None
    return psutil


def _ask(question: Callable[[Any], Any]) -> Any:
    """Return what psutil answers; None if it is not installed or cannot tell. Which functions
    exist, and how they fail, depends on the system and on psutil's version."""
    psutil = _psutil()
    if psutil is None:
        return None
    try:
        return question(psutil)
    except (AttributeError, OSError, NotImplementedError, RuntimeError, psutil.Error):
        return None
