"""The number of threads and their CPUs, for hosts of many shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bitnet_tuning.errors import UsageError
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.topology import Hybrid
from bitnet_tuning.plan.facts import Plan, Request
from bitnet_tuning.plan.openmp import BINDING, THREAD_COUNTS
from bitnet_tuning.plan.setting import Setting
from bitnet_tuning.plan.threads import MOST_THREADS, choose_threads
from tests.machines import Machine, x86_entries
from tests.test_plan import a_host

EXPORTED = {**dict.fromkeys(THREAD_COUNTS, "3"), **BINDING}

Build = Callable[[Machine], Machine]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def choose(
    host: Host,
    environ: dict[str, str] | None = None,
    *,
    threads: int | None = None,
    batch: int | None = None,
    most: int | None = None,
) -> Plan:
    request = Request(threads=threads, threads_batch=batch, max_threads=most)
    return choose_threads(request, host, environ or {})


def quota(machine: Machine, cpus: float) -> Machine:
    return machine.cgroup2("/", {"cpu.max": f"{round(cpus * 100000)} 100000"})


# Hosts of one kind of core


@pytest.mark.parametrize(
    ("build", "generation", "prompt"),
    [
        pytest.param(lambda m: m, 1, 1, id="nothing known"),
        pytest.param(lambda m: m.regular(4), 4, 4, id="4 cores"),
        pytest.param(lambda m: m.regular(4, threads=2), 4, 4, id="SMT2"),
        pytest.param(lambda m: m.regular(4, threads=8), 4, 4, id="SMT8"),
        pytest.param(lambda m: m.regular(8, packages=2), 12, 16, id="more than are useful"),
        pytest.param(lambda m: m.regular(64, threads=2), 12, 64, id="64 cores"),
        pytest.param(lambda m: m.bare_cpus(range(6)), 6, 6, id="siblings unknown"),
        pytest.param(lambda m: quota(m.regular(8), 4), 4, 4, id="quota"),
        pytest.param(lambda m: quota(m.regular(8), 1.5), 2, 2, id="quota of 1.5"),
        pytest.param(lambda m: quota(m.regular(8), 1.25), 1, 1, id="quota of 1.25"),
        pytest.param(lambda m: quota(m.regular(8), 7.65), 8, 8, id="quota of 7.65"),
        pytest.param(lambda m: quota(m.regular(8), 0.5), 1, 1, id="quota of 0.5"),
        pytest.param(lambda m: quota(m.regular(4), 16), 4, 4, id="wide quota"),
        pytest.param(lambda m: quota(m.regular(4, threads=2), 6), 4, 4, id="quota of threads"),
        pytest.param(lambda m: m.regular(8).affinity("2-4"), 3, 3, id="affinity"),
        pytest.param(lambda m: m.regular(4, threads=2).affinity("1,5"), 1, 1, id="one core's"),
        pytest.param(lambda m: quota(m.regular(8).affinity("0-5"), 3), 3, 3, id="both"),
    ],
)
def test_one_kind_of_core_gets_a_thread_per_usable_core(
    machine: Machine, build: Build, generation: int, prompt: int
) -> None:
    chosen = choose(build(machine).host())
    assert chosen.setting == Setting(generation, prompt)
    assert chosen.reasons["threads"].startswith(f"{generation}: ")
    assert chosen.warnings == ()


def test_the_reason_names_everything_that_decided(machine: Machine) -> None:
    quota(machine.regular(8, threads=2).affinity("0-5"), 2.5)
    assert choose(machine.host()).reasons == {
        "threads": "3: this process may use 6 of 8 physical cores; one thread per core, since a "
        "second one gains nothing; the CPU quota allows 2.5 CPUs",
        "threads_batch": "3: all usable cores, since arithmetic limits prompts, not memory "
        "bandwidth",
        "cpus": "not bound to particular CPUs: all usable cores are of one kind",
    }


def test_the_reason_says_that_siblings_are_unknown(machine: Machine) -> None:
    reason = choose(machine.bare_cpus(range(4)).host()).reasons["threads"]
    assert reason == "4: this process may use 4 CPUs; which of them share a core is unknown"


# The limit


@pytest.mark.parametrize(
    ("most", "generation"), [(None, MOST_THREADS), (3, 3), (20, 20), (24, 24), (100, 24), (1, 1)]
)
def test_generation_is_limited_and_prompts_are_not(
    machine: Machine, most: int | None, generation: int
) -> None:
    chosen = choose(machine.regular(24).host(), most=most)
    assert (chosen.setting.threads, chosen.setting.threads_batch) == (generation, 24)
    assert ("--max-threads" in chosen.reasons["threads"]) == (generation < 24)


# Hybrids


@pytest.mark.parametrize(
    ("fast", "slow", "generation", "bound"),
    [
        pytest.param(6, 8, 6, True, id="6P+8E"),
        pytest.param(8, 16, 8, True, id="8P+16E"),
        pytest.param(4, 4, 4, True, id="4P+4E"),
        pytest.param(2, 8, 10, False, id="2P+8E"),
        pytest.param(1, 4, 5, False, id="1P+4E"),
        pytest.param(4, 8, 12, False, id="4P+8E"),
        pytest.param(2, 4, 6, False, id="2P+4E"),
        pytest.param(2, 3, 2, True, id="2P+3E"),
    ],
)
def test_intel_hybrids(
    machine: Machine, fast: int, slow: int, generation: int, bound: bool
) -> None:
    """An efficiency core counts as 0.4 of a performance core if its speed is unknown."""
    host = machine.hybrid(fast, slow).host()
    chosen = choose(host)
    assert host.hybrid is not None
    assert chosen.setting.threads == generation
    assert chosen.setting.cpus == (host.hybrid.performance_cpus if bound else None)
    assert chosen.setting.threads_batch == (fast if bound else fast + slow)


@pytest.mark.parametrize(
    ("capacities", "generation", "cpus"),
    [
        pytest.param([1024] * 4 + [430] * 4, 4, {0, 1, 2, 3}, id="4+4"),
        pytest.param([430] * 4 + [1024] * 4, 4, {4, 5, 6, 7}, id="little ones first"),
        pytest.param([1024] * 2 + [500] * 6, 8, None, id="2+6"),
        pytest.param([1024] * 5 + [718] * 5, 10, None, id="close"),
        pytest.param([1024, 800, 800, 800, 300, 300, 300, 300], 4, {0, 1, 2, 3}, id="1+3+4"),
        pytest.param([1024] * 10 + [718] * 10, 10, set(range(10)), id="10+10, at most 12"),
    ],
)
def test_arm_hybrids(
    machine: Machine, capacities: list[int], generation: int, cpus: set[int] | None
) -> None:
    machine.cores([[cpu] for cpu in range(len(capacities))])
    chosen = choose(machine.capacities(dict(enumerate(capacities))).host())
    assert (chosen.setting.threads, chosen.setting.cpus) == (generation, cpus)


def test_an_affinity_to_one_kind_of_core_counts_those_cores(machine: Machine) -> None:
    machine.hybrid(2, 8)
    for cpus, generation in (("0-3", 2), ("4-9", 6)):
        chosen = choose(machine.affinity(cpus).host())
        assert chosen.setting == Setting(generation, generation)


def test_only_allowed_cpus_are_bound(machine: Machine) -> None:
    chosen = choose(machine.hybrid(6, 8).affinity("1-7,12-15").host())
    assert (chosen.setting.threads, chosen.setting.cpus) == (4, frozenset(range(1, 8)))


def test_a_quota_limits_the_threads_on_fast_cores(machine: Machine) -> None:
    chosen = choose(quota(machine.hybrid(6, 8), 4).host())
    assert (chosen.setting.threads, chosen.setting.threads_batch) == (4, 4)
    assert chosen.setting.cpus == frozenset(range(12))


def test_a_quota_that_makes_slow_cores_worthless(machine: Machine) -> None:
    """With the time of four cores, two fast and two slow ones do less than two fast ones."""
    chosen = choose(quota(machine.hybrid(2, 8), 4).host())
    assert (chosen.setting.threads, chosen.setting.cpus) == (2, frozenset(range(4)))


def test_max_threads_on_a_hybrid(machine: Machine) -> None:
    host = machine.hybrid(8, 16).host()
    assert [choose(host, most=most).setting.threads for most in (4, 24)] == [4, 24]
    assert "(--max-threads" in choose(host, most=4).reasons["threads"]
    assert "--max-threads" not in choose(host).reasons["threads"], "it did not decide"


def test_the_reason_names_the_kinds_of_cores(machine: Machine) -> None:
    fast = choose(machine.hybrid(6, 8).host()).reasons
    assert fast["threads"].endswith(
        "; of 6 performance and 8 efficiency cores only the fast ones, since every step waits for "
        "its slowest thread"
    )
    assert fast["cpus"] == "bound to the 6 fastest cores: slower ones would hold them up"
    assert fast["threads_batch"] == "6: all usable cores of the kinds that generate"


def test_the_reason_says_why_slow_cores_are_used(machine: Machine) -> None:
    both = choose(machine.hybrid(2, 8).host()).reasons
    assert both["threads"].endswith(
        "; of 2 performance and 8 efficiency cores the fastest 10: together they outrun the "
        "performance cores alone"
    )
    assert both["cpus"] == "not bound to particular CPUs: all usable cores are used"


def test_more_prompt_threads_than_bound_cores_are_not_bound(machine: Machine) -> None:
    host = machine.hybrid(6, 8).host()
    assert choose(host, batch=6).setting.cpus is not None
    chosen = choose(host, batch=14)
    assert chosen.setting == Setting(6, 14)
    assert "--threads-batch" in chosen.reasons["cpus"]


def test_as_many_threads_as_fast_cores_are_explained_as_fewer_are(machine: Machine) -> None:
    host = machine.hybrid(6, 8).host()
    every, fewer = (choose(host, most=most).reasons["threads"] for most in (None, 4))
    assert every.split("; ")[-1] == fewer.split("; ")[-1]


@pytest.mark.parametrize(
    "name", ["OMP_PLACES", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"]
)
def test_threads_that_the_user_binds_are_left_alone(machine: Machine, name: str) -> None:
    chosen = choose(machine.hybrid(6, 8).host(), {name: "0-3"})
    assert (chosen.setting.threads, chosen.setting.cpus) == (6, None)
    assert chosen.reasons["cpus"].endswith(f"you bind the threads yourself with {name}")


def test_variables_of_bitnet_env_do_not_prevent_binding(machine: Machine) -> None:
    assert choose(machine.hybrid(6, 8).host(), EXPORTED).setting.cpus is not None


# Counts that the user set


@pytest.mark.parametrize(
    ("flag", "environ", "count", "by"),
    [
        (5, {"BITNET_THREADS": "4", "OMP_NUM_THREADS": "3"}, 5, "-t"),
        (None, {"BITNET_THREADS": "4", "OMP_NUM_THREADS": "3"}, 4, "BITNET_THREADS"),
        (None, {"OMP_NUM_THREADS": "3"}, 3, "your OMP_NUM_THREADS"),
        (None, {"OMP_NUM_THREADS": "3,2"}, 3, "your OMP_NUM_THREADS"),
        (None, {"BITNET_THREADS": " 2 "}, 2, "BITNET_THREADS"),
        (None, {**EXPORTED, "BITNET_THREADS": "2"}, 2, "BITNET_THREADS"),
        (5, {"LLAMA_ARG_THREADS": "4"}, 5, "-t"),
        (None, {"LLAMA_ARG_THREADS": "4", "BITNET_THREADS": "3"}, 3, "BITNET_THREADS"),
        (None, {"LLAMA_ARG_THREADS": "4", "BITNET_THREADS": "0"}, 4, "LLAMA_ARG_THREADS"),
        (None, {"LLAMA_ARG_THREADS": "4", "OMP_NUM_THREADS": "3"}, 4, "LLAMA_ARG_THREADS"),
        (None, {"LLAMA_ARG_THREADS": "-1", "OMP_NUM_THREADS": "3"}, 3, "your OMP_NUM_THREADS"),
        (1, EXPORTED, 1, "-t"),
    ],
)
def test_the_first_of_flag_and_variables_decides(
    machine: Machine, flag: int | None, environ: dict[str, str], count: int, by: str
) -> None:
    chosen = choose(machine.regular(8).host(), environ, threads=flag)
    assert chosen.setting == Setting(count, count)
    assert chosen.reasons["threads"] == f"{count}: set by {by}"
    assert all(reason.strip() for reason in chosen.reasons.values())


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"BITNET_THREADS": ""},
        {"BITNET_THREADS": "0"},
        {"OMP_NUM_THREADS": "0"},
        {"OMP_NUM_THREADS": "junk"},
        EXPORTED,
    ],
)
def test_values_that_ask_for_nothing_are_ignored(machine: Machine, environ: dict[str, str]) -> None:
    assert choose(machine.regular(8).host(), environ).setting.threads == 8


@pytest.mark.parametrize("text", ["four", "-1", "2.5", "4 2", "0x4"])
def test_an_invalid_bitnet_threads_is_refused_unless_a_flag_decides(
    machine: Machine, text: str
) -> None:
    with pytest.raises(UsageError, match="must be a whole number from 0 to 512"):
        choose(machine.regular(8).host(), {"BITNET_THREADS": text})
    assert choose(machine.host(), {"BITNET_THREADS": text}, threads=2).setting.threads == 2


@pytest.mark.parametrize(
    ("count", "limit"),
    [(4, None), (5, "4 physical cores"), (8, "4 physical cores"), (9, "8 CPUs"), (500, "8 CPUs")],
)
@pytest.mark.parametrize("by", ["flag", "BITNET_THREADS", "OMP_NUM_THREADS"])
def test_too_many_threads_are_obeyed_with_a_warning(
    machine: Machine, count: int, limit: str | None, by: str
) -> None:
    host = machine.regular(4, threads=2).host()
    environ = {} if by == "flag" else {by: str(count)}
    chosen = choose(host, environ, threads=count if by == "flag" else None, most=2)
    assert (chosen.setting.threads, chosen.setting.threads_batch) == (count, count)
    assert len(chosen.warnings) == (limit is not None)
    assert all(f"{count} threads, more than" in warning for warning in chosen.warnings)
    assert all(limit is not None and limit in warning for warning in chosen.warnings)


def test_more_threads_than_the_quota_are_warned_about(machine: Machine) -> None:
    chosen = choose(quota(machine.regular(8), 1.5).host(), threads=3)
    assert chosen.setting.threads == 3
    assert "more than the CPU quota of 1.5 CPUs" in chosen.warnings[0]
    assert choose(machine.host(), threads=2).warnings == ()
    assert choose(quota(machine, 2).host(), threads=2).warnings == ()


def test_the_threads_for_prompts_can_be_set_alone(machine: Machine) -> None:
    chosen = choose(machine.regular(8).host(), batch=2)
    assert (chosen.setting.threads, chosen.setting.threads_batch, chosen.warnings) == (8, 2, ())
    assert "--threads-batch" in chosen.reasons["threads_batch"]


def test_both_counts_can_be_set(machine: Machine) -> None:
    chosen = choose(machine.regular(4).host(), threads=2, batch=9)
    assert (chosen.setting.threads, chosen.setting.threads_batch) == (2, 9)
    assert len(chosen.warnings) == 1
    assert chosen.warnings[0].startswith("--threads-batch")


# The number of cores by their speeds


def with_speeds(*speeds: float) -> Host:
    """A hybrid host with a core of each of these speeds."""
    host = a_host(len(speeds))
    cores = [core._replace(speed=speed) for core, speed in zip(host.cores, speeds, strict=True)]
    hybrid = Hybrid(1, len(speeds) - 1, frozenset((0,)), frozenset(range(1, len(speeds))))
    return host._replace(cores=tuple(cores), hybrid=hybrid)


@pytest.mark.parametrize(
    ("speeds", "most", "count"),
    [
        ([1.0], 12, 1),
        ([1.0] * 6, 12, 6),
        ([1.0] * 6, 4, 4),
        ([1.0, 1.0, 0.7], 12, 2),  # 2.1 against 2: not worth it
        ([1.0, 1.0, 0.75], 12, 3),  # 2.25 against 2
        ([1.0, 0.5], 12, 1),
        ([1.0, 0.55], 12, 2),
        ([0.9, 0.3, 1.0, 0.3, 0.9], 12, 3),
        ([0.4] * 5, 12, 5),
        ([1.0] * 2 + [0.4] * 8, 5, 2),
        ([1.0] * 2 + [0.4] * 8, 6, 6),
    ],
)
def test_slower_cores_are_used_if_they_pay_off(speeds: list[float], most: int, count: int) -> None:
    assert choose(with_speeds(*speeds), most=most).setting.threads == count


def test_no_other_number_of_cores_does_clearly_more() -> None:
    for fast in (1, 2, 5, 9):
        for slow in range(10):
            for rate in (0.2, 0.4, 0.6, 0.8):
                speeds = [1.0] * fast + [rate] * slow
                count = choose(with_speeds(*speeds), most=64).setting.threads
                done = count * speeds[count - 1]
                assert done >= fast
                assert 1.1 * done >= max((n + 1) * speeds[n] for n in range(len(speeds)))


def test_as_many_threads_as_an_engine_takes_may_be_asked_for(machine: Machine) -> None:
    host = machine.regular(8).host()
    assert choose(host, {"BITNET_THREADS": "512"}).setting.threads == 512
    with pytest.raises(UsageError):
        choose(host, {"BITNET_THREADS": "513"})
    assert choose(host, {"OMP_NUM_THREADS": "513"}).setting.threads == 512


def test_a_quota_binds_only_where_it_leaves_less_than_the_allowed_cores(machine: Machine) -> None:
    host = quota(machine.regular(8).affinity("0-1"), 4).host()
    assert (host.quota_binds, host.quota_stops(2), host.quota_stops(5)) == (False, False, True)


# Cores that a hypervisor hides


@pytest.mark.parametrize(("cores", "generation", "prompt"), [(6, 12, 12), (7, 12, 14), (2, 4, 4)])
def test_hidden_cores_get_a_thread_per_cpu(
    machine: Machine, cores: int, generation: int, prompt: int
) -> None:
    brand = "Intel(R) Core(TM) Ultra 7 155U"
    machine.regular(cores, threads=2)
    chosen = choose(machine.cpuinfo(x86_entries(2 * cores, "hypervisor", brand=brand)).host())
    assert chosen.setting == Setting(generation, prompt)
    assert "the hypervisor hides" in chosen.reasons["threads"]
    assert "benchmark_optimized.py" in chosen.reasons["threads"]
