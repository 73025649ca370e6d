"""Each line of test_optimizations.py, for engines that follow the plan and others that do not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.process import Process, Thread
from bitnet_tuning.model.types import TypeShare
from bitnet_tuning.plan.facts import Plan
from bitnet_tuning.plan.setting import Setting
from bitnet_tuning.verify import checks
from bitnet_tuning.verify.checks import FAIL, PASS, SKIP, Line
from bitnet_tuning.verify.running import (
    LEAST_LOOKS,
    LEAST_SECONDS,
    TOO_SOON,
    Watched,
    summed_up,
    watched_request,
)
from bitnet_tuning.verify.selftest import KnownText, Report, Result, Variant
from tests.machines import Machine
from tests.profile_samples import ENGINE, MODEL

ENV = {"OMP_NUM_THREADS": "2", "OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}
PLAN = Plan(
    Setting(2, 2, tuple(ENV.items())),
    {"threads": "2: this process may use 2 of 2 physical cores", "env": "it has no OpenMP"},
    command=("/build/bin/llama-cli", "-t", "2"),
)


def planned(**fields: Any) -> Plan:
    """Return the plan with other fields of its setting."""
    return PLAN._replace(setting=PLAN.setting._replace(**fields))


LOG = "llama: loading\nsystem_info: n_threads = 2 (n_threads_batch = 2) / 2 | AVX = 1 |\n"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host of two cores with two CPUs each: 0 and 2, 1 and 3."""
    return Machine(tmp_path).regular(2, threads=2).host()


def seen(*masks: set[int] | None, log: str = LOG, **variables: str) -> Watched:
    workers = tuple(
        Thread(number, 0.5, 0.5, None if mask is None else frozenset(mask))
        for number, mask in enumerate(masks)
    )
    process = Process(77, {**ENV, **variables}, workers)
    return Watched(log, process=process, workers=workers)


UNSEEN = Watched(LOG, TOO_SOON)
BROKEN = Watched("", "the engine ended with exit code 3", failed=True)


# Threads detected


@pytest.mark.parametrize(
    ("threads", "computed", "quota", "state", "words"),
    [
        (2, 2, None, PASS, ""),
        (1, 2, None, PASS, "(computed for this machine: 2)"),
        (5, 5, None, FAIL, "only 4 CPUs may be used; plan fewer threads than "),
        (3, 3, 1.5, FAIL, "only 1.5 CPUs may be used; plan fewer threads than "),
        (2, 2, 1.5, PASS, ""),
        (2, 2, 2.0, PASS, ""),
        (1, 1, 0.5, PASS, ""),  # there must be one
    ],
)
def test_threads_beyond_the_cpus_or_the_quota_fail(
    host: Host, threads: int, computed: int, quota: float | None, state: str, words: str
) -> None:
    line = checks.detected(planned(threads=threads), computed, host._replace(quota=quota))
    assert line.state == state
    assert line.reason.replace(PLAN.reasons["threads"], "").lstrip() == words


# Environment


def test_the_environment_arrives() -> None:
    line = checks.environment(PLAN, seen({0}, {1}))
    assert line.state == PASS
    assert line.reason.startswith("the engine's process 77 has ")
    assert line.reason.endswith("OMP_PLACES=cores")


def test_variables_that_are_lost_or_changed_fail() -> None:
    variables = {"OMP_NUM_THREADS": "8", "OMP_PLACES": "cores", "OTHER": "x"}
    watched = Watched(LOG, process=Process(77, variables, ()))
    line = checks.environment(PLAN, watched)
    assert line.state == FAIL
    assert "OMP_NUM_THREADS is 8; OMP_PROC_BIND is missing" in line.reason
    assert "OMP_PLACES" not in line.reason
    assert "OTHER" not in line.reason
    assert "/build/bin/llama-cli" in line.reason


def test_an_environment_that_cannot_be_read_is_skipped() -> None:
    line = checks.environment(PLAN, Watched(LOG, process=Process(77, None, ())))
    assert (line.state, line.reason) == (SKIP, "the environment of process 77 cannot be read")


def test_a_plan_without_variables_passes() -> None:
    line = checks.environment(planned(env=()), seen({0}, {1}))
    assert line.state == PASS
    assert "it has no OpenMP" in line.reason


@pytest.mark.parametrize("watched", [UNSEEN, BROKEN])
def test_what_was_not_observed_is_skipped_with_the_reason(watched: Watched, host: Host) -> None:
    reason = checks.NO_RUN if watched.failed else UNSEEN.problem
    lines = checks.environment(PLAN, watched), checks.places(PLAN, watched, host, "libgomp")
    assert [(line.state, line.reason) for line in lines] == [(SKIP, reason)] * 2


# Working threads


def test_as_many_working_threads_as_planned_pass() -> None:
    line = checks.working(PLAN, seen({0}, {1}))
    assert (line.state, line.reason) == (PASS, "2 threads computing, as planned")


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"OMP_THREAD_LIMIT": "1"}, "OMP_THREAD_LIMIT=1 allows no more"),
        ({"OMP_THREAD_LIMIT": "64", "OMP_DYNAMIC": "TRUE"}, "OMP_DYNAMIC lets"),
        ({"OMP_THREAD_LIMIT": "x"}, "the engine uses fewer threads than -t says"),
        ({}, "the engine uses fewer threads than -t says"),
    ],
)
def test_fewer_threads_fail_with_the_cause(variables: dict[str, str], why: str) -> None:
    line = checks.working(PLAN, seen({0}, **variables))
    assert line.state == FAIL
    assert line.reason.startswith(why) and line.reason.endswith("(1 of 2 threads compute)")


def test_more_threads_fail() -> None:
    line = checks.working(PLAN, seen({0}, {1}, {0}))
    assert line.state == FAIL
    assert line.reason.startswith("3 threads computing") and "2 are planned" in line.reason


def test_a_thread_beyond_the_plan_that_mostly_waits_is_no_failure(host: Host) -> None:
    watched = seen({0, 2}, {1, 3})
    waits = Thread(5, 0.1, 0.7, frozenset({0, 2}))
    watched = watched._replace(workers=(*watched.workers, waits))
    line = checks.working(PLAN, watched)
    assert (line.state, line.reason) == (PASS, "2 threads computing, as planned")
    assert checks.places(PLAN, watched, host, "libgomp").state == PASS


def test_a_failed_run_fails_the_line_of_working_threads() -> None:
    line = checks.working(PLAN, BROKEN)
    assert line.state == FAIL
    assert "exit code 3" in line.reason
    assert checks.working(PLAN, UNSEEN).state == SKIP


# CPUs


def test_threads_with_a_core_each_pass(host: Host) -> None:
    line = checks.places(PLAN, seen({1, 3}, {0, 2}), host, "libgomp")
    assert (line.state, line.reason) == (PASS, "each thread keeps to its own: CPUs 0,2 | 1,3")


def test_threads_that_are_not_bound_pass_without_a_binding(host: Host) -> None:
    everywhere = seen({0, 1, 2, 3}, {0, 1, 2, 3})
    line = checks.places(planned(env=()), everywhere, host, "libgomp")
    assert (line.state, line.reason) == (PASS, "CPUs 0-3")


@pytest.mark.parametrize(
    ("runtime", "state"),
    [("libgomp", FAIL), ("libomp", FAIL), ("none", PASS), ("vcomp", PASS), (None, PASS)],
)
def test_a_binding_without_effect_fails(host: Host, runtime: str | None, state: str) -> None:
    line = checks.places(PLAN, seen({0, 2}, {0, 1, 2, 3}), host, runtime)
    assert line.state == state
    assert ("OMP_PROC_BIND=true has no effect" in line.reason) == (state == FAIL)


def test_one_thread_need_not_be_bound(host: Host) -> None:
    assert checks.places(PLAN, seen({0, 1, 2, 3}), host, "libgomp").state == PASS


def test_a_binding_is_not_checked_where_cores_are_not_known(host: Host) -> None:
    unknown = host._replace(topology_known=False)
    everywhere = seen({0, 1, 2, 3}, {0, 1, 2, 3})
    assert checks.places(PLAN, everywhere, unknown, "libgomp").state == PASS


def test_threads_that_share_a_core_fail(host: Host) -> None:
    line = checks.places(PLAN, seen({0}, {2}), host, None)
    assert line.state == FAIL
    assert "1 of 2 threads must share a core with others on CPUs 0,2" in line.reason


def test_threads_outside_of_the_plan_fail(host: Host) -> None:
    line = checks.places(planned(cpus=frozenset({0, 2})), seen({0}, {1}), host, None)
    assert line.state == FAIL
    assert "may use CPUs 0-1, but the plan allows only 0,2" in line.reason


def test_cpus_that_the_kernel_does_not_show_are_skipped(host: Host) -> None:
    assert checks.places(PLAN, seen({0}, None), host, None).state == SKIP


@pytest.mark.parametrize(
    ("masks", "permitted", "left_out"),
    [
        ([{0}, {1}, {2}], {0, 1, 2, 3}, 0),
        ([{0}, {0}, {0, 1, 2, 3}], {0, 1, 2, 3}, 1),
        ([{0, 1}, {0}, {1, 2}], {0, 1, 2, 3}, 0),
        ([{0, 1}, {0, 1}, {0, 1}], {0, 1, 2, 3}, 1),
        ([{0}, {0}], {0}, 0),
        ([{0}, {0}, {0}], {0, 1}, 1),
        ([set(range(4))] * 4, {0, 1, 2, 3}, 0),
        ([set(range(4))] * 9, {0, 1, 2, 3}, 0),
    ],
)
def test_the_number_of_threads_that_must_share_a_core(
    tmp_path: Path, masks: Sequence[set[int]], permitted: set[int], left_out: int
) -> None:
    four = Machine(tmp_path).regular(4).host()
    plan = planned(threads=len(masks), cpus=frozenset(permitted), env=())
    line = checks.places(plan, seen(*masks), four, None)
    assert line.state == (FAIL if left_out else PASS)
    assert line.reason.startswith(f"{left_out} of {len(masks)} threads") == bool(left_out)


# What the kernel grants

MIB = 1 << 20
SIZE = 1000 * MIB


def given(*niceness: int | None, steady: bool = True, **memory: Any) -> Watched:
    threads = tuple(Thread(at, 1.0, 0.0, None, nice) for at, nice in enumerate(niceness or (0,)))
    process = Process(77, ENV, threads, **{"resident": 1100 * MIB, **memory})
    return Watched(LOG, process=process, workers=threads, steady=steady)


def kernel(plan: Plan, watched: Watched, niceness: int = 0) -> Line:
    """Return the only line."""
    (line,) = checks.kernel(plan, watched, SIZE, niceness, lockable=8 * MIB)
    return line


HUGE = planned(env=(("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"),))
LOCKED = planned(mlock=True)
NICER = planned(nice=-5)
NODE_0 = planned(node=0)


def test_no_line_for_what_the_plan_does_not_ask_for() -> None:
    other = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}
    for plan in (PLAN, planned(env=tuple(other.items())), planned(numa="distribute")):
        assert not list(checks.kernel(plan, given(0), SIZE, 0, None))


@pytest.mark.parametrize("plan", [HUGE, LOCKED, NICER, NODE_0])
def test_a_kernel_that_shows_nothing_is_skipped(plan: Plan) -> None:
    for watched, reason in (
        (UNSEEN, TOO_SOON),
        (BROKEN, checks.NO_RUN),
        (given(None), "the kernel does not show"),
    ):
        line = kernel(plan, watched)
        assert line.state == SKIP
        assert line.reason.startswith(reason)


@pytest.mark.parametrize(
    ("niceness", "launcher", "state"),
    [
        ((-5, -5), 0, PASS),
        ((-5, None), 0, PASS),
        ((-5, 0), 0, FAIL),
        ((0,), 0, FAIL),
        ((5,), 10, PASS),
        ((10,), 10, FAIL),
        ((-20,), -18, PASS),
    ],
)
def test_priority_is_added_to_the_launchers(
    niceness: tuple[int, ...], launcher: int, state: str
) -> None:
    line = kernel(NICER, given(*niceness), launcher)
    assert (line.name, line.state) == ("priority", state)


@pytest.mark.parametrize(
    ("locked", "resident", "steady", "state", "words"),
    [
        (SIZE, SIZE, True, PASS, "1000 MiB of the model's 1000 MiB are locked"),
        (905 * MIB, MIB, False, PASS, "905 MiB of"),
        (0, 1100 * MIB, True, FAIL, "; the limit is 8.0 MiB (ulimit -l)"),
        (0, 1100 * MIB, False, SKIP, "before the model was loaded"),
        (0, 500 * MIB, True, SKIP, "before the model was loaded"),
        (0, None, True, SKIP, "before the model was loaded"),
    ],
)
def test_most_of_the_model_must_be_locked(
    locked: int, resident: int | None, steady: bool, state: str, words: str
) -> None:
    line = kernel(LOCKED, given(0, steady=steady, locked=locked, resident=resident))
    assert (line.name, line.state) == ("locked memory", state)
    assert words in line.reason


@pytest.mark.parametrize(
    ("huge", "steady", "state"),
    [(4 * MIB, True, PASS), (4 * MIB, False, PASS), (0, True, FAIL), (0, False, SKIP)],
)
def test_huge_pages(huge: int, steady: bool, state: str) -> None:
    assert checks.asks_huge(HUGE) and not checks.asks_huge(PLAN)
    line = kernel(HUGE, given(0, steady=steady, huge=huge))
    assert (line.name, line.state) == ("huge pages", state)


@pytest.mark.parametrize(
    ("plan", "nodes", "state"),
    [
        (NODE_0, {1: 10 * MIB, 0: 990 * MIB}, PASS),
        (NODE_0, {1: 990 * MIB, 0: 10 * MIB}, FAIL),
        (planned(interleave=frozenset((0, 1))), {0: 400, 1: 500, 2: 100}, PASS),
        (NODE_0, {}, SKIP),
    ],
)
def test_memory_on_the_planned_nodes(plan: Plan, nodes: dict[int, int], state: str) -> None:
    line = kernel(plan, given(0, nodes=nodes))
    assert (line.name, line.state) == ("memory nodes", state)
    shown = "node 0: 10.0 MiB, node 1: 990 MiB; the plan asks for node 0"
    assert (shown in line.reason) is (state == FAIL)


# The engine's own number


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("n_threads = 2 (n_threads_batch = 2) / 8 | AVX = 1", PASS),
        ("n_threads = 2 | AVX = 1", PASS),
        ("n_threads = 4 (n_threads_batch = 2) / 8", FAIL),
        ("n_threads = 2 (n_threads_batch = 8) / 8", FAIL),
        ("n_threads = 8 | AVX = 1", FAIL),
    ],
)
def test_the_engines_own_number(said: str, state: str) -> None:
    log = f"main: llama threadpool init, n_threads = 7\n0.00.1 I system_info: {said}\n"
    assert checks.own_count(PLAN, seen({0}, {1}, log=log)).state == state


def test_an_engine_that_prints_no_number_is_skipped() -> None:
    assert checks.own_count(PLAN, seen({0}, {1}, log="n_threads = 2")).state == SKIP
    assert checks.own_count(PLAN, BROKEN).reason == checks.NO_RUN


def test_the_engines_log_counts_even_if_its_threads_were_not_observed() -> None:
    assert checks.own_count(PLAN, UNSEEN).state == PASS


# Output and model


def report(*passed: bool) -> Report:
    case = KnownText("a", "b", 1)
    results = tuple(Result(case, Variant(1), each, "") for each in passed)
    return Report("engine", "model", results, None if all(passed) else "the build lacks AVX2")


def test_right_and_wrong_output() -> None:
    right = checks.output(report(True, True), None)
    assert (right.state, right.reason) == (PASS, "2 known texts of the demo model came out right")
    wrong = checks.output(report(True, False), None)
    assert wrong.state == FAIL
    assert wrong.reason == "the build lacks AVX2 (1 of 2 known texts come out wrong)"
    tuned = checks.output(report(True), "gives other words than the default")
    assert tuned.state == FAIL
    assert "planned setting: gives other words" in tuned.reason


def test_the_model_is_i2_s() -> None:
    types = (TypeShare("i2_s", 20, 900), TypeShare("f16", 1, 100))
    line = checks.quantization(ENGINE, MODEL._replace(types=types))
    assert (line.state, line.reason) == (PASS, "90% of the weights are in bitnet.cpp's fast format")


def test_another_model_fails_where_i2_s_would_do_and_is_skipped_elsewhere() -> None:
    model = MODEL._replace(quantization="tq2_0")
    assert checks.quantization(ENGINE, model).state == FAIL
    assert checks.quantization(ENGINE._replace(i2_s=None), model).state == FAIL
    mainline = checks.quantization(ENGINE._replace(i2_s=False), model)
    assert mainline.state == SKIP
    assert "mainline" in mainline.reason
    location = ENGINE.location._replace(embedded=True)
    embedded = checks.quantization(ENGINE._replace(i2_s=False, location=location), model)
    assert embedded.state == SKIP
    assert "the embedded engine has no i2_s" in embedded.reason


# From looks to working threads

ALL, ONE = frozenset({0, 1}), frozenset({0})


def looks(
    *threads: Sequence[float] | Sequence[tuple[float, float]],
    cpus: frozenset[int] | None = ALL,
    process: int = 9,
) -> list[tuple[Process, ...]]:
    """Return looks at one process. Each thread is given by the seconds that it had run at every
    look, or had run and waited."""

    def thread(number: int, at: float | tuple[float, float]) -> Thread:
        return Thread(number, *(at if isinstance(at, tuple) else (at, 0.0)), cpus)

    return [
        (Process(process, {"A": "1"}, tuple(thread(*each) for each in enumerate(states))),)
        for states in zip(*threads, strict=True)
    ]


def seconds(workers: Sequence[Thread]) -> list[tuple[float, float]]:
    return [(round(worker.ran, 2), round(worker.waited, 2)) for worker in workers]


def ramp(start: float, end: float) -> list[float]:
    """Return what a thread had run at each of LEAST_LOOKS looks."""
    return [start + (end - start) * step / (LEAST_LOOKS - 1) for step in range(LEAST_LOOKS)]


def test_the_second_half_of_a_run_shows_which_threads_compute() -> None:
    loads = [*ramp(0, 2), *ramp(2.1, 2.3)]
    helps = [*ramp(0, 0), *ramp(0, 0.18)]
    idles = [*ramp(0, 0), *ramp(0, 0.02)]
    work = summed_up(looks(loads, helps, idles))
    assert work.process is not None
    assert (work.process.id, work.process.variables) == (9, {"A": "1"})
    assert seconds(work.workers) == [(0.2, 0), (0.18, 0)]
    assert work.workers[0].cpus == ALL


@pytest.mark.parametrize(
    ("ran", "waited", "works"),
    [
        (1.0, 0.0, True),
        (0.2, 0.7, True),  # shares its CPU with four other programs
        (0.55, 0.05, True),  # its runtime lets threads sleep
        (0.18, 0.35, False),  # passes text on, on the CPU of a thread that computes
        (0.45, 0.0, False),
        (0.0, 0.0, False),
    ],
)
def test_which_shares_of_time_make_a_thread_compute(ran: float, waited: float, works: bool) -> None:
    before = [(5.0, 1.0)] * (2 * LEAST_LOOKS - 1)
    busiest = [*before, (5.95, 1.05)]
    work = summed_up(looks([*before, (5 + ran, 1 + waited)], busiest))
    assert work.process is not None
    assert len(work.workers) == (2 if works else 1)


def test_the_process_that_computes_counts_not_the_script_before_it() -> None:
    script = looks([*ramp(0.5, 0.5), *ramp(0.5, 0.5)], process=5)
    engine = looks([*ramp(0, 1), *ramp(1, 2)], process=6)
    both = [(*one, *other) for one, other in zip(script, engine, strict=True)]
    work = summed_up([*both, *script])
    assert work.process is not None
    assert work.process.id == 6
    assert seconds(work.workers) == [(1, 0)]


def test_a_threads_cpus_are_those_in_most_looks() -> None:
    bound = looks([*ramp(0, 1), *ramp(1, 2)], cpus=ONE)
    work = summed_up([*bound, *looks([2.0], cpus=ALL)])
    assert work.process is not None
    assert work.workers[0].cpus == ONE


def test_a_thread_that_starts_late_counts_from_then_on() -> None:
    work = summed_up([*looks(ramp(0, 0.3)), *looks(ramp(0.3, 0.5), ramp(7.0, 7.2))])
    assert work.process is not None
    assert seconds(work.workers) == [(0.2, 0), (0.2, 0)]


@pytest.mark.parametrize(
    "few",
    [
        [],
        [()],
        [(), ()],
        looks([*ramp(0, 3), *ramp(3, 3 + LEAST_SECONDS / 2)]),
        looks([0.0, 1.0, 2.0, 3.0]),
    ],
)
def test_a_run_that_is_too_short_shows_nothing(few: list[tuple[Process, ...]]) -> None:
    assert summed_up(few) == Watched("", TOO_SOON)


def test_memory_is_the_most_of_all_looks() -> None:
    sizes = [100, 900, 1100, 1101, 1102, 1102]
    memory = [
        Process(9, {}, (Thread(1, float(at), 0.0, ALL, -5),), size, at, nodes={0: size})
        for at, size in enumerate(sizes)
    ]
    seen = [*memory, *(look._replace(locked=0, nodes=None) for look in memory[::-1])]
    threads = [Thread(1, float(at), 0.0, ALL, -5) for at in range(len(seen))]
    found = summed_up(
        [(each._replace(threads=(thread,)),) for each, thread in zip(seen, threads, strict=True)]
    )
    assert found.process is not None
    assert found.process[3:] == (1102, 5, None, {0: 1102})
    assert found.process.threads[0].niceness == -5


@pytest.mark.parametrize(
    ("sizes", "steady"),
    [
        ([500, 1100, 1100, 1101, 1102], True),
        ([500, 600, 700, 1100, 1300], False),
        ([None] * 5, False),
    ],
)
def test_a_model_counts_as_loaded_once_memory_no_longer_grows(
    sizes: list[int | None], steady: bool
) -> None:
    seen = looks([*ramp(0, 1), *ramp(1, 2)])
    later = [(each._replace(resident=size),) for (each,), size in zip(seen[5:], sizes, strict=True)]
    assert summed_up([*seen[:5], *later]).steady is steady


# The run that is observed


@pytest.mark.parametrize(("rate", "tokens"), [(0.5, 12), (30, 45), (5000, 1500)])
def test_a_watched_run_lasts(rate: float, tokens: int) -> None:
    request = watched_request(rate, MODEL, frozenset(("--ignore-eos",)), 3, False)
    assert (request.n_predict, request.seed) == (tokens, 3)
    assert request.extra == ("--ignore-eos",)


def test_a_watched_run_fits_into_a_small_model() -> None:
    request = watched_request(5000, MODEL._replace(context_length=64), frozenset(), 1, True)
    assert request.performance
    assert request.ctx_size == 64
    assert 0 < request.n_predict < 64
    assert request.extra == ()
