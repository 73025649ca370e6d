"""Choose which setting to measure next, and when to stop: threads first, then the other knobs
one at a time from the best so far, then a duel of the best against the default; pure.

A search is a function of what it was told. Told the same rounds and checks again, it asks
the same, so a stored search goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from math import log

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
"""Standard errors by which a setting must be ahead of the base to become the next one. A base
that is no better costs nothing but simplicity: only the duel decides."""

SURE = 2.5
"""Standard errors by which a setting must fall short before it gets no second race."""

NARROW, LONGER = 1.1, 4
"""Upstream's ratio is open while its interval is wider than that; and how many times the
rounds of other fixed settings it then gets at most."""

FIRST_KNOBS = 0.6
"""Share of the time for knobs that goes to all of them alone; the rest goes to what is best on
top of it."""

CLOSE = 1.0
"""Standard errors behind the first finalist, within which others join the duel: the default's
runs serve all of them."""

FINALISTS = 3
"""Most finalists in one duel."""

WORTH = log(1.02)
"""Gains below this are not worth a second look: where noise is low it would take hours to
tell them."""


Factor = Annotated[float, {"minimum": 1}]


class Check(NamedTuple):
    """A request to say whether this setting's output is right."""

    name: str


class Decision(NamedTuple):
    """What a search found."""

    winner: str
    """The setting to use: the default's name unless another one was shown to be faster."""
    verdict: str
    estimate: Estimate | None
    """Ratio of the finalist's value to the default's, in the duel; None without a duel."""
    floor: Factor | None
    """By how much, as a factor, repeated runs of the default vary; at least 1."""
    reason: str
    """One sentence."""


Steps = Generator["Measure | Check", None, Decision]
Choice = Generator["Measure | Check", None, str]


class Search:
    """Ask what to measure or check, measure or check it, tell; until ``ask`` has a Decision."""

    def __init__(self, space: Space, rounds: Rounds) -> None:
        """``rounds`` has no round yet; its budget and objective are the search's."""
        self.rounds = rounds
        self.settings = {DEFAULT: space.default, **dict(space.fixed)}
        """Every setting that was named so far."""
        self.short = False
        """Whether the default stays for lack of trying: then nothing is known of the others."""
        self._space = space
        self._fixed = [name for name, _ in space.fixed]
        self._stacks: dict[str, tuple[Change, ...]] = {DEFAULT: ()}
        """The changes that make each setting; none for the default."""
        self._steps = self._whole()
        self._pending: Measure | Check | Decision
        self._advance()

    def ask(self) -> Measure | Check | Decision:
        """Return the next step: the same until it is told."""
        return self._pending

    def tell(self, told: Round) -> None:
        """Add what was measured. A round that an interruption cut short is asked for again,
        without settings that are out by now."""
        self.rounds.add(told)
        if isinstance(self._pending, Measure):
            good = tuple(self.rounds.good(self._pending.order))
            if len(told.runs) < len(self._pending.order) and DEFAULT in good:
                self._pending = self._pending._replace(order=good)
            else:
                self._advance()

    def tell_check(self, name: str, problem: str | None) -> None:
        """Add what is wrong with a setting's output; None where it is right."""
        self.rounds.add_check(name, problem)
        if isinstance(self._pending, Check) and self._pending.name == name:
            self._advance()

    def replay(self, rounds: Iterable[Round], checks: Iterable[CheckFacts]) -> None:
        """Tell all that an earlier search was told, in its order."""
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
        """Return who is ahead; nothing that was shown yet."""
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
        yield from self._knobs(base)
        return (yield from self._final())

    def _threads(self) -> Choice:
        entrants = self._variants(DEFAULT, self._space.threads)
        share = THREADS_SHARE + (0.0 if self._space.knobs else KNOBS_SHARE)
        race = Race(self.rounds, DEFAULT, entrants)
        yield from race.run("threads", share, self._fixed)
        return (yield from self._adopted(race))

    def _knobs(self, base: str) -> Choice:
        changes = [change for knob in self._space.knobs for change in knob.changes]
        share = THREADS_SHARE + FIRST_KNOBS * KNOBS_SHARE
        while entrants := self._variants(base, changes):
            race = Race(self.rounds, base, entrants)
            if not self.rounds.affords((base, *entrants), share):
                break
            yield from race.run("knobs", share)
            best = yield from self._adopted(race)
            if best == base:
                break
            changes = self._left(race, best)
            base, share = best, THREADS_SHARE + KNOBS_SHARE
        return base

    def _left(self, race: Race, best: str) -> list[Change]:
        """Return changes that helped the old base too, of other knobs than the one that is
        now set: who fell behind the best may still be worth something on top of it."""
        taken = self._stacks[best][-1]
        owner = next(knob for knob in self._space.knobs if taken in knob.changes)
        helped = (self._stacks[name][-1] for name in self._ahead(race.entrants, race.base))
        return [change for change in helped if change not in owner.changes]

    def _ahead(self, names: Iterable[str], base: str) -> list[str]:
        """Return those that are ahead of the base."""
        found = self.rounds.fit()
        good = (name for name in self.rounds.good(names) if name in found.means)
        return [name for name in good if found.gap(name, base) > ADOPT * found.error(name, base)]

    def _variants(self, base: str, changes: Sequence[Change]) -> list[str]:
        """Return names of the base with one change each; without those that change nothing."""
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
        """Return the simplest of those that lead the race, if its output is right; or the base."""
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
        """Return fewer threads, then closer to the default: the smaller, the simpler."""
        setting, default = self.settings[name], self._space.default
        fields = zip(setting._replace(env=()), default._replace(env=()), strict=True)
        env = len(set(setting.env) ^ set(default.env))
        return setting.threads, setting.threads_batch, sum(a != b for a, b in fields) + env

    def _ranked(self) -> list[str]:
        """Return settings that may win, by the lower end of what they seem to be worth."""
        found = self.rounds.fit()
        names = [name for name in self.rounds.good(self._stacks) if name in found.means]
        lows = {
            name: found.gap(name, DEFAULT) - found.error(name, DEFAULT)
            for name in names
            if found.gap(name, DEFAULT) > 0
        }
        return sorted(lows, key=lows.__getitem__, reverse=True)

    def _promising(self, name: str) -> bool:
        """Return whether a duel could still show that the setting is better."""
        found, left = self.rounds.fit(), self._rounds_left(name)
        best = found.gap(name, DEFAULT) + HOPE * found.error(name, DEFAULT)
        return left >= VERDICT_ROUNDS and best >= reach(self.rounds, left)

    def _again(self) -> Generator[Measure, None, bool]:
        """Race all once more that were dropped too early to be sure; return False for none."""
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
        """Return settings that a duel in half of the time left could still show to be better."""
        found = self.rounds.fit()
        least = max(WORTH, reach(self.rounds, self._rounds_left(DEFAULT) / 2))
        names = [n for n in self.rounds.good(self._stacks) if n in found.means and n != DEFAULT]
        return [n for n in names if found.gap(n, DEFAULT) + SURE * found.error(n, DEFAULT) >= least]

    def _rounds_left(self, name: str) -> float:
        """Return how many rounds of that setting against the default the budget has left."""
        return max(0.0, self.rounds.left((DEFAULT, name)))

    def _final(self) -> Steps:
        last: Judged | None = None
        while True:
            rest = [name for name in self._ranked() if self._promising(name)]
            if rest:
                duel = yield from self._duel(rest)
                won = duel.winner()
                if won is not None:
                    reason = f"{won.name} beat the default in a duel of fresh samples."
                    return Decision(won.name, FASTER, won.ratio, won.floor, reason)
                last = last or duel.nearest()
                if duel.finalists and not duel.number:
                    break  # no time is left for even one round of it
            elif not (yield from self._again()):
                break
        yield from self._show_fixed()
        return self._default_stays(last)

    def _duel(self, rest: Sequence[str]) -> Generator[Measure | Check, None, Duel]:
        """Let the first and its rivals whose output is right meet the default."""
        entrants = self._finalists(rest)
        for name in entrants:
            yield from self._checked(name)
        good = sorted(self.rounds.good(entrants), key=self._simplicity)
        duel = Duel(self.rounds, good, [name for name in self._fixed if name == UPSTREAM])
        if good:
            yield from duel.run()
        return duel

    def _finalists(self, rest: Sequence[str]) -> tuple[str, ...]:
        """Return the first of ``rest``, who are promising, the best first; what it was built
        on; and those that may well be as good."""
        first, found, simple = rest[0], self.rounds.fit(), self._simplicity
        parts = [name for name in self._parts(first) if name in rest]
        near = [n for n in rest[1:] if found.gap(first, n) < CLOSE * found.error(first, n)]
        alike = [n for n in rest[1:] if abs(found.gap(first, n)) < ALIKE]
        simpler = sorted((n for n in alike if simple(n) < simple(first)), key=simple)
        return tuple(dict.fromkeys((first, *parts, *simpler, *near)))[:FINALISTS]

    def _parts(self, name: str) -> Iterator[str]:
        """Yield the settings that this one was built on, the nearest first: a change that came
        on top by luck must show that it is worth something."""
        names = {changes: each for each, changes in self._stacks.items()}
        changes = self._stacks[name]
        for count in range(len(changes) - 1, 0, -1):
            if changes[:count] in names:
                yield names[changes[:count]]

    def _show_fixed(self) -> Measures:
        """Ask for rounds that the fixed settings still lack."""
        while True:
            due = [name for name in self.rounds.good(self._fixed) if self._is_due(name)]
            if not due or not self.rounds.affords((DEFAULT, *due)):
                return
            order = (DEFAULT, *due)
            yield Measure("fixed", order if len(self.rounds) % 2 else order[::-1])

    def _is_due(self, name: str) -> bool:
        """Compare what bitnet.cpp's own script does for longer, where that is open."""
        judged = self.rounds.judge(name)
        found, rounds = judged.ratio, judged.ratio.count if judged.ratio else 0
        if name != UPSTREAM or found is None or rounds < PAIRED_ROUNDS:
            return rounds < PAIRED_ROUNDS
        is_open = judged.verdict == OPEN and found.high > NARROW * found.low
        return is_open and rounds < LONGER * PAIRED_ROUNDS

    def _default_stays(self, nearest: Judged | None) -> Decision:
        """End without a winner. ``nearest`` came nearest in a duel, if there was one."""
        if nearest is None or nearest.ratio is None:
            missed = self._missed()
            self.short = missed is not None
            reason = missed or "No setting promised more than the noise"
            return Decision(DEFAULT, OPEN, None, None, f"{reason}: the default stays.")
        count = nearest.ratio.count
        self.short = count < VERDICT_ROUNDS
        why = f"had too few rounds ({count}) to tell"
        if not self.short:
            why = "did not show that it is faster"
        reason = f"{nearest.name} came nearest, but its duel {why}: the default stays."
        return Decision(DEFAULT, OPEN, nearest.ratio, nearest.floor, reason)

    def _missed(self) -> str | None:
        """Return what there was no time for in words, or None where nothing was missed."""
        untried = self._untried()
        if untried:
            return f"The time was too short to try {', '.join(untried)}"
        if not any(self._stacks.values()):
            return "No other setting was tried"
        found = self.rounds.fit()
        for name in self._ranked():
            gap, error = found.gap(name, DEFAULT), found.error(name, DEFAULT)
            is_ahead = gap > WORTH and (gap > error or found.spread is None)
            if is_ahead and self._rounds_left(name) < VERDICT_ROUNDS:
                return f"{name} looked faster, but no time was left to confirm it"
        return None

    def _untried(self) -> list[str]:
        """Return names of changes that no setting had which ran."""
        rounds, stacks = self.rounds, self._stacks
        ran = [stacks[name] for name in stacks if rounds.measured(name) or rounds.problem(name)]
        tried = [change for stack in ran for change in stack]
        named = (stack[-1] for stack in stacks.values() if stack)
        return list(dict.fromkeys(change.name for change in named if change not in tried))
