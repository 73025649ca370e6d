"""The doctor's checks of the machine, each in every state: CPUs, clock, memory, WSL."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitnet_tuning.machine.cgroups import Throttling
from bitnet_tuning.machine.load import Busy
from bitnet_tuning.machine.memory import Memory
from bitnet_tuning.machine.sensors import Temperature
from bitnet_tuning.plan.openmp import BINDING, THREAD_COUNTS
from tests import profile_samples as samples
from tests.doctor_cases import case_of, found_in, laptop, states
from tests.machines import GIBIBYTE, Machine, x86_entries

CPUS = range(8)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return laptop(tmp_path / "root")


# CPUs


@pytest.mark.parametrize(
    ("environ", "state"),
    [
        ({}, "good"),
        ({"OMP_NUM_THREADS": "4"}, "good"),
        ({"OMP_NUM_THREADS": "3"}, "warn"),
        ({"OMP_NUM_THREADS": "2"}, "bad"),
        ({"OMP_NUM_THREADS": "9"}, "bad"),
        ({"BITNET_THREADS": "9"}, "bad"),
        ({"BITNET_THREADS": "many"}, "bad"),
        ({"OMP_NUM_THREADS": "abc"}, "bad"),
        ({"OMP_NUM_THREADS": "0"}, "bad"),
        ({"OMP_NUM_THREADS": "4,2"}, "good"),
    ],
)
def test_threads(machine: Machine, environ: dict[str, str], state: str) -> None:
    assert states(machine, "threads", environ) == state


@pytest.mark.parametrize("name", ["BITNET_THREADS", "OMP_NUM_THREADS"])
def test_a_thread_count_that_is_no_number_is_reported_once(machine: Machine, name: str) -> None:
    found = found_in(case_of(machine, {name: "many"}))
    assert [each for each in found if found[each].state == "bad"] == ["threads"]
    assert "unset" in (found["threads"].advice or "")


def test_threads_beyond_a_quota(machine: Machine) -> None:
    machine.cgroup2("/", {"cpu.max": "200000 100000"})
    assert states(machine, "threads", {"OMP_NUM_THREADS": "2"}) == "good"
    assert states(machine, "threads", {"OMP_NUM_THREADS": "3"}) == "bad"


def test_threads_as_measured(machine: Machine) -> None:
    profile = samples.profile(machine.host(), samples.ENGINE)  # 3 threads
    assert states(machine, "threads", {"OMP_NUM_THREADS": "3"}, profile=profile) == "good"
    assert "measured" in found_in(case_of(machine, profile=profile))["threads"].text


@pytest.mark.parametrize(("count", "state"), [("4", "good"), ("8", "warn")])
def test_a_count_that_bitnet_env_exported_elsewhere_is_worth_a_warning(
    machine: Machine, count: str, state: str
) -> None:
    environ = {**dict.fromkeys(THREAD_COUNTS, count), **BINDING}
    assert states(machine, "threads", environ) == state


@pytest.mark.parametrize(("cpus", "state"), [("0-7", "good"), ("0-1,4-5", "warn")])
def test_affinity(machine: Machine, cpus: str, state: str) -> None:
    assert states(machine.affinity(cpus), "affinity") == state


@pytest.mark.parametrize(
    ("limit", "state"), [("max 100000", "good"), ("800000 100000", "good"), ("150000", "warn")]
)
def test_quota(machine: Machine, limit: str, state: str) -> None:
    assert states(machine.cgroup2("/", {"cpu.max": limit}), "CPU quota") == state


def test_the_periods_in_which_a_quota_stopped_threads_are_shown(machine: Machine) -> None:
    case = case_of(machine.cgroup2("/", {"cpu.max": "100000 100000"}))
    often = case.conditions._replace(quota_throttling=(Throttling("x", 100, 40, 1.0),))
    assert "40 of 100" in found_in(case._replace(conditions=often))["CPU quota"].text
    seldom = case.conditions._replace(quota_throttling=(Throttling("x", 100, 4, 1.0),))
    assert "of 100" not in found_in(case._replace(conditions=seldom))["CPU quota"].text


@pytest.mark.parametrize(("threads", "state"), [("4", "good"), ("5", "warn"), ("8", "warn")])
def test_smt(machine: Machine, threads: str, state: str) -> None:
    assert states(machine, "SMT", {"OMP_NUM_THREADS": threads}) == state


def test_smt_without_known_siblings(tmp_path: Path) -> None:
    bare = Machine(tmp_path / "bare").bare_cpus(range(4))
    assert states(bare, "SMT") == "unknown"
    profile = samples.profile(bare.host(), samples.ENGINE)
    assert states(bare, "SMT", profile=profile) == "good"
    assert states(Machine(tmp_path / "plain").regular(4), "SMT") == "good"


def test_hybrid(machine: Machine, tmp_path: Path) -> None:
    assert states(machine, "hybrid cores") == "good"
    hybrid = Machine(tmp_path / "hybrid").hybrid(6, 8)
    assert states(hybrid, "hybrid cores") == "good"
    assert states(hybrid, "hybrid cores", {"OMP_PLACES": "threads"}) == "warn"


def test_a_virtual_machine_may_hide_kinds_of_cores(machine: Machine) -> None:
    machine.cpuinfo(x86_entries(8, flags="avx2 hypervisor"))
    assert states(machine, "hybrid cores") == "good"


def test_numa(machine: Machine, tmp_path: Path) -> None:
    assert states(machine, "NUMA") == "good"
    assert states(machine, "NUMA balancing") == "-"
    two = Machine(tmp_path / "two").regular(2, packages=2, node_per_package=True)
    two.write("proc/sys/kernel/numa_balancing", 1)
    assert states(two, "NUMA") == "warn"
    assert states(two, "NUMA balancing") == "warn"
    two.write("proc/sys/kernel/numa_balancing", 0)
    assert states(two, "NUMA balancing") == "good"
    plain = samples.profile(two.host(), samples.ENGINE)
    spread = plain._replace(setting=samples.SETTING._replace(numa="distribute"))
    assert states(two, "NUMA", profile=plain) == "good"
    assert "distribute was measured" in found_in(case_of(two, profile=spread))["NUMA"].text
    assert states(two.affinity("0-1"), "NUMA") == "good"


# Clock, power, others


@pytest.mark.parametrize(
    ("governor", "driver", "state"),
    [
        ("performance", "acpi-cpufreq", "good"),
        ("schedutil", "acpi-cpufreq", "warn"),
        ("powersave", "intel_pstate", "warn"),
        ("powersave", "acpi-cpufreq", "bad"),
        (None, None, "good"),
    ],
)
def test_governor(machine: Machine, governor: str | None, driver: str | None, state: str) -> None:
    if governor and driver:
        machine.governors(dict.fromkeys(CPUS, governor))
        machine.per_cpu("cpufreq/scaling_driver", dict.fromkeys(CPUS, driver))
    assert states(machine, "governor") == state


@pytest.mark.parametrize(("limit", "state"), [(4_000_000, "good"), (2_000_000, "warn")])
def test_clock_limit(machine: Machine, limit: int, state: str) -> None:
    assert states(machine, "clock limit") == "-"
    machine.clock(4000, 4000).per_cpu("cpufreq/scaling_max_freq", dict.fromkeys(CPUS, limit))
    assert states(machine, "clock limit") == state


@pytest.mark.parametrize(
    ("now", "highest", "base", "state"),
    [
        (800, 4800, None, "bad"),
        (2400, 4800, None, "warn"),
        (3600, 4800, None, "good"),
        (800, 4800, 1700, "bad"),
        (1400, 4800, 1700, "warn"),
        (1700, 4800, 1700, "good"),
        (800, None, None, "bad"),
        (2600, None, None, "good"),
    ],
)
def test_clock_of_a_governor_called_performance(
    machine: Machine, now: int, highest: int | None, base: int | None, state: str
) -> None:
    machine.clock(now, highest).governors(dict.fromkeys(CPUS, "performance"))
    if base:
        machine.per_cpu("cpufreq/base_frequency", dict.fromkeys(CPUS, base * 1000))
    assert states(machine, "clock under load") == state
    finding = found_in(case_of(machine))["clock under load"]
    assert state == "good" or "although the governor is performance" in finding.text


def test_a_low_clock_counts_only_under_load(machine: Machine) -> None:
    assert states(machine, "clock under load") == "good"
    machine.clock(800, 4800).governors(dict.fromkeys(CPUS, "schedutil"))
    assert states(machine, "clock under load") == "good"
    assert states(machine, "clock under load", live=True) == "bad"


def test_power_source(machine: Machine) -> None:
    assert states(machine, "power source") == "good"
    machine.supply("AC", "Mains", online="1")
    assert states(machine, "power source") == "good"
    machine.supply("AC", "Mains", online="0").supply("BAT0", "Battery", status="Discharging")
    assert states(machine, "power source") == "warn"


@pytest.mark.parametrize(("celsius", "state"), [(60.0, "good"), (97.0, "warn")])
def test_temperature(machine: Machine, celsius: float, state: str) -> None:
    assert states(machine, "temperature") == "good"
    case = case_of(machine)
    seen = case.conditions._replace(temperature=Temperature(celsius, "coretemp", 100.0))
    assert states(machine, "temperature", conditions=seen) == state


@pytest.mark.parametrize(
    ("load", "state"), [(None, "good"), (0.2, "good"), (1.5, "warn"), (8.0, "warn")]
)
def test_other_programs_are_named(machine: Machine, load: float | None, state: str) -> None:
    before = case_of(machine).conditions
    seen = before._replace(other_load_cpus=load, busiest=(Busy("compiler", 1.2),))
    assert states(machine, "other programs", conditions=seen) == state
    text = found_in(case_of(machine, conditions=seen))["other programs"].text
    assert ("compiler 1.2" in text) is (state == "warn")
    assert ("a run would now use" in text) is (state == "warn")


# Memory


@pytest.mark.parametrize(
    ("available", "state"),
    [(6 * GIBIBYTE, "good"), (int(1.1 * GIBIBYTE), "warn"), (GIBIBYTE // 2, "bad")],
)
def test_memory(machine: Machine, available: int, state: str) -> None:
    machine.meminfo(8 * GIBIBYTE, available)
    assert states(machine, "memory") == state


def test_memory_that_is_not_known(tmp_path: Path) -> None:
    bare = Machine(tmp_path / "bare").regular(2)
    assert states(bare, "memory") == "good"
    assert states(bare, "swap") == "good"
    assert states(bare, "memory limit") == "good"


@pytest.mark.parametrize(
    ("limit", "state"),
    [("max", "good"), (2 * GIBIBYTE, "good"), (GIBIBYTE, "bad"), (16 * GIBIBYTE, "good")],
)
def test_memory_limit(machine: Machine, limit: int | str, state: str) -> None:
    assert states(machine.cgroup2("/", {"memory.max": limit}), "memory limit") == state


def test_swap(machine: Machine) -> None:
    assert states(machine, "swap") == "good"
    machine.meminfo(8 * GIBIBYTE, 6 * GIBIBYTE).swap(4 * GIBIBYTE, GIBIBYTE)
    assert states(machine, "swap") == "good"
    machine.meminfo(8 * GIBIBYTE, GIBIBYTE // 2).swap(4 * GIBIBYTE, GIBIBYTE)
    assert states(machine, "swap") == "warn"


@pytest.mark.parametrize(
    ("limit", "swapped", "state"),
    [
        ("unlimited", 0, "good"),
        (2 * GIBIBYTE, GIBIBYTE, "good"),
        (8 << 20, 0, "good"),
        (8 << 20, GIBIBYTE, "warn"),
    ],
)
def test_memory_lock(machine: Machine, limit: int | str, swapped: int, state: str) -> None:
    assert states(machine, "memory lock") == "good"
    machine.lock_limit(limit).meminfo(8 * GIBIBYTE, 6 * GIBIBYTE).swap(2 * GIBIBYTE, swapped)
    assert states(machine, "memory lock") == state


@pytest.mark.parametrize(
    ("chosen", "state"), [("always", "good"), ("madvise", "good"), ("never", "warn")]
)
def test_huge_pages(machine: Machine, chosen: str, state: str) -> None:
    assert states(machine, "huge pages") == "good"
    assert states(machine.huge_pages(chosen), "huge pages") == state


# WSL

WSL2 = "5.15.153.1-microsoft-standard-WSL2"


@pytest.fixture
def wsl(machine: Machine) -> Machine:
    return machine.kernel(WSL2).windows_drive()


def test_outside_of_wsl_its_checks_do_not_apply(machine: Machine) -> None:
    machine.wsl_config("[wsl2]\nmemory=1GB")
    assert not [name for name in found_in(case_of(machine)) if name.startswith("WSL")]


@pytest.mark.parametrize(("release", "state"), [(WSL2, "good"), ("4.4.0-19041-Microsoft", "bad")])
def test_wsl_version(machine: Machine, release: str, state: str) -> None:
    assert states(machine.kernel(release), "WSL version") == state


@pytest.mark.parametrize(
    ("config", "total", "state"),
    [
        ("memory=1GB", 1, "bad"),
        ("memory=4GB", 4, "warn"),
        ("memory=8GB", 7.8, "good"),
        ("memory=8GB", 16, "warn"),
        ("", 7.8, "good"),
        ("", 3, "warn"),
    ],
)
def test_wsl_memory(wsl: Machine, config: str, total: float, state: str) -> None:
    wsl.wsl_config(f"[wsl2]\n{config}").meminfo(int(total * GIBIBYTE), GIBIBYTE)
    assert states(wsl, "WSL memory") == state


def test_the_smallest_of_several_users_files_counts(wsl: Machine) -> None:
    wsl.wsl_config("[wsl2]\nmemory=64GB").wsl_config("[wsl2]\nmemory=1GB", user="Bob")
    assert "/Users/Bob/.wslconfig" in found_in(case_of(wsl))["WSL memory"].text


def test_wsl_memory_that_is_not_known(wsl: Machine) -> None:
    assert states(wsl, "WSL memory", machine_memory=Memory(None, None)) == "unknown"


@pytest.mark.parametrize(
    ("config", "state", "advice"),
    [
        ("", "good", ""),
        ("processors=8", "warn", "remove processors="),
        ("processors=4", "warn", "restart WSL"),
    ],
)
def test_wsl_processors(wsl: Machine, config: str, state: str, advice: str) -> None:
    assert states(wsl.wsl_config(f"[wsl2]\n{config}"), "WSL processors") == state
    assert advice in (found_in(case_of(wsl))["WSL processors"].advice or "")


@pytest.mark.parametrize(("config", "state"), [("memory=8GB", "good"), ("memory=lots", "warn")])
def test_wsl_config(wsl: Machine, config: str, state: str) -> None:
    assert states(wsl, "WSL config") == "good"
    assert states(wsl.wsl_config(f"[wsl2]\n{config}"), "WSL config") == state


def test_wsl_users_get_remedies_for_governor_memory_and_drive(wsl: Machine) -> None:
    wsl.wsl_config("[wsl2]\nmemory=4GB").meminfo(4 * GIBIBYTE, 3 * GIBIBYTE)
    found = found_in(case_of(wsl, model_path="/mnt/c/models/m.gguf"))
    said = {name: (found[name].state, found[name].advice or "") for name in found}
    assert said["governor"][0] == "unknown"
    assert "powercfg.exe" in said["governor"][1]
    assert said["WSL memory"][0] == "warn"
    assert "/mnt/c/Users/Ada Example/.wslconfig" in said["WSL memory"][1]
    assert "wsl.exe --shutdown" in said["WSL memory"][1]
    assert said["model's drive"][0] == "warn"
    assert said["model's drive"][1].endswith("cp /mnt/c/models/m.gguf ~/")
