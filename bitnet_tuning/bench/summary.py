"""What a benchmark showed, setting by setting; pure."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from bitnet_tuning.bench import statistics
from bitnet_tuning.bench.comparison import DEFAULT, PERFORMANCE, UPSTREAM, Round, Rounds
from bitnet_tuning.bench.results import Results
from bitnet_tuning.plan.profile import PP, TG, Estimate
from bitnet_tuning.plan.setting import describe

FIXED = (DEFAULT, UPSTREAM, PERFORMANCE)
"""Settings that no search chose: all their rounds are fresh evidence."""

TIMES, TO = "\u00d7", "\u2013"
"""The signs of multiplication and of a range."""

TOO_FEW = "not enough rounds"
UNCONFIRMED = "faster in the search, not confirmed"
"""The best of many by chance is easily taken for better: only a duel's fresh samples tell."""
FAILED = "failed"
WRONG = "wrong output"

CLAIM = (2.0, 3.5)
"""Gain over 2 threads that the guide to these settings claims, seen on a laptop with 12
threads."""


class Row(NamedTuple):
    """One setting. Speeds in tokens/s."""

    name: str
    words: str
    """The whole setting, for people."""
    pp: Estimate | None
    tg: Estimate | None
    to_upstream: Estimate | None
    """Ratio of the objective's values, paired by round; None for itself, or without a
    round that has both."""
    to_default: Estimate | None
    rounds: int
    """In which it was measured."""
    verdict: str
    """Against the default: one of stats' verdicts, ``not enough rounds``, ``failed: …`` or
    ``wrong output: …``; empty for the default itself."""
    winner: bool
    """Whether it is the one to use."""


class Claim(NamedTuple):
    """The guide's claim, next to what this machine shows."""

    name: str
    """The setting to use here."""
    ratio: Estimate | None
    """Its value over that of 2 threads without an environment."""
    sentence: str


def rows(results: Results) -> tuple[Row, ...]:
    """Return the winner, the default, upstream's, and the others by their ratio to the default."""
    measured = results.measured
    found = (_row(name, results, measured) for name in results.settings)
    shown = [row for row in found if row.rounds or row.verdict != TOO_FEW]
    return tuple(sorted(shown, key=_rank))


def _rank(row: Row) -> tuple[int, float]:
    places = {DEFAULT: 1, UPSTREAM: 2}
    place = 0 if row.winner else places.get(row.name, 3)
    return place, -(row.to_default.median if row.to_default else 0.0)


def _row(name: str, results: Results, measured: Rounds) -> Row:
    speeds = measured.speeds(name)
    ratio = against(results, name, DEFAULT, measured)
    return Row(
        name=name,
        words=describe(results.settings[name]),
        pp=statistics.estimate(speeds[PP]) if speeds[PP] else None,
        tg=statistics.estimate(speeds[TG]) if speeds[TG] else None,
        to_upstream=against(results, name, UPSTREAM, measured),
        to_default=ratio,
        rounds=measured.count(name),
        verdict=_verdict(name, results, measured, ratio),
        winner=results.decision is not None and results.decision.winner == name,
    )


def noise_floor(results: Results) -> float | None:
    """Return the decision's noise floor, or before there is one that of the rounds so far."""
    decision = results.decision
    known = decision.floor if decision is not None else None
    return results.measured.floor() if known is None else known


def against(
    results: Results, name: str, reference: str, measured: Rounds | None = None
) -> Estimate | None:
    """Return the ratio of two settings' values, paired by round; the decision's, where it
    has one. None for a setting against itself."""
    decision = results.decision
    if decision is not None and (name, reference) == (decision.winner, DEFAULT):
        return None if name == DEFAULT else decision.estimate
    return (
        None if name == reference else (measured or results.measured).shown(name, reference).ratio
    )


def _verdict(name: str, results: Results, measured: Rounds, ratio: Estimate | None) -> str:
    problem = problem_of(measured, name)
    if problem is not None:
        return problem
    if name == DEFAULT:
        return ""
    decision = results.decision
    if decision is not None and name == decision.winner:
        return decision.verdict
    judged = measured.shown(name)
    # Without a floor nothing says how far the default strays from itself.
    if ratio is None or ratio.count < statistics.VERDICT_ROUNDS or judged.floor is None:
        return TOO_FEW
    searched = name not in FIXED and not measured.in_duel(name)
    return UNCONFIRMED if searched and judged.verdict == statistics.FASTER else judged.verdict


def problem_of(measured: Rounds, name: str) -> str | None:
    """Return why a setting is out: its output is wrong, or too many of its runs failed. None
    for one that is in."""
    wrong, failures = measured.wrong(name), measured.failures(name)
    if wrong is not None:
        return f"{WRONG}: {wrong}"
    is_out = measured.problem(name) is not None or (failures and not measured.count(name))
    return f"{FAILED}: {failures[-1]}" if is_out else None


def failures(results: Results) -> tuple[tuple[str, str, int], ...]:
    """Return settings with what went wrong, in words, and how often; in the order of their
    appearance."""
    runs = [(run.setting, run.problem) for each in results.rounds for run in each.runs]
    wrong = [(each.setting, f"{WRONG}: {each.problem}") for each in results.checks if each.problem]
    found = Counter((name, problem) for name, problem in (*runs, *wrong) if problem)
    return tuple((name, problem, count) for (name, problem), count in found.items())


def guide_row(results: Results) -> Claim:
    """The improvement over 2 threads that this machine shows for the setting to use."""
    decision = results.decision
    name = DEFAULT if decision is None else decision.winner
    ratio = against(results, name, UPSTREAM)
    claim = (
        f"The guide claims {CLAIM[0]:.1f} to {CLAIM[1]:.1f} times the speed of 2 threads, "
        "from a laptop with 12 threads"
    )
    return Claim(name, ratio, f"{claim}; {_shown(name, ratio)}.")


def _shown(name: str, ratio: Estimate | None) -> str:
    if ratio is None:
        return "2 threads could not be compared here"
    if ratio.count < statistics.VERDICT_ROUNDS:
        rounds = "1 round is" if ratio.count == 1 else f"{ratio.count} rounds are"
        return f"{rounds} too few to tell what it is here"
    what = "the default" if name == DEFAULT else name
    return f"here {what} shows {times(ratio)}"


def times(ratio: Estimate) -> str:
    """``x1.21 (1.15-1.27)``, with the signs of print; one round has no interval."""
    interval = f"{ratio.low:.2f}{TO}{ratio.high:.2f}" if ratio.count > 1 else "one round"
    return f"{TIMES}{ratio.median:.2f} ({interval})"


def speed(found: Estimate) -> str:
    """tokens/s: ``24.7 (23.9-25.2)``, with the sign of print; one run has no interval."""
    interval = f"{digits(found.low)}{TO}{digits(found.high)}" if found.count > 1 else "one run"
    return f"{digits(found.median)} ({interval})"


def digits(number: float) -> str:
    """Three that count: 1235, 103, 24.7, 1.31."""
    decimals = 0 if number >= 99.95 else 1 if number >= 9.995 else 2
    return f"{number:.{decimals}f}"


def answer(results: Results) -> str:
    """What to use and how sure that is, in a sentence or two."""
    decision = results.decision
    if decision is None:
        return "Not finished: what was measured so far decides nothing."
    words = describe(results.settings[decision.winner])
    if decision.winner == DEFAULT:
        return f"Keep the default ({words}). {decision.reason}"
    ratio = decision.estimate
    gain = f": {times(ratio)} the default's speed" if ratio else ""
    return f"Use {decision.winner} ({words}){gain}."


COLUMNS = (
    "round",
    "stage",
    "position",
    "setting",
    "words",
    "phase",
    "sample",
    "tokens_per_second",
    "process_seconds",
    "problem",
)
"""``position`` is the run's place in its round and ``sample`` the sample's in its run, from 1."""


def to_csv(results: Results) -> str:
    """One line per sample, and one without a speed for each run that failed."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(COLUMNS)
    for each in results.rounds:
        writer.writerows(_lines(each, results))
    return content.getvalue()


def _lines(each: Round, results: Results) -> Iterator[tuple[object, ...]]:
    for position, run in enumerate(each.runs, 1):
        words = describe(results.settings[run.setting])
        start = (each.number, each.stage, position, run.setting, words)
        if run.problem is not None:
            yield (*start, None, None, None, run.seconds, run.problem)
        for phase, speeds in run.samples.items():
            for number, speed in enumerate(speeds, 1):
                yield (*start, phase, number, speed, run.seconds, None)
