"""CPU time, running programs and the clock."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from bitnet_tuning.machine.load import own_cpu_seconds, read_processes
from bitnet_tuning.machine.root import Root
from bitnet_tuning.machine.sensors import Clock
from tests.machines import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path).regular(cores=4)


# CPU times


@pytest.fixture
def hertz(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that counts 100 ticks per second."""
    monkeypatch.setattr(os, "sysconf", lambda _: 100, raising=False)


def cpu_times(machine: Machine) -> tuple[float | None, float | None]:
    seen = machine.conditions()
    return seen.busy_cpu_seconds, seen.steal_cpu_seconds


@pytest.mark.usefixtures("hertz")
def test_busy_time_excludes_idle_and_steal_and_counts_guests_once(machine: Machine) -> None:
    machine.cpu_times(1000, 200, 300, 99_999, 88_888, 40, 60, 250, 700, 0)
    assert cpu_times(machine) == (16.0, 2.5)


@pytest.mark.usefixtures("hertz")
def test_old_kernels_count_no_steal(machine: Machine) -> None:
    assert cpu_times(machine.cpu_times(1000, 0, 100, 5000)) == (11.0, 0.0)


@pytest.mark.parametrize("text", [None, "", "cpu", "cpu 1 2", "intr 1 2 3 4 5 6", b"\xff\0\xff"])
def test_a_broken_stat_gives_no_cpu_times(machine: Machine, text: str | bytes | None) -> None:
    if text is not None:
        machine.write("proc/stat", text)
    assert cpu_times(machine) == (None, None)


@pytest.mark.usefixtures("hertz")
def test_a_column_that_is_no_number_counts_as_zero(machine: Machine) -> None:
    assert cpu_times(machine.write("proc/stat", "cpu  100 x 200 5000 1 1 1 1")) == (3.02, 0.01)


def test_a_tick_is_a_hundredth_of_a_second_without_sysconf(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert cpu_times(machine.cpu_times(1000, 0, 100, 5000)) == (11.0, 0.0)


def test_own_cpu_time_includes_finished_children() -> None:
    before = own_cpu_seconds()
    code = "import time\nwhile time.process_time() < 0.1: pass"
    subprocess.run([sys.executable, "-S", "-c", code], check=True)
    assert own_cpu_seconds() - before > 0.05


# Processes


class FakePsutil(ModuleType):
    """A psutil that lists processes by id: (name, user, system), None for denied access."""

    def __init__(self, processes: dict[int, Any]) -> None:
        super().__init__("psutil")
        self.processes = processes

    def process_iter(self, fields: list[str]) -> Iterator[Any]:
        assert fields == ["name", "cpu_times", "ppid"]
        for pid, known in self.processes.items():
            name, user, system = known or (None, 0.0, 0.0)
            times = SimpleNamespace(user=user, system=system) if known else None
            yield SimpleNamespace(pid=pid, info={"name": name, "cpu_times": times, "ppid": 1})


def test_processes_are_listed_with_their_times_and_ages(machine: Machine) -> None:
    machine.write("proc/uptime", "100.00 150.00").program(7, "a) R (b", 150, family=50, start=9000)
    (pid, process), *others = read_processes(Root(str(machine.path))).items()
    assert (pid, *process) == (7, "a) R (b", 1.5, 1, 2.0, 10.0, 0)
    assert not others


def test_this_process_and_its_descendants_are_not_listed(machine: Machine) -> None:
    me = os.getpid()
    machine.program(me, "me").program(5_000_001, "other", parent=me + 1)
    machine.program(5_000_003, "child", parent=me).program(5_000_002, "x", parent=5_000_003)
    assert list(read_processes(Root(str(machine.path)))) == [5_000_001]


def listed(monkeypatch: pytest.MonkeyPatch, psutil: ModuleType | None) -> Any:
    """The processes of a system other than Linux, with their CPU times."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setitem(sys.modules, "psutil", psutil)
    seen = read_processes(Root())
    return {pid: (process.name, process.seconds) for pid, process in seen.items()}


def test_other_systems_are_asked_through_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakePsutil({4: None, 5: ("b", 1.0, 0.5)})
    assert listed(monkeypatch, fake) == {5: ("b", 1.5)}
    assert listed(monkeypatch, None) == {}


def test_without_proc_no_program_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil is not asked: it would raise errors of many kinds."""
    monkeypatch.setattr(Root, "names", lambda *_: [])
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setitem(sys.modules, "psutil", FakePsutil({5: ("b", 1.0, 0.5)}))
    assert read_processes(Root()) == {}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("evil\x1b[2J", "evil?[2J"),
        ("", "?"),
        ("x" * 100, "x" * 40),
        ("kworker/0:1-events", "kworker"),
        ("memfd:sealed-91", "?"),
        ("Größe", "Größe"),
    ],
)
def test_names_are_short_and_printable(machine: Machine, name: str, shown: str) -> None:
    machine.program(7, name)
    assert read_processes(Root(str(machine.path)))[7].name == shown


# Clock


def test_the_clock_is_that_of_the_allowed_cpus(machine: Machine) -> None:
    machine.affinity("0-2").per_cpu(
        "cpufreq/scaling_cur_freq", {0: 800_000, 1: 2_000_000, 2: 3_200_000, 3: 9_000_000}
    )
    machine.per_cpu("cpufreq/scaling_max_freq", {0: 2_000_000, 1: 3_600_000})
    machine.frequencies(dict.fromkeys(range(4), 4_800_000))
    assert machine.conditions().clock == Clock(2000, 800, 3200, 3600, 4800)


def test_implausible_clocks_are_ignored(machine: Machine) -> None:
    machine.per_cpu("cpufreq/scaling_cur_freq", {0: "<unknown>", 1: 0, 2: -5, 3: 4_294_967_295})
    assert machine.conditions().clock is None
    machine.per_cpu("cpufreq/scaling_cur_freq", {1: 1_000_000})
    assert machine.conditions().clock == Clock(1000, 1000, 1000)


def test_without_cpufreq_the_clock_comes_from_cpuinfo(machine: Machine) -> None:
    machine.cpuinfo(
        f"processor\t: {cpu}\ncpu MHz\t\t: {speed}"
        for cpu, speed in ((0, "1000.500"), (1, "2000.500"), (2, "0.000"), (3, "nan"), (9, "5000"))
    )
    assert machine.conditions().clock == Clock(1500.5, 1000.5, 2000.5)


def test_power_writes_the_clock_with_its_unit(machine: Machine) -> None:
    machine.cpuinfo(["processor\t: 0\ncpu\t\t: POWER9\nclock\t\t: 3800.000000MHz"])
    assert machine.conditions().clock == Clock(3800, 3800, 3800)


def test_a_clock_without_a_cpu_is_ignored(machine: Machine) -> None:
    assert machine.conditions().clock is None
    machine.cpuinfo(["cpu MHz : 1000", "processor : x\ncpu MHz : 1000"])
    assert machine.conditions().clock is None


def test_the_driver_is_that_of_the_first_cpu_with_a_valid_name(machine: Machine) -> None:
    assert machine.conditions().frequency_driver is None
    machine.per_cpu("cpufreq/scaling_driver", {0: "bad\x07name", 2: "intel_pstate"})
    assert machine.conditions().frequency_driver == "intel_pstate"
