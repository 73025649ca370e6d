"""Upstream's default against the plan: how fast each is, in runs by turns, and what may be
concluded from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from statistics import median
from typing import NamedTuple

from bitnet_tuning.bench.ledger import DEFAULT, UPSTREAM
from bitnet_tuning.bench.samples import LEAST_GENERATED, MOST_GENERATED, Round, Run, Sizes, value
from bitnet_tuning.bench.statistics import (
    SLOWER,
    VERDICT_ROUNDS,
    floor,
    itself,
    ratio,
    ratios,
    verdict,
)
from bitnet_tuning.plan.profile import TG, Estimate, Objective
from bitnet_tuning.verify.checks import FAIL, PASS, SKIP, Line

NAME = "tokens/s"

BLOCK = (UPSTREAM, DEFAULT, DEFAULT, UPSTREAM)
"""Neither always comes first, so a machine that slows down steadily favours none; and the
plan runs twice in a row, against itself. Two pairs."""

LEAST_BLOCKS = VERDICT_ROUNDS // 2
MOST_BLOCKS = 10

GENERATION_SECONDS = 0.4
"""Aimed at for one run: many short ones show more than a few long ones."""

_TG = Objective(TG)


class Trial(NamedTuple):
    """Runs in whole blocks."""

    blocks: tuple[tuple[Run, ...], ...]
    failed: Run | None = None
    """The run that ended it."""


class Judgement(NamedTuple):
    """What the runs show."""

    verdict: str
    ratio: Estimate
    """The plan's speed over upstream's."""
    floor: float | None
    """The noise floor."""
    upstream: float
    """Median tokens/s."""
    planned: float


def trial_sizes(upstream: Run, planned: Run) -> Sizes:
    """For runs of generation alone, from a first run of each. On a busy machine one of the
    two may be a hundred times as fast."""
    rate = sqrt(max(upstream.samples[TG]) * max(planned.samples[TG]))
    tokens = max(LEAST_GENERATED, min(MOST_GENERATED, round(rate * GENERATION_SECONDS)))
    return Sizes(1, tokens, 1)


def compare(measure: Callable[[str], Run], seconds: float, clock: Callable[[], float]) -> Trial:
    """As many blocks as take about ``seconds``, whatever comes out. Where too few for a
    verdict will fit, there is only one: it tells how long they take."""
    blocks: list[tuple[Run, ...]] = []
    taken: list[float] = []
    while len(blocks) < MOST_BLOCKS and _one_more(taken, seconds):
        began = clock()
        block: list[Run] = []
        for name in BLOCK:
            block.append(measure(name))
            if block[-1].problem is not None:
                return Trial(tuple(blocks), block[-1])
        blocks.append(tuple(block))
        taken.append(clock() - began)
    return Trial(tuple(blocks))


def _one_more(taken: Sequence[float], seconds: float) -> bool:
    """After blocks that took so long. Beyond what a verdict needs, time is not overdrawn."""
    if not taken:
        return True
    missing = LEAST_BLOCKS - len(taken)
    wanted = missing * sum(taken) / len(taken) if missing > 0 else max(taken)
    return sum(taken) + wanted <= seconds


def judge(blocks: Sequence[tuple[Run, ...]]) -> Judgement:
    """Raises ValueError without a block."""
    pairs = [half for block in blocks for half in (block[:2], block[2:])]
    rounds = [Round(number, "pair", pair, 0.0) for number, pair in enumerate(pairs, 1)]
    twice = [Round(number, "itself", block[1:3], 0.0) for number, block in enumerate(blocks, 1)]
    found = ratio(ratios(rounds, DEFAULT, UPSTREAM, _TG))
    noise = floor(itself(twice, DEFAULT, _TG), len(rounds))
    speeds = {name: _speeds(rounds, name) for name in (UPSTREAM, DEFAULT)}
    return Judgement(
        verdict(found, noise), found, noise, median(speeds[UPSTREAM]), median(speeds[DEFAULT])
    )


def _speeds(rounds: Sequence[Round], name: str) -> list[float]:
    runs = (run for each in rounds for run in each.runs if run.setting == name)
    return [speed for run in runs if (speed := value(run, _TG))]


def speed_line(trial: Trial, seconds: float) -> Line:
    """``seconds`` were to be spent."""
    if trial.failed is not None:
        ours = trial.failed.setting == DEFAULT
        whose = "the plan" if ours else "upstream's default"
        reason = f"{whose} cannot be measured: {trial.failed.problem}"
        return Line(NAME, FAIL if ours else SKIP, reason)
    found = judge(trial.blocks)
    facts = {**found._asdict(), "ratio": found.ratio._asdict(), "phase": TG}
    if found.ratio.count < VERDICT_ROUNDS:
        return Line(NAME, SKIP, _too_few(trial, seconds), facts)
    reason = f"{found.verdict}: {_figures(found)}"
    if found.verdict != SLOWER:
        return Line(NAME, PASS, reason, facts)
    return Line(NAME, FAIL, f"{reason}; benchmark_optimized.py finds what is faster", facts)


def _too_few(trial: Trial, seconds: float) -> str:
    spent = sum(run.seconds for block in trial.blocks for run in block)
    needed = LEAST_BLOCKS * spent / len(trial.blocks)
    return (
        f"a comparison takes {VERDICT_ROUNDS} pairs of runs, here some {needed:.0f} s, and "
        f"{max(0.0, seconds):.0f} s were left: give more --seconds"
    )


def _figures(found: Judgement) -> str:
    low, high = found.ratio.low, found.ratio.high
    noise = f", noise floor {found.floor:.2f}" if found.floor else ""
    return (
        f"{_rate(found.planned)} against {_rate(found.upstream)} with upstream's 2 threads and "
        f"no environment, ratio {found.ratio.median:.2f} ({low:.2f} to {high:.2f}; "
        f"{found.ratio.count} pairs of runs{noise})"
    )


def _rate(speed: float) -> str:
    return f"{speed:.0f}" if speed >= 100 else f"{speed:.1f}"


def left_out(why: str) -> Line:
    return Line(NAME, SKIP, f"not measured: {why}")


def nothing_to_compare() -> Line:
    return Line(
        NAME,
        SKIP,
        "the plan is upstream's own default here: 2 threads, nothing in the environment",
    )
