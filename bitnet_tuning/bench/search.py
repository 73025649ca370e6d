"""Choose which settings to measure next, and when to stop: first the number of threads, then the
other knobs one at a time from the best so far, then a duel of the best against the default.

A search depends only on the rounds and checks that it was told. Told the same ones again, it asks
for the same next step, so a saved search can be resumed.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from math import log

from bitnet_tuning.bench import comparison
from bitnet_tuning.bench.comparison import DEFAULT, UPSTREAM, CheckFacts, Judged, Round, Rounds
from bitnet_tuning.bench.knobs import Space
from bitnet_tuning.bench.stages import (
    ALIKE,
    HOPE,
    KNOBS_SHARE,
    PAIRED_ROUNDS,
    THREADS_SHARE,
    Duel,
    Measure,
    Measures,
    Race,
    reach,
)
from bitnet_tuning.bench.statistics import VERDICT_ROUNDS
from bitnet_tuning.engine.builds import FASTER, OPEN
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.profile import Estimate
from bitnet_tuning.plan.setting import Change, apply
from bitnet_tuning.store.codec import Annotated

ADOPT = 1.0
"""Standard errors by which a setting must lead to become the next base. A base that is not really
better does little harm, since only the duel decides."""

SURE = 2.5
"""A setting gets a second race unless it is this many standard errors below the least gain that is
worth showing."""

NARROW, LONGER = 1.1, 4
"""A fixed setting is undecided while its interval spans more than the factor NARROW; it then gets
up to LONGER times the rounds of performance mode."""

FIRST_KNOBS = 0.6
"""Share of the knobs' time in which each knob is tried alone. In the rest, they are combined with
the best."""

CLOSE = 1.0
"""Standard errors behind the best within which other settings join its duel: they share the
default's runs."""

FINALISTS = 3
"""Most finalists in one duel."""

WORTH = log(1.02)
"""Logarithm of the smallest gain that is worth a second race: to show a smaller one takes too
many rounds."""

Factor = Annotated[float, {"minimum": 1}]


class Check(NamedTuple):
    """A request to check whether a setting's output is right."""

    name: str


class Decision(NamedTuple):
    """The result of a search."""

    winner: str
    """Name of the setting to use: ``default`` unless another one was shown to be faster."""
    verdict: str
    """``faster`` or ``no difference shown``: the finalist's verdict against the default."""
    estimate: Estimate | None
    """Ratio of the finalist's speed to the default's in the duel; None without a duel."""
    floor: Factor | None
    """Noise floor: the factor, at least 1, by which the default compared with itself over as many
    rounds may differ from 1."""
    reason: str
    """A sentence that says why."""


Steps = Generator["Measure | Check", None, Decision]
Choice = Generator["Measure | Check", None, str]


class Search:
    """A search, to be driven from outside: ``ask`` returns what to measure or check next, or the
    decision; ``tell`` and ``tell_check`` take the results."""

    def __init__(self, space: Space, rounds: Rounds) -> None:
        """``rounds`` must be empty; its budget and objective apply to the search."""
        self.rounds = rounds
        self.settings = {DEFAULT: space.default, **dict(space.fixed)}
        """Every setting named so far."""
        self.short = False
        """Whether time was too short to tell if another setting beats the default."""
        self._space = space
        self._fixed = [name for name, _ in space.fixed]
        self._files = [name for name in self._fixed if name in comparison.FILES]
        self._delay = 0.0
        """Share of the budget by which another file delayed the knobs."""
        self._stacks: dict[str, tuple[Change, ...]] = {DEFAULT: ()}
        """The changes that turn the default into each setting."""
        self._steps = self._whole()
        self._pending: Measure | Check | Decision
        self._advance()

    def ask(self) -> Measure | Check | Decision:
        """Return the next step. It stays the same until its result is told."""
        return self._pending

    def tell(self, told: Round) -> None:
        """Add a measured round. If an interruption cut it short, ``ask`` repeats the request,
        without settings that are out by now."""
        self.rounds.add(told)
        if isinstance(self._pending, Measure):
            good = tuple(self.rounds.good(self._pending.order))
            if len(told.runs) < len(self._pending.order) and DEFAULT in good:
                self._pending = self._pending._replace(order=good)
            else:
                self._advance()

    def tell_check(self, name: str, problem: str | None) -> None:
        """Add the result of a check: what is wrong with a setting's output, or None."""
        self.rounds.add_check(name, problem)
        if isinstance(self._pending, Check) and self._pending.name == name:
            self._advance()

    def replay(self, rounds: Iterable[Round], checks: Iterable[CheckFacts]) -> None:
        """Repeat in order what an earlier search was told."""
        left = list(checks)
        for told in rounds:
            self._replay_checks(left, told.number)
            self.tell(told)
        self._replay_checks(left, None)

    def _replay_checks(self, left: list[CheckFacts], before: int | None) -> None:
        while left and (before is None or left[0].after_round < before):
            kept = left.pop(0)
            self.tell_check(kept.setting, kept.problem)

    def best(self) -> str:
        """Return the name of the setting that is ahead. The lead may still be noise."""
        return next(iter(self._ranked()), DEFAULT)

    def _advance(self) -> None:
        if self.rounds.problem(DEFAULT) is not None:
            reason = "The default setting itself cannot be measured."
            self._pending = Decision(DEFAULT, OPEN, None, None, reason)
            return
        try:
            self._pending = next(self._steps)
        except StopIteration as end:
            self._pending = end.value

    def _whole(self) -> Steps:
        base = yield from self._threads()
        if base == DEFAULT:
            yield from self._show_file()
        yield from self._knobs(base)
        return (yield from self._final())

    def _threads(self) -> Choice:
        entrants = self._variants(DEFAULT, self._space.threads)
        share = THREADS_SHARE + (0.0 if self._space.knobs else KNOBS_SHARE)
        race = Race(self.rounds, DEFAULT, entrants)
        yield from race.run("threads", share, [n for n in self._fixed if n not in self._files])
        return (yield from self._adopted(race))

    def _show_file(self) -> Measures:
        """Compare another file with the default before the knobs, which gain less. If threads seem
        to gain, it runs along in their duel instead."""
        start = self.rounds.spent
        for name in self._files:
            for number in range(1, PAIRED_ROUNDS + 1 - self.rounds.measured(name)):
                order = comparison.turns((DEFAULT, name), number)
                if self.rounds.good([name]) and self.rounds.affords(order):
                    yield Measure("fixed", order)
        self._delay = (self.rounds.spent - start) / max(1.0, self.rounds.budget)

    def _knobs(self, base: str) -> Choice:
        changes = [change for knob in self._space.knobs for change in knob.changes]
        share = THREADS_SHARE + FIRST_KNOBS * KNOBS_SHARE
        while entrants := self._variants(base, changes):
            race = Race(self.rounds, base, entrants)
            if not self.rounds.affords((base, *entrants), share + self._delay):
                break
            yield from race.run("knobs", share)
            best = yield from self._adopted(race)
            if best == base:
                break
            changes = self._combinable(race, best)
            base, share = best, THREADS_SHARE + KNOBS_SHARE
        return base

    def _combinable(self, race: Race, best: str) -> list[Change]:
        """Return the changes of other knobs that also beat the old base: combined with the best
        one, they may gain more."""
        taken = self._stacks[best][-1]
        owner = next(knob for knob in self._space.knobs if taken in knob.changes)
        helped = (self._stacks[name][-1] for name in self._ahead(race.entrants, race.base))
        return [change for change in helped if change not in owner.changes]

    def _ahead(self, names: Iterable[str], base: str) -> list[str]:
        found = self.rounds.fit()
        good = (name for name in self.rounds.good(names) if name in found.means)
        return [name for name in good if found.gap(name, base) > ADOPT * found.error(name, base)]

    def _variants(self, base: str, changes: Sequence[Change]) -> list[str]:
        """Name the base with each of the changes. Leave out settings that already have a name."""
        found = []
        for change in changes:
            setting = apply(change, self.settings[base])
            name = change.name if base == DEFAULT else f"{base} + {change.name}"
            if setting not in (self.settings[each] for each in self._stacks):
                self.settings[name] = setting
                self._stacks[name] = (*self._stacks[base], change)
                found.append(name)
        return found

    def _adopted(self, race: Race) -> Choice:
        """Return the simplest of the leaders whose output is right, else the base."""
        while True:
            found, ahead = self.rounds.fit(), self._ahead(race.rivals, race.base)
            if not ahead:
                return race.base
            top = max(ahead, key=found.means.__getitem__)
            alike = [name for name in ahead if found.gap(top, name) < ALIKE]
            best = min(alike, key=self._simplicity)
            yield from self._checked(best)
            if self.rounds.problem(best) is None:
                return best

    def _checked(self, name: str) -> Generator[Check, None, None]:
        if not self.rounds.is_checked(name):
            yield Check(name)

    def _simplicity(self, name: str) -> tuple[int, int, int]:
        """Return a key that sorts simpler settings first: fewer threads, then fewer changes."""
        setting, default = self.settings[name], self._space.default
        fields = zip(setting._replace(env=()), default._replace(env=()), strict=True)
        env = len(set(setting.env) ^ set(default.env))
        return setting.threads, setting.threads_batch, sum(a != b for a, b in fields) + env

    def _ranked(self) -> list[str]:
        """Return the settings that lead the default, by the lower end of their gain."""
        found = self.rounds.fit()
        names = [name for name in self.rounds.good(self._stacks) if name in found.means]
        lows = {
            name: found.gap(name, DEFAULT) - found.error(name, DEFAULT)
            for name in names
            if found.gap(name, DEFAULT) > 0
        }
        return sorted(lows, key=lows.__getitem__, reverse=True)

    def _promising(self, name: str) -> bool:
        """Return whether a duel in the time left could show that the setting is faster."""
        found, left = self.rounds.fit(), self._rounds_left(name)
        best = found.gap(name, DEFAULT) + HOPE * found.error(name, DEFAULT)
        return left >= VERDICT_ROUNDS and best >= reach(self.rounds, left)

    def _again(self) -> Generator[Measure, None, bool]:
        """Race the undecided settings again. Return False if there are none or time is short."""
        left, names = self._rounds_left(DEFAULT), self._undecided()
        budget = self.rounds.budget
        share = (self.rounds.spent + budget) / 2 / max(1.0, budget)
        if not names or left < 2 * VERDICT_ROUNDS:
            return False
        if not self.rounds.affords((DEFAULT, *names), share):
            return False
        yield from Race(self.rounds, DEFAULT, names, SURE).run("again", share)
        return True

    def _undecided(self) -> list[str]:
        """Return the settings that half of the time left might show to be faster."""
        found = self.rounds.fit()
        least = max(WORTH, reach(self.rounds, self._rounds_left(DEFAULT) / 2))
        names = [n for n in self.rounds.good(self._stacks) if n in found.means and n != DEFAULT]
        return [n for n in names if found.gap(n, DEFAULT) + SURE * found.error(n, DEFAULT) >= least]

    def _rounds_left(self, name: str) -> float:
        return max(0.0, self.rounds.left((DEFAULT, name)))

    def _final(self) -> Steps:
        last: Judged | None = None
        while True:
            rest = [name for name in self._ranked() if self._promising(name)]
            if rest:
                duel = yield from self._duel(rest)
                won = duel.winner()
                if won is not None:
                    reason = f"{won.name} beat the default in a duel, with fresh samples."
                    return Decision(won.name, FASTER, won.ratio, won.floor, reason)
                last = last or duel.nearest()
                if duel.finalists and not duel.number:
                    break  # there is no time for even one round
            elif not (yield from self._again()):
                break
        yield from self._show_file()
        yield from self._show_fixed()
        return self._default_stays(last)

    def _duel(self, rest: Sequence[str]) -> Generator[Measure | Check, None, Duel]:
        """Run a duel of the default with the finalists whose output is right."""
        entrants = self._finalists(rest)
        for name in entrants:
            yield from self._checked(name)
        good = sorted(self.rounds.good(entrants), key=self._simplicity)
        due = [n for n in self._files if self.rounds.measured(n) < PAIRED_ROUNDS]
        duel = Duel(self.rounds, good, [n for n in self._fixed if n == UPSTREAM or n in due])
        if good:
            yield from duel.run()
        return duel

    def _finalists(self, rest: Sequence[str]) -> tuple[str, ...]:
        """Return the first of ``rest``, which are promising settings with the best first, and up
        to FINALISTS - 1 others: what it is built on, and simpler or near ones."""
        first, found, simple = rest[0], self.rounds.fit(), self._simplicity
        parts = [name for name in self._parts(first) if name in rest]
        near = [n for n in rest[1:] if found.gap(first, n) < CLOSE * found.error(first, n)]
        alike = [n for n in rest[1:] if abs(found.gap(first, n)) < ALIKE]
        simpler = sorted((n for n in alike if simple(n) < simple(first)), key=simple)
        return tuple(dict.fromkeys((first, *parts, *simpler, *near)))[:FINALISTS]

    def _parts(self, name: str) -> Iterator[str]:
        """Yield the settings with fewer of this one's changes, so that the duel shows whether
        each change helps."""
        names = {changes: each for each, changes in self._stacks.items()}
        changes = self._stacks[name]
        for count in range(len(changes) - 1, 0, -1):
            if changes[:count] in names:
                yield names[changes[:count]]

    def _show_fixed(self) -> Measures:
        while True:
            due = [name for name in self.rounds.good(self._fixed) if self._is_due(name)]
            if not due or not self.rounds.affords((DEFAULT, *due)):
                return
            order = (DEFAULT, *due)
            yield Measure("fixed", order if len(self.rounds) % 2 else order[::-1])

    def _is_due(self, name: str) -> bool:
        """Return whether a fixed setting needs more rounds: all but performance mode get more
        while their verdict is undecided."""
        judged = self.rounds.judge(name)
        found, rounds = judged.ratio, judged.ratio.count if judged.ratio else 0
        if name == comparison.PERFORMANCE or found is None or rounds < PAIRED_ROUNDS:
            return rounds < PAIRED_ROUNDS
        is_open = judged.verdict == OPEN and found.high > NARROW * found.low
        return is_open and rounds < LONGER * PAIRED_ROUNDS

    def _default_stays(self, nearest: Judged | None) -> Decision:
        """Return the decision for the default. ``nearest`` came closest in a duel, if any."""
        if nearest is None or nearest.ratio is None:
            missed = self._missed()
            self.short = missed is not None
            reason = missed or "No setting promised a gain beyond the noise"
            return Decision(DEFAULT, OPEN, None, None, f"{reason}, so the default stays.")
        count = nearest.ratio.count
        self.short = count < VERDICT_ROUNDS
        why = f"had too few rounds ({count}) for a verdict; allow more time with --budget"
        if not self.short:
            why = "did not show that it is faster, so the default stays"
        reason = f"{nearest.name} came closest, but its duel {why}."
        return Decision(DEFAULT, OPEN, nearest.ratio, nearest.floor, reason)

    def _missed(self) -> str | None:
        """Say what there was no time for; return None if nothing was missed."""
        untried = self._untried()
        if untried:
            return f"Time was too short to try {', '.join(untried)} (see --budget)"
        if not any(self._stacks.values()):
            return "No other setting was tried"
        found = self.rounds.fit()
        for name in self._ranked():
            gap, error = found.gap(name, DEFAULT), found.error(name, DEFAULT)
            is_ahead = gap > WORTH and (gap > error or found.spread is None)
            if is_ahead and self._rounds_left(name) < VERDICT_ROUNDS:
                return f"{name} looked faster, but no time was left to confirm it (see --budget)"
        return None

    def _untried(self) -> list[str]:
        """Return the names of changes that no measured setting has."""
        rounds, stacks = self.rounds, self._stacks
        ran = [stacks[name] for name in stacks if rounds.measured(name) or rounds.problem(name)]
        tried = [change for stack in ran for change in stack]
        named = (stack[-1] for stack in stacks.values() if stack)
        return list(dict.fromkeys(change.name for change in named if change not in tried))
