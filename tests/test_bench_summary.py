"""The evaluation of a benchmark: rows, sentences and curves."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from bitnet_tuning.bench.comparison import CheckFacts, Round, Run
from bitnet_tuning.bench.results import Kept, Part, Results, Surroundings
from bitnet_tuning.bench.summary import (
    Row,
    Summary,
    cells,
    digits,
    facts,
    to_csv,
)
from bitnet_tuning.console import table, times
from bitnet_tuning.engine.builds import EQUAL, FASTER, OPEN, SLOWER
from bitnet_tuning.machine.conditions import between
from bitnet_tuning.machine.warnings import warnings_after
from bitnet_tuning.plan.profile import PP, TG, Estimate, Objective
from bitnet_tuning.plan.setting import Setting
from tests.bench_samples import SNAPSHOT, SPEEDS, Simulator, sample_results

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
    row = by_name(results)["4 threads"]
    assert row.verdict == "not decided, would need about 2 s more", "one round of two runs"


def test_a_clear_difference_gets_a_verdict() -> None:
    made = Simulator(spread=0.01)
    for _ in range(8):
        made.add("threads", ["default", "4 threads", "12 threads", "default"], SPEEDS)
    results = sample_results()._replace(rounds=tuple(made.rounds), decision=None)
    found = by_name(results)
    assert found["12 threads"].verdict == SLOWER
    lucky = found["4 threads"].verdict  # the best of many may be
    assert re.fullmatch(r"not decided, would need about [12]\d s more", lucky), "six rounds"
    assert found["default"].verdict == ""
    few = results._replace(rounds=results.rounds[:5])
    assert by_name(few)["4 threads"].verdict.startswith(OPEN)


UPSTREAM_ROUND = ("threads", {"default": 10.0, "upstream": 5.0})


@pytest.mark.parametrize(
    ("rounds", "said"),
    [
        ([UPSTREAM_ROUND], "×2.00 (1 round), not decided, would need about 10 s more"),
        ([UPSTREAM_ROUND] * 6, "×2.00 (2.00–2.00), faster"),
        ([("fixed", {"default": 10.0, "upstream": 10.1})] * 6, "×0.99 (0.99–0.99), equal within"),
        ([("fixed", {"default": 10.0, "upstream": 12.0})] * 6, "×0.83 (0.83–0.83), slower"),
        ([("threads", {"default": 10.0})], "not compared."),
    ],
)
def test_upstream_is_compared_in_one_sentence(
    rounds: list[tuple[str, dict[str, float]]], said: str
) -> None:
    *_, sentence = Summary(exact(sample_results(), rounds)).details()
    assert sentence.startswith(f"Against bitnet.cpp's own 2 threads: {said}")


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


def test_the_heading_tells_what_was_measured_where_when_and_how() -> None:
    results = sample_results()
    assert Summary(results).headings == (
        "BitNet b1.58 2B 4T (i2_s) on Example Core i5-1235U",
        "engine build, version 3960 (5eb47b72), llama-bench, 64 + 16 tokens per run, "
        "2026-01-31T20:15:00Z",
    )
    bare = results._replace(
        model=results.model._replace(name=""), host=results.host._replace(brand="", vendor="")
    )
    assert Summary(bare).headings[0] == "ggml-model-i2_s.gguf (i2_s) on this machine"


def test_the_legend_explains_the_rows_that_are_there() -> None:
    results = sample_results()
    assert Summary(results).legend.startswith(
        "default: a run without measured settings; upstream: bitnet.cpp's own 2 threads; "
        "no mmap: the model copied into memory.\n"
    )
    fast = results.settings["default"]._replace(mlock=True)
    runs = exact(results, [("fixed", {"default": 10.0, "performance": 10.0})])
    runs = runs._replace(settings={**results.settings, "performance": fast})
    assert "settings; performance: --performance-mode.\n" in Summary(runs).legend


def test_a_single_run_of_the_other_phase_is_shown_for_the_default_alone() -> None:
    results = sample_results()
    speeds = {PP: (50.0,), TG: (10.0,)}
    runs = tuple(Run(name, speeds, 1.0) for name in ("default", "4 threads"))
    one = results._replace(rounds=(Round(1, "threads", runs, 1),), decision=None, checks=())
    found = by_name(one)
    assert found["default"].pp and found["4 threads"].tg and found["4 threads"].pp is None
    for goal in (PP, "request"):
        objective = results.options.objective._replace(name=goal)
        tuned = one._replace(options=results.options._replace(objective=objective))
        assert by_name(tuned)["4 threads"].pp


def test_a_disturbance_is_told_once() -> None:
    results = sample_results()
    before = SNAPSHOT._replace(busy_cpu_seconds=0.0, own_cpu_seconds=0.0)
    after = SNAPSHOT._replace(time=SNAPSHOT.time + 100, busy_cpu_seconds=160.0, own_cpu_seconds=1.0)
    later = [each.text for each in warnings_after(before, after)]
    assert sum("other processes used on average 1.6 of 4" in each for each in later) == 1
    loaded = results._replace(
        warnings=(*results.warnings, *later),
        conditions=Surroundings(before, after, between(before, after)),
        profile=None,
    )
    said = [*Summary(loaded).sentences()]
    assert [each for each in said if "on average" in each] == [
        "Neighbours: other programs took 1.6 CPUs on average meanwhile"
    ]
    reason = "Not saved: other programs took 1.6 CPUs on average meanwhile, and more."
    kept = loaded._replace(profile=Kept(False, None, reason))
    assert [each for each in Summary(kept).sentences() if "on average" in each] == [reason]


def test_an_impossible_gain_without_a_duel_is_doubted() -> None:
    rounds = [("threads", {"default": 20.0, "4 threads": 1100.0}) for _ in range(12)]
    results = exact(sample_results(), rounds)._replace(decision=None)
    assert by_name(results)["4 threads"].verdict.startswith("doubted: ")


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
    ratio = summary.over_upstream(summary.winner)
    assert summary.winner == WINNER and ratio
    assert ratio.median == pytest.approx(30.5 / 17, rel=0.15)
    *_, said = summary.details()
    assert said == f"Against bitnet.cpp's own 2 threads: {times(*ratio)}, faster."


def test_the_answer_is_one_short_sentence_with_details_below() -> None:
    results = sample_results()
    assert results.decision and results.decision.estimate
    gain = times(*results.decision.estimate)
    assert Summary(results).answer == f"Fastest: {WINNER}: {gain} over the default."
    first, *_ = Summary(results).details()
    assert first.startswith("4 threads, no mmap, OMP_PLACES=cores, ")
    assert first.endswith(". Confirmed by more runs, in turns with the default.")
    reason = "The best other setting, 4 threads, is equal within 2 %."
    kept = results.decision._replace(winner="default", verdict=EQUAL, reason=reason)
    summary = Summary(results._replace(decision=kept))
    first, *_ = summary.details()
    assert summary.answer == "Keep the default." and first.endswith(f"=close. {reason}")
    assert Summary(results._replace(decision=None)).answer.startswith("Not finished")


# Speeds and ratios that agree


def number(cell: str) -> float:
    return float(cell.split("\n", maxsplit=1)[0].removeprefix("×"))


def recomputed(results: Results) -> int:
    """Assert that every ratio of the printed table is the quotient of the printed speeds, as far
    as they are rounded. Return the number of ratios."""
    _, *table = cells(Summary(results))
    goal = results.options.objective.name
    place = {PP: 1, TG: 2, "request": 1}[goal]
    speeds = {row[0].removesuffix(" *"): row[place] for row in table}
    checked = 0
    for row in table:
        for column, reference in ((4, "default"), (5, "upstream")):
            if row[column] == "-":
                continue
            over = number(row[place]) / number(speeds[reference])

            assert abs(number(row[column]) - over) <= 0.0101 * over + 0.0051, row
            checked += 1
    return checked


@pytest.mark.parametrize("goal", [TG, PP, "request"])
@pytest.mark.parametrize("seed", range(8))
def test_every_ratio_can_be_recomputed_from_the_speeds_beside_it(goal: str, seed: int) -> None:
    """The machine becomes four times as fast, or slow, and settings run in different rounds."""
    results = sample_results(seed, spread=0.02 + 0.05 * seed)
    drift, count = 4 ** (1 if seed % 2 else -1), len(results.rounds)
    rounds = []
    for index, each in enumerate(results.rounds):
        factor = drift ** (index / count)
        runs = (
            run._replace(
                samples={
                    phase: tuple(factor * speed for speed in found)
                    for phase, found in run.samples.items()
                }
            )
            for run in each.runs
        )
        rounds.append(each._replace(runs=tuple(runs)))
    objective = results.options.objective._replace(name=goal)
    options = results.options._replace(objective=objective)
    decision = results.decision if goal == TG else None
    drifted = results._replace(rounds=tuple(rounds), options=options, decision=decision)
    assert recomputed(drifted) == 16, "nine settings, but no reference against itself"


def test_a_setting_that_never_met_the_default_is_compared_by_way_of_another() -> None:
    rounds = [
        *[("threads", {"default": 10.0, "4 threads": 15.0})] * 3,
        *[("knobs", {"4 threads": 30.0, WINNER: 33.0})] * 2,
    ]
    row = by_name(exact(sample_results(), rounds))[WINNER]
    assert row.to_default == pytest.approx((1.65, 1.65, 1.65, 2))
    assert row.tg and row.tg.median == pytest.approx(16.5), "not 33: the machine was twice as fast"
    assert row.verdict == "not decided, would need about 12 s more"


def test_cpu_time_of_each_token_is_a_column() -> None:
    results = exact(sample_results(), [UPSTREAM_ROUND] * 3)
    rounds = tuple(
        each._replace(
            runs=tuple(
                run._replace(cpu=index * 0.1234) if index and run.setting == "default" else run
                for run in each.runs
            )
        )
        for index, each in enumerate(results.rounds)
    )
    found = by_name(results := results._replace(rounds=rounds))
    assert found["default"].cpu == pytest.approx(0.1851) and found["upstream"].cpu is None
    first, default, upstream = cells(Summary(results))
    assert (first[3], default[3], upstream[3]) == ("CPU s\n/token", "0.185", "-")
    lines = [line.split(",") for line in to_csv(results).splitlines()]
    assert lines[0][-1] == "cpu_seconds_per_token"
    assert [line[-1] for line in lines[1:]] == ["", "", "0.1234", "", "0.2468", ""]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"server": ("/b/llama-server",)}, "llama-server, loaded once per setting, by turns"),
        ({}, "llama-bench processes"),
        ({"bench": None}, "llama-cli's own timings"),
    ],
)
def test_the_program_that_measured_is_named(changes: dict[str, Any], said: str) -> None:
    results = sample_results()
    assert facts(results._replace(engine=results.engine._replace(**changes)))["measured by"] == said


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_table_fits_the_terminal(width: int) -> None:
    text = table(cells(Summary(sample_results())), width)
    assert max(map(len, text.splitlines())) <= width
    assert "28.5–31.5" in text and "1.24–1.37" in text, "no figure is broken"


@pytest.mark.parametrize(
    ("number", "text"),
    [(1234.6, "1235"), (99.96, "100"), (24.71, "24.7"), (9.996, "10.0"), (1.309, "1.31")],
)
def test_numbers_have_three_significant_digits(number: float, text: str) -> None:
    assert digits(number) == text


@pytest.mark.parametrize(
    ("alone", "together", "cost", "said"),
    [
        (10.0, 19.0, 0.105, "Kernels: a token takes 100 ms with 1 and 52.6 ms with 2 threads"),
        (10.0, 11.0, 0.2, "Waiting: a token costs 100 ms of CPU time with 1 and 200 ms with 2"),
        (10.0, 11.0, 0.11, "Limit: none of "),
    ],
)
def test_the_limits_come_from_the_thread_counts_up_to_the_one_to_use(
    alone: float, together: float, cost: float, said: str
) -> None:
    results = sample_results()
    bound = (("OMP_NUM_THREADS", "2"), ("OMP_PLACES", "cores"), ("OMP_PROC_BIND", "true"))
    settings = {
        "default": Setting(2, 2, env=bound),
        "1 thread": Setting(1, 2, env=(("OMP_NUM_THREADS", "1"),)),
        "4 threads": Setting(4, 4, env=(("OMP_NUM_THREADS", "4"),)),
    }
    runs = (
        Run("1 thread", {TG: (alone,)}, 1.0, cpu=0.1),
        Run("default", {TG: (together,)}, 1.0, cpu=cost),
        Run("4 threads", {TG: (together,)}, 1.0, cpu=1.0),
    )
    assert results.decision is not None
    results = results._replace(
        settings=settings,
        rounds=(Round(1, "threads", runs, 3.0),),
        checks=(),
        decision=results.decision._replace(winner="default", verdict=EQUAL),
        roof=Part({"share": 0.3, "words": "some"}),
    )
    memory, limit, *_ = Summary(results).remarks()
    assert memory == "Memory: some"
    assert limit.startswith(said)
