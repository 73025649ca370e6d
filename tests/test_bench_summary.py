"""The evaluation of a benchmark: rows, sentences and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from bitnet_tuning.bench.comparison import CheckFacts, Round, Run
from bitnet_tuning.bench.results import Results
from bitnet_tuning.bench.summary import (
    TOO_FEW,
    UNCONFIRMED,
    Row,
    Summary,
    digits,
    facts,
)
from bitnet_tuning.console import times
from bitnet_tuning.engine.builds import FASTER, SLOWER
from bitnet_tuning.plan.profile import PP, TG, Estimate, Objective
from tests.bench_samples import SPEEDS, Simulator, sample_results

WINNER = "4 threads + no mmap"


def by_name(results: Results) -> dict[str, Row]:
    return {row.name: row for row in Summary(results).rows}


def exact(results: Results, rounds: Sequence[tuple[str, Mapping[str, float]]]) -> Results:
    """Return the results with rounds of one sample of generation each, in tokens/s."""
    made = tuple(
        Round(number, stage, tuple(Run(name, {TG: (speed,)}, 1) for name, speed in each.items()), 1)
        for number, (stage, each) in enumerate(rounds, 1)
    )
    return results._replace(rounds=made, decision=None, profile=None, checks=(), state="running")


def test_the_winner_comes_first_then_the_default_then_upstream() -> None:
    shown = Summary(sample_results()).rows
    assert [row.name for row in shown[:3]] == [WINNER, "default", "upstream"]
    others = [row.to_default.median for row in shown[3:] if row.to_default]
    assert others == sorted(others, reverse=True)
    assert [row.winner for row in shown] == [True] + [False] * (len(shown) - 1)


def test_medians_are_close_to_the_true_speeds() -> None:
    found = by_name(sample_results())
    for name in ("default", "upstream", "4 threads", WINNER):
        pp, tg = SPEEDS[name]
        row = found[name]
        assert row.pp and row.tg
        assert row.pp.median == pytest.approx(pp, rel=0.1)
        assert row.tg.median == pytest.approx(tg, rel=0.1)
        assert row.tg.low <= row.tg.median <= row.tg.high


def test_a_run_counts_once_however_many_samples_it_took() -> None:
    results = sample_results()
    run = Run("default", {TG: (10.0, 20.0, 90.0)}, 1.0)
    results = results._replace(rounds=(Round(1, "threads", (run, run), 2.0),), decision=None)
    assert by_name(results)["default"].tg == pytest.approx((20.0, 20.0, 20.0, 2))


def test_a_faster_file_that_runs_unnamed_needs_no_command() -> None:
    made, results = Simulator(spread=0.01), sample_results()
    for _ in range(8):
        made.add(
            "fixed",
            ["default", "original file", "default"],
            {"default": (1.0, 10.0), "original file": (1.0, 15.0)},
        )
    setting = results.settings["default"]._replace(embedding="f16")
    results = results._replace(
        rounds=tuple(made.rounds),
        settings={"default": results.settings["default"], "original file": setting},
        beside=results.model._replace(path="/m/wide.gguf", embedding="f16", unnamed=True),
        decision=None,
        checks=(),
    )
    *_, said, note = Summary(results).remarks()
    assert said.startswith("The original file is ×1.49 (1.48–1.51) as fast ")
    assert said.endswith("as the default, but its words may differ; to run it, leave out -m")
    assert note == "Note: a run takes 1.5 s"
    found = facts(results)["other file"]
    assert found.startswith("/m/wide.gguf, f16 embedding, ")
    assert found.endswith(" read for each token")
    assert facts(sample_results())["other file"] == "none"


def test_the_winners_verdict_is_the_decisions() -> None:
    results = sample_results()
    assert results.decision
    estimate = Estimate(1.5, 1.4, 1.6, 99)
    changed = results._replace(decision=results.decision._replace(estimate=estimate))
    row = by_name(changed)[WINNER]
    assert (row.to_default, row.verdict) == (estimate, FASTER)


def test_the_loser_of_a_duel_is_judged_by_the_duel_alone() -> None:
    # The search chose it because it looked good there.
    search = [("threads", {"default": 10.0, "4 threads": 20.0})] * 8
    duel = [("duel", {"default": 10.0, "4 threads": 10.1})] * 7
    row = by_name(exact(sample_results(), [*search, *duel]))["4 threads"]
    assert row.to_default and row.to_default.median == pytest.approx(1.01)
    assert (row.to_default.count, row.rounds, row.verdict) == (7, 15, "equal within 2 %")


def test_all_rounds_of_upstream_count() -> None:
    search = [("threads", {"default": 10.0, "upstream": 5.0})] * 4
    duel = [("duel", {"default": 10.0, "upstream": 5.0})] * 3
    row = by_name(exact(sample_results(), [*search, *duel]))["upstream"]
    assert row.to_default and row.to_default == pytest.approx((0.5, 0.5, 0.5, 7))


def test_few_rounds_give_no_verdict() -> None:
    results = exact(sample_results(), [("threads", {"default": 10.0, "4 threads": 30.0})] * 5)
    assert by_name(results)["4 threads"].verdict == TOO_FEW


def test_a_clear_difference_gets_a_verdict() -> None:
    made = Simulator(spread=0.01)
    for _ in range(8):
        made.add("threads", ["default", "4 threads", "12 threads", "default"], SPEEDS)
    results = sample_results()._replace(rounds=tuple(made.rounds), decision=None)
    found = by_name(results)
    assert found["12 threads"].verdict == SLOWER
    assert found["4 threads"].verdict == UNCONFIRMED, "the best of many may be lucky"
    assert found["default"].verdict == ""
    few = results._replace(rounds=results.rounds[:5])
    assert by_name(few)["4 threads"].verdict == TOO_FEW


def test_one_round_has_a_singular() -> None:
    rounds = [("threads", {"default": 10.0, "upstream": 5.0})]
    said = Summary(exact(sample_results(), rounds)).over_upstream
    assert "1 round cannot tell" in said


def test_failures_and_wrong_outputs_have_a_reason() -> None:
    made = Simulator()
    broken = {"12 threads": "killed by SIGSEGV"}
    for _ in range(2):
        made.add("threads", ["default", "12 threads", "4 threads"], SPEEDS, broken)
    results = sample_results()._replace(
        rounds=tuple(made.rounds),
        decision=None,
        checks=(CheckFacts("4 threads", "gives other words", 2), CheckFacts("default", None, 2)),
    )
    found = by_name(results)
    assert found["12 threads"].verdict == "failed: killed by SIGSEGV"
    assert (found["12 threads"].tg, found["12 threads"].rounds) == (None, 0)
    assert found["4 threads"].verdict == "wrong output: gives other words"
    assert Summary(results).problem("default") is None
    assert "12 threads: failed: killed by SIGSEGV." in Summary(results).remarks()


def test_one_failure_among_many_runs_is_no_verdict() -> None:
    made = Simulator()
    for turn in range(5):
        made.add("threads", ["default"], SPEEDS, {"default": "hung"} if turn == 2 else None)
    results = sample_results()._replace(rounds=tuple(made.rounds))
    assert Summary(results).problem("default") is None


def test_settings_without_a_run_are_not_shown() -> None:
    results = exact(sample_results(), [("threads", {"default": 10.0})])
    assert [row.name for row in Summary(results).rows] == ["default"]


def test_ratios_are_the_objectives() -> None:
    results = sample_results()._replace(decision=None)
    prompts = results._replace(options=results.options._replace(objective=Objective(PP)))
    generation, prompt = (by_name(each)["upstream"].to_default for each in (results, prompts))
    assert generation and prompt
    assert generation.median == pytest.approx(17 / 23, rel=0.1)
    assert prompt.median == pytest.approx(55 / 160, rel=0.1)


def test_the_gain_over_the_upstream_default_is_stated() -> None:
    summary = Summary(sample_results())
    ratio = summary.against(summary.winner, "upstream")
    assert summary.winner == WINNER and ratio
    assert ratio.median == pytest.approx(30.5 / 17, rel=0.15)
    assert times(*ratio) in summary.over_upstream


def test_too_few_rounds_do_not_judge_the_claim() -> None:
    few = exact(sample_results(), [("threads", {"default": 10.0, "upstream": 5.0})] * 2)
    assert "2 rounds cannot tell" in Summary(few).over_upstream
    none = exact(sample_results(), [("threads", {"default": 10.0})])
    assert "No comparison with" in Summary(none).over_upstream


def test_the_answer_says_what_to_use() -> None:
    results = sample_results()
    assert Summary(results).answer.startswith(f"Use {WINNER} (4 threads, no mmap")
    assert results.decision and results.decision.estimate
    assert times(*results.decision.estimate) in Summary(results).answer
    kept = results.decision._replace(winner="default", reason="Nothing promised more.")
    assert Summary(results._replace(decision=kept)).answer.startswith("Keep the default (6 threads")
    assert Summary(results._replace(decision=None)).answer.startswith("Not finished")


@pytest.mark.parametrize(
    ("number", "text"),
    [(1234.6, "1235"), (99.96, "100"), (24.71, "24.7"), (9.996, "10.0"), (1.309, "1.31")],
)
def test_numbers_have_three_significant_digits(number: float, text: str) -> None:
    assert digits(number) == text


# Curves


def test_curves_have_the_settings_that_differ_in_threads_alone() -> None:
    generation, prompts = Summary(sample_results()).curves
    assert list(generation.speeds) == [1, 2, 4, 6, 8, 12]
    assert list(prompts.speeds) == [1, 2, 4, 8, 12]
    assert (generation.default, prompts.default) == (6, 12)
    assert generation.limit == pytest.approx(34.1e9 / 827e6)
    assert prompts.limit is None


def test_settings_with_equal_threads_are_one_point() -> None:
    # The default has 12 threads for prompts, as "12 threads" does.
    results = sample_results()
    prompts = Summary(results).curves[1]
    runs = [run for each in results.rounds for run in each.runs]
    both = [run for run in runs if run.setting in ("default", "12 threads")]
    assert prompts.speeds[12].count == len(both)


def test_one_thread_count_makes_no_curve() -> None:
    results = exact(sample_results(), [("threads", {"default": 10.0, "upstream": 5.0})])
    assert Summary(results).curves == ()


def test_settings_that_are_out_are_in_no_plot() -> None:
    results = sample_results()
    out = [row.name for row in Summary(results).rows if row.is_out]
    assert out == ["4 threads + flash attention"]
    wrong = results._replace(checks=(CheckFacts("4 threads", "other words", 3),))
    assert 4 not in Summary(wrong).curves[0].speeds
