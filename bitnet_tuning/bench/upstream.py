"""Tell how fast the plan is against upstream's default, from runs by turns."""

from __future__ import annotations

from bitnet_tuning.bench.comparison import DEFAULT, UPSTREAM, Judged, Rounds, turns
from bitnet_tuning.bench.statistics import SLOWER, VERDICT_ROUNDS, estimate, verdict_words
from bitnet_tuning.bench.summary import digits, noise
from bitnet_tuning.console import times
from bitnet_tuning.plan.profile import TG
from bitnet_tuning.verify.checks import FAIL, PASS, SKIP, Line

NAME = "tokens/s"


def speed_line(rounds: Rounds, seconds: float) -> Line:
    """Return what the rounds show; ``seconds`` were to be spent."""
    for name, whose, state in ((DEFAULT, "the plan", FAIL), (UPSTREAM, "upstream's default", SKIP)):
        failures = rounds.failures(name)
        if failures and (rounds.problem(name) or not rounds.count(name)):
            return Line(NAME, state, f"{whose} cannot be measured: {failures[-1]}")
    judged = rounds.judge(DEFAULT)
    assert judged.ratio is not None
    speeds = {name: estimate(rounds.speeds(name)[TG]).median for name in (UPSTREAM, DEFAULT)}
    facts = {
        "verdict": judged.verdict,
        "ratio": judged.ratio._asdict(),
        "floor": judged.floor,
        "upstream": speeds[UPSTREAM],
        "planned": speeds[DEFAULT],
        "phase": TG,
    }
    if judged.ratio.count < VERDICT_ROUNDS:
        return Line(NAME, SKIP, _too_few(rounds, seconds), facts)
    reason = f"{verdict_words(judged.verdict)}: {_figures(judged, speeds)}"
    if judged.verdict != SLOWER:
        return Line(NAME, PASS, reason, facts)
    return Line(NAME, FAIL, f"{reason}; benchmark_optimized.py finds what is faster", facts)


def _too_few(rounds: Rounds, seconds: float) -> str:
    orders = (turns((UPSTREAM, DEFAULT), number) for number in range(1, VERDICT_ROUNDS + 1))
    needed = sum(map(rounds.cost, orders))
    return (
        f"a comparison takes {VERDICT_ROUNDS} rounds of runs, here some {needed:.0f} s, and "
        f"{max(0.0, seconds):.0f} s were left: give more --seconds"
    )


def _figures(judged: Judged, speeds: dict[str, float]) -> str:
    assert judged.ratio is not None
    return (
        f"{digits(speeds[DEFAULT])} against {digits(speeds[UPSTREAM])} with upstream's 2 threads "
        f"and no environment, {times(*judged.ratio)} in {judged.ratio.count} rounds; "
        f"{noise(judged.floor)}"
    )


def left_out(why: str) -> Line:
    """Return the line where nothing was compared."""
    return Line(NAME, SKIP, f"not measured: {why}")


def nothing_to_compare() -> Line:
    """Return the line where both settings are the same."""
    return Line(
        NAME,
        SKIP,
        "the plan is upstream's own default here: 2 threads, nothing in the environment",
    )
