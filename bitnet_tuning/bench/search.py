"""Which setting to measure next, and when to stop: threads first, then the other knobs one at
a time from the best so far, then a duel of the best against the default; pure.

A search is a function of what it was told. Told the same rounds and checks again, it asks
the same, so a stored search goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

from bitnet_tuning.bench import statistics
from bitnet_tuning.bench.ledger import (
    DEFAULT,
    UPSTREAM,
    Check,
    Done,
    Ledger,
    Limits,
    Measure,
    Space,
)
from bitnet_tuning.bench.samples import Round
from bitnet_tuning.bench.stages import (
    ALIKE,
    HOPE,
    WORTH,
    Duel,
    Judged,
    Race,
    default_stays,
    finalists,
    missed,
    reach,
    simplicity,
    won_by,
)
from bitnet_tuning.plan.profile import Estimate
from bitnet_tuning.plan.setting import Change, Setting, apply

ADOPT = 1.0
"""Standard errors by which a setting must be ahead of the base to become the next one. A base
that is no better costs nothing but simplicity: only the duel decides."""

SURE = 2.5
"""Standard errors by which a setting must fall short before it gets no second race."""

NARROW, LONGER = 1.1, 4
"""Upstream's ratio is open while its interval is wider than that; and how many times the
rounds of other fixed settings it then gets at most."""

FIRST_KNOBS = 0.6
"""Of the time for knobs goes to all of them alone, the rest to what is best on top of it."""

Steps = Generator["Measure | Check", None, Done]
Choice = Generator["Measure | Check", None, str]


class Search:
    """Ask what to measure or check, measure or check it, tell; until ``ask`` says Done."""

    def __init__(self, space: Space, limits: Limits) -> None:
        self._space = space
        self._ledger = Ledger(limits)
        self._settings = {DEFAULT: space.default, **dict(space.fixed)}
        self._stacks: dict[str, tuple[Change, ...]] = {DEFAULT: ()}
        self._duels: dict[str, int] = {}
        self._steps = self._whole()
        self._pending: Measure | Check | Done
        self._advance()

    @property
    def limits(self) -> Limits:
        return self._ledger.limits

    @property
    def settings(self) -> Mapping[str, Setting]:
        """Every setting that was named so far."""
        return self._settings

    def ask(self) -> Measure | Check | Done:
        """The same until it is told."""
        return self._pending

    def tell(self, told: Round) -> None:
        """What was measured; runs that an interruption left out may lack."""
        self._ledger.add(told)
        if isinstance(self._pending, Measure):
            self._advance()

    def tell_check(self, name: str, problem: str | None) -> None:
        """What is wrong with a setting's output; None where it is right."""
        self._ledger.checks[name] = problem
        if isinstance(self._pending, Check) and self._pending.name == name:
            self._advance()

    def standing(self, name: str) -> Estimate | None:
        """Speed over the default's so far: from the duel for who was in one."""
        ratios = self._ledger.ratios(name, since=self._duels.get(name, 0))
        return statistics.ratio(ratios) if ratios and name != DEFAULT else None

    def verdict(self, name: str) -> str:
        """Whether that shows a difference."""
        found = self.standing(name)
        if found is None:
            return statistics.OPEN
        return statistics.verdict(found, self._ledger.floor(found.count))

    def problem(self, name: str) -> str | None:
        """Why a setting is out."""
        return self._ledger.problem(name)

    def noise(self) -> Estimate | None:
        """The default against itself."""
        return self._ledger.noise()

    def best(self) -> str:
        """Who is ahead; nothing that was shown yet."""
        return next(iter(self._ranked()), DEFAULT)

    def _advance(self) -> None:
        default = self._ledger.problem(DEFAULT)
        if default is not None:
            reason = "The default setting itself cannot be measured."
            self._pending = Done(DEFAULT, statistics.OPEN, None, None, reason, default)
            return
        try:
            self._pending = next(self._steps)
        except StopIteration as end:
            self._pending = end.value

    def _whole(self) -> Steps:
        base = yield from self._threads()
        yield from self._knobs(base)
        return (yield from self._final())

    def _threads(self) -> Choice:
        limits = self._ledger.limits
        entrants = self._variants(DEFAULT, self._space.threads)
        share = limits.threads_share + (0.0 if self._space.knobs else limits.knobs_share)
        race = Race(self._ledger, DEFAULT, entrants)
        yield from race.run("threads", share, [name for name, _ in self._space.fixed])
        return (yield from self._adopted(race))

    def _knobs(self, base: str) -> Choice:
        limits = self._ledger.limits
        changes = [change for knob in self._space.knobs for change in knob.changes]
        share = limits.threads_share + FIRST_KNOBS * limits.knobs_share
        while entrants := self._variants(base, changes):
            race = Race(self._ledger, base, entrants)
            if not self._ledger.affords((base, *entrants), share):
                break
            yield from race.run("knobs", share)
            best = yield from self._adopted(race)
            if best == base:
                break
            changes = self._left(race, best)
            base, share = best, limits.threads_share + limits.knobs_share
        return base

    def _left(self, race: Race, best: str) -> list[Change]:
        """Changes that helped the old base too, of other knobs than the one that is now set:
        who fell behind the best may still be worth something on top of it."""
        found, base = self._ledger.fit(), race.base
        taken = self._stacks[best][-1]
        owner = next(knob for knob in self._space.knobs if taken in knob.changes)
        helped = (
            self._stacks[name][-1]
            for name in self._ledger.good(race.entrants)
            if name in found.means and found.gap(name, base) > ADOPT * found.error(name, base)
        )
        return [change for change in helped if change not in owner.changes]

    def _variants(self, base: str, changes: Sequence[Change]) -> list[str]:
        """Names of the base with one change each; without those that change nothing."""
        found = []
        for change in changes:
            setting = apply(change, self._settings[base])
            name = change.name if base == DEFAULT else f"{base} + {change.name}"
            if setting not in (self._settings[each] for each in self._stacks):
                self._settings[name] = setting
                self._stacks[name] = (*self._stacks[base], change)
                found.append(name)
        return found

    def _adopted(self, race: Race) -> Choice:
        """The simplest of those that lead the race, if its output is right; or the base."""
        while True:
            found, base = self._ledger.fit(), race.base
            rivals = [name for name in self._ledger.good(race.rivals) if name in found.means]
            ahead = [
                name for name in rivals if found.gap(name, base) > ADOPT * found.error(name, base)
            ]
            if not ahead:
                return base
            top = max(ahead, key=found.means.__getitem__)
            alike = [name for name in ahead if found.gap(top, name) < ALIKE]
            best = min(alike, key=self._simplicity)
            yield from self._checked(best)
            if self.problem(best) is None:
                return best

    def _checked(self, name: str) -> Generator[Check, None, None]:
        if name not in self._ledger.checks:
            yield Check(name)

    def _simplicity(self, name: str) -> tuple[int, int, int]:
        return simplicity(self._settings[name], self._space.default)

    def _ranked(self) -> list[str]:
        """Settings that may win, by the lower end of what they seem to be worth."""
        found = self._ledger.fit()
        names = [name for name in self._ledger.good(self._stacks) if name in found.means]
        lows = {
            name: found.gap(name, DEFAULT) - found.error(name, DEFAULT)
            for name in names
            if found.gap(name, DEFAULT) > 0
        }
        return sorted(lows, key=lows.__getitem__, reverse=True)

    def _promising(self, name: str) -> bool:
        """Whether a duel could still show that the setting is better."""
        found, left = self._ledger.fit(), self._rounds_left(name)
        best = found.gap(name, DEFAULT) + HOPE * found.error(name, DEFAULT)
        return left >= statistics.VERDICT_ROUNDS and best >= reach(self._ledger, left)

    def _again(self) -> Generator[Measure, None, bool]:
        """Another race of all that were dropped too early to be sure; False for none."""
        left, names = self._rounds_left(DEFAULT), self._undecided()
        share = (self._ledger.spent + self.limits.budget) / 2 / max(1.0, self.limits.budget)
        if not names or left < 2 * statistics.VERDICT_ROUNDS:
            return False
        if not self._ledger.affords((DEFAULT, *names), share):
            return False
        yield from Race(self._ledger, DEFAULT, names, SURE).run("again", share)
        return True

    def _undecided(self) -> list[str]:
        """Settings that a duel in half of the time left could still show to be better."""
        found = self._ledger.fit()
        least = max(WORTH, reach(self._ledger, self._rounds_left(DEFAULT) / 2))
        names = [name for name in self._ledger.good(self._stacks) if name in found.means]
        return [
            name
            for name in names
            if name != DEFAULT
            and found.gap(name, DEFAULT) + SURE * found.error(name, DEFAULT) >= least
        ]

    def _rounds_left(self, name: str) -> float:
        """Of that setting against the default, in the rest of the budget."""
        pair = self._ledger.cost((DEFAULT, name))
        return max(0.0, self.limits.budget - self._ledger.spent) / pair if pair else 0.0

    def _final(self) -> Steps:
        last: Judged | None = None
        while True:
            rest = [name for name in self._ranked() if self._promising(name)]
            if rest:
                duel = yield from self._duel(rest)
                won = duel.winner()
                if won is not None:
                    return won_by(won)
                last = last or duel.nearest()
                if duel.finalists and not duel.rounds:
                    break  # no time is left for even one round of it
            elif not (yield from self._again()):
                break
        yield from self._show_fixed()
        left_out = missed(self._ledger, self._stacks, self._ranked(), self._rounds_left)
        return default_stays(last, left_out)

    def _duel(self, rest: Sequence[str]) -> Generator[Measure | Check, None, Duel]:
        """Of the first and its rivals whose output is right."""
        entrants = finalists(rest, self._stacks, self._ledger.fit(), self._simplicity)
        for name in entrants:
            yield from self._checked(name)
        good = sorted(self._ledger.good(entrants), key=self._simplicity)
        duel = Duel(self._ledger, good, [name for name, _ in self._space.fixed if name == UPSTREAM])
        self._duels |= dict.fromkeys(good, duel.since)
        if good:
            yield from duel.run()
        return duel

    def _show_fixed(self) -> Generator[Measure, None, None]:
        """Rounds that the fixed settings still lack."""
        while True:
            names = self._ledger.good(name for name, _ in self._space.fixed)
            due = [name for name in names if self._is_due(name)]
            if not due or not self._ledger.affords((DEFAULT, *due)):
                return
            order = (DEFAULT, *due)
            yield Measure("fixed", order if len(self._ledger.rounds) % 2 else order[::-1])

    def _is_due(self, name: str) -> bool:
        """What bitnet.cpp's own script does is compared for longer, where that is open."""
        rounds, wanted = self._ledger.paired(name), self._ledger.limits.paired_rounds
        found = self.standing(name)
        if name != UPSTREAM or found is None or rounds < wanted:
            return rounds < wanted
        is_open = self.verdict(name) == statistics.OPEN and found.high > NARROW * found.low
        return is_open and rounds < LONGER * wanted
