"""The machine's state before and after a measurement, and warnings about it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from bitnet_tuning.machine import conditions as snapshot
from bitnet_tuning.machine import load
from bitnet_tuning.machine.cgroups import Throttling
from bitnet_tuning.machine.conditions import Conditions, Meanwhile, between, take
from bitnet_tuning.machine.detect import SET_PERFORMANCE, read_host
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.load import Busy, ProcessTime, busiest, growth, other_load
from bitnet_tuning.machine.root import Root
from bitnet_tuning.machine.sensors import Clock, Temperature
from bitnet_tuning.machine.warnings import warnings_after, warnings_before
from bitnet_tuning.store.codec import to_json
from tests.machines import CGROUP, GIBIBYTE, Machine

QUIET = Conditions(
    time=1000.0,
    online_cpus=8,
    other_load_cpus=0.1,
    busiest=(),
    busy_cpu_seconds=500.0,
    steal_cpu_seconds=5.0,
    own_cpu_seconds=2.0,
    clock=Clock(3000.0, 2500.0, 3500.0, 3600.0, 3600.0),
    governor="performance",
    frequency_driver="intel_pstate",
    temperature=Temperature(50.0, "coretemp", 100.0),
    throttle_events=7,
    quota_throttling=(Throttling("a", 100, 10, 1.0),),
    memory_total=16 * GIBIBYTE,
    memory_available=8 * GIBIBYTE,
    swap_used=0,
    swap_read_back=0,
    on_battery=False,
)
UNKNOWN = Conditions(
    time=1000.0,
    online_cpus=1,
    other_load_cpus=None,
    busiest=(),
    busy_cpu_seconds=None,
    steal_cpu_seconds=None,
    own_cpu_seconds=0.0,
    clock=None,
    governor=None,
    frequency_driver=None,
    temperature=None,
    throttle_events=None,
    quota_throttling=(),
    memory_total=None,
    memory_available=None,
    swap_used=None,
    swap_read_back=None,
    on_battery=None,
)
LATER = QUIET._replace(
    time=1100.0, busy_cpu_seconds=700.0, steal_cpu_seconds=6.0, own_cpu_seconds=200.0
)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path).regular(cores=8)


@pytest.fixture
def host(machine: Machine) -> Host:
    return machine.host()


# Changes


def test_other_load_excludes_our_own_work() -> None:
    assert other_load(30.0, 20.0, 10.0) == pytest.approx(1.0)
    assert other_load(30.0, 31.0, 10.0) == 0.0


@pytest.mark.parametrize(
    ("busy", "own", "seconds"),
    [(30.0, 1.0, 0.0), (30.0, 1.0, -5.0), (30.0, None, 5.0), (None, 1.0, 5.0)],
)
def test_other_load_may_be_unknown(busy: float | None, own: float | None, seconds: float) -> None:
    assert other_load(busy, own, seconds) is None


def test_a_counter_that_decreased_has_no_growth() -> None:
    assert growth(100.0, 130.0) == 30.0
    assert growth(130.0, 100.0) is growth(None, 1.0) is growth(1.0, None) is None


def test_programs_are_summed_by_name_and_the_top_three_named() -> None:
    before = {1: ProcessTime("a", 5.0), 2: ProcessTime("a", 1.0), 3: ProcessTime("b", 0.0)}
    after = {
        1: ProcessTime("a", 6.0),
        2: ProcessTime("a", 2.0),
        3: ProcessTime("b", 3.0),
        4: ProcessTime("new", 0.5),
        5: ProcessTime("rest", 0.2),
        6: ProcessTime("idle", 0.001),
    }
    assert busiest(before, after, 2.0) == (Busy("b", 1.5), Busy("a", 1.0), Busy("new", 0.25))


def test_a_process_with_a_reused_id_is_a_new_one() -> None:
    before = {1: ProcessTime("old", 50.0), 2: ProcessTime("renamed", 9.0)}
    after = {1: ProcessTime("young", 0.5), 2: ProcessTime("other", 9.25)}
    assert busiest(before, after, 1.0) == (Busy("young", 0.5), Busy("other", 0.25))
    assert busiest(before, after, 0.0) == ()


def test_changes_between_two_snapshots() -> None:
    after = LATER._replace(
        throttle_events=9, quota_throttling=(Throttling("a", 300, 50, 6.0),), swap_read_back=5000
    )
    seen = between(QUIET, after)
    assert seen[:3] == pytest.approx((100.0, 0.02, 1 / 201))
    assert seen[3:] == (200, 40, 5.0, 2, 5000)


def test_the_level_that_was_throttled_most_counts() -> None:
    levels = (Throttling("b", 5, 0, 0.0), Throttling("a", 110, 15, 2.0), Throttling("new", 9, 9, 9))
    seen = between(
        QUIET._replace(quota_throttling=(*QUIET.quota_throttling, levels[0])),
        LATER._replace(quota_throttling=levels),
    )
    assert seen[3:6] == (10, 5, 1.0)


def test_changes_of_unknown_values_are_unknown() -> None:
    nothing = Meanwhile(0.0, None, None, 0, 0, 0.0, None, None)
    assert between(UNKNOWN, UNKNOWN) == nothing
    assert between(UNKNOWN, LATER)._replace(seconds=0.0) == nothing
    assert between(QUIET, UNKNOWN) == nothing


def test_counters_that_were_reset_show_no_change() -> None:
    after = LATER._replace(throttle_events=0, quota_throttling=(Throttling("a", 1, 1, 0.1),))
    seen = between(QUIET, after._replace(busy_cpu_seconds=1.0))
    assert seen == Meanwhile(100.0, None, None, 0, 0, 0.0, None, 0)


# JSON


@pytest.mark.parametrize("conditions", [QUIET, UNKNOWN])
def test_json_always_has_every_field(conditions: Conditions) -> None:
    facts = to_json(conditions._replace(busiest=(Busy("x", 0.5),)))
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert set(facts) == set(to_json(QUIET))
    assert facts["busiest"] == [{"name": "x", "cpus": 0.5}]
    assert facts["time"] == "1970-01-01T00:16:40+00:00"


def test_json_has_null_for_unknown_values() -> None:
    known, unknown = to_json(QUIET), to_json(UNKNOWN)
    assert known["clock"]["max_mhz"] == 3500.0
    assert known["temperature"] == {"celsius": 50.0, "sensor": "coretemp", "critical": 100.0}
    assert known["quota_throttling"] == [
        {"level": "a", "periods": 100, "throttled": 10, "seconds": 1.0}
    ]
    assert (known["busy_cpu_seconds"], known["memory_total"]) == (500.0, 16 * GIBIBYTE)
    absent = {key for key, value in unknown.items() if value is None}
    assert absent >= {"other_load_cpus", "clock", "temperature", "swap_used", "on_battery"}


def test_json_has_all_changes() -> None:
    facts = between(QUIET, LATER)._asdict()
    assert facts["seconds"] == 100.0
    assert facts["other_load_cpus"] == pytest.approx(0.02)
    assert len(facts) == len(Meanwhile._fields)


# Snapshots


def test_a_snapshot_of_a_fake_machine(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "hertz", lambda: 100)
    machine.meminfo(16 * GIBIBYTE, 8 * GIBIBYTE).cpu_times(100, 0, 100, 900, 0, 0, 0, 50)
    machine.governors(dict.fromkeys(range(8), "schedutil"))
    machine.per_cpu("cpufreq/scaling_driver", {0: "acpi-cpufreq"})
    machine.per_cpu("cpufreq/scaling_cur_freq", dict.fromkeys(range(8), 2_000_000))
    machine.cgroup2("/", {"cpu.stat": "nr_periods 4\nnr_throttled 1\nthrottled_usec 10"})
    machine.supply("AC", "Mains", online="1")

    def others_work(seconds: float) -> None:
        assert seconds == 0.25
        machine.cpu_times(100_000, 0, 100, 900, 0, 0, 0, 50)

    monkeypatch.setattr(time, "sleep", others_work)
    seen = take(machine.host(), Root(str(machine.path)), 0.25)
    assert (seen.online_cpus, seen.busy_cpu_seconds, seen.steal_cpu_seconds) == (8, 1001.0, 0.5)
    assert seen.other_load_cpus is not None and seen.other_load_cpus > 1
    assert seen.busiest == ()
    assert seen.clock == Clock(2000, 2000, 2000)
    assert (seen.governor, seen.frequency_driver) == ("schedutil", "acpi-cpufreq")
    assert seen.quota_throttling == (Throttling(CGROUP, 4, 1, 1e-5),)
    assert (seen.memory_total, seen.memory_available) == (16 * GIBIBYTE, 8 * GIBIBYTE)
    assert seen.on_battery is False
    assert (seen.temperature, seen.swap_used, seen.throttle_events) == (None, None, None)


def test_a_snapshot_of_an_empty_root_is_unknown(machine: Machine) -> None:
    seen = take(machine.host(), Root(str(machine.path)), 0.0)
    assert seen._replace(time=1000.0, online_cpus=1, own_cpu_seconds=0.0) == UNKNOWN
    assert not list(warnings_before(seen, machine.host(), 5 * GIBIBYTE))
    assert not list(warnings_after(seen, seen))


GARBAGE = (b"", b"\0\0", b"\xff\xfe\x80", b"-1", b"9" * 40, b"cpu " + b"9" * 200, b"a: b\nc d\n")


@pytest.mark.parametrize("content", GARBAGE)
def test_a_snapshot_of_broken_files_is_unknown(machine: Machine, content: bytes) -> None:
    machine.cgroup2("/", {"cpu.stat": "x"}).cpu_times(0).meminfo(0).cpuinfo([])
    machine.write("proc/vmstat", 0).supply("AC", "Mains", online="x").rapl("intel-rapl:0", 0)
    machine.frequencies({0: 0}).governors({0: "x"}).cache((0,), 3, "1M")
    for path in machine.path.rglob("*"):
        if path.is_file() and "topology" not in path.parts:
            path.write_bytes(content)
    root, host = Root(str(machine.path)), read_host(str(machine.path))
    seen = take(host, root, 0.0)
    assert json.loads(json.dumps(to_json(seen), allow_nan=False)) == to_json(seen)
    assert (seen.clock, seen.temperature, seen.quota_throttling, seen.on_battery) == (
        None,
        None,
        (),
        None,
    )
    assert not list(warnings_after(seen, seen))


class FakePsutil(ModuleType):
    """Another system on which a browser uses 0.9 CPUs."""

    class Error(Exception):
        pass

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__("psutil")
        self.clock = clock

    def cpu_count(self, logical: bool = True) -> int:
        return 4

    def cpu_times(self) -> Any:
        return SimpleNamespace(_asdict=lambda: {"user": 100 + self.clock(), "system": 5.0})

    def process_iter(self, _: list[str]) -> Any:
        times = SimpleNamespace(user=0.9 * self.clock(), system=0.0)
        yield SimpleNamespace(pid=7, info={"name": "browser", "cpu_times": times, "ppid": 1})

    def cpu_freq(self) -> Any:
        return SimpleNamespace(current=3200.0, max=0.0)

    def virtual_memory(self) -> Any:
        return SimpleNamespace(total=8 * GIBIBYTE, available=3 * GIBIBYTE)

    def swap_memory(self) -> Any:
        return SimpleNamespace(used=0, sin=0)

    def sensors_battery(self) -> None:
        return None


def test_a_snapshot_on_another_system_uses_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    clock = SimpleNamespace(
        time=lambda: 5.0, monotonic=lambda: now[0], perf_counter=time.perf_counter, sleep=sleep
    )
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(snapshot, "time", clock)
    monkeypatch.setattr(load, "own_cpu_seconds", lambda: 0.0)
    monkeypatch.setitem(sys.modules, "psutil", FakePsutil(lambda: now[0]))
    monkeypatch.setattr(Root, "names", lambda *_: [])  # there is no proc
    seen = take(read_host(), Root(), 0.5)
    assert (seen.time, seen.busy_cpu_seconds, seen.steal_cpu_seconds) == (5.0, 105.5, None)
    assert seen.other_load_cpus == pytest.approx(1.0)
    ((name, cpus),) = seen.busiest
    assert name == "browser"
    assert cpus == pytest.approx(0.9)
    assert seen.clock == Clock(3200, 3200, 3200)
    assert (seen.memory_total, seen.memory_available) == (8 * GIBIBYTE, 3 * GIBIBYTE)
    assert (seen.governor, seen.on_battery) == (None, None)


# Warnings before a measurement


def before(host: Host, model_size: int | None = None, **changed: Any) -> tuple[str, ...]:
    found = warnings_before(QUIET._replace(**changed), host, model_size)
    return tuple(warning.text for warning in found)


def test_a_quiet_machine_has_no_warning(host: Host) -> None:
    assert before(host, 5 * GIBIBYTE) == ()
    assert not list(warnings_after(QUIET, LATER))


def test_busy_programs_are_named(host: Host) -> None:
    programs = (Busy("chrome", 0.9), Busy("make", 0.4), Busy("sh", 0.02))
    assert before(host, other_load_cpus=1.31, busiest=programs) == (
        "other processes use 1.3 of 8 CPUs (chrome 0.9, make 0.4): close them or wait",
    )


def test_load_of_programs_that_cannot_be_seen(host: Host) -> None:
    (line,) = before(host, other_load_cpus=1.0)
    assert line == "other processes use 1.0 of 8 CPUs: close them or wait"


@pytest.mark.parametrize(
    ("cpus", "others", "said"),
    [(1, 0.1, 0), (1, 0.11, 1), (8, 0.4, 0), (8, 0.41, 1), (96, 0.5, 0), (96, 0.51, 1)],
)
def test_how_much_load_is_worth_a_warning(host: Host, cpus: int, others: float, said: int) -> None:
    assert len(before(host, other_load_cpus=others, online_cpus=cpus)) == said


@pytest.mark.parametrize(
    ("governor", "driver", "words"),
    [
        (
            "powersave",
            "acpi-cpufreq",
            "the powersave governor keeps the CPUs at their lowest clock",
        ),
        (
            "powersave",
            "intel_pstate",
            "the powersave governor of intel_pstate may hold the clock back",
        ),
        ("powersave", "amd-pstate-epp", "the powersave governor of amd-pstate-epp"),
        (
            "schedutil",
            "amd-pstate",
            "the schedutil governor raises the clock only after work has begun",
        ),
        ("performance,ondemand", None, "the ondemand governor raises the clock"),
    ],
)
def test_governors_that_hold_the_clock_back(
    host: Host, governor: str, driver: str | None, words: str
) -> None:
    (line,) = before(host, governor=governor, frequency_driver=driver)
    assert words in line
    assert line.endswith(f": {SET_PERFORMANCE}")


@pytest.mark.parametrize("governor", ["performance", None, "userspace"])
def test_governors_without_a_warning(host: Host, governor: str | None) -> None:
    assert before(host, governor=governor) == ()


def test_a_limited_clock(host: Host) -> None:
    clock = Clock(2000.0, 2000.0, 2000.0, 2400.0, 4800.0)
    assert before(host, clock=clock) == (
        "cpufreq limits the clock to 2400 of 4800 MHz: sudo cpupower frequency-set -u 4800MHz",
    )
    assert before(host, clock=clock._replace(limit_mhz=4700.0)) == ()


@pytest.mark.parametrize(
    ("celsius", "critical", "said"),
    [(89.9, None, 0), (90.0, None, 1), (89.9, 100.0, 0), (92.0, 105.0, 0), (95.0, 105.0, 1)],
)
def test_heat(host: Host, celsius: float, critical: float | None, said: int) -> None:
    lines = before(host, temperature=Temperature(celsius, "k10temp", critical))
    assert len(lines) == said
    assert all(f"hot ({celsius:.0f} °C, sensor k10temp)" in line for line in lines)


def test_a_model_larger_than_the_free_memory(host: Host) -> None:
    (line,) = before(host, 10 << 30, memory_available=11 << 30)
    assert line.startswith(
        "only 11.0 GiB of memory is available, but the model needs about 11.5 GiB: "
    )
    assert before(host, 10 << 30, memory_available=12 << 30) == ()


def test_a_battery(host: Host) -> None:
    (line,) = before(host, on_battery=True)
    assert "battery" in line and "plug it in" in line


def test_a_quota(machine: Machine) -> None:
    host = machine.cgroup2("/", {"cpu.max": "150000 100000"}).host()
    (line,) = before(host)
    assert line.startswith("a CPU quota allows 1.5 of 8 CPUs")


# Warnings after a measurement


def after(**changed: Any) -> tuple[str, ...]:
    found = warnings_after(QUIET, LATER._replace(**changed))
    return tuple(warning.text for warning in found)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        (
            {"busy_cpu_seconds": 800.0},
            "other processes used on average 1.0 of 8 CPUs: close them or wait",
        ),
        (
            {"busy_cpu_seconds": 600.0, "steal_cpu_seconds": 30.0},
            "the hypervisor gave 20 % of the CPU time to other machines (steal): "
            "measure again at a quieter time",
        ),
        (
            {"quota_throttling": (Throttling("a", 300, 50, 6.0),)},
            "the CPU quota paused the engine in 40 of 200 periods, for 5.0 s in all: settings with "
            "more threads than the quota allows suffer most; raise the quota to compare them "
            "fairly",
        ),
        (
            {"clock": Clock(2000.0, 1500.0, 3100.0)},
            "the clock fell from 3500 to 3100 MHz: let the machine cool and measure again",
        ),
        (
            {"throttle_events": 8},
            "the processor lowered its clock because of heat: "
            "the later speeds are too low; let it cool and measure again",
        ),
        (
            {"temperature": Temperature(97.0, "coretemp", 100.0)},
            "the processor is hot (97 °C, sensor coretemp): "
            "let it cool and check its fans and air vents",
        ),
        (
            {"swap_read_back": 20 << 20},
            "the system read 20.0 MiB back from swap: close programs that use a lot of memory",
        ),
        (
            {"on_battery": True},
            "the machine switched to battery: plug it in and measure again",
        ),
        (
            {"governor": None},
            "the governor changed from performance to none: measure again",
        ),
    ],
)
def test_a_disturbance_has_a_warning(changed: dict[str, Any], line: str) -> None:
    assert after(**changed) == (line,)


def test_small_disturbances_have_no_warning() -> None:
    assert (
        after(
            busy_cpu_seconds=702.0,
            steal_cpu_seconds=12.0,
            quota_throttling=(Throttling("a", 300, 20, 1.5),),
            clock=Clock(2000.0, 800.0, 3200.0),
            swap_used=10**9,
            swap_read_back=1 << 20,
        )
        == ()
    )
