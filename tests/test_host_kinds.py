"""Telling performance cores from efficiency cores, and from small differences of one kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.topology import ARM_EFFICIENCY_SPEED
from tests.machines import Machine, x86_entries

GHZ = 1_000_000
INTEL = x86_entries(1)
AMD = x86_entries(1, vendor="AuthenticAMD")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def counts(host: Host) -> tuple[int, int] | None:
    return host.hybrid and (host.hybrid.performance_cores, host.hybrid.efficiency_cores)


def speed_of(host: Host, cpu: int) -> float:
    return next(core.speed for core in host.cores if cpu in core.cpus)


def one_thread_each(machine: Machine, values: Sequence[int]) -> dict[int, int]:
    machine.cores([[cpu] for cpu in range(len(values))])
    return dict(enumerate(values))


def test_the_kernels_lists_tell_the_kinds(machine: Machine) -> None:
    host = machine.hybrid(performance=6, efficiency=8).host()
    assert counts(host) == (6, 8)
    assert host.hybrid is not None
    assert host.hybrid.performance_cpus == frozenset(range(12))
    assert host.hybrid.efficiency_cpus == frozenset(range(12, 20))
    assert host.threads_per_core == 2
    assert speed_of(host, 0) == 1.0
    assert 0.3 < speed_of(host, 12) < 0.5


def test_frequencies_refine_the_lists(machine: Machine) -> None:
    """An efficiency core does half the work per clock cycle, here at 4.0 instead of 5.0 GHz."""
    machine.hybrid(2, 4).frequencies(dict.fromkeys(range(4), 5 * GHZ))
    host = machine.frequencies(dict.fromkeys(range(4, 8), 4 * GHZ)).host()
    assert speed_of(host, 4) == pytest.approx(0.4)
    assert counts(host) == (2, 4)


def test_low_power_cores_are_efficiency_cores(machine: Machine) -> None:
    machine.cores([[0, 1], [2], [3], [4], [5]])
    host = machine.intel_kinds("0-1", "2-3", low_power="4-5").host()
    assert counts(host) == (1, 4)


def test_slower_efficiency_cores_have_lower_speeds(machine: Machine) -> None:
    machine.cores([[cpu] for cpu in range(6)]).intel_kinds("0-1", "2-5")
    rates = {0: 5 * GHZ, 1: 5 * GHZ, 2: 4 * GHZ, 3: 4 * GHZ, 4: 2 * GHZ, 5: 2 * GHZ}
    host = machine.frequencies(rates).host()
    assert speed_of(host, 2) == pytest.approx(0.4)
    assert speed_of(host, 5) == pytest.approx(0.2)


def test_offline_cpus_belong_to_no_kind(machine: Machine) -> None:
    host = machine.hybrid(2, 2).offline(0, 1, 5).host()
    assert host.hybrid is not None
    assert counts(host) == (1, 1)
    assert host.hybrid.performance_cpus == {2, 3}
    assert host.hybrid.efficiency_cpus == {4}


@pytest.mark.parametrize("gone", [(0, 1, 2, 3), (4, 5)])
def test_one_kind_wholly_offline_is_no_hybrid(machine: Machine, gone: tuple[int, ...]) -> None:
    host = machine.hybrid(2, 2).offline(*gone).host()
    assert host.hybrid is None
    assert {core.speed for core in host.cores} == {1.0}


@pytest.mark.parametrize(("core", "atom"), [("0-3", ""), ("", "0-3"), ("0-3", "0-3"), ("?", "2-3")])
def test_lists_that_do_not_name_two_kinds_are_ignored(
    machine: Machine, core: str, atom: str
) -> None:
    assert machine.regular(cores=4).intel_kinds(core, atom).host().hybrid is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([1024] * 4 + [446] * 4, (4, 4), id="big.LITTLE"),
        pytest.param([446] * 4 + [1024] * 4, (4, 4), id="LITTLE first"),
        pytest.param([1024, 871, 871, 871, 253, 253, 253, 253], (4, 4), id="prime core"),
        pytest.param([718, 731, 731, 997, 1017, 1024], (3, 3), id="a value per CPU, two kinds"),
        pytest.param([1024, 1017, 1010, 1003, 997, 990], None, id="a value per CPU, one kind"),
        pytest.param([1024, 900, 800, 700], None, id="steps without a gap"),
        pytest.param([1024] * 4, None, id="all the same"),
        pytest.param([1024, 0, 1024, 1024], None, id="a zero is no kind"),
    ],
)
def test_a_gap_between_capacities_separates_kinds(
    machine: Machine, values: list[int], expected: tuple[int, int] | None
) -> None:
    assert counts(machine.capacities(one_thread_each(machine, values)).host()) == expected


def test_capacities_are_speeds(machine: Machine) -> None:
    host = machine.capacities(one_thread_each(machine, [1024, 1000, 512, 500])).host()
    assert [core.speed for core in host.cores] == [1.0, 1.0, 0.5, 500 / 1024]


def test_a_missing_capacity_does_not_make_a_slow_core(machine: Machine) -> None:
    machine.cores([[0], [1], [2]]).capacities({0: 1024, 2: 1024})
    assert machine.host().hybrid is None


@pytest.mark.parametrize(
    ("ghz", "expected"),
    [
        pytest.param([4.5, 4.5, 4.3, 4.3, 4.3, 4.3], None, id="favoured cores"),
        pytest.param([5.7, 5.7, 5.25, 5.25], None, id="two dies"),
        pytest.param([5.2, 5.0, 3.9, 3.9], (2, 2), id="favoured cores of a hybrid"),
        pytest.param([4.8, 3.8, 3.8], (1, 2), id="close kinds"),
        pytest.param([3.9, 3.9, 5.1], (1, 2), id="slow first"),
        pytest.param([2.1, 2.1, 2.1], None, id="all the same"),
    ],
)
def test_a_gap_between_frequencies_separates_kinds(
    machine: Machine, ghz: list[float], expected: tuple[int, int] | None
) -> None:
    rates = one_thread_each(machine, [round(value * GHZ) for value in ghz])
    assert counts(machine.frequencies(rates).host()) == expected


def test_a_core_without_a_frequency_leaves_all_kinds_unknown(machine: Machine) -> None:
    machine.cores([[0], [1], [2]]).frequencies({0: 5 * GHZ, 2: 3 * GHZ})
    assert machine.host().hybrid is None


def test_a_frequency_on_one_cpu_of_each_core_is_enough(machine: Machine) -> None:
    machine.cores([[0, 1], [2, 3], [4]]).frequencies({1: 5 * GHZ, 2: 5 * GHZ, 4: 3 * GHZ})
    assert counts(machine.host()) == (2, 1)


def test_equal_capacities_do_not_hide_frequencies(machine: Machine) -> None:
    machine.capacities(one_thread_each(machine, [1024] * 4))
    machine.frequencies({0: 3 * GHZ, 1: 3 * GHZ, 2: 2 * GHZ, 3: 2 * GHZ})
    assert counts(machine.host()) == (2, 2)


@pytest.mark.parametrize(("cpuinfo", "share"), [(INTEL, 0.5), (AMD, 1.0), ([], 1.0)])
def test_only_intels_efficiency_cores_do_less_work_per_clock_cycle(
    machine: Machine, cpuinfo: list[str], share: float
) -> None:
    """The smaller cores of other vendors have the same vector units."""
    rates = one_thread_each(machine, [5 * GHZ, 5 * GHZ, 4 * GHZ])
    host = machine.cpuinfo(cpuinfo).frequencies(rates).host()
    assert speed_of(host, 2) == pytest.approx(0.8 * share)


def test_speeds_stay_in_range_whatever_the_frequencies(machine: Machine) -> None:
    machine.cores([[0], [1]]).intel_kinds("0", "1").frequencies({0: 1 * GHZ, 1: 9 * GHZ})
    assert all(0 < core.speed <= 1 for core in machine.host().cores)


# Kinds that only the processors' names tell


def arm_entries(parts: Sequence[str], implementer: str = "0x41") -> list[str]:
    return [
        f"processor\t: {cpu}\nCPU implementer\t: {implementer}\nCPU part\t: {part}"
        for cpu, part in enumerate(parts)
    ]


@pytest.mark.parametrize("capacity", [None, 1024])
def test_part_numbers_tell_the_kinds_if_capacities_do_not(
    machine: Machine, capacity: int | None
) -> None:
    machine.cores([[cpu] for cpu in range(8)]).cpuinfo(arm_entries(["0xd05"] * 4 + ["0xd0b"] * 4))
    machine.frequencies(dict.fromkeys(range(4), 1_800_000) | dict.fromkeys(range(4, 8), 2_400_000))
    if capacity:
        machine.capacities(dict.fromkeys(range(8), capacity))
    host = machine.host()
    assert host.hybrid
    assert host.hybrid.performance_cpus == {4, 5, 6, 7}
    assert [core.speed for core in host.cores] == [ARM_EFFICIENCY_SPEED] * 4 + [1.0] * 4


@pytest.mark.parametrize(
    ("parts", "implementer"),
    [(["0xd05"] * 4, "0x41"), (["0xd0b"] * 4, "0x41"), (["0xd05", "0xd0b"] * 2, "0x61")],
)
def test_part_numbers_of_one_kind_or_of_another_maker_are_no_hybrid(
    machine: Machine, parts: list[str], implementer: str
) -> None:
    machine.cores([[cpu] for cpu in range(4)]).cpuinfo(arm_entries(parts, implementer))
    assert machine.host().hybrid is None


HYBRIDS = (
    "Intel(R) Core(TM) Ultra 7 155U",
    "12th Gen Intel(R) Core(TM) i7-1260P",
    "12th Gen Intel(R) Core(TM) i5-12600K",
    "12th Gen Intel(R) Core(TM) i5-12500H",
    "13th Gen Intel(R) Core(TM) i5-13400F",
    "Intel(R) Core(TM) i9-14900K",
    "Intel(R) Core(TM) 7 150U",
)
ALIKE = (
    "11th Gen Intel(R) Core(TM) i7-11800H @ 2.30GHz",
    "Intel(R) Core(TM) i7-8650U CPU @ 1.90GHz",
    "Intel(R) Core(TM) i3-N305",
    "Intel(R) Core(TM) i3-14100",
    "12th Gen Intel(R) Core(TM) i5-12400",
    "13th Gen Intel(R) Core(TM) i3-13100F",
    "Intel(R) Xeon(R) Platinum 8488C",
    "AMD Ryzen 7 7840U w/ Radeon 780M Graphics",
)


@pytest.mark.parametrize("brand", [*HYBRIDS, *ALIKE])
def test_a_hypervisor_hides_the_cores_of_a_hybrid(machine: Machine, brand: str) -> None:
    machine.regular(6, threads=2).cpuinfo(x86_entries(12, "avx2 hypervisor", brand=brand))
    host = machine.host()
    assert host.cores_hidden == (brand in HYBRIDS)
    assert host.usable_cores == (12 if brand in HYBRIDS else 6)


def test_cores_are_hidden_only_under_a_hypervisor_that_shows_no_kinds(machine: Machine) -> None:
    machine.regular(6, threads=2).cpuinfo(x86_entries(12, brand=HYBRIDS[0]))
    assert not machine.host().cores_hidden
    assert machine.kernel("5.15.90.1-microsoft-standard-WSL2").host().cores_hidden
    machine.intel_kinds(core="0-3,6-9", atom="4-5,10-11")
    assert not machine.host().cores_hidden


def test_a_quota_and_an_affinity_mask_limit_hidden_cores(machine: Machine) -> None:
    machine.regular(6, threads=2).cpuinfo(x86_entries(12, "hypervisor", brand=HYBRIDS[0]))
    assert machine.affinity("0-4").host().usable_cores == 5
    assert machine.cgroup2("/", {"cpu.max": "250000 100000"}).host().usable_cores == 3
