"""Read the machine on macOS and Windows, in less detail than on Linux."""

from __future__ import annotations

import os
import struct
import sys
from contextlib import suppress

from bitnet_tuning.launch.background import capture
from bitnet_tuning.machine import topology
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.memory import Memory, Swap
from bitnet_tuning.machine.sensors import Clock
from bitnet_tuning.machine.topology import ARM_EFFICIENCY_SPEED, INTEL_EFFICIENCY_SPEED, Core, Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

APPLE_EFFICIENCY_SPEED = 0.35
"""Speed of an Apple efficiency core on NEON code relative to a performance core: about a third
in published comparisons of M1 and M2 cores. At this ratio efficiency cores are used only where
there are very few performance cores."""

_CLASS_SPEEDS = {"GenuineIntel": INTEL_EFFICIENCY_SPEED, "AuthenticAMD": 0.65}
"""Speed of a core relative to one of the next higher efficiency class, by vendor; others make ARM
cores. AMD's classes differ only in clock and cache (Ryzen AI 9 HX 370: 5.15 and 3.3 GHz,
https://chipsandcheese.com/2024/08/10/amds-strix-point-zen-5-hits-mobile)."""

_CORE, _AFFINITY = "IIxB20xH", "NH6x"
"""Beginning of a SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX (winnt.h): kind, size, efficiency class,
and how many GROUP_AFFINITYs follow, each a mask of CPUs and the number of their group."""

_LEVELS = [f"hw.perflevel{level}" for level in range(3)]
"""Prefixes of what sysctl tells of each kind of cores, the fastest kind first."""

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
    *(f"{level}.{value}" for level in _LEVELS for value in ("name", "physicalcpu")),
    *_SYSCTL_FLAGS,
)


def read_foreign_host() -> Host:
    """Read the running machine: with sysctl on macOS, kernel32.dll on Windows. Elsewhere each CPU
    counts as a core. Only psutil tells the available memory."""
    if sys.platform == "darwin":
        done = capture(("/usr/sbin/sysctl", *_SYSCTL), seconds=5)
        pairs = (line.partition(":") for line in done.stdout.splitlines())
        values = {key: value.strip() for key, _, value in pairs if value.strip()}
        host, brand, vendor = macos_host(values, _memory()), values.get(_BRAND), None
    else:
        # Such as "Intel64 Family 6 Model 183 Stepping 1, GenuineIntel".
        brand = os.environ.get("PROCESSOR_IDENTIFIER")
        vendor = brand and brand.rpartition(", ")[2]
        found, affinity = _ask_windows()
        host = _host(numbered_cores(os.cpu_count() or 1), memory=_memory(), topology_known=False)
        if found:
            host = windows_host(found, affinity, vendor, _memory())
    return host._replace(brand=brand, vendor=vendor, system=sys.platform)


def macos_host(values: dict[str, str], memory: Memory) -> Host:
    """Return the host that the ``values`` of sysctl describe."""
    numbers = {key: int(value) for key, value in values.items() if value.isdecimal()}
    # macOS gives CPUs no ids, so they are numbered here, performance cores first.
    physical = max(1, numbers.get("hw.physicalcpu", 0) or os.cpu_count() or 1)
    width = max(1, numbers.get("hw.logicalcpu", 0) // physical)
    # M5 Pro and Max have "Super" and "Performance" cores, which both count as fast
    # (https://github.com/pytorch/cpuinfo/issues/424); M5 has "Super" and "Efficiency" cores.
    # Before there were names, all levels but the first were slow.
    slow = sum(
        numbers.get(f"{level}.physicalcpu", 0)
        for level in _LEVELS
        if values.get(f"{level}.name", level) in ("Efficiency", *_LEVELS[1:])
    )
    fast = sum(numbers.get(f"{level}.physicalcpu", 0) for level in _LEVELS) - slow
    hybrid, cores = None, numbered_cores(physical, width)
    if 0 < fast < physical and slow > 0:
        speeds = [1.0 if index < fast else APPLE_EFFICIENCY_SPEED for index in range(physical)]
        hybrid, cores = topology.split_kinds(cores, speeds, topology.cpus_of(cores[fast:]))
    return _host(
        cores,
        hybrid=hybrid,
        memory=Memory(numbers.get("hw.memsize", memory.total), memory.available),
        isa=tuple(sorted(flag for key, flag in _SYSCTL_FLAGS.items() if numbers.get(key))),
    )


def parse_windows_cores(buffer: bytes) -> list[tuple[int, Core]]:
    """Return the cores, by their first CPU, in what GetLogicalProcessorInformationEx wrote, each
    after its efficiency class. Cores of a higher class are faster."""
    found, start = [], struct.calcsize(_CORE)
    while len(buffer) >= start:
        kind, size, rank, groups = struct.unpack_from(_CORE, buffer)
        if kind == 0:  # RelationProcessorCore
            affinities = buffer[start : start + groups * struct.calcsize(_AFFINITY)]
            found.append((rank, Core(_cpus_in(affinities), 0)))
        buffer = buffer[max(start, size) :]
    return sorted(found, key=lambda each: min(each[1].cpus))


def _cpus_in(affinities: bytes) -> frozenset[int]:
    """Return the CPUs in GROUP_AFFINITYs, numbered from 64 in the second group, and so on."""
    masks = struct.iter_unpack(_AFFINITY, affinities)
    return frozenset(
        64 * group + bit for mask, group in masks for bit in range(64) if mask >> bit & 1
    )


def _ask_windows() -> tuple[bytes, bytes]:
    """Return the cores as GetLogicalProcessorInformationEx writes them, and the GROUP_AFFINITY of
    this thread; both empty on another system."""
    import ctypes  # noqa: PLC0415 (slow)

    with suppress(AttributeError, OSError):
        kernel = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined,unused-ignore]
        size, affinity = ctypes.c_ulong(0), ctypes.create_string_buffer(struct.calcsize(_AFFINITY))
        ask, thread = kernel.GetLogicalProcessorInformationEx, kernel.GetCurrentThread()
        ask(0, None, ctypes.byref(size))  # tells how long the buffer has to be
        buffer = ctypes.create_string_buffer(size.value)
        if ask(0, buffer, ctypes.byref(size)):
            kernel.GetThreadGroupAffinity(ctypes.c_void_p(thread), affinity)
            return buffer.raw[: size.value], affinity.raw
    return b"", b""


def windows_host(buffer: bytes, affinity: bytes, vendor: str | None, memory: Memory) -> Host:
    """Return the host with the cores in ``buffer``. Only CPUs in ``affinity`` are allowed: those of
    one processor group, in which the threads of a program usually stay."""
    ranks, cores = zip(*parse_windows_cores(buffer), strict=True)
    slow = topology.cpus_of(cores[at] for at, rank in enumerate(ranks) if rank < max(ranks))
    hybrid, classes = None, sorted(set(ranks), reverse=True)
    if slow:
        step = _CLASS_SPEEDS.get(vendor or "", ARM_EFFICIENCY_SPEED)
        speeds = [step ** classes.index(rank) for rank in ranks]
        hybrid, cores = topology.split_kinds(cores, speeds, slow)
    host = _host(cores, hybrid=hybrid, memory=memory)
    return host._replace(allowed=_cpus_in(affinity) & host.online or host.online)


def numbered_cores(count: int, width: int = 1) -> tuple[Core, ...]:
    """Return ``count`` cores of ``width`` CPUs each, which are numbered from 0."""
    starts = range(0, count * width, width)
    return tuple(Core(frozenset(range(start, start + width)), 0) for start in starts)


def _host(cores: tuple[Core, ...], **known: Any) -> Host:
    online = topology.cpus_of(cores)
    return Host(online, online, cores, (Node(0, online),))._replace(**known)


def cpuinfo_flags() -> tuple[str, ...]:
    """Return what py-cpuinfo finds, which takes more than a second; nothing without it."""
    try:
        import cpuinfo  # noqa: PLC0415
    except ImportError:
        return ()
    return tuple(sorted(cpuinfo.get_cpu_info().get("flags", ())))


def read_foreign_state() -> tuple[Clock | None, Memory, Swap | None, bool | None]:
    """Return clock, memory, swap, and whether the machine runs on battery, as psutil tells."""
    # Windows shows the nominal clock and does not count what is read back from swap.
    clock = _ask(lambda psutil: psutil.cpu_freq())
    swap = _ask(lambda psutil: psutil.swap_memory())
    plugged = _ask(lambda psutil: psutil.sensors_battery().power_plugged)
    now = float(clock.current) if clock else 0.0
    return (
        Clock(now, now, now, None, float(clock.max) or None) if now else None,
        _memory(),
        Swap(int(swap.used), int(swap.sin) or None) if swap else None,
        None if plugged is None else not plugged,
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
    # Which functions exist, and how they fail, depends on the system and on psutil's version.
    with suppress(ImportError, AttributeError, OSError, NotImplementedError, RuntimeError):
        import psutil  # noqa: PLC0415

        with suppress(psutil.Error):
            return question(psutil)
    return None
