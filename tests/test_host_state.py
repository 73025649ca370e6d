"""Heat, quotas that were used up, swap, power supplies, caches; other systems' state."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from bitnet_tuning.machine.cgroups import Throttling, read_cgroups, read_throttling
from bitnet_tuning.machine.clock import Clock
from bitnet_tuning.machine.foreign import ForeignState, read_foreign_busy, read_foreign_state
from bitnet_tuning.machine.memory import Memory, Swap, read_swap
from bitnet_tuning.machine.root import Root
from bitnet_tuning.machine.sensors import (
    Temperature,
    read_on_battery,
    read_temperature,
    read_throttle_events,
)
from bitnet_tuning.machine.topology import read_last_level_caches
from tests.machines import CGROUP, GIBIBYTE, Machine

CPUS = frozenset(range(4))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path).regular(cores=4)


@pytest.fixture
def root(machine: Machine) -> Root:
    return Root(str(machine.path))


# Temperature


def zone(machine: Machine, number: int, kind: str, value: int | str) -> None:
    folder = f"sys/class/thermal/thermal_zone{number}"
    machine.write(f"{folder}/type", kind).write(f"{folder}/temp", value)


def sensor(machine: Machine, chip: str, files: dict[str, int | str], number: int = 0) -> None:
    machine.write(f"sys/class/hwmon/hwmon{number}/name", chip)
    for name, value in files.items():
        machine.write(f"sys/class/hwmon/hwmon{number}/{name}", value)


def test_the_hottest_zone_of_a_processor(machine: Machine, root: Root) -> None:
    zone(machine, 0, "acpitz", 99_000)
    zone(machine, 1, "x86_pkg_temp", 61_500)
    zone(machine, 2, "cpu-thermal", 58_000)
    machine.write("sys/class/thermal/cooling_device0/type", "cpu")
    assert read_temperature(root) == Temperature(61.5, "x86_pkg_temp")


def test_a_chip_knows_its_critical_point(machine: Machine, root: Root) -> None:
    zone(machine, 0, "x86_pkg_temp", 70_000)
    sensor(machine, "nvme", {"temp1_input": 95_000}, number=1)
    values = {"temp1_input": 55_000, "temp1_crit": 100_000, "temp2_input": 57_000}
    sensor(machine, "coretemp", {**values, "temp2_crit": 105_000, "fan1_input": 99_000})
    assert read_temperature(root) == Temperature(57.0, "coretemp", 105.0)


@pytest.mark.parametrize("value", ["", "x", 0, -40_000, 150_001, 4_294_967_295])
def test_absurd_temperatures(machine: Machine, root: Root, value: int | str) -> None:
    sensor(machine, "k10temp", {"temp1_input": value})
    zone(machine, 0, "x86_pkg_temp", value)
    assert read_temperature(root) is None


def test_no_sensors(root: Root) -> None:
    assert read_temperature(root) is None
    assert read_throttle_events(root, CPUS) is None


def test_throttle_events_of_the_allowed_cpus(machine: Machine, root: Root) -> None:
    machine.per_cpu("thermal_throttle/package_throttle_count", {0: 5, 1: 5, 7: 100})
    machine.per_cpu("thermal_throttle/core_throttle_count", {0: 1, 1: "x"})
    assert read_throttle_events(root, CPUS) == 11


# Quotas


def test_every_level_that_counts_periods(machine: Machine, root: Root) -> None:
    stat = "usage_usec 9\nnr_periods 200\nnr_throttled 30\nthrottled_usec 1500000"
    machine.cgroup2("/a/b", {"a/b/cpu.stat": "usage_usec 5", "a/cpu.stat": stat})
    level = Throttling(f"{CGROUP}/a", 200, 30, 1.5)
    assert read_throttling(root, read_cgroups(root)) == (level,)


def test_version_1_counts_nanoseconds(machine: Machine, root: Root) -> None:
    stat = "nr_periods 20\nnr_throttled 3\nthrottled_time 250000000"
    machine.cgroup1("cpu,cpuacct", "/x", {"x/cpu.stat": stat})
    assert read_throttling(root, read_cgroups(root)) == (
        Throttling(f"{CGROUP}/cpu,cpuacct/x", 20, 3, 0.25),
    )


@pytest.mark.parametrize("stat", ["", "nr_periods 5", "nr_periods x\nnr_throttled 2", "\0"])
def test_no_periods(machine: Machine, root: Root, stat: str) -> None:
    machine.cgroup2("/", {"cpu.stat": stat})
    assert read_throttling(root, read_cgroups(root)) == ()


# Swap


def test_swap(machine: Machine, root: Root) -> None:
    machine.write("proc/meminfo", "SwapTotal:  1000 kB\nSwapFree:  400 kB")
    assert read_swap(root) == Swap(600 * 1024, None)
    machine.write("proc/vmstat", "pswpin 10\npswpout 99")
    assert read_swap(root) == Swap(600 * 1024, 10 * mmap.PAGESIZE)


@pytest.mark.parametrize("text", ["", "SwapTotal: 1000 kB", "SwapTotal: x\nSwapFree: y"])
def test_no_swap_told(machine: Machine, root: Root, text: str) -> None:
    assert read_swap(root) is None
    machine.write("proc/meminfo", text)
    assert read_swap(root) is None


# Power supplies


def test_no_supply(root: Root) -> None:
    assert read_on_battery(root) is None


@pytest.mark.parametrize(
    ("online", "status", "expected"),
    [
        ("1", "Discharging", False),  # a strong load on a weak adapter
        ("1", "Charging", False),
        ("0", "Discharging", True),
        ("0", "Full", False),
        ("0", "Unknown", None),
        ("?", "Discharging", True),
    ],
)
def test_laptops(
    machine: Machine, root: Root, online: str, status: str, expected: bool | None
) -> None:
    machine.supply("AC", "Mains", online=online).supply("BAT0", "Battery", status=status)
    assert read_on_battery(root) is expected


def test_a_mouse_is_no_laptop(machine: Machine, root: Root) -> None:
    machine.supply("hidpp_battery_0", "Battery", status="Discharging", scope="Device")
    assert read_on_battery(root) is None


# Caches


def test_the_last_levels_of_the_allowed_cpus(machine: Machine, root: Root) -> None:
    machine.cache((0, 1), 3, "32768K").cache((2, 3), 3, "96M")
    for cpu in range(4):
        machine.cache((cpu,), 2, "1024K").cache((cpu,), 1, "32K", "Data")
    assert read_last_level_caches(root, CPUS) == (96 << 20, 32 << 20)
    assert read_last_level_caches(root, frozenset((1,))) == (32 << 20,)


def test_caches_that_hold_no_data(machine: Machine, root: Root) -> None:
    machine.cache((0,), 1, "64K", "Instruction").cache((1,), 2, "huge").cache((2,), 2, "0K")
    assert read_last_level_caches(root, CPUS) == ()


def test_no_caches(root: Root) -> None:
    assert read_last_level_caches(root, CPUS) == ()


# Other systems


class FakePsutil(ModuleType):
    """As much of psutil as is used."""

    class Error(Exception):
        pass

    def __init__(self, **answers: Any) -> None:
        super().__init__("psutil")
        self.answers = answers

    def virtual_memory(self) -> Any:
        return SimpleNamespace(total=8 * GIBIBYTE, available=3 * GIBIBYTE)

    def cpu_times(self) -> Any:
        times = self.answers["times"]
        return SimpleNamespace(_asdict=lambda: times)

    def __getattr__(self, name: str) -> Any:
        if name not in self.answers:
            raise AttributeError(name)
        answer = self.answers[name]

        def call() -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call


WINDOWS_TIMES = {"user": 50.0, "system": 20.0, "idle": 900.0, "interrupt": 3.0, "dpc": 2.0}


def foreign(monkeypatch: pytest.MonkeyPatch, psutil: ModuleType | None) -> ForeignState:
    monkeypatch.setitem(sys.modules, "psutil", psutil)
    return read_foreign_state()


def test_psutil_knows_all(monkeypatch: pytest.MonkeyPatch) -> None:
    psutil = FakePsutil(
        times=WINDOWS_TIMES,
        cpu_freq=SimpleNamespace(current=2100.0, min=0.0, max=3400.0),
        swap_memory=SimpleNamespace(used=5, sin=0),
        sensors_battery=SimpleNamespace(power_plugged=False),
    )
    assert foreign(monkeypatch, psutil) == ForeignState(
        clock=Clock(2100, 2100, 2100, None, 3400),
        memory=Memory(8 * GIBIBYTE, 3 * GIBIBYTE),
        swap=Swap(5, None),
        on_battery=True,
    )
    assert read_foreign_busy() == 70.0


@pytest.mark.parametrize("answer", [None, FileNotFoundError("no"), FakePsutil.Error("denied")])
def test_psutil_knows_little(monkeypatch: pytest.MonkeyPatch, answer: Exception | None) -> None:
    """cpu_freq fails on Apple processors under some versions, and is not there on others."""
    times = {"user": 1.0, "nice": 2.0, "system": 3.0, "idle": 9.0}
    psutil = FakePsutil(
        times=times,
        cpu_freq=answer,
        sensors_battery=answer,
        swap_memory=answer or OSError("no swap"),
    )
    memory = Memory(8 * GIBIBYTE, 3 * GIBIBYTE)
    assert foreign(monkeypatch, psutil) == ForeignState(memory=memory)
    assert read_foreign_busy() == 6.0


def test_psutil_without_the_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    psutil = FakePsutil(times={}, swap_memory=SimpleNamespace(used=0, sin=7))
    assert foreign(monkeypatch, psutil) == ForeignState(
        None, Memory(8 * GIBIBYTE, 3 * GIBIBYTE), Swap(0, 7), None
    )


def test_without_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    assert foreign(monkeypatch, None) == ForeignState()
    assert read_foreign_busy() is None
