"""Read the machine on macOS and Windows, in less detail than on Linux."""

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
    from typing import Any

APPLE_EFFICIENCY_SPEED = 0.35
"""Speed of an Apple efficiency core on NEON code relative to a performance core: about a third
in published comparisons of M1 and M2 cores. At this ratio efficiency cores are used only where
there are very few performance cores."""

_BRAND = "machdep.cpu.brand_string"
_SYSCTL_FLAGS = {
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
}
"""Names that Linux gives to the instruction sets, by their names in sysctl."""
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
    """The present state of a macOS or Windows machine; all None without psutil."""

    clock: Clock | None = None
    memory: Memory = Memory(None, None)
    swap: Swap | None = None
    on_battery: bool | None = None


def read_foreign_host() -> Host:
    """Read the running machine: on macOS with sysctl, on other systems with psutil."""
    if sys.platform == "darwin":
        values = _sysctl()
        integers = {key: int(value) for key, value in values.items() if value.isdecimal()}
        return macos_host(integers, _memory())._replace(brand=values.get(_BRAND))
    return _psutil_host()._replace(brand=os.environ.get("PROCESSOR_IDENTIFIER"))


def macos_host(values: dict[str, int], memory: Memory) -> Host:
    """Return the host that the integer ``values`` of sysctl describe."""
    # macOS gives CPUs no ids, so they are numbered here, performance cores first.
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
    """Return ``physical`` cores that share ``logical`` CPUs, which are numbered from 0."""
    # Windows numbers the performance cores of a hybrid first, and only these have two CPUs. So
    # the first cores get one CPU more if the CPUs do not divide evenly.
    count = min(physical, logical)
    each, wider = divmod(logical, count)
    firsts = [index * each + min(index, wider) for index in range(count + 1)]
    return tuple(Core(frozenset(range(low, high)), 0) for low, high in pairwise(firsts))


def _host(cores: tuple[Core, ...], **known: Any) -> Host:
    online = cpus_of(cores)
    return Host(online, online, cores, (Node(0, online),))._replace(**known)


def _sysctl() -> dict[str, str]:
    done = capture(("/usr/sbin/sysctl", *_SYSCTL), seconds=5)
    pairs = (line.partition(":") for line in done.stdout.splitlines())
    return {key: value.strip() for key, _, value in pairs if value.strip()}


def _psutil_host() -> Host:
    # Without psutil every logical CPU counts as a core.
    logical = os.cpu_count() or 1
    physical = _ask(lambda psutil: psutil.cpu_count(logical=False))
    cores = numbered_cores(physical or logical, logical)
    host = _host(cores, memory=_memory(), topology_known=bool(physical))
    allowed = _ask(lambda psutil: psutil.Process().cpu_affinity()) or ()
    return host._replace(allowed=frozenset(allowed) & host.online or host.online)


def cpuinfo_flags() -> tuple[str, ...]:
    """Return the instruction sets that py-cpuinfo finds, which takes more than a second; empty
    if it is not installed."""
    try:
        import cpuinfo  # noqa: PLC0415
    except ImportError:
        return ()
    return tuple(sorted(cpuinfo.get_cpu_info().get("flags", ())))


def read_foreign_state() -> ForeignState:
    """Read the present state with psutil."""
    # Windows shows the nominal clock and does not count what is read back from swap.
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
    """Return the CPU time of all processes in seconds, or None without psutil."""
    # Windows also has interrupt and dpc, which its system time already includes.
    seen = _ask(lambda psutil: psutil.cpu_times()._asdict())
    return None if seen is None else sum(seen.get(key, 0.0) for key in ("user", "nice", "system"))


def _memory() -> Memory:
    seen = _ask(lambda psutil: psutil.virtual_memory())
    return Memory(int(seen.total), int(seen.available)) if seen else Memory(None, None)


def _ask(question: Callable[[Any], Any]) -> Any:
    """Return what ``question`` gets from psutil, or None if it gets no answer."""
    try:
        import psutil  # noqa: PLC0415
    except ImportError:
        return None
    # Which functions exist, and how they fail, depends on the system and on psutil's version.
    try:
        return question(psutil)
    except (AttributeError, OSError, NotImplementedError, RuntimeError, psutil.Error):
        return None
