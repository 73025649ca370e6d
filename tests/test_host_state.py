"""Temperature, throttling, swap, power supplies and caches; the state of other systems."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from bitnet_tuning.machine.cgroups import Throttling
from bitnet_tuning.machine.foreign import read_foreign_busy, read_foreign_state
from bitnet_tuning.machine.memory import Memory, Swap
from bitnet_tuning.machine.root import Root
from bitnet_tuning.machine.sensors import Clock, Temperature
from bitnet_tuning.machine.topology import read_last_level_caches
from tests.machines import CGROUP, GIBIBYTE, Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path).regular(cores=4)


# Temperature


def zone(machine: Machine, number: int, kind: str, value: int | str) -> None:
    folder = f"sys/class/thermal/thermal_zone{number}"
    machine.write(f"{folder}/type", kind).write(f"{folder}/temp", value)


def sensor(machine: Machine, chip: str, files: dict[str, int | str], number: int = 0) -> None:
    machine.write(f"sys/class/hwmon/hwmon{number}/name", chip)
    for name, value in files.items():
        machine.write(f"sys/class/hwmon/hwmon{number}/{name}", value)


def test_the_hottest_zone_of_a_processor_counts(machine: Machine) -> None:
    zone(machine, 0, "acpitz", 99_000)
    zone(machine, 1, "x86_pkg_temp", 61_500)
    zone(machine, 2, "cpu-thermal", 58_000)
    machine.write("sys/class/thermal/cooling_device0/type", "cpu")
    assert machine.conditions().temperature == Temperature(61.5, "x86_pkg_temp")


def test_a_sensor_of_hwmon_comes_first_with_its_critical_temperature(machine: Machine) -> None:
    zone(machine, 0, "x86_pkg_temp", 70_000)
    sensor(machine, "nvme", {"temp1_input": 95_000}, number=1)
    values = {"temp1_input": 55_000, "temp1_crit": 100_000, "temp2_input": 57_000}
    sensor(machine, "coretemp", {**values, "temp2_crit": 105_000, "fan1_input": 99_000})
    assert machine.conditions().temperature == Temperature(57.0, "coretemp", 105.0)


@pytest.mark.parametrize("value", ["", "x", 0, -40_000, 150_001, 4_294_967_295])
def test_implausible_temperatures_are_ignored(machine: Machine, value: int | str) -> None:
    sensor(machine, "k10temp", {"temp1_input": value})
    zone(machine, 0, "x86_pkg_temp", value)
    assert machine.conditions().temperature is None


def test_without_files_nothing_is_known(machine: Machine) -> None:
    seen = machine.conditions()
    assert (seen.temperature, seen.throttle_events, seen.on_battery) == (None, None, None)
    assert (seen.swap_used, seen.swap_read_back) == (None, None)
    assert last_level_caches(machine, 0, 1, 2, 3) == ()


def test_throttle_events_are_those_of_the_allowed_cpus(machine: Machine) -> None:
    machine.per_cpu("thermal_throttle/package_throttle_count", {0: 5, 1: 5, 7: 100})
    machine.per_cpu("thermal_throttle/core_throttle_count", {0: 1, 1: "x"})
    assert machine.conditions().throttle_events == 11


# Quotas


def test_every_control_group_that_counts_periods_is_read(machine: Machine) -> None:
    stat = "usage_usec 9\nnr_periods 200\nnr_throttled 30\nthrottled_usec 1500000"
    machine.cgroup2("/a/b", {"a/b/cpu.stat": "usage_usec 5", "a/cpu.stat": stat})
    assert machine.conditions().quota_throttling == (Throttling(f"{CGROUP}/a", 200, 30, 1.5),)


def test_version_1_counts_nanoseconds(machine: Machine) -> None:
    stat = "nr_periods 20\nnr_throttled 3\nthrottled_time 250000000"
    machine.cgroup1("cpu,cpuacct", "/x", {"x/cpu.stat": stat})
    found = Throttling(f"{CGROUP}/cpu,cpuacct/x", 20, 3, 0.25)
    assert machine.conditions().quota_throttling == (found,)


@pytest.mark.parametrize("stat", ["", "nr_periods 5", "nr_periods x\nnr_throttled 2", "\0"])
def test_a_group_that_counts_no_periods_is_left_out(machine: Machine, stat: str) -> None:
    assert machine.cgroup2("/", {"cpu.stat": stat}).conditions().quota_throttling == ()


# Swap


def test_swap_in_use_and_read_back_is_in_bytes(machine: Machine) -> None:
    machine.write("proc/meminfo", "SwapTotal:  1000 kB\nSwapFree:  400 kB")
    seen = machine.conditions()
    assert (seen.swap_used, seen.swap_read_back) == (600 * 1024, None)
    machine.write("proc/vmstat", "pswpin 10\npswpout 99")
    assert machine.conditions().swap_read_back == 10 * mmap.PAGESIZE


@pytest.mark.parametrize("text", ["", "SwapTotal: 1000 kB", "SwapTotal: x\nSwapFree: y"])
def test_a_broken_meminfo_gives_no_swap(machine: Machine, text: str) -> None:
    assert machine.write("proc/meminfo", text).conditions().swap_used is None


# Power supplies


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
def test_a_laptop_without_mains_runs_on_battery(
    machine: Machine, online: str, status: str, expected: bool | None
) -> None:
    machine.supply("AC", "Mains", online=online).supply("BAT0", "Battery", status=status)
    assert machine.conditions().on_battery is expected


def test_the_battery_of_a_mouse_does_not_count(machine: Machine) -> None:
    machine.supply("hidpp_battery_0", "Battery", status="Discharging", scope="Device")
    assert machine.conditions().on_battery is None


# Caches


def last_level_caches(machine: Machine, *cpus: int) -> tuple[int, ...]:
    return read_last_level_caches(Root(str(machine.path)), frozenset(cpus))


def test_the_last_level_caches_are_those_of_the_cpus(machine: Machine) -> None:
    machine.cache((0, 1), 3, "32768K").cache((2, 3), 3, "96M")
    for cpu in range(4):
        machine.cache((cpu,), 2, "1024K").cache((cpu,), 1, "32K", "Data")
    assert last_level_caches(machine, 0, 1, 2, 3) == (96 << 20, 32 << 20)
    assert last_level_caches(machine, 1) == (32 << 20,)


def test_caches_without_data_or_size_are_ignored(machine: Machine) -> None:
    machine.cache((0,), 1, "64K", "Instruction").cache((1,), 2, "huge").cache((2,), 2, "0K")
    assert last_level_caches(machine, 0, 1, 2, 3) == ()


# Other systems


class FakePsutil(ModuleType):
    """A psutil with the given answers."""

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


def foreign(monkeypatch: pytest.MonkeyPatch, psutil: ModuleType | None) -> tuple[object, ...]:
    monkeypatch.setitem(sys.modules, "psutil", psutil)
    return read_foreign_state()


def test_psutil_gives_clock_memory_swap_and_battery(monkeypatch: pytest.MonkeyPatch) -> None:
    psutil = FakePsutil(
        times=WINDOWS_TIMES,
        cpu_freq=SimpleNamespace(current=2100.0, min=0.0, max=3400.0),
        swap_memory=SimpleNamespace(used=5, sin=0),
        sensors_battery=SimpleNamespace(power_plugged=False),
    )
    assert foreign(monkeypatch, psutil) == (
        Clock(2100, 2100, 2100, None, 3400),
        Memory(8 * GIBIBYTE, 3 * GIBIBYTE),
        Swap(5, None),
        True,
    )
    assert read_foreign_busy() == 70.0


@pytest.mark.parametrize("answer", [None, FileNotFoundError("no"), FakePsutil.Error("denied")])
def test_a_failure_of_psutil_is_an_unknown_value(
    monkeypatch: pytest.MonkeyPatch, answer: Exception | None
) -> None:
    """cpu_freq fails on Apple processors with some versions and does not exist in others."""
    times = {"user": 1.0, "nice": 2.0, "system": 3.0, "idle": 9.0}
    psutil = FakePsutil(
        times=times,
        cpu_freq=answer,
        sensors_battery=answer,
        swap_memory=answer or OSError("no swap"),
    )
    memory = Memory(8 * GIBIBYTE, 3 * GIBIBYTE)
    assert foreign(monkeypatch, psutil) == (None, memory, None, None)
    assert read_foreign_busy() == 6.0


def test_a_function_that_psutil_lacks_is_an_unknown_value(monkeypatch: pytest.MonkeyPatch) -> None:
    psutil = FakePsutil(times={}, swap_memory=SimpleNamespace(used=0, sin=7))
    assert foreign(monkeypatch, psutil) == (
        None,
        Memory(8 * GIBIBYTE, 3 * GIBIBYTE),
        Swap(0, 7),
        None,
    )


def test_without_psutil_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert foreign(monkeypatch, None) == (None, Memory(None, None), None, None)
    assert read_foreign_busy() is None
