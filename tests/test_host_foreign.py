"""macOS and what psutil tells of other systems."""

from __future__ import annotations

import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from bitnet_tuning.launch.background import Captured
from bitnet_tuning.machine import foreign
from bitnet_tuning.machine.detect import read_host
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.memory import Memory

GIBIBYTE = 1 << 30
M1_PRO = {
    "hw.logicalcpu": 10,
    "hw.physicalcpu": 10,
    "hw.packages": 1,
    "hw.memsize": 16 * GIBIBYTE,
    "hw.perflevel0.physicalcpu": 8,
    "hw.perflevel0.logicalcpu": 8,
    "hw.perflevel1.physicalcpu": 2,
    "hw.optional.AdvSIMD": 1,
    "hw.optional.arm.FEAT_DotProd": 1,
    "hw.optional.arm.FEAT_I8MM": 0,
}
INTEL_MAC = {
    "hw.logicalcpu": 12,
    "hw.physicalcpu": 6,
    "hw.packages": 1,
    "hw.memsize": 32 * GIBIBYTE,
    "hw.optional.avx2_0": 1,
    "hw.optional.avx512f": 0,
}
UNKNOWN = Memory(None, None)


def test_an_apple_processor_is_a_hybrid() -> None:
    host = foreign.macos_host(M1_PRO, Memory(1, 5 * GIBIBYTE))
    assert host.hybrid is not None
    assert (host.hybrid.performance_cores, host.hybrid.efficiency_cores) == (8, 2)
    assert host.hybrid.efficiency_cpus == {8, 9}
    assert [core.speed for core in host.cores] == [1.0] * 8 + [foreign.APPLE_EFFICIENCY_SPEED] * 2
    assert host.memory == Memory(16 * GIBIBYTE, 5 * GIBIBYTE)
    assert host.isa == ("asimd", "asimddp")


def test_an_intel_mac_has_two_threads_per_core() -> None:
    host = foreign.macos_host(INTEL_MAC, UNKNOWN)
    assert (len(host.cores), len(host.online), host.threads_per_core) == (6, 12, 2)
    assert host.hybrid is None
    assert host.isa == ("avx2",)
    assert host.usable_cores == 6


def test_a_virtual_mac_with_one_kind() -> None:
    values = {**M1_PRO, "hw.physicalcpu": 4, "hw.logicalcpu": 4, "hw.perflevel0.physicalcpu": 4}
    assert foreign.macos_host(values, UNKNOWN).hybrid is None


def test_sysctl_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    host = foreign.macos_host({}, UNKNOWN)
    assert (len(host.cores), host.hybrid) == (3, None)
    assert host.online == {0, 1, 2}
    assert host.memory == UNKNOWN


@pytest.mark.parametrize(
    ("physical", "logical", "widths"),
    [
        (4, 4, [1, 1, 1, 1]),
        (4, 8, [2, 2, 2, 2]),
        # Windows numbers a hybrid's performance cores, with two threads each, first.
        (4, 6, [2, 2, 1, 1]),
        (16, 24, [2] * 8 + [1] * 8),
        (4, 3, [1, 1, 1]),
        (1, 1, [1]),
    ],
)
def test_cores_of_which_only_the_number_is_known(
    physical: int, logical: int, widths: list[int]
) -> None:
    cores = foreign.numbered_cores(physical, logical)
    assert [len(core.cpus) for core in cores] == widths
    assert sorted(cpu for core in cores for cpu in core.cpus) == list(range(logical))


class FakePsutil(ModuleType):
    """As much of psutil as is used."""

    class Error(Exception):
        pass

    def __init__(self, physical: int | None, affinity: list[int] | Exception | None) -> None:
        super().__init__("psutil")
        self.physical = physical
        self.affinity = affinity

    def cpu_count(self, logical: bool = True) -> int | None:
        assert not logical
        return self.physical

    def virtual_memory(self) -> Any:
        return SimpleNamespace(total=8 * GIBIBYTE, available=3 * GIBIBYTE)

    def Process(self) -> Any:  # noqa: N802
        if self.affinity is None:  # as on macOS and some BSDs
            return SimpleNamespace()
        return SimpleNamespace(cpu_affinity=self._cpu_affinity)

    def _cpu_affinity(self) -> list[int]:
        if isinstance(self.affinity, Exception):
            raise self.affinity
        return self.affinity or []


def host_of(
    monkeypatch: pytest.MonkeyPatch, logical: int | None, psutil: ModuleType | None
) -> Host:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "cpu_count", lambda: logical)
    monkeypatch.setitem(sys.modules, "psutil", psutil)
    return read_host()


def test_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    host = host_of(monkeypatch, 8, FakePsutil(4, [0, 1, 2, 3]))
    assert (len(host.cores), len(host.online), host.threads_per_core) == (4, 8, 2)
    assert host.allowed == {0, 1, 2, 3}
    assert host.usable_cores == 2
    assert host.memory == Memory(8 * GIBIBYTE, 3 * GIBIBYTE)
    assert host.topology_known


@pytest.mark.parametrize("affinity", [None, FakePsutil.Error("denied"), [], [99]])
def test_no_affinity_to_be_had(
    monkeypatch: pytest.MonkeyPatch, affinity: list[int] | Exception | None
) -> None:
    host = host_of(monkeypatch, 4, FakePsutil(4, affinity))
    assert host.allowed == host.online == {0, 1, 2, 3}


def test_psutil_does_not_know_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    host = host_of(monkeypatch, 6, FakePsutil(None, None))
    assert len(host.cores) == 6
    assert not host.topology_known


def test_more_cores_than_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(host_of(monkeypatch, 2, FakePsutil(8, None)).online) == 2


@pytest.mark.parametrize("logical", [None, 5])
def test_without_psutil(monkeypatch: pytest.MonkeyPatch, logical: int | None) -> None:
    """None in sys.modules makes the import fail."""
    host = host_of(monkeypatch, logical, None)
    assert len(host.cores) == (logical or 1)
    assert not host.topology_known
    assert host.memory == UNKNOWN


def test_macos_through_sysctl(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"{key}: {value}" for key, value in M1_PRO.items()] + ["hw.model: Mac14", "junk"]
    lines.append("machdep.cpu.brand_string: Apple M1 Pro")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setitem(sys.modules, "psutil", FakePsutil(None, None))
    done = Captured(0, "\n".join(lines), "")
    monkeypatch.setattr(foreign, "capture", lambda *_, **__: done)
    host = read_host()
    assert host.hybrid is not None
    assert host.memory == Memory(16 * GIBIBYTE, 3 * GIBIBYTE)
    assert host.brand == "Apple M1 Pro"


def test_windows_names_the_processor_in_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROCESSOR_IDENTIFIER", "Some Family 6")
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.setattr(sys, "platform", "win32")
    assert read_host().brand == "Some Family 6"


def test_macos_without_sysctl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.setattr(foreign, "capture", lambda *_, **__: Captured(127, "", "not found"))
    assert read_host().usable_cores == 2


def test_a_dump_is_read_as_linux_everywhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    host = read_host(str(tmp_path_factory.mktemp("dump")))
    assert host.online == {0}


@pytest.mark.parametrize("found", [{"flags": ["b", "a"]}, {}, None])
def test_flags_from_cpuinfo(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, list[str]] | None
) -> None:
    module = ModuleType("cpuinfo")
    monkeypatch.setattr(module, "get_cpu_info", lambda: found, raising=False)
    monkeypatch.setitem(sys.modules, "cpuinfo", module if found is not None else None)
    assert foreign.cpuinfo_flags() == (("a", "b") if found else ())
