"""Several builds side by side: measured in rounds, each with its own default setting, and
judged against the first of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from bitnet_tuning.bench import stats
from bitnet_tuning.bench.asks import DEFAULT
from bitnet_tuning.bench.rounds import PP, TG, Objective, Round, Run
from bitnet_tuning.bench.session import phases_of
from bitnet_tuning.bench.stats import VERDICT_ROUNDS, Estimate
from bitnet_tuning.builds import OUT

if TYPE_CHECKING:
    from bitnet_tuning.bench.runner import Runner
    from bitnet_tuning.setting import Setting

MOST_ROUNDS = 30
"""More would narrow the intervals of an ordinary machine by little."""

MOST_FAILURES = 2
"""Failed runs, after which a build is out."""


class Contender(NamedTuple):
    """A build that is measured."""

    name: str
    runner: Runner
    setting: Setting


class Judged(NamedTuple):
    """One build. Speeds are medians in tokens/s by phase, of its good runs."""

    name: str
    speeds: dict[str, Estimate]
    ratio: Estimate | None
    """Over the first build; None for that one, and without a common round."""
    verdict: str


def rounds_in(seconds: float, contenders: Sequence[Contender]) -> int:
    """How many fit, from one run of each at the present sizes. It is fixed before the first
    one: who stops when the figures please has other figures than intervals are made for."""
    taken = [_measure(each, (PP, TG)).seconds for each in contenders]
    left = seconds - sum(taken)
    return max(1, min(MOST_ROUNDS, int(left / max(0.001, sum(taken) + taken[0]))))


def measure_rounds(
    contenders: Sequence[Contender],
    objective: Objective,
    count: int,
    running: Callable[[int, str], None],
    is_late: Callable[[], bool],
) -> tuple[Round, ...]:
    """``count`` rounds, fewer where time runs out. The first build runs at both ends of a
    round, for the noise; the others take turns in going first."""
    rounds: list[Round] = []
    failures: Counter[str] = Counter()
    for number in range(1, count + 1):
        if number > 1 and is_late():
            break
        runs = []
        for each in _order(contenders, number, failures):
            running(number, each.name)
            run = _measure(each, phases_of(number, objective))
            failures[each.name] += run.problem is not None
            runs.append(run)
        rounds.append(Round(number, "builds", tuple(runs), 0.0))
    return tuple(rounds)


def _order(
    contenders: Sequence[Contender], number: int, failures: Counter[str]
) -> tuple[Contender, ...]:
    first, *others = contenders
    turn = number % len(others)
    fit = [each for each in others[turn:] + others[:turn] if failures[each.name] < MOST_FAILURES]
    return (first, *fit, first)


def _measure(each: Contender, phases: tuple[str, ...]) -> Run:
    # Under the default's name: how long it may take follows from its own runs.
    run = each.runner.measure(DEFAULT, each.setting, phases)
    return run._replace(setting=each.name)


def noise_floor(rounds: Sequence[Round], first: str, objective: Objective) -> float | None:
    return stats.floor(stats.itself(rounds, first, objective), len(rounds))


def judge(
    rounds: Sequence[Round], names: Sequence[str], objective: Objective
) -> tuple[Judged, ...]:
    """Every build against the first."""
    first = names[0]
    floor = noise_floor(rounds, first, objective)
    return tuple(_judged(rounds, name, first, objective, floor) for name in names)


def _judged(
    rounds: Sequence[Round], name: str, first: str, objective: Objective, floor: float | None
) -> Judged:
    runs = [run for each in rounds for run in each.runs if run.setting == name]
    samples = {
        phase: [median(run.samples[phase]) for run in runs if run.samples.get(phase)]
        for phase in (PP, TG)
    }
    speeds = {phase: stats.estimate(found) for phase, found in samples.items() if found}
    failed = [run.problem for run in runs if run.problem]
    pairs = [] if name == first else stats.ratios(rounds, name, first, objective)
    found = stats.ratio(pairs) if pairs else None
    if len(failed) >= MOST_FAILURES:
        return Judged(name, speeds, found, f"{OUT}: {failed[-1]}")
    return Judged(name, speeds, found, stats.verdict(found, floor) if found else stats.OPEN)


def is_short(rounds: int) -> bool:
    """Whether so few can show nothing."""
    return rounds < VERDICT_ROUNDS
