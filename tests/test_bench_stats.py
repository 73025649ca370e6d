"""Estimates with intervals, ratios, verdicts, runs and rounds."""

from __future__ import annotations

import random
from math import exp, log
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_tuning.bench import statistics
from bitnet_tuning.bench.comparison import CheckFacts, Round, Rounds, Run
from bitnet_tuning.engine.builds import EQUAL, FASTER, OPEN, SLOWER
from bitnet_tuning.launch.failure import NO_END
from bitnet_tuning.plan.profile import PP, TG, Estimate, Objective
from bitnet_tuning.store.codec import DamagedError

SPEEDS = st.lists(st.floats(0.1, 100), min_size=1, max_size=15)


def a_round(*runs: tuple[str, float | None], number: int = 1) -> Round:
    """Return a round of runs with one sample each; None stands for a failure."""
    made = (
        Run(name, {TG: (speed,)}, 1.0) if speed else Run(name, {}, 1.0, "it broke")
        for name, speed in runs
    )
    return Round(number, "threads", tuple(made), float(number))


@pytest.mark.parametrize("count", [5, 6, 7, 10, 13])
@pytest.mark.parametrize("level", [0.75, 0.95, 0.998])
def test_the_interval_leaves_out_what_equal_settings_reach_too_rarely(
    count: int, level: float
) -> None:
    """All signs of the ranks are equally likely: as many means lie outside each end as the largest
    sum of positive ranks that is rare enough."""
    sums = [
        sum(r for r in range(1, count + 1) if signs >> r & 1) for signs in range(0, 2 << count, 2)
    ]
    logs = [0.1 * number + 0.001 * number**2 for number in range(count)]
    means = sorted((a + b) / 2 for place, a in enumerate(logs) for b in logs[place:])
    found = statistics.estimate(map(exp, logs), level)
    outside = sum(mean < log(found.low) - 1e-9 for mean in means)
    rare = 2 * sum(each <= outside for each in sums) / len(sums)
    assert rare <= 1 - level + 1e-9 or outside == 0
    assert 2 * sum(each <= outside + 1 for each in sums) / len(sums) > 1 - level


@pytest.mark.parametrize("level", [0.8, 0.95, 0.999])
def test_intervals_are_those_of_scipys_tests(level: float) -> None:
    """An end of an interval is where the test of a shift by it ceases to reject."""
    scipy = pytest.importorskip("scipy.stats")
    source = random.Random(7)
    for count in (6, 11, 18, 25):
        logs = [source.gauss(0.05, 0.1) for _ in range(count)]
        found = statistics.estimate(map(exp, logs), level)
        for end, step in ((log(found.low), 1e-9), (log(found.high), -1e-9)):
            ps = [
                scipy.wilcoxon([each - end + shift for each in logs], mode="exact").pvalue
                for shift in (step, -step)
            ]
            at_an_end = 2 / 2**count > 1 - level
            assert at_an_end or ps[0] <= 1 - level + 1e-9 < ps[1] + 2e-9, (count, ps)


def test_the_ratio_of_samples_is_scipys_shift() -> None:
    """The estimate is where the statistic of Mann and Whitney is in the middle."""
    scipy = pytest.importorskip("scipy.stats")
    source = random.Random(8)
    a, b = ([source.lognormvariate(m, 0.2) for _ in range(9)] for m in (0.3, 0.0))
    found = statistics.unpaired(a, b)
    assert (
        scipy.mannwhitneyu([log(x) - log(found.median) for x in a], [log(x) for x in b]).pvalue
        > 0.9
    )
    for end, inside in ((found.low, 1.01), (found.high, 1 / 1.01)):
        ps = [
            scipy.mannwhitneyu([log(x) - log(each) for x in a], [log(x) for x in b]).pvalue
            for each in (end * inside, end / inside)
        ]
        assert ps[1] < 0.06 and ps[0] > 0.04, ps


@pytest.mark.parametrize(("count", "share"), [(6, 0.0), (12, 0.02), (30, 0.02)])
def test_intervals_cover_the_truth_in_95_percent(count: int, share: float) -> None:
    """Runs with noise of 15 %, of which a share takes five times as long."""
    source, covered = random.Random(count), 0
    for _ in range(400):
        runs = [
            source.lognormvariate(0, 0.15) * (0.2 if source.random() < share else 1)
            for _ in range(2 * count)
        ]
        found = statistics.estimate(a / b for a, b in zip(runs[::2], runs[1::2], strict=True))
        covered += found.low <= 1 <= found.high
    assert covered >= 0.93 * 400


def test_looks_after_every_round_err_in_5_percent() -> None:
    source, wrong = random.Random(2), 0
    for _ in range(300):
        ratios: list[float] = []
        for number in range(1, 31):
            ratios.append(source.lognormvariate(0, 0.2))
            level = statistics.LEVEL if number == 30 else statistics.INTERIM
            verdict = statistics.verdict(statistics.estimate(ratios, level), level=level)
            if verdict in (FASTER, SLOWER):
                wrong += 1
                break
    assert wrong <= 0.07 * 300


def test_the_interval_of_an_unpaired_ratio_covers_the_truth() -> None:
    source, covered = random.Random(3), 0
    for _ in range(300):
        first = [source.lognormvariate(0.2, 0.3) for _ in range(10)]
        second = [source.lognormvariate(0, 0.3) for _ in range(7)]
        found = statistics.unpaired(first, second)
        covered += log(found.low) <= 0.2 <= log(found.high)
    assert covered >= 0.93 * 300
    assert found.count == 7


@pytest.mark.parametrize(
    ("found", "resolution", "expected"),
    [
        (Estimate(1.2, 1.01, 1.3, 6), 0.02, FASTER),
        (Estimate(1.2, 1.1, 1.3, 5), 0.02, OPEN),
        (Estimate(1.1, 0.99, 1.3, 20), 0.02, OPEN),
        (Estimate(1.0, 0.9, 1.1, 20), 0.02, OPEN),
        (Estimate(0.8, 0.7, 0.99, 20), 0.02, SLOWER),
        (Estimate(1.01, 1.005, 1.015, 20), 0.02, EQUAL),
        (Estimate(1.01, 1.005, 1.025, 20), 0.02, FASTER),
        (Estimate(1.01, 1.005, 1.025, 20), 0.05, EQUAL),
        (Estimate(0.99, 0.985, 1.01, 20), 0.02, EQUAL),
        (Estimate(0.99, 0.97, 1.01, 20), 0.02, OPEN),
    ],
)
def test_a_verdict_needs_the_whole_interval_and_rounds(
    found: Estimate, resolution: float, expected: str
) -> None:
    assert statistics.verdict(found, resolution) == expected


def test_a_verdict_needs_more_rounds_at_a_stricter_level() -> None:
    assert [statistics.least_rounds(level) for level in (0.75, 0.95, 0.999)] == [3, 6, 11]
    few = Estimate(1.2, 1.1, 1.3, 10)
    assert statistics.verdict(few, level=statistics.INTERIM) == OPEN


def test_half_the_width_takes_four_times_the_rounds() -> None:
    open_ = Estimate(1.05, 1.05 / 1.1025, 1.05 * 1.1025, 10)
    assert statistics.more_rounds(open_) == pytest.approx(30, abs=1)
    assert statistics.more_rounds(Estimate(1.2, 1.2, 1.2, 2)) == 4
    narrow = statistics.more_rounds(Estimate(1.0, 0.9, 1 / 0.9, 10))
    assert narrow == pytest.approx(10 * (log(0.9) / log(1.02)) ** 2 - 10, abs=1)


@given(SPEEDS, st.sampled_from([0.5, 0.8, 0.95]))
def test_the_interval_contains_the_median_and_lies_within_the_values(
    values: list[float], level: float
) -> None:
    found = statistics.estimate(values, level)
    near = 1 + 1e-9
    assert min(values) / near <= found.low <= found.median <= found.high <= max(values) * near


@given(SPEEDS)
def test_inverse_ratios_have_the_inverse_estimate(values: list[float]) -> None:
    found, turned = statistics.estimate(values), statistics.estimate([1 / each for each in values])
    assert (turned.median, turned.low, turned.high) == pytest.approx(
        (1 / found.median, 1 / found.high, 1 / found.low)
    )


@given(SPEEDS, SPEEDS)
def test_swapped_samples_have_the_inverse_ratio(a: list[float], b: list[float]) -> None:
    found, turned = statistics.unpaired(a, b), statistics.unpaired(b, a)
    assert turned.median == pytest.approx(1 / found.median)
    assert found.low <= found.high


def test_one_outlier_does_not_move_the_interval() -> None:
    calm = [1 + number / 100 for number in range(14)]
    assert statistics.estimate([*calm[1:], 100.0]).high < 1.15


@pytest.mark.parametrize(("a", "b"), [([], [1.0]), ([1.0], []), ([0.0], [1.0])])
def test_a_ratio_needs_positive_values(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError):
        statistics.unpaired(a, b)


def test_a_median_needs_a_value() -> None:
    with pytest.raises(ValueError):
        statistics.estimate([])


def test_ratios_are_paired_by_round() -> None:
    rounds = [
        a_round(("default", 10.0), ("a", 12.0)),
        a_round(("a", 24.0), ("default", 20.0)),
        a_round(("default", 10.0), ("b", 12.0)),
        a_round(("default", None), ("a", 12.0)),
        a_round(("default", 4.0), ("a", 11.0), ("default", 25.0)),
    ]
    assert Rounds(Objective(), rounds).ratios("a") == pytest.approx([1.2, 1.2, 1.1])
    assert Rounds(Objective(PP), rounds).ratios("a") == []


def test_thousands_of_values_have_an_interval() -> None:
    values = [1 + (number * 7919 % 101) / 1000 for number in range(3000)]
    found = statistics.estimate(values)
    assert found.count == statistics.MOST_VALUES
    assert found.low < median(values) < found.high


# Runs and rounds


@pytest.mark.parametrize(("samples", "problem"), [({}, None), ({TG: (1.0,)}, "it broke")])
def test_a_run_has_samples_or_a_problem_but_not_both(
    samples: dict[str, tuple[float, ...]], problem: str | None
) -> None:
    with pytest.raises(DamagedError):
        Run("a", samples, 1.0, problem).validate()


def test_a_request_takes_the_time_of_its_prompt_and_of_its_answer() -> None:
    run = Run("a", {PP: (100.0,), TG: (10.0,)}, 1.0)
    assert run.value(Objective("request", n_prompt=300, n_gen=10)) == pytest.approx(1 / (3 + 1))


def test_a_run_that_never_ended_is_named_before_one_that_crashed() -> None:
    hung, crashed = (Run("a", {}, 1.0, problem) for problem in (f"{NO_END} 60 s", "signal 11"))
    rounds = Rounds(Objective(), [Round(1, "duel", (hung, crashed), 2.0)])
    assert rounds.problem("a") == hung.problem


def told(number: int, elapsed: float, **seconds: float) -> Round:
    """Return a round of runs that took so many seconds."""
    runs = tuple(Run(name, {TG: (1.0,)}, each) for name, each in seconds.items())
    return Round(number, "threads", runs, elapsed)


def test_a_round_costs_what_its_settings_took_and_what_lay_between_runs() -> None:
    ran = [told(1, 8.0, a=1.0, b=3.0), told(2, 16.0, a=1.0, b=3.0)]
    rounds = Rounds(Objective(), ran, budget=28.0)
    assert rounds.cost(("a", "b")) == pytest.approx(8.0)
    assert rounds.cost(("a", "a", "never ran")) == pytest.approx(2 + 2 + 4)
    assert rounds.affords(("a", "b", "a")) and not rounds.affords(("a", "b", "a", "a", "a"))
    assert rounds.affords(("a",), 18.0) and not rounds.affords(("b",), 18.0)
    assert Rounds(Objective()).cost(("a",)) == 0.0


def test_neither_preparation_nor_loading_nor_a_check_makes_later_rounds_dear() -> None:
    ran = [told(1, 30.0, a=1.5, b=1.5), told(2, 31.0, a=0.5, b=0.5)]
    rounds = Rounds(Objective(), ran)
    assert rounds.cost(("a", "b")) == pytest.approx(1.0)
    assert rounds.cost(("a", "c"), rounds=3) == pytest.approx(3 * 1.0 + 1.0)
    rounds.checks.append(CheckFacts("a", None, 0, 35.0))
    assert rounds.spent == 35.0
    for each in (told(3, 36.0, a=0.5, b=0.5), told(4, 37.0, a=0.5, b=0.5)):
        rounds.add(each)
    assert rounds.cost(("a", "b")) == pytest.approx(1.0)
    assert rounds.spent == 37.0


def test_what_was_found_wrong_last_is_told() -> None:
    rounds = Rounds(Objective())
    for problem in ("other words", "nothing", None):
        rounds.checks.append(CheckFacts("a", problem, 0))
    assert rounds.wrong("a") == rounds.problem("a") == "nothing"
    assert rounds.wrong("b") is None
