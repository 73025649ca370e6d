"""Medians with intervals, ratios, the noise floor and verdicts."""

from __future__ import annotations

import random
from math import log
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_tuning.bench import statistics
from bitnet_tuning.bench.comparison import Round, Rounds, Run
from bitnet_tuning.engine.builds import FASTER, OPEN, SLOWER
from bitnet_tuning.launch.failure import NO_END
from bitnet_tuning.plan.profile import PP, TG, Estimate, Objective
from bitnet_tuning.store.codec import DamagedError

SPEEDS = st.lists(st.floats(0.1, 100), min_size=1, max_size=15)
RESAMPLES = 20_000


def a_round(*runs: tuple[str, float | None], number: int = 1) -> Round:
    """Return a round of runs with one sample each; None stands for a failure."""
    made = (
        Run(name, {TG: (speed,)}, 1.0) if speed else Run(name, {}, 1.0, "it broke")
        for name, speed in runs
    )
    return Round(number, "threads", tuple(made), float(number))


def quantiles(values: list[float]) -> tuple[float, float]:
    """Return the quantiles 2.5 % and 97.5 %."""
    ordered = sorted(values)
    return ordered[len(ordered) // 40], ordered[-1 - len(ordered) // 40]


@pytest.mark.parametrize("count", [2, 3, 6, 7, 12, 13])
def test_the_interval_is_that_of_many_resamples(count: int) -> None:
    source = random.Random(count)
    values = [source.lognormvariate(0, 0.3) for _ in range(count)]
    resamples = [median(source.choices(values, k=count)) for _ in range(RESAMPLES)]
    found = statistics.estimate(values)
    below, above = (sum(each < end for each in resamples) for end in (found.low, found.high))
    assert found.median == median(values)
    assert found.count == count
    assert below / RESAMPLES <= 0.03
    assert sum(each <= found.low for each in resamples) / RESAMPLES >= 0.02
    assert above / RESAMPLES <= 0.98
    assert sum(each <= found.high for each in resamples) / RESAMPLES >= 0.97


def test_the_interval_of_an_unpaired_ratio_is_that_of_many_resamples() -> None:
    source = random.Random(3)
    first = [source.lognormvariate(0.2, 0.3) for _ in range(10)]
    second = [source.lognormvariate(0, 0.3) for _ in range(7)]
    resamples = [
        median(source.choices(first, k=10)) / median(source.choices(second, k=7))
        for _ in range(RESAMPLES)
    ]
    found = statistics.unpaired(first, second)
    assert (found.low, found.high) == pytest.approx(quantiles(resamples), rel=0.02)
    assert found.median == pytest.approx(median(first) / median(second))
    assert found.count == 7


@given(SPEEDS, st.sampled_from([0.5, 0.8, 0.95]))
def test_the_interval_contains_the_median_and_lies_within_the_values(
    values: list[float], level: float
) -> None:
    found = statistics.estimate(values, level)
    assert min(values) <= found.low <= found.median <= found.high <= max(values)


@given(SPEEDS)
def test_inverse_ratios_have_the_inverse_estimate(values: list[float]) -> None:
    found, turned = statistics.ratio(values), statistics.ratio([1 / each for each in values])
    assert (turned.median, turned.low, turned.high) == pytest.approx(
        (1 / found.median, 1 / found.high, 1 / found.low)
    )


@given(SPEEDS, SPEEDS)
def test_swapped_samples_have_the_inverse_ratio(a: list[float], b: list[float]) -> None:
    found, turned = statistics.unpaired(a, b), statistics.unpaired(b, a)
    assert turned.median == pytest.approx(1 / found.median)
    assert found.low <= found.high


def test_one_outlier_does_not_move_the_interval() -> None:
    calm = [1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06, 1.07, 1.08]
    assert statistics.estimate([*calm[1:], 100.0]).high < 1.1


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


def test_the_noise_floor_comes_from_rounds_with_two_runs_of_the_reference() -> None:
    rounds = Rounds(Objective(), [a_round(("default", 10.0), ("a", 1.0), ("default", 12.0))] * 4)
    assert rounds.itself() == pytest.approx([1.2] * 4)
    assert rounds.floor() == pytest.approx(1.2)
    assert Rounds(Objective(), [a_round(("default", 1.0))]).floor() is None
    thrice = a_round(("default", 10.0), ("default", 11.0), ("default", 12.0))
    assert Rounds(Objective(), [thrice]).itself() == pytest.approx([1.2])


def test_thousands_of_values_have_an_interval() -> None:
    values = [1 + (number * 7919 % 101) / 1000 for number in range(3000)]
    found = statistics.ratio(values)
    assert found.count == statistics.MOST_VALUES
    assert found.low < median(values) < found.high
    assert statistics.floor(values, 3000) is not None


def test_the_floor_sinks_with_more_rounds_down_to_its_minimum() -> None:
    pairs = [0.9, 1.2, 1.05, 0.8, 1.0, 1.1]
    floors = [statistics.floor(pairs, count) for count in (6, 24, 96, 400)]
    assert all(floors)
    assert floors == sorted(floors, key=lambda each: -(each or 0))
    assert statistics.floor([1.0] * 6, 6) == statistics.FLOOR_LEAST
    assert statistics.floor(pairs[:2], 6) is None
    turned = statistics.floor([1 / each for each in pairs], 24)
    assert turned == pytest.approx(floors[1])


@pytest.mark.parametrize(
    ("found", "floor", "expected"),
    [
        (Estimate(1.2, 1.1, 1.3, 6), 1.05, FASTER),
        (Estimate(1.2, 1.1, 1.3, 5), 1.05, OPEN),
        (Estimate(1.2, 1.04, 1.3, 20), 1.05, OPEN),
        (Estimate(1.2, 1.1, 1.3, 20), None, OPEN),
        (Estimate(1.0, 0.9, 1.1, 20), 1.05, OPEN),
        (Estimate(0.8, 0.7, 0.9, 20), 1.05, SLOWER),
        (Estimate(0.8, 0.7, 0.97, 20), 1.05, OPEN),
        (Estimate(1.5, 1.25, 1.6, 20), 1.25, OPEN),
        (Estimate(0.7, 0.6, 0.8, 20), 1.25, OPEN),
    ],
)
def test_a_verdict_needs_the_whole_interval_and_rounds(
    found: Estimate, floor: float | None, expected: str
) -> None:
    assert statistics.verdict(found, floor) == expected


def test_an_end_that_a_probability_meets_exactly_lies_outside() -> None:
    """The median of two draws from two values is each of them in a quarter of all cases."""
    found = statistics.estimate([1.0, 3.0], 0.5)
    assert (found.low, found.high) == (1.0, 3.0)


def test_the_floor_is_the_far_end_of_an_interval_of_70_percent() -> None:
    """Of one draw from twenty ratios: 17 of them, 85 %, lie below it."""
    pairs = [1 + number / 100 for number in range(1, 11)]
    assert statistics.floor(pairs, 1) == pytest.approx(1.08)
    assert statistics.floor(pairs, 0) is None


# The fit of all rounds

LEVELS = (0.0, 1.0, -0.5, 0.7, 0.2, -0.9, 0.4, 0.1)
"""What rounds have in common, as logarithms."""
TRUTH = {"default": 3.0, "a": 3.2, "b": 2.7}


def fitted(rounds: dict[str, range], slow: tuple[int, str] | None = None) -> statistics.Fit:
    """A fit of runs that vary by 2 %; one of them may be five times as slow."""
    return statistics.fit(
        [
            (
                number,
                name,
                TRUTH[name] + LEVELS[number] + wobble - log(5) * ((number, name) == slow),
            )
            for name, numbers in rounds.items()
            for number in numbers
            for wobble in [0.01 * ((number * 7 + 3 * len(name)) % 5 - 2)]
        ]
    )


def test_settings_that_met_in_few_rounds_are_compared_by_all_of_them() -> None:
    found = fitted({"default": range(8), "a": range(0, 8, 3), "b": range(1, 4)})
    assert found.gap("a", "default") == pytest.approx(0.2, abs=0.03)
    assert found.gap("b", "a") == pytest.approx(-0.5, abs=0.03)


def test_one_run_that_was_five_times_as_slow_hardly_counts() -> None:
    everywhere = dict.fromkeys(TRUTH, range(8))
    found, disturbed = fitted(everywhere), fitted(everywhere, slow=(3, "a"))
    assert disturbed.gap("a", "default") == pytest.approx(found.gap("a", "default"), abs=0.02)
    assert disturbed.weights["a"] < 7.1
    assert disturbed.weights["b"] > 7.9


def test_no_mean_is_worth_more_than_its_runs() -> None:
    assert all(worth <= 8 for worth in fitted(dict.fromkeys(TRUTH, range(8))).weights.values())


def test_the_spread_is_known_from_the_second_round_of_two_on() -> None:
    first, second = ({name: range(count) for name in ("default", "a")} for count in (1, 2))
    assert fitted(first).spread is None
    assert fitted(second).spread is not None
    assert fitted(first).error("a", "default") == float("inf")


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


def test_a_verdict_is_held_against_the_noise_of_as_many_rounds() -> None:
    twice = [
        a_round(("default", 10.0), ("a", 11.0), ("default", again)) for again in (9.0, 12.0, 10.5)
    ]
    rounds = Rounds(Objective(), [*twice, *[a_round(("default", 10.0), ("a", 11.0))] * 9])
    assert rounds.judge("a").floor == rounds.floor(12) != rounds.floor()


def test_a_round_costs_what_its_settings_took_and_what_lay_between_runs() -> None:
    ran = Round(1, "threads", (Run("a", {TG: (1.0,)}, 1.0), Run("b", {TG: (1.0,)}, 3.0)), 8.0)
    rounds = Rounds(Objective(), [ran], budget=20.0)
    assert rounds.cost(("a", "b")) == pytest.approx(8.0)
    assert rounds.cost(("a", "a", "never ran")) == pytest.approx(2 + 2 + 4)
    assert rounds.left(("a", "b")) == pytest.approx(1.5)
    assert rounds.affords(("a", "b", "a", "a")) and not rounds.affords(("a", "b", "a", "a", "a"))
    assert rounds.affords(("a",), 0.5) and not rounds.affords(("b",), 0.5)
    assert (Rounds(Objective()).cost(("a",)), Rounds(Objective()).left(("a",))) == (0.0, 0.0)


def test_what_was_found_wrong_last_is_told() -> None:
    rounds = Rounds(Objective())
    for problem in ("other words", "nothing", None):
        rounds.add_check("a", problem)
    assert rounds.wrong("a") == rounds.problem("a") == "nothing"
    assert (rounds.wrong("b"), rounds.is_checked("b")) == (None, False)
