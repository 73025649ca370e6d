"""Two ways to compare settings: a race of many against a base, and a duel of a few against the
default. Both are generators that ask for rounds until they know enough."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from math import exp, log, sqrt
from typing import NamedTuple

from bitnet_tuning.bench import statistics
from bitnet_tuning.bench.comparison import DEFAULT, DUEL, Judged, Rounds
from bitnet_tuning.engine.builds import FASTER

THREADS_SHARE, KNOBS_SHARE = 0.3, 0.25
"""Shares of the budget for the threads and for the other knobs (for the threads, if there are no
knobs). Almost half is left to the duel, since only its samples decide."""

PAIRED_ROUNDS = 6
"""Rounds of the first race that run the default twice, and rounds of a setting that cannot win."""

LOOSE, STRICT = 3.0, 1.8
"""Standard errors behind the leader at which a setting leaves the race: after two runs, when the
spread is hardly known, and from the third run on."""

HOPE = 1.28
"""Standard errors added to the estimate of a setting: its true speed is higher than that with a
probability of 10 %, in a normal distribution."""

CLEAR = 2.5
"""Standard errors ahead of the base at which a single remaining setting ends the race."""

ALIKE = log(1.01)
"""Difference of logarithms below which two settings count as equally fast."""

INTERIM = 0.995
"""Level of a duel's interval before its last round. It is stricter, since a verdict after every
round gives many chances to err."""

FUTILE = 0.8
"""Level of the interval whose upper end must reach a possible win; else the finalist leaves."""

CYCLE = 3
"""In one of this many rounds of a duel the default runs twice, for the noise floor."""

_MEDIAN = 1.2533
"""Standard error of a median over that of a mean in a normal distribution: sqrt(pi / 2)."""

_SHOWN = 1.96 + 1.04
"""Standard errors of a gain whose interval clears the noise floor in half of all duels: the normal
quantiles of LEVEL (1.96) and of FLOOR_LEVEL (1.04)."""


class Measure(NamedTuple):
    """A request for one round: run these settings in this order."""

    stage: str
    order: tuple[str, ...]
    """Names of settings; the default may occur twice."""


Measures = Generator[Measure, None, None]


def reach(rounds: Rounds, count: float) -> float:
    """Return the logarithm of the smallest gain that a duel of ``count`` rounds probably shows."""
    # The standard error of a median of n ratios is sqrt(pi / 2) sqrt(2 / n) s, for the spread s
    # of one run.
    spread = rounds.fit().spread
    if spread is None or count < 1:
        return 0.0
    return max(log(statistics.FLOOR_LEAST), _SHOWN * _MEDIAN * spread * sqrt(2 / count))


class Race:
    """A race of settings against a base, in rounds. Settings that fall behind leave it."""

    def __init__(
        self, rounds: Rounds, base: str, entrants: Sequence[str], hope: float = HOPE
    ) -> None:
        self.rounds = rounds
        self.base = base
        self.entrants = tuple(entrants)
        self.rivals = list(entrants)
        self.hope = hope

    def run(self, stage: str, share: float, fixed: Sequence[str] = ()) -> Measures:
        """Ask for rounds until the race is settled or that share of the budget is spent. Settings
        in ``fixed`` cannot win and run along in the first rounds."""
        number = 0
        while True:
            self.rivals = [name for name in self.rounds.good(self.rivals) if self._stays(name)]
            good = self.rounds.good(fixed)
            shown = [name for name in good if self.rounds.measured(name) < PAIRED_ROUNDS]
            order = self._order(shown, number)
            if number and (self._settled() or not self.rounds.affords(order, share)):
                return
            yield Measure(stage, order)
            number += 1

    def _order(self, fixed: Sequence[str], number: int) -> tuple[str, ...]:
        """Return an order that rotates from round to round (A B C, C A B, ...). The default's
        second run is half a round away from its first."""
        bases = dict.fromkeys((DEFAULT, self.base))
        names = [*bases, *fixed, *self.rivals]
        if number < PAIRED_ROUNDS and self.base == DEFAULT:
            names.insert((len(names) + 1) // 2, DEFAULT)
        turn = number % len(names)
        return (*names[len(names) - turn :], *names[: len(names) - turn])

    def _stays(self, name: str) -> bool:
        runs, found = self.rounds.measured(name), self.rounds.fit()
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
        """Return the logarithm of the smallest gain over the base that may matter: half of what
        a duel in the rest of the budget probably shows."""
        seconds = (1 - THREADS_SHARE - KNOBS_SHARE) * self.rounds.budget
        pair = self.rounds.cost((self.base, DEFAULT))
        return max(ALIKE, reach(self.rounds, seconds / pair) / 2) if pair else ALIKE

    def _settled(self) -> bool:
        """Return whether no setting is left, one clearly leads, or all that are left are alike."""
        found = self.rounds.fit()
        if any(self.rounds.measured(name) < 2 for name in self.rivals):
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


class Duel:
    """Rounds of one or more finalists against the default; only their samples decide."""

    def __init__(self, rounds: Rounds, finalists: Sequence[str], shown: Sequence[str]) -> None:
        """``finalists`` are sorted, the simplest first. Settings in ``shown`` cannot win and run
        along in the first rounds."""
        self.rounds = rounds
        self.entered = tuple(finalists)
        self.finalists = list(finalists)
        self.shown = shown
        self.since = len(rounds)
        self.number = 0

    def run(self) -> Measures:
        """Ask for rounds until a finalist has won, none can win, or the budget is spent."""
        while True:
            order = self._order()
            if not self.rounds.affords(order):
                return
            yield Measure(DUEL, order)
            self.number += 1
            good = self.rounds.good(self.finalists)
            self.finalists = [name for name in good if not self._hopeless(name)]
            ends = [self._judge(name, INTERIM).verdict for name in self.finalists]
            if not ends or FASTER in ends:
                return

    def _order(self) -> tuple[str, ...]:
        """Return default and finalists in an order that changes, so that their positions in a
        round are alike: D F D, F D, D F."""
        due = self.rounds.good(self.shown) if self.number < PAIRED_ROUNDS else ()
        names = (*self.finalists, *due)
        turn = self.number % CYCLE
        if turn == 0:
            return (DEFAULT, *names, DEFAULT)
        return (*reversed(names), DEFAULT) if turn % 2 else (DEFAULT, *names)

    def _judge(self, name: str, level: float = statistics.LEVEL) -> Judged:
        """Judge a finalist from the rounds of this duel only."""
        return self.rounds.judge(name, since=self.since, level=level)

    def _hopeless(self, name: str) -> bool:
        ratio = self._judge(name, FUTILE).ratio
        if ratio is None or ratio.count < statistics.VERDICT_ROUNDS:
            return False
        possible = ratio.count + self.rounds.left((DEFAULT, *self.finalists))
        return ratio.high < exp(reach(self.rounds, possible))

    def nearest(self) -> Judged | None:
        """Return the finalist that came closest to winning; None without a round."""
        judged = [
            (each.ratio.low, each) for name in self.entered if (each := self._judge(name)).ratio
        ]
        return max(judged, key=lambda pair: pair[0])[1] if judged else None

    def winner(self) -> Judged | None:
        """Return the simplest of the finalists that beat the default, unless the best is shown to
        be faster than that one. Return None if none beat it."""
        judged = map(self._judge, self.rounds.good(self.finalists))
        won = [each for each in judged if each.verdict == FASTER]
        if not won:
            return None
        best = max(won, key=lambda each: each.ratio.median if each.ratio else 0.0)
        return next(each for each in won if each is best or not self._behind(each, best))

    def _behind(self, each: Judged, best: Judged) -> bool:
        apart = self.rounds.judge(best.name, each.name, self.since)
        return apart.verdict == FASTER
