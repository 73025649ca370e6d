"""Reading the host on macOS and Windows, and plans for it."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from bitnet_tuning.launch.background import Captured
from bitnet_tuning.machine import foreign
from bitnet_tuning.machine.detect import read_host
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.memory import Memory
from bitnet_tuning.machine.root import parse_list
from bitnet_tuning.plan.facts import Request
from bitnet_tuning.plan.setting import Setting
from bitnet_tuning.plan.threads import choose_threads

GIBIBYTE = 1 << 30
M1_PRO = {
    "hw.logicalcpu": 10,
    "hw.physicalcpu": 10,
    "hw.memsize": 16 * GIBIBYTE,
    "hw.perflevel0.physicalcpu": 8,
    "hw.perflevel1.physicalcpu": 2,
    "hw.optional.AdvSIMD": 1,
    "hw.optional.arm.FEAT_DotProd": 1,
    "hw.optional.arm.FEAT_I8MM": 0,
}
INTEL_MAC = {
    "hw.logicalcpu": 12,
    "hw.physicalcpu": 6,
    "hw.memsize": 32 * GIBIBYTE,
    "hw.optional.avx2_0": 1,
    "hw.optional.avx512f": 0,
}
UNKNOWN = Memory(None, None)


def levels(**cores: int) -> dict[str, Any]:
    """What sysctl prints of an Apple processor with these kinds of cores, the fastest first."""
    found: dict[str, Any] = {"hw.physicalcpu": sum(cores.values())}
    found["hw.logicalcpu"] = found["hw.physicalcpu"]
    for level, (name, count) in enumerate(cores.items()):
        found[f"hw.perflevel{level}.name"] = name
        found[f"hw.perflevel{level}.physicalcpu"] = count
    return found


def threads(host: Host, most: int | None = None) -> Setting:
    return choose_threads(Request(max_threads=most), host, {}).setting


class FakePsutil(ModuleType):
    """A psutil that knows the memory."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("psutil")

    def virtual_memory(self) -> Any:
        return SimpleNamespace(total=8 * GIBIBYTE, available=3 * GIBIBYTE)


# macOS


def mac(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], psutil: ModuleType | None = None
) -> Host:
    """Read the host of a Mac on which sysctl prints these values."""
    lines = [*(f"{key}: {value}" for key, value in values.items()), "hw.model: Mac14", "junk"]
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setitem(sys.modules, "psutil", psutil)
    done = Captured(0, "\n".join(lines), "")
    monkeypatch.setattr(foreign, "capture", lambda *_, **__: done)
    return read_host()


def test_an_apple_processor_is_a_hybrid(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {**M1_PRO, "machdep.cpu.brand_string": "Apple M1 Pro"}
    host = mac(monkeypatch, values, FakePsutil())
    assert host.brand == "Apple M1 Pro"
    assert host.hybrid is not None
    assert (host.hybrid.performance_cores, host.hybrid.efficiency_cores) == (8, 2)
    assert host.hybrid.efficiency_cpus == {8, 9}
    assert [core.speed for core in host.cores] == [1.0] * 8 + [foreign.APPLE_EFFICIENCY_SPEED] * 2
    assert host.memory == Memory(16 * GIBIBYTE, 3 * GIBIBYTE)
    assert host.isa == ("asimd", "asimddp")


@pytest.mark.parametrize(
    ("values", "hybrid", "chosen"),
    [
        pytest.param(levels(Performance=8, Efficiency=2), (8, 2), Setting(8, 8), id="M1 Pro"),
        pytest.param(levels(Performance=4, Efficiency=6), (4, 6), Setting(4, 4), id="M4"),
        pytest.param(levels(Performance=16, Efficiency=8), (16, 8), Setting(12, 16), id="M2 Ultra"),
        # "Super" and "Performance" cores: github.com/pytorch/cpuinfo/pull/424.
        pytest.param(levels(Super=4, Efficiency=6), (4, 6), Setting(4, 4), id="M5"),
        pytest.param(levels(Super=5, Performance=10), None, Setting(12, 15), id="M5 Pro"),
        pytest.param(levels(Super=6, Performance=12), None, Setting(12, 18), id="M5 Max"),
        pytest.param(
            levels(Super=4, Performance=4, Efficiency=2), (8, 2), Setting(8, 8), id="three kinds"
        ),
    ],
)
def test_names_tell_the_kinds_of_apple_cores(
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, Any],
    hybrid: tuple[int, int] | None,
    chosen: Setting,
) -> None:
    host = mac(monkeypatch, values)
    kinds = host.hybrid and (host.hybrid.performance_cores, host.hybrid.efficiency_cores)
    assert kinds == hybrid
    assert threads(host) == chosen


def test_no_plan_promises_chosen_cpus_on_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = choose_threads(Request(), mac(monkeypatch, M1_PRO), {})
    assert plan.setting == Setting(8, 8)
    assert plan.reasons["cpus"].startswith("not bound")
    assert "Linux only" in plan.reasons["cpus"]


def test_an_intel_mac_has_two_threads_per_core(monkeypatch: pytest.MonkeyPatch) -> None:
    host = mac(monkeypatch, INTEL_MAC)
    assert (len(host.cores), len(host.online), host.threads_per_core) == (6, 12, 2)
    assert host.hybrid is None
    assert host.isa == ("avx2",)
    assert host.usable_cores == 6


def test_a_virtual_mac_with_one_kind_of_cores_is_no_hybrid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = {**M1_PRO, "hw.physicalcpu": 4, "hw.logicalcpu": 4, "hw.perflevel0.physicalcpu": 4}
    assert mac(monkeypatch, values).hybrid is None


def test_without_values_of_sysctl_each_cpu_is_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    host = mac(monkeypatch, {})
    assert (len(host.cores), host.hybrid, host.usable_cores) == (3, None, 3)
    assert host.online == {0, 1, 2}
    assert host.memory == UNKNOWN


# Windows


class GroupAffinity(ctypes.Structure):
    """GROUP_AFFINITY of winnt.h, in a program of 64 bits."""

    _fields_ = (
        ("mask", ctypes.c_uint64),
        ("group", ctypes.c_uint16),
        ("reserved", ctypes.c_uint16 * 3),
    )


def core(mask: int, rank: int = 0, *more: int, group: int = 0, relation: int = 0) -> bytes:
    """A SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX of winnt.h with a PROCESSOR_RELATIONSHIP, whose
    mask in ``group`` is ``mask``; ``more`` are those in the next groups."""
    masks = (mask, *more)

    class Structure(ctypes.Structure):
        _fields_ = (
            ("relationship", ctypes.c_uint32),
            ("size", ctypes.c_uint32),
            ("flags", ctypes.c_uint8),
            ("efficiency_class", ctypes.c_uint8),
            ("reserved", ctypes.c_uint8 * 20),
            ("group_count", ctypes.c_uint16),
            ("group_mask", GroupAffinity * len(masks)),
        )

    made = Structure(relation, ctypes.sizeof(Structure), int(bin(mask).count("1") > 1), rank)
    made.group_count = len(masks)
    for index, each in enumerate(masks):
        made.group_mask[index] = GroupAffinity(each, group + index)
    return bytes(made)


def cores(count: int, threads: int = 1, rank: int = 0, first: int = 0, group: int = 0) -> bytes:
    """Cores in the order of their CPUs, from the CPU ``first`` of a group on."""
    mask = (1 << threads) - 1
    return b"".join(
        core(mask << (first + threads * number), rank, group=group) for number in range(count)
    )


class Kernel32:
    """The functions of kernel32.dll that are called, of a machine with these cores."""

    def __init__(self, buffer: bytes, mask: int = 0, group: int = 0, fails: bool = False) -> None:
        self.buffer, self.affinity, self.fails = buffer, bytes(GroupAffinity(mask, group)), fails

    def GetLogicalProcessorInformationEx(self, kind: int, into: Any, size: Any) -> int:  # noqa: N802
        room, size._obj.value = size._obj.value, len(self.buffer)
        assert kind == 0
        if self.fails or into is None or room < len(self.buffer):
            return 0
        ctypes.memmove(into, self.buffer, len(self.buffer))
        return 1

    def GetCurrentThread(self) -> int:  # noqa: N802
        return -2

    def GetThreadGroupAffinity(self, thread: Any, into: Any) -> int:  # noqa: N802
        assert thread.value == ctypes.c_void_p(-2).value
        ctypes.memmove(into, self.affinity, len(self.affinity))
        return 1


INTEL = "Intel64 Family 6 Model 183 Stepping 1, GenuineIntel"
AMD = "AMD64 Family 26 Model 36 Stepping 0, AuthenticAMD"
QUALCOMM = "ARMv8 (64-bit) Family 8 Model D4B Revision   0, Qualcomm Technologies Inc"


def windows(monkeypatch: pytest.MonkeyPatch, kernel: Kernel32, identifier: str = INTEL) -> Host:
    """Read the host of a Windows machine without psutil."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    monkeypatch.setattr(ctypes, "WinDLL", lambda _: kernel, raising=False)
    monkeypatch.setenv("PROCESSOR_IDENTIFIER", identifier)
    monkeypatch.setitem(sys.modules, "psutil", None)
    return read_host()


I9_13900K = cores(8, 2, rank=1) + cores(16, first=16)
# On Meteor Lake, performance cores are neither first nor together.
ULTRA_155U = cores(2, rank=0, first=12) + cores(8, rank=1) + cores(2, threads=2, rank=2, first=8)


@pytest.mark.parametrize(
    ("buffer", "identifier", "hybrid", "chosen"),
    [
        pytest.param(cores(4, threads=2), INTEL, None, Setting(4, 4), id="4 cores, 8 threads"),
        pytest.param(I9_13900K, INTEL, (8, 16), Setting(8, 8), id="13900K"),
        pytest.param(ULTRA_155U, INTEL, (2, 10), Setting(10, 10), id="Core Ultra 7 155U"),
        pytest.param(
            cores(4, 2, rank=1) + cores(8, 2, first=8), AMD, (4, 8), Setting(12, 12), id="HX 370"
        ),
        pytest.param(
            cores(4) + cores(4, rank=1, first=4), QUALCOMM, (4, 4), Setting(4, 4), id="ARM"
        ),
        pytest.param(cores(12, 1), QUALCOMM, None, Setting(12, 12), id="X Elite"),
    ],
)
def test_windows_tells_cores_and_efficiency_classes(
    monkeypatch: pytest.MonkeyPatch,
    buffer: bytes,
    identifier: str,
    hybrid: tuple[int, int] | None,
    chosen: Setting,
) -> None:
    host = windows(monkeypatch, Kernel32(buffer, mask=(1 << 64) - 1), identifier)
    assert host.hybrid is None or sum(hybrid or ()) == len(host.cores)
    assert (host.hybrid and (host.hybrid.performance_cores, host.hybrid.efficiency_cores)) == hybrid
    assert host.topology_known
    assert host.brand == identifier
    assert threads(host) == chosen


def test_performance_cores_are_those_of_the_highest_class(monkeypatch: pytest.MonkeyPatch) -> None:
    host = windows(monkeypatch, Kernel32(ULTRA_155U))
    assert host.vendor == "GenuineIntel"
    assert host.hybrid is not None
    assert host.hybrid.performance_cpus == {8, 9, 10, 11}
    assert [min(each.cpus) for each in host.cores] == [*range(8), 8, 10, 12, 13]
    speeds = {cpu: each.speed for each in host.cores for cpu in each.cpus}
    assert 0 < speeds[12] < speeds[0] < speeds[8] == 1.0


def test_threads_stay_within_one_processor_group(monkeypatch: pytest.MonkeyPatch) -> None:
    both = cores(32, threads=2) + cores(32, threads=2, group=1)
    host = windows(monkeypatch, Kernel32(both, mask=(1 << 64) - 1, group=1))
    assert host.online == frozenset(range(128))
    assert host.allowed == frozenset(range(64, 128))
    assert threads(host) == Setting(12, 32)
    # Groups of 48 CPUs leave a gap between the numbers.
    both = cores(48, group=0) + cores(48, group=1)
    assert windows(monkeypatch, Kernel32(both, mask=1)).online == parse_list("0-47,64-111")


def test_windows_tells_the_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    host = windows(monkeypatch, Kernel32(cores(4, threads=2), mask=0b1111))
    assert host.allowed == {0, 1, 2, 3}
    assert threads(host) == Setting(2, 2)
    # A mask without CPUs is none.
    assert windows(monkeypatch, Kernel32(cores(2))).allowed == {0, 1}


def test_other_structures_between_cores_are_skipped() -> None:
    package = core(0b11, relation=3)
    found = foreign.parse_windows_cores(package + core(0b10) + package + core(0b01, 1) + b"\0" * 9)
    assert [(rank, sorted(each.cpus)) for rank, each in found] == [(1, [0]), (0, [1])]
    found = foreign.parse_windows_cores(core(0b1, 0, 0b10))
    assert [each.cpus for _, each in found] == [{0, 65}]


def test_a_buffer_that_wine_filled_is_read() -> None:
    # Wine 8.0 on a machine with two cores; winnt.h of mingw-w64 has the same offsets.
    one, two = ("00" * 4 + "30" + "00" * 25 + "0100" + f"{mask:02x}" + "00" * 15 for mask in (1, 2))
    found = foreign.parse_windows_cores(bytes.fromhex(one + two))
    assert [(rank, sorted(each.cpus)) for rank, each in found] == [(0, [0]), (0, [1])]


def test_on_a_windows_that_tells_no_cores_each_cpu_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    host = windows(monkeypatch, Kernel32(cores(4), fails=True))
    assert (len(host.cores), host.topology_known) == (5, False)


# Other systems, and Windows without an answer


def host_of(
    monkeypatch: pytest.MonkeyPatch, logical: int | None, psutil: ModuleType | None
) -> Host:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "cpu_count", lambda: logical)
    monkeypatch.setitem(sys.modules, "psutil", psutil)
    return read_host()


def test_psutil_gives_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    host = host_of(monkeypatch, 8, FakePsutil())
    assert host.memory == Memory(8 * GIBIBYTE, 3 * GIBIBYTE)
    assert (len(host.cores), host.topology_known) == (8, False)
    assert host.allowed == host.online == set(range(8))


@pytest.mark.parametrize("logical", [None, 5])
def test_without_psutil_each_cpu_is_a_core(
    monkeypatch: pytest.MonkeyPatch, logical: int | None
) -> None:
    host = host_of(monkeypatch, logical, None)
    assert len(host.cores) == (logical or 1)
    assert not host.topology_known
    assert host.memory == UNKNOWN


def test_windows_names_the_processor_in_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROCESSOR_IDENTIFIER", "Some Family 6")
    assert host_of(monkeypatch, 2, None).brand == "Some Family 6"


def test_a_dump_is_read_as_linux_on_every_system(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert read_host(str(tmp_path)).online == {0}


@pytest.mark.parametrize("found", [{"flags": ["b", "a"]}, {}, None])
def test_py_cpuinfo_gives_sorted_flags_if_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, list[str]] | None
) -> None:
    module = ModuleType("cpuinfo")
    monkeypatch.setattr(module, "get_cpu_info", lambda: found, raising=False)
    monkeypatch.setitem(sys.modules, "cpuinfo", module if found is not None else None)
    assert foreign.cpuinfo_flags() == (("a", "b") if found else ())
