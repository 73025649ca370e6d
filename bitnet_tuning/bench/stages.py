"""The two ways of measuring: a race of many settings, and a duel of one or two against the
default. Both are generators that ask for rounds until they know enough; pure."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from math import exp, log, sqrt
from operator import itemgetter
from typing import NamedTuple

from bitnet_tuning.bench import statistics
from bitnet_tuning.bench.ledger import DEFAULT, Done, Fit, Ledger, Measure
from bitnet_tuning.plan.profile import Estimate
from bitnet_tuning.plan.setting import Change, Setting

LOOSE, STRICT = 3.0, 1.8
"""Standard errors behind the leader at which a setting leaves the race: after two runs, whose
spread is hardly known, and from the third on."""

HOPE = 1.28
"""Standard errors by which a setting may be better than it looks: one in ten is."""

CLEAR = 2.5
"""Standard errors ahead of the base, at which a lone leader needs no more of the race."""

ALIKE = log(1.01)
"""Settings closer than this are alike."""

INTERIM = 0.995
"""Level of a duel's interval before its last round: many looks are many chances to err."""

FUTILE = 0.8
"""Level of the interval that must leave a finalist a chance to win, or it leaves the duel."""

CYCLE = 3
"""Every so many rounds of a duel the default runs twice, for the noise floor."""

_MEDIAN = 1.2533
"""Standard error of a median over that of a mean, for a normal distribution."""

_SHOWN = 1.96 + 1.04
"""Standard errors that a gain must be large for its interval to clear the noise floor in
half of all duels: LEVEL's and FLOOR_LEVEL's."""

Rounds = Generator[Measure, None, None]


def reach(ledger: Ledger, rounds: float) -> float:
    """Logarithm of the least gain that a duel of so many rounds is likely to show."""
    spread = ledger.fit().spread
    if spread is None or rounds < 1:
        return 0.0
    return max(log(statistics.FLOOR_LEAST), _SHOWN * _MEDIAN * spread * sqrt(2 / rounds))


class Race:
    """Interleaved rounds of settings against a base; those that fall behind drop out."""

    def __init__(
        self, ledger: Ledger, base: str, entrants: Sequence[str], hope: float = HOPE
    ) -> None:
        self.ledger = ledger
        self.base = base
        self.entrants = tuple(entrants)
        self.rivals = list(entrants)
        self.hope = hope

    def run(self, stage: str, share: float, fixed: Sequence[str] = ()) -> Rounds:
        """Until all is clear or that share of the budget is spent."""
        number = 0
        while True:
            self.rivals = [name for name in self.ledger.good(self.rivals) if self._stays(name)]
            shown = [name for name in self.ledger.good(fixed) if self._wanted(name)]
            order = self._order(shown, number)
            if number and (self._settled() or not self.ledger.affords(order, share)):
                return
            yield Measure(stage, order)
            number += 1

    def _wanted(self, name: str) -> bool:
        return self.ledger.measured(name) < self.ledger.limits.paired_rounds

    def _order(self, fixed: Sequence[str], number: int) -> tuple[str, ...]:
        """A B C, C A B ...; the default's second run half a round from its first."""
        bases = dict.fromkeys((DEFAULT, self.base))
        names = [*bases, *fixed, *self.rivals]
        if number < self.ledger.limits.paired_rounds and self.base == DEFAULT:
            names.insert((len(names) + 1) // 2, DEFAULT)
        turn = number % len(names)
        return (*names[len(names) - turn :], *names[: len(names) - turn])

    def _stays(self, name: str) -> bool:
        runs, found = self.ledger.measured(name), self.ledger.fit()
        if runs < 2 or self.base not in found.means:
            return True
        leader = max((self.base, *self.rivals), key=lambda each: found.means.get(each, -1e9))
        limit = LOOSE if runs == 2 else STRICT
        score = found.tops[name] if runs == 2 else found.means[name]
        if found.means[leader] - score > limit * found.error(leader, name):
            return False
        best = score - found.means[self.base] + self.hope * found.error(name, self.base)
        return best > self._worth()

    def _worth(self) -> float:
        """Logarithm of the least gain over the base that may still matter in the end."""
        limits = self.ledger.limits
        share = 1 - limits.threads_share - limits.knobs_share
        pair = self.ledger.cost((self.base, DEFAULT))
        return max(ALIKE, reach(self.ledger, share * limits.budget / pair) / 2) if pair else ALIKE

    def _settled(self) -> bool:
        """Whether nobody is left, one is clearly ahead, or all the rest are alike."""
        found = self.ledger.fit()
        if any(self.ledger.measured(name) < 2 for name in self.rivals):
            return False
        if len(self.rivals) < 2:
            return all(
                found.gap(name, self.base) > CLEAR * found.error(name, self.base)
                for name in self.rivals
            )
        leader = max(self.rivals, key=found.means.__getitem__)
        return all(
            found.gap(leader, name) + 2 * found.error(leader, name) < ALIKE
            for name in self.rivals
            if name != leader
        )


class Judged(NamedTuple):
    """A duel's state for one of its finalists."""

    name: str
    estimate: Estimate | None
    floor: float | None
    verdict: str
    hopeless: bool = False

    @property
    def won(self) -> bool:
        return self.verdict == statistics.FASTER


class Duel:
    """Fresh samples of one finalist or more, the simplest first, against the default."""

    def __init__(self, ledger: Ledger, finalists: Sequence[str], shown: Sequence[str]) -> None:
        self.ledger = ledger
        self.entered = tuple(finalists)
        self.finalists = list(finalists)
        self.shown = shown
        self.since = len(ledger.rounds)
        self.rounds = 0

    def run(self) -> Rounds:
        """Until the first finalist has won, none can, or the budget is spent."""
        while True:
            order = self._order()
            if not self.ledger.affords(order):
                return
            yield Measure("duel", order)
            self.rounds += 1
            self.finalists = [
                name for name in self.ledger.good(self.finalists) if not self.judge(name).hopeless
            ]
            ends = [self.judge(name, INTERIM).verdict for name in self.finalists]
            if not ends or statistics.FASTER in ends:
                return

    def _order(self) -> tuple[str, ...]:
        """D F D, F D, D F, again and again: no place in a round is anybody's own."""
        names = [*self.finalists, *self._due()]
        turn = self.rounds % CYCLE
        if turn == 0:
            return (DEFAULT, *names, DEFAULT)
        return (*reversed(names), DEFAULT) if turn % 2 else (DEFAULT, *names)

    def _due(self) -> list[str]:
        wanted = self.ledger.limits.paired_rounds
        return [name for name in self.ledger.good(self.shown) if self.rounds < wanted]

    def judge(self, name: str, level: float = statistics.LEVEL) -> Judged:
        """From the duel's own rounds only."""
        ratios = self.ledger.ratios(name, since=self.since)
        if not ratios:
            return Judged(name, None, None, statistics.OPEN)
        found, floor = statistics.ratio(ratios, level), self.ledger.floor(len(ratios))
        ahead = statistics.verdict(found, floor)
        return Judged(name, found, floor, ahead, self._hopeless(ratios))

    def _hopeless(self, ratios: Sequence[float]) -> bool:
        if len(ratios) < statistics.VERDICT_ROUNDS:
            return False
        possible = len(ratios) + self._rounds_left()
        return statistics.ratio(ratios, FUTILE).high < exp(reach(self.ledger, possible))

    def _rounds_left(self) -> float:
        pair = self.ledger.cost((DEFAULT, *self.finalists))
        return (self.ledger.limits.budget - self.ledger.spent) / pair if pair else 0.0

    def nearest(self) -> Judged | None:
        """Who came nearest to a win; None for a duel without a round."""
        judged = (self.judge(name) for name in self.entered)
        ends = [(each.estimate.low, each) for each in judged if each.estimate]
        return max(ends, key=itemgetter(0))[1] if ends else None

    def winner(self) -> Judged | None:
        """Of those that beat the default and are not told apart from the best, the simplest."""
        judged = [self.judge(name) for name in self.ledger.good(self.finalists)]
        won = [(each.estimate.median, each) for each in judged if each.estimate and each.won]
        if not won:
            return None
        _, best = max(won, key=itemgetter(0))
        return next(each for _, each in won if each is best or not self._behind(each, best))

    def _behind(self, each: Judged, best: Judged) -> bool:
        apart = self.ledger.ratios(best.name, each.name, self.since)
        return (
            statistics.verdict(statistics.ratio(apart), self.ledger.floor(len(apart)))
            == statistics.FASTER
        )


def won_by(judged: Judged) -> Done:
    """The end of a search with a winner."""
    reason = f"{judged.name} beat the default in a duel of fresh samples."
    return Done(judged.name, statistics.FASTER, judged.estimate, judged.floor, reason)


def default_stays(judged: Judged | None, missed: str | None = None) -> Done:
    """The end of a search without; with who came nearest in a duel, if there was one, and
    what there was no time for."""
    if judged is None:
        reason = missed or "No setting promised more than the noise"
        return Done(DEFAULT, statistics.OPEN, None, None, _stays(reason), short=missed is not None)
    rounds = judged.estimate.count if judged.estimate else 0
    is_short = rounds < statistics.VERDICT_ROUNDS
    why = f"had too few rounds ({rounds}) to tell" if is_short else "did not show that it is faster"
    reason = _stays(f"{judged.name} came nearest, but its duel {why}")
    return Done(DEFAULT, statistics.OPEN, judged.estimate, judged.floor, reason, short=is_short)


def _stays(reason: str) -> str:
    return f"{reason}: the default stays."


CLOSE = 1.0
"""Standard errors behind the first finalist, within which others join the duel: the default's
runs serve all of them."""

FINALISTS = 3
"""In one duel at most."""

Stacks = Mapping[str, Sequence[Change]]
Simplicity = Callable[[str], tuple[int, int, int]]


def simplicity(setting: Setting, default: Setting) -> tuple[int, int, int]:
    """Fewer threads, then closer to the default: the smaller, the simpler."""
    fields = zip(setting._replace(env=()), default._replace(env=()), strict=True)
    env = len(set(setting.env) ^ set(default.env))
    return setting.threads, setting.threads_batch, sum(a != b for a, b in fields) + env


def finalists(
    rest: Sequence[str], stacks: Stacks, found: Fit, simple: Simplicity
) -> tuple[str, ...]:
    """The first of ``rest``, who are promising, the best first; what it was built on; and
    those that may well be as good."""
    first = rest[0]
    parts = [name for name in _parts(first, stacks) if name in rest]
    near = [n for n in rest[1:] if found.gap(first, n) < CLOSE * found.error(first, n)]
    alike = [n for n in rest[1:] if abs(found.gap(first, n)) < ALIKE]
    simpler = sorted((n for n in alike if simple(n) < simple(first)), key=simple)
    return tuple(dict.fromkeys((first, *parts, *simpler, *near)))[:FINALISTS]


def _parts(name: str, stacks: Stacks) -> Iterator[str]:
    """The settings that this one was built on, the nearest first: a change that came on top
    by luck must show that it is worth something."""
    names = {tuple(changes): each for each, changes in stacks.items()}
    changes = tuple(stacks[name])
    for count in range(len(changes) - 1, 0, -1):
        if changes[:count] in names:
            yield names[changes[:count]]


WORTH = log(1.02)
"""Gains below this are not worth a second look: where noise is low it would take hours to
tell them."""

MissedStacks = Mapping[str, Sequence[Change]]
"""The changes that make each setting, by its name; none for the default."""


def missed(
    ledger: Ledger, stacks: MissedStacks, ranked: Sequence[str], left: Callable[[str], float]
) -> str | None:
    """In words, or None where nothing was missed. ``ranked`` are the settings that are ahead
    of the default, ``left`` tells for how many rounds of one there is still time."""
    untried = _untried(ledger, stacks)
    if untried:
        return f"The time was too short to try {', '.join(untried)}"
    if not any(stacks.values()):
        return "No other setting was tried"
    found = ledger.fit()
    for name in ranked:
        gap, error = found.gap(name, DEFAULT), found.error(name, DEFAULT)
        is_ahead = gap > WORTH and (gap > error or found.spread is None)
        if is_ahead and left(name) < statistics.VERDICT_ROUNDS:
            return f"{name} looked faster, but no time was left to confirm it"
    return None


def _untried(ledger: Ledger, stacks: MissedStacks) -> list[str]:
    """Names of changes that no setting had which ran."""
    ran = [stack for name, stack in stacks.items() if ledger.measured(name) or ledger.problem(name)]
    tried = [change for stack in ran for change in stack]
    named = (stack[-1] for stack in stacks.values() if stack)
    return list(dict.fromkeys(change.name for change in named if change not in tried))
