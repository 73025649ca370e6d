"""What was seen of an engine against what was planned: each line right and wrong."""

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
from bitnet_tuning.verify.checks import FAIL, PASS, SKIP, Line, crowded
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
    {"threads": "2: 2 of 2 physical cores may be used", "env": "it has no OpenMP"},
    command=("/build/bin/llama-cli", "-t", "2"),
)


def planned(**fields: Any) -> Plan:
    """The plan with other fields of its setting."""
    return PLAN._replace(setting=PLAN.setting._replace(**fields))


LOG = "llama: loading\nsystem_info: n_threads = 2 (n_threads_batch = 2) / 2 | AVX = 1 |\n"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Two cores with two threads each: 0 and 2, 1 and 3."""
    return Machine(tmp_path).regular(2, threads=2).host()


def seen(*masks: set[int] | None, log: str = LOG, **variables: str) -> Watched:
    workers = tuple(
        Thread(number, 0.5, 0.5, None if mask is None else frozenset(mask))
        for number, mask in enumerate(masks)
    )
    process = Process(77, {**ENV, **variables}, workers)
    return Watched(log, process=process, workers=workers, others=(Thread(99, 0.01, 0, None),))


UNSEEN = Watched(LOG, TOO_SOON)
BROKEN = Watched("", "the engine ended with exit code 3", failed=True)


# Threads detected


def test_the_detected_threads_come_with_their_reason(host: Host) -> None:
    line = checks.detected(PLAN, 2, host)
    assert (line.state, line.reason) == (PASS, PLAN.reasons["threads"])


def test_threads_of_the_users_own_are_told_beside_the_machines(host: Host) -> None:
    line = checks.detected(planned(threads=1), 2, host)
    assert line.state == PASS
    assert "the machine alone would have 2" in line.reason


def test_more_threads_than_cpus_fail(host: Host) -> None:
    line = checks.detected(planned(threads=5), 2, host)
    assert line.state == FAIL
    assert "more than the 4 CPUs" in line.reason


@pytest.mark.parametrize(("quota", "state"), [(0.5, FAIL), (1.5, FAIL), (2.0, PASS), (3.5, PASS)])
def test_more_threads_than_the_quota_fail(host: Host, quota: float, state: str) -> None:
    assert checks.detected(PLAN, 2, host._replace(quota=quota)).state == state


def test_one_thread_on_half_a_cpu_is_the_least_there_is(host: Host) -> None:
    one = planned(threads=1)
    assert checks.detected(one, 1, host._replace(quota=0.5)).state == PASS


# Environment


def test_the_environment_arrives() -> None:
    line = checks.environment(PLAN, seen({0}, {1}))
    assert line.state == PASS
    assert "OMP_PLACES=cores in the engine's process 77" in line.reason


def test_variables_that_are_lost_or_changed_fail() -> None:
    variables = {"OMP_NUM_THREADS": "8", "OMP_PLACES": "cores", "OTHER": "x"}
    watched = Watched(LOG, process=Process(77, variables, ()))
    line = checks.environment(PLAN, watched)
    assert line.state == FAIL
    assert "OMP_NUM_THREADS is '8'; OMP_PROC_BIND is missing" in line.reason
    assert "OMP_PLACES" not in line.reason
    assert "OTHER" not in line.reason
    assert "/build/bin/llama-cli" in line.reason


def test_an_environment_that_is_hidden_is_skipped() -> None:
    line = checks.environment(PLAN, Watched(LOG, process=Process(77, None, ())))
    assert (line.state, line.reason) == (
        SKIP,
        "the environment of the engine's process 77 is hidden",
    )


def test_nothing_to_set_is_no_failure() -> None:
    line = checks.environment(planned(env=()), seen({0}, {1}))
    assert line.state == PASS
    assert "it has no OpenMP" in line.reason


@pytest.mark.parametrize("watched", [UNSEEN, BROKEN])
def test_what_was_not_seen_is_skipped_with_the_reason(watched: Watched, host: Host) -> None:
    reason = checks.NO_RUN if watched.failed else UNSEEN.problem
    for line in (
        checks.environment(PLAN, watched),
        checks.places(PLAN, watched, host, "libgomp"),
    ):
        assert (line.state, line.reason) == (SKIP, reason)


# Working threads


def test_as_many_threads_as_planned_work() -> None:
    line = checks.working(PLAN, seen({0}, {1}))
    assert (line.state, line.reason) == (PASS, "2 threads, 1 idle")
    assert line.facts == {"working": 2, "planned": 2, "shares": [1.0, 1.0, 0.01]}


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"OMP_THREAD_LIMIT": "1"}, "OMP_THREAD_LIMIT=1 allows no more"),
        ({"OMP_THREAD_LIMIT": "64", "OMP_DYNAMIC": "TRUE"}, "OMP_DYNAMIC lets"),
        ({"OMP_THREAD_LIMIT": "x"}, "the engine makes less of -t"),
        ({}, "the engine makes less of -t"),
    ],
)
def test_fewer_threads_fail_with_the_cause(variables: dict[str, str], why: str) -> None:
    line = checks.working(PLAN, seen({0}, **variables))
    assert line.state == FAIL
    assert line.reason.startswith(f"1 of 2 threads, 1 idle: {why}")


def test_more_threads_fail() -> None:
    line = checks.working(PLAN, seen({0}, {1}, {0}))
    assert line.state == FAIL
    assert "3 threads, 2 planned" in line.reason


def test_a_thread_that_mostly_waits_is_not_held_against_the_plan(host: Host) -> None:
    watched = seen({0, 2}, {1, 3})
    waits = Thread(5, 0.1, 0.7, frozenset({0, 2}))
    watched = watched._replace(workers=(*watched.workers, waits))
    line = checks.working(PLAN, watched)
    assert (line.state, line.reason) == (PASS, "2 threads, 1 idle")
    assert checks.places(PLAN, watched, host, "libgomp").state == PASS


def test_a_run_that_fails_is_told_once() -> None:
    line = checks.working(PLAN, BROKEN)
    assert line.state == FAIL
    assert "exit code 3" in line.reason
    assert checks.working(PLAN, UNSEEN).state == SKIP


# CPUs


def test_threads_with_a_core_each(host: Host) -> None:
    line = checks.places(PLAN, seen({1, 3}, {0, 2}), host, "libgomp")
    assert (line.state, line.reason) == (PASS, "each its own: 0,2, 1,3")
    assert line.facts == {"cpus": ["1,3", "0,2"]}


def test_threads_that_may_go_everywhere_without_a_binding(host: Host) -> None:
    everywhere = seen({0, 1, 2, 3}, {0, 1, 2, 3})
    line = checks.places(planned(env=()), everywhere, host, "libgomp")
    assert (line.state, line.reason) == (PASS, "0-3")


@pytest.mark.parametrize(
    ("runtime", "state"),
    [("libgomp", FAIL), ("libomp", FAIL), ("none", PASS), ("vcomp", PASS), (None, PASS)],
)
def test_a_binding_that_does_not_act(host: Host, runtime: str | None, state: str) -> None:
    line = checks.places(PLAN, seen({0, 2}, {0, 1, 2, 3}), host, runtime)
    assert line.state == state
    assert ("OMP_PROC_BIND=true does not act" in line.reason) == (state == FAIL)


def test_one_thread_is_not_bound_and_nobody_minds(host: Host) -> None:
    assert checks.places(PLAN, seen({0, 1, 2, 3}), host, "libgomp").state == PASS


def test_cores_that_are_not_known_tell_nothing_of_a_binding(host: Host) -> None:
    unknown = host._replace(topology_known=False)
    everywhere = seen({0, 1, 2, 3}, {0, 1, 2, 3})
    assert checks.places(PLAN, everywhere, unknown, "libgomp").state == PASS


def test_threads_that_share_a_core_fail(host: Host) -> None:
    line = checks.places(PLAN, seen({0}, {2}), host, None)
    assert line.state == FAIL
    assert "1 of 2 threads cannot have a core of its own on CPUs 0,2" in line.reason


def test_threads_outside_of_the_plan_fail(host: Host) -> None:
    line = checks.places(planned(cpus=frozenset({0, 2})), seen({0}, {1}), host, None)
    assert line.state == FAIL
    assert "they may use 0-1, planned are 0,2 only" in line.reason


def test_cpus_that_the_kernel_does_not_tell(host: Host) -> None:
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
def test_who_must_share_a_core(
    tmp_path: Path, masks: Sequence[set[int]], permitted: set[int], left_out: int
) -> None:
    cores = Machine(tmp_path).regular(4).host().cores
    assert crowded([frozenset(mask) for mask in masks], cores, frozenset(permitted)) == left_out


# What the kernel gave

MIB = 1 << 20
SIZE = 1000 * MIB


def given(*niceness: int | None, steady: bool = True, **memory: Any) -> Watched:
    threads = tuple(Thread(at, 1.0, 0.0, None, nice) for at, nice in enumerate(niceness or (0,)))
    process = Process(77, ENV, threads, **{"resident": 1100 * MIB, **memory})
    return Watched(LOG, process=process, workers=threads, steady=steady)


def kernel(plan: Plan, watched: Watched, niceness: int = 0) -> Line | None:
    """The only line, or None for no line."""
    lines = list(checks.kernel(plan, watched, SIZE, niceness, lockable=8 * MIB))
    assert len(lines) < 2
    return lines[0] if lines else None


HUGE = planned(env=(("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"),))
LOCKED = planned(mlock=True)
NICER = planned(nice=-5)
NODE_0 = planned(node=0)


def test_no_line_for_what_the_plan_does_not_ask_for() -> None:
    other = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}
    for plan in (PLAN, planned(env=tuple(other.items())), planned(numa="distribute")):
        assert kernel(plan, given(0)) is None


@pytest.mark.parametrize("plan", [HUGE, LOCKED, NICER, NODE_0])
def test_a_kernel_that_shows_nothing_is_skipped(plan: Plan) -> None:
    for watched, reason in (
        (UNSEEN, TOO_SOON),
        (BROKEN, checks.NO_RUN),
        (given(None), "the kernel does not say"),
    ):
        line = kernel(plan, watched)
        assert line is not None
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
    assert line is not None
    assert (line.name, line.state) == ("priority", state)


@pytest.mark.parametrize(
    ("locked", "resident", "steady", "state", "words"),
    [
        (SIZE, SIZE, True, PASS, "1000 MiB of the model's 1000 MiB"),
        (905 * MIB, MIB, False, PASS, "905 MiB of"),
        (0, 1100 * MIB, True, FAIL, "; the limit is 8 MiB (ulimit -l)"),
        (0, 1100 * MIB, False, SKIP, "before the model was loaded"),
        (0, 500 * MIB, True, SKIP, "before the model was loaded"),
        (0, None, True, SKIP, "before the model was loaded"),
    ],
)
def test_the_model_is_to_be_locked(
    locked: int, resident: int | None, steady: bool, state: str, words: str
) -> None:
    line = kernel(LOCKED, given(0, steady=steady, locked=locked, resident=resident))
    assert line is not None
    assert (line.name, line.state) == ("locked memory", state)
    assert words in line.reason


@pytest.mark.parametrize(
    ("huge", "steady", "state"),
    [(4 * MIB, True, PASS), (4 * MIB, False, PASS), (0, True, FAIL), (0, False, SKIP)],
)
def test_huge_pages(huge: int, steady: bool, state: str) -> None:
    assert checks.asks_huge(HUGE) and not checks.asks_huge(PLAN)
    line = kernel(HUGE, given(0, steady=steady, huge=huge))
    assert line is not None
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
    assert line is not None
    assert (line.name, line.state) == ("memory nodes", state)
    assert state != FAIL or "node 0: 10 MiB, node 1: 990 MiB, planned are 0" in line.reason


# What the engine says


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


def test_an_engine_that_says_nothing_is_skipped() -> None:
    assert checks.own_count(PLAN, seen({0}, {1}, log="n_threads = 2")).state == SKIP
    assert checks.own_count(PLAN, BROKEN).reason == checks.NO_RUN


def test_what_a_run_said_counts_even_where_it_was_not_seen() -> None:
    assert checks.own_count(PLAN, UNSEEN).state == PASS


# Output and model


def report(*passed: bool) -> Report:
    case = KnownText("a", "b", 1)
    results = tuple(Result(case, Variant(1), each, "") for each in passed)
    return Report("engine", "model", results, None if all(passed) else "the build lacks AVX2")


def test_right_and_wrong_output() -> None:
    assert checks.output(report(True, True), None).reason == "the self-test's 2 texts are right"
    wrong = checks.output(report(True, False), None)
    assert wrong.state == FAIL
    assert "the build lacks AVX2" in wrong.reason
    tuned = checks.output(report(True), "gives other words than the default")
    assert tuned.state == FAIL
    assert "setting of the plan gives other words" in tuned.reason


def test_the_model_is_i2_s() -> None:
    types = (TypeShare("i2_s", 20, 900), TypeShare("f16", 1, 100))
    line = checks.quantization(ENGINE, MODEL._replace(types=types))
    assert (line.state, line.reason) == (PASS, "90% of the weights are i2_s")


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


# From looks to work

ALL, ONE = frozenset({0, 1}), frozenset({0})


def looks(
    *threads: Sequence[float] | Sequence[tuple[float, float]],
    cpus: frozenset[int] | None = ALL,
    process: int = 9,
) -> list[tuple[Process, ...]]:
    """Looks at one process; each thread by the seconds that it ran until every look, or ran
    and waited."""

    def thread(number: int, at: float | tuple[float, float]) -> Thread:
        return Thread(number, *(at if isinstance(at, tuple) else (at, 0.0)), cpus)

    return [
        (Process(process, {"A": "1"}, tuple(thread(*each) for each in enumerate(states))),)
        for states in zip(*threads, strict=True)
    ]


def seconds(workers: Sequence[Thread]) -> list[tuple[float, float]]:
    return [(round(worker.ran, 2), round(worker.waited, 2)) for worker in workers]


def ramp(start: float, end: float) -> list[float]:
    """What a thread ran until each of so many looks that something is told of them alone."""
    return [start + (end - start) * step / (LEAST_LOOKS - 1) for step in range(LEAST_LOOKS)]


def test_who_works_is_told_from_the_second_half() -> None:
    loads = [*ramp(0, 2), *ramp(2.1, 2.3)]
    helps = [*ramp(0, 0), *ramp(0, 0.18)]
    idles = [*ramp(0, 0), *ramp(0, 0.02)]
    work = summed_up(looks(loads, helps, idles))
    assert work.process is not None
    assert (work.process.id, work.process.variables) == (9, {"A": "1"})
    assert seconds(work.workers) == [(0.2, 0), (0.18, 0)]
    assert seconds(work.others) == [(0.02, 0)]
    assert work.workers[0].cpus == ALL


@pytest.mark.parametrize(
    ("ran", "waited", "works"),
    [
        (1.0, 0.0, True),
        (0.2, 0.7, True),  # shares its CPU with four other programs
        (0.55, 0.05, True),  # sleeps where it might spin
        (0.18, 0.35, False),  # passes text on, on the CPU of a thread that computes
        (0.45, 0.0, False),
        (0.0, 0.0, False),
    ],
)
def test_who_computes(ran: float, waited: float, works: bool) -> None:
    before = [(5.0, 1.0)] * (2 * LEAST_LOOKS - 1)
    busiest = [*before, (5.95, 1.05)]
    work = summed_up(looks([*before, (5 + ran, 1 + waited)], busiest))
    assert work.process is not None
    assert len(work.workers) == (2 if works else 1)
    assert len(work.others) == (0 if works else 1)


def test_the_process_that_computes_counts_not_the_script_before_it() -> None:
    script = looks([*ramp(0.5, 0.5), *ramp(0.5, 0.5)], process=5)
    engine = looks([*ramp(0, 1), *ramp(1, 2)], process=6)
    both = [(*one, *other) for one, other in zip(script, engine, strict=True)]
    work = summed_up([*both, *script])
    assert work.process is not None
    assert work.process.id == 6
    assert seconds(work.workers) == [(1, 0)]


def test_a_mask_is_the_one_that_held_most_of_the_time() -> None:
    bound = looks([*ramp(0, 1), *ramp(1, 2)], cpus=ONE)
    work = summed_up([*bound, *looks([2.0], cpus=ALL)])
    assert work.process is not None
    assert work.workers[0].cpus == ONE


def test_a_thread_that_comes_late_counts_from_then_on() -> None:
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
def test_too_little_was_seen(few: list[tuple[Process, ...]]) -> None:
    assert summed_up(few) == Watched("", TOO_SOON)


def test_the_most_memory_that_there_was_counts() -> None:
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


# The run that is looked at


@pytest.mark.parametrize(("rate", "tokens"), [(0.5, 24), (30, 45), (5000, 1500)])
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
