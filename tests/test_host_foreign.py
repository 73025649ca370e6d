"""Reading the host on macOS, and with psutil on other systems."""

from __future__ import annotations

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


class FakePsutil(ModuleType):
    """A psutil with these counts; ``affinity`` is None on a system that does not show it."""

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
    host = mac(monkeypatch, values, FakePsutil(None, None))
    assert host.brand == "Apple M1 Pro"
    assert host.hybrid is not None
    assert (host.hybrid.performance_cores, host.hybrid.efficiency_cores) == (8, 2)
    assert host.hybrid.efficiency_cpus == {8, 9}
    assert [core.speed for core in host.cores] == [1.0] * 8 + [foreign.APPLE_EFFICIENCY_SPEED] * 2
    assert host.memory == Memory(16 * GIBIBYTE, 3 * GIBIBYTE)
    assert host.isa == ("asimd", "asimddp")


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


# Windows and other systems


def host_of(
    monkeypatch: pytest.MonkeyPatch, logical: int | None, psutil: ModuleType | None
) -> Host:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "cpu_count", lambda: logical)
    monkeypatch.setitem(sys.modules, "psutil", psutil)
    return read_host()


@pytest.mark.parametrize(
    ("physical", "logical", "widths"),
    [
        (4, 4, [1, 1, 1, 1]),
        (4, 8, [2, 2, 2, 2]),
        # Windows numbers a hybrid's performance cores, with two threads each, first.
        (4, 6, [2, 2, 1, 1]),
        (16, 24, [2] * 8 + [1] * 8),
        # More cores than CPUs.
        (4, 3, [1, 1, 1]),
        (1, 1, [1]),
    ],
)
def test_cores_get_the_cpus_in_order_if_only_their_numbers_are_known(
    monkeypatch: pytest.MonkeyPatch, physical: int, logical: int, widths: list[int]
) -> None:
    cores = host_of(monkeypatch, logical, FakePsutil(physical, None)).cores
    assert [len(core.cpus) for core in cores] == widths
    assert sorted(cpu for core in cores for cpu in core.cpus) == list(range(logical))


def test_psutil_gives_cores_affinity_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    host = host_of(monkeypatch, 8, FakePsutil(4, [0, 1, 2, 3]))
    assert (len(host.cores), len(host.online), host.threads_per_core) == (4, 8, 2)
    assert host.allowed == {0, 1, 2, 3}
    assert host.usable_cores == 2
    assert host.memory == Memory(8 * GIBIBYTE, 3 * GIBIBYTE)
    assert host.topology_known


@pytest.mark.parametrize("affinity", [None, FakePsutil.Error("denied"), [], [99]])
def test_without_an_affinity_all_cpus_are_allowed(
    monkeypatch: pytest.MonkeyPatch, affinity: list[int] | Exception | None
) -> None:
    host = host_of(monkeypatch, 4, FakePsutil(4, affinity))
    assert host.allowed == host.online == {0, 1, 2, 3}


def test_each_cpu_is_a_core_if_psutil_does_not_know_the_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = host_of(monkeypatch, 6, FakePsutil(None, None))
    assert len(host.cores) == 6
    assert not host.topology_known


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
