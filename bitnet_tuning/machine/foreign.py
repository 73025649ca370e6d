"""The same facts, with less detail, on macOS and Windows."""

from __future__ import annotations

import os
import sys
from itertools import pairwise

from bitnet_tuning.machine.activity import CpuTimes
from bitnet_tuning.machine.clock import Clock
from bitnet_tuning.machine.memory import Memory, Swap
from bitnet_tuning.machine.topology import Core, Hybrid, Node
from bitnet_tuning.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.machine.host import Host


APPLE_EFFICIENCY_SPEED = 0.35
"""Throughput of an Apple efficiency core on NEON code against a performance core;
about a third in public M1 and M2 core comparisons. Low enough that performance
cores alone are taken unless there are very few of them."""

_BRAND = "machdep.cpu.brand_string"
_SYSCTL = (
    _BRAND,
    "hw.logicalcpu",
    "hw.physicalcpu",
    "hw.memsize",
    "hw.perflevel0.physicalcpu",
    "hw.perflevel1.physicalcpu",
    "hw.optional.AdvSIMD",
    "hw.optional.arm.FEAT_DotProd",
    "hw.optional.arm.FEAT_I8MM",
    "hw.optional.avx2_0",
    "hw.optional.avx512f",
)

_SYSCTL_FLAGS = {
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
}


def read_foreign_host() -> Host:
    """macOS through sysctl, anything else through psutil where it is installed."""
    if sys.platform == "darwin":
        values = _sysctl()
        integers = {key: int(value) for key, value in values.items() if value.isdecimal()}
        return macos_host(integers, _virtual_memory())._replace(brand=values.get(_BRAND))
    return _psutil_host()._replace(brand=os.environ.get("PROCESSOR_IDENTIFIER"))


def macos_host(values: dict[str, int], memory: Memory) -> Host:
    """Pure: from sysctl's integers. macOS names no CPU, so cores are numbered in order,
    performance cores first."""
    physical = max(1, values.get("hw.physicalcpu", 0) or os.cpu_count() or 1)
    logical = max(physical, values.get("hw.logicalcpu", physical))
    fast = values.get("hw.perflevel0.physicalcpu", physical)
    slow = values.get("hw.perflevel1.physicalcpu", 0)
    is_hybrid = 0 < fast < physical and slow > 0
    cores = numbered_cores(physical, logical)
    hybrid = None
    if is_hybrid:
        cores = tuple(
            core if index < fast else core._replace(speed=APPLE_EFFICIENCY_SPEED)
            for index, core in enumerate(cores)
        )
        hybrid = Hybrid(fast, physical - fast, _cpus_of(cores[:fast]), _cpus_of(cores[fast:]))
    flags = tuple(sorted(flag for key, flag in _SYSCTL_FLAGS.items() if values.get(key)))
    return _host(
        cores, hybrid, Memory(values.get("hw.memsize", memory.total), memory.available), flags
    )


def numbered_cores(physical: int, logical: int) -> tuple[Core, ...]:
    """Cores with made-up CPU ids, for systems that only say how many there are.

    Where the CPUs do not divide evenly, the first cores have one more: that is how
    Windows numbers a hybrid, whose performance cores alone have two threads.
    """
    count = min(physical, logical)
    each, wider = divmod(logical, count)
    firsts = [index * each + min(index, wider) for index in range(count + 1)]
    return tuple(Core(frozenset(range(low, high)), 0) for low, high in pairwise(firsts))


def _cpus_of(cores: tuple[Core, ...]) -> frozenset[int]:
    return frozenset(cpu for core in cores for cpu in core.cpus)


def _host(
    cores: tuple[Core, ...], hybrid: Hybrid | None, memory: Memory, flags: tuple[str, ...]
) -> Host:
    from bitnet_tuning.machine.host import Host  # noqa: PLC0415

    online = _cpus_of(cores)
    return Host(
        online=online,
        allowed=online,
        cores=cores,
        nodes=(Node(0, online),),
        hybrid=hybrid,
        quota=None,
        governor=None,
        wsl=None,
        memory=memory,
        vendor=None,
        isa=flags,
        topology_known=True,
    )


def _sysctl() -> dict[str, str]:
    """Values by name; names that this machine does not have are left out."""
    import subprocess  # noqa: PLC0415

    values: dict[str, str] = {}
    try:
        done = subprocess.run(
            ["/usr/sbin/sysctl", *_SYSCTL], capture_output=True, text=True, check=False, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return values
    for line in done.stdout.splitlines():
        key, _, value = line.partition(":")
        if value.strip():
            values[key] = value.strip()
    return values


def _virtual_memory() -> Memory:
    try:
        import psutil  # noqa: PLC0415
    except ImportError:
        return Memory(None, None)
    seen = psutil.virtual_memory()
    return Memory(int(seen.total), int(seen.available))


def _psutil_host() -> Host:
    """Core counts and affinity from psutil; without it every logical CPU counts as a core."""
    logical = os.cpu_count() or 1
    try:
        import psutil  # noqa: PLC0415
    except ImportError:
        return _host(numbered_cores(logical, logical), None, Memory(None, None), ())._replace(
            topology_known=False
        )
    physical = psutil.cpu_count(logical=False)
    cores = numbered_cores(physical or logical, logical)
    host = _host(cores, None, _virtual_memory(), ())._replace(topology_known=bool(physical))
    try:
        allowed = frozenset(psutil.Process().cpu_affinity()) & host.online
    except (AttributeError, psutil.Error):
        return host
    return host._replace(allowed=allowed or host.online)


def cpuinfo_flags() -> tuple[str, ...]:
    """Instruction set flags from py-cpuinfo; takes over a second, so reports only."""
    try:
        import cpuinfo  # noqa: PLC0415
    except ImportError:
        return ()
    return tuple(sorted(cpuinfo.get_cpu_info().get("flags", ())))


class ForeignState(NamedTuple):
    """None for what is not known; all of it without psutil."""

    times: CpuTimes | None = None
    clock: Clock | None = None
    memory: Memory = Memory(None, None)
    swap: Swap | None = None
    on_battery: bool | None = None


def read_foreign_state() -> ForeignState:
    try:
        import psutil  # noqa: F401, PLC0415
    except ImportError:
        return ForeignState()
    return ForeignState(_times(), _clock(), _memory(), _swap(), _on_battery())


def _times() -> CpuTimes:
    """macOS has user, nice, system, idle; Windows user, system, idle, interrupt, dpc."""
    import psutil  # noqa: PLC0415

    seen = psutil.cpu_times()._asdict()
    # Windows counts interrupts and deferred calls in system already.
    return CpuTimes(sum(seen.get(key, 0.0) for key in ("user", "nice", "system")), 0.0)


def _clock() -> Clock | None:
    """One figure for all CPUs; Windows shows the nominal clock, not the present one."""
    import psutil  # noqa: PLC0415

    try:
        seen = psutil.cpu_freq()
    except (AttributeError, OSError, NotImplementedError, RuntimeError, psutil.Error):
        return None
    if seen is None or not seen.current:
        return None
    now = float(seen.current)
    return Clock(now, now, now, None, float(seen.max) if seen.max else None)


def _memory() -> Memory:
    import psutil  # noqa: PLC0415

    seen = psutil.virtual_memory()
    return Memory(int(seen.total), int(seen.available))


def _swap() -> Swap | None:
    import psutil  # noqa: PLC0415

    try:
        seen = psutil.swap_memory()
    except (OSError, RuntimeError, psutil.Error):
        return None
    # ``sin`` is 0 on Windows, which does not count it.
    return Swap(int(seen.used), int(seen.sin) or None)


def _on_battery() -> bool | None:
    import psutil  # noqa: PLC0415

    try:
        seen = psutil.sensors_battery()
    except (AttributeError, OSError, psutil.Error):
        return None
    if seen is None or seen.power_plugged is None:
        return None
    return not seen.power_plugged
