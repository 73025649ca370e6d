"""Choose which settings to measure next, and when to stop:

    threads ──> other knobs, one on top of the other ──> duel with the default ──> decision
    (a race)    (races on top of the best so far)        (fresh samples)

In a race, settings and what they are built on run in rounds, in an order at random; who is slower
than the leader leaves. Of many thread counts, those halfway between the best and its neighbours
race, and so on. Settings that cannot win, such as upstream's, run along until they have enough
rounds. Races choose, but only the rounds of a duel decide: its finalists were chosen because they
looked fast. Races and duels compare in the same way (``Rounds.judge``), at levels of their own.
Time that is left goes to settings without a verdict, and more can be given after a decision. A
search never measures: told the same rounds and checks again, it asks for the same next step, so a
saved search can be resumed.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from math import inf

from bitnet_tuning.bench import comparison
from bitnet_tuning.bench.comparison import DEFAULT, DUEL, FILES, CheckFacts, Judged, Round, Rounds
from bitnet_tuning.bench.knobs import Space
from bitnet_tuning.bench.statistics import INTERIM, LEVEL, RESOLUTION, VERDICT_ROUNDS
from bitnet_tuning.console import duration
from bitnet_tuning.engine.builds import EQUAL, FASTER, OPEN, SLOWER
from bitnet_tuning.errors import UsageError
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.profile import Estimate
from bitnet_tuning.plan.setting import Change, apply
from bitnet_tuning.store.codec import LATER, Annotated, Positive

THREADS_SHARE, KNOBS_SHARE, DUEL_SHARE = 0.33, 0.9, 0.3
"""Shares of the races' time left that each race of threads gets, and each of other knobs; and the
share of the budget that races leave to duels."""

LEAST, FEW = 5, 5
"""Rounds that a race must afford, the first one two, or it leaves out the last settings; and most
thread counts that all race from the beginning."""

LOST, ADOPT = 0.8, 0.3
"""Levels at which a setting loses against the leader of a race and leaves it, and at which it must
lead its base to be built upon, which does little harm where it is wrong: only the duel decides."""

FINALISTS, FIXED_ROUNDS = 2, 4 * VERDICT_ROUNDS
"""Most finalists of a duel, of which the best stays after ``VERDICT_ROUNDS``; and most rounds that
a fixed setting without a verdict gets."""

INTERACTING = ("binding", "affinity")
"""Knobs known to act differently with other thread counts: they are tried with the second best
count, too. (One thread per logical CPU is a count, and huge pages are a value of the knob mmap.)"""


class Check(NamedTuple):
    """A request to check whether a setting's output is right."""

    name: str


class Measure(NamedTuple):
    """A request for one round: run these settings in this order."""

    stage: str
    order: tuple[str, ...]
    """Names of settings."""


class Decision(NamedTuple):
    """The result of a search."""

    winner: str
    """Name of the setting to use: ``default`` unless another one was shown to be faster."""
    verdict: str
    """``faster``; where the default stays, ``equal`` or ``slower`` for the best other setting, or
    ``not decided`` if time was too short to tell or to try everything."""
    estimate: Estimate | None
    """Ratio of that setting's speed to the default's in the duel; None without a duel."""
    floor: Annotated[float, {"minimum": 1}] | None
    """Noise floor in files of versions that had one."""
    reason: str
    """Sentences that say why."""
    resolution: Annotated[Positive, LATER] = RESOLUTION
    """Share by which speeds may differ and count as equal."""


Step = Measure | Check | Decision
Steps = Generator[Step, None, None]
Choice = Generator[Step, None, str]


class Search:
    """A search, to be driven from outside: ``ask`` returns what to measure or check next, or the
    decision; ``tell`` and ``tell_check`` take the results."""

    def __init__(self, space: Space, rounds: Rounds) -> None:
        """``rounds`` must be empty; its budget, objective and resolution apply to the search."""
        self.rounds = rounds
        self.settings = {DEFAULT: space.default, **dict(space.fixed)}
        """Every setting named so far."""
        self.best = DEFAULT
        """Name of the setting that is built upon so far. Its lead may still be noise."""
        self._space = space
        self._fixed = [name for name, _ in space.fixed]
        self._owners = {change: knob.name for knob in space.knobs for change in knob.changes}
        self._stacks: dict[str, tuple[Change, ...]] = {DEFAULT: ()}
        """The changes that turn the default into each setting."""
        self._met: dict[str, float] = {}
        """Settings that entered a duel, with the level at which they must beat the default."""
        self._ends: list[str] = []
        """The best of each duel."""
        self._since = 0.0
        """Seconds that were spent when the search got the budget that it has."""
        self._steps = self._whole()
        self._pending: Step
        self._advance()

    def ask(self) -> Step:
        """Return the next step. It stays the same until its result is told."""
        return self._pending

    def tell(self, told: Round) -> None:
        """Add a measured round. If an interruption cut it short, ``ask`` repeats the request,
        without settings that are out by now."""
        self.rounds.add(told)
        if isinstance(self._pending, Measure):
            good = tuple(self.rounds.good(self._pending.order))
            if len(told.runs) < len(self._pending.order) and good and self.rounds.good([DEFAULT]):
                self._pending = self._pending._replace(order=good)
            else:
                self._advance()

    def tell_check(self, name: str, problem: str | None, elapsed: float = 0.0) -> None:
        """Add what a check found wrong, or None, and the seconds of the budget spent by its end."""
        self.rounds.checks.append(CheckFacts(name, problem, len(self.rounds), elapsed))
        if self._pending == Check(name):
            self._advance()

    def extend(self, since: float, budget: float) -> None:
        """Give the search a new ``budget`` for all of it when ``since`` seconds are spent."""
        self._since, self.rounds.budget = since, budget
        if isinstance(self._pending, Decision):
            self._advance()

    def replay(
        self,
        rounds: Iterable[Round],
        checks: Iterable[CheckFacts],
        budgets: Iterable[tuple[float, float]] = (),
    ) -> None:
        """Repeat in order what an earlier search was told, and with which ``budgets`` it was
        extended. Raise UsageError if this search would have asked for other rounds."""
        more = list(budgets)
        told: list[Round | CheckFacts] = [*rounds, *checks]
        told.sort(key=lambda it: it.number if isinstance(it, Round) else it.after_round + 0.5)
        for each in (*told, None):
            while more and (each is None or more[0][0] < each.elapsed):
                self.extend(*more.pop(0))
            if isinstance(each, CheckFacts):
                self.tell_check(each.setting, each.problem, each.elapsed)
            elif each is not None:
                ran = tuple(run.setting for run in each.runs)
                if not isinstance(self._pending, Measure) or self._pending.order[: len(ran)] != ran:
                    cause = "that tuning cannot be resumed: another version of the search began it"
                    raise UsageError(cause, "tune without --resume")
                self.tell(each)

    def _advance(self) -> None:
        if self.rounds.problem(DEFAULT) is None:
            self._pending = next(self._steps)
        else:
            reason = "The default setting itself cannot be measured."
            self._pending = Decision(DEFAULT, OPEN, None, None, reason)

    def _whole(self) -> Steps:
        self.best = yield from self._threads(counts := self._variants(DEFAULT, self._space.threads))
        self.best = yield from self._knobs(self.best, counts)
        while True:
            yield from self._duels()
            yield from self._complete()
            self.best = yield from self._chosen([*self._met], stage=DUEL)
            yield self._decision()
            # There is more time now.
            missed = [name for name in self._stacks if not self._ran(name)]
            self.best = yield from self._race("knobs", self.best, missed)

    def _threads(self, counts: list[str]) -> Choice:
        """Let few thread counts race at once; of many, those halfway between the best so far and
        its neighbours, race by race. Return the best."""
        line = sorted([DEFAULT, *counts], key=lambda name: self.settings[name][:2])
        best, tried = DEFAULT, [DEFAULT]
        names = counts if len(counts) <= FEW else self._halfway(line, tried, best)
        while names:
            best = yield from self._race("threads", best, names)
            tried += names
            if not all(map(self._ran, names)):
                return best
            names = self._halfway(line, tried, best)
        # The others are on the far side of slower ones.
        self._stacks = {name: done for name, done in self._stacks.items() if name in tried}
        return best

    def _halfway(self, line: list[str], tried: list[str], best: str) -> list[str]:
        """Return those in the line halfway between the best and the next ones that were tried."""
        at, places = line.index(best), [line.index(name) for name in tried]
        below = max((place for place in places if place < at), default=-1)
        above = min((place for place in places if place > at), default=len(line))
        found = {(below + at) // 2, (at + above + 1) // 2} - {below, at, above}
        return [line[place] for place in sorted(found)]

    def _knobs(self, base: str, counts: list[str]) -> Choice:
        """Try every other knob on top of ``base``, then on top of the best of them those that
        helped, too, and so on. Return the best."""
        owner, changes = self._owners, list(self._owners)
        interacting = [change for change in changes if owner[change] in INTERACTING]
        second = [name for name in self._gains([DEFAULT, *counts]) if name != base][:1]
        others = [new for name in second for new in self._variants(name, interacting)]
        while names := [*self._variants(base, changes), *others]:
            best = yield from self._race("knobs", base, names)
            if best == base:
                break
            gains, used = self._gains(names, base), owner[self._stacks[best][-1]]
            helped = [self._stacks[name][-1] for name in gains if gains[name] > 1]
            changes = [change for change in helped if owner[change] != used]
            base, others = best, []
        return base

    def _race(self, stage: str, base: str, names: list[str]) -> Choice:
        """Run a base and others in rounds until all have a verdict against the leader, at most for
        a share of the races' time that is left. Return the best (see ``_chosen``)."""
        rounds, field = self.rounds, list(names)
        end = races_end = rounds.budget - DUEL_SHARE * (rounds.budget - self._since)
        # A first race of few costs little, and its losers are shown with a verdict.
        level = LEVEL if len(self._stacks) <= 3 else LOST
        share = THREADS_SHARE if stage == "threads" and level == LOST else KNOBS_SHARE
        yield from self._begin(stage, names)
        least = LEAST if len(rounds) > 1 else 2
        while len(field) > 1 and not rounds.affords(self._joined((base, *field)), end, least):
            field.pop()
        while field and (yield from self._round(stage, self._joined((base, *field)), end)):
            # The first round, which loads models, does not count.
            end = min(end, rounds.spent + share * (races_end - rounds.spent))
            leader = next(iter(self._gains((base, *field), base)), base)
            others = [name for name in rounds.good((base, *field)) if name != leader]
            verdicts = {name: rounds.judge(name, leader, level).verdict for name in others}
            field = [name for name in rounds.good(field) if verdicts.get(name) != SLOWER]
            if OPEN not in verdicts.values():
                break
        return (yield from self._chosen(names, base))

    def _begin(self, stage: str, names: Sequence[str]) -> Steps:
        """Run the default and one other setting first: they tell what the others cost."""
        if names and not len(self.rounds):
            yield from self._round(stage, (DEFAULT, *(*self._fixed, *names)[:1]))

    def _round(
        self, stage: str, names: Sequence[str], until: float = inf
    ) -> Generator[Step, None, bool]:
        """Run one round of settings if it fits into ``until``. Return whether it did."""
        if fits := self.rounds.affords(names, until):
            yield Measure(stage, comparison.turns(names, len(self.rounds) + 1))
        return fits

    def _joined(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Add to the settings of a round, if the default is one of them, the fixed ones that need
        more rounds: together they get up to half of the time that is left."""
        rounds = self.rounds
        half = (rounds.spent + rounds.budget) / 2
        for name in self._due() if DEFAULT in names else ():
            if rounds.affords((*names, name), half):
                names += (name,)
        return names

    def _due(self, exact: Sequence[str] = FILES) -> list[str]:
        """Return the fixed settings that need more rounds; the ``exact`` ones need a verdict."""
        found = []
        for name in self.rounds.good(self._fixed):
            _, ratio, verdict = self.rounds.judge(name, level=INTERIM)
            most = FIXED_ROUNDS if name in exact and verdict == OPEN else VERDICT_ROUNDS
            if ratio is None or ratio.count < most:
                found.append(name)
        return found

    def _gains(
        self, names: Iterable[str], base: str = DEFAULT, stage: str | None = None
    ) -> dict[str, float]:
        """Return the speeds over a base's, in common rounds, of the settings that are not out and
        have such rounds, the fastest first."""
        judged = (self.rounds.judge(name, base, stage=stage) for name in self.rounds.good(names))
        gains = {name: ratio.median for name, ratio, _ in judged if ratio}
        return dict(sorted(gains.items(), key=lambda each: -each[1]))

    def _simplest(self, gains: dict[str, float]) -> str:
        """Return the one with fewest threads, then changes, of those less than half the resolution
        behind the fastest."""
        near, most = 1 + self.rounds.resolution / 2, max(gains.values())
        alike = [name for name in gains if gains[name] * near > most]
        return min(alike, key=lambda name: (*self.settings[name][:2], len(self._stacks[name])))

    def _chosen(
        self, names: Sequence[str], base: str = DEFAULT, stage: str | None = None
    ) -> Choice:
        """Return the best of the settings whose output is right, in all stages or in duels: the
        base, unless another one beats it."""
        rounds = self.rounds
        while leads := {
            name: gain
            for name, gain in self._gains(names, base, stage).items()
            if (self._judged(name) if stage else rounds.judge(name, base, ADOPT)).verdict == FASTER
        }:
            best = self._simplest(leads)
            yield from self._checked(best)
            if rounds.problem(best) is None:
                return best
        return base

    def _checked(self, name: str) -> Steps:
        if name not in {check.setting for check in self.rounds.checks}:
            yield Check(name)

    def _judged(self, name: str) -> Judged:
        """Return the verdict on a setting: that it is faster, at the level at which it may win."""
        found = self.rounds.shown(name)
        if found.verdict != FASTER or name not in self._met:
            return found
        return self.rounds.judge(name, level=self._met[name], stage=DUEL)

    def _ran(self, name: str) -> bool:
        return bool(self.rounds.measured(name) or self.rounds.failures(name))

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

    def _duels(self) -> Steps:
        """Let the most promising settings meet the default with fresh samples, then the next ones,
        as long as none is faster."""
        rounds, winner = self.rounds, DEFAULT
        while winner == DEFAULT and (names := [n for n in self._promising() if n not in self._met]):
            first, stack = names[0], self._stacks[names[0]]
            if not rounds.affords((DEFAULT, first), ahead=VERDICT_ROUNDS):
                break
            # What the best is built on comes along, so that the duel shows whether more helps.
            names.sort(key=lambda name: (name != first, self._stacks[name] != stack[:-1]))
            self._enter(finalists := names[:FINALISTS])
            yield from self._checked(first)
            yield from self._duel(rounds.good(finalists))
            winner = yield from self._chosen([*self._met], stage=DUEL)

    def _enter(self, names: list[str]) -> None:
        """Note that settings enter a duel."""
        # Every further setting gives chance another chance. All share the default's runs, so half
        # of Bonferroni's correction keeps false winners below 5 % (tuner_trials.py).
        more = len({*self._met, *names}) - 1
        self._met = {**dict.fromkeys(names, 1 - (1 - LEVEL) / (1 + more / 2)), **self._met}

    def _promising(self) -> list[str]:
        """Return the settings that may be faster than the default, the most promising first; at
        least the best of all others, so that what is said of the default is decided."""
        others = self.rounds.good([*self._stacks][1:])
        known = {name: found for name in others if (found := self.rounds.linked(name))}
        names = sorted(known, key=lambda name: (name != self.best, -known[name].median))
        near = 1 + self.rounds.resolution
        return [name for name in names if known[name].high > near] or names[:1]

    def _duel(self, names: list[str]) -> Steps:
        """Run finalists against the default until the best is decided, time is up or, unless all
        others are worse still, a level of 80 % shows that it hardly gains."""
        rounds, ran, best = self.rounds, 0, ""
        if not rounds.affords(self._joined((DEFAULT, *names)), ahead=VERDICT_ROUNDS):
            names = names[:1]
        others = len(self._promising()) > len(names)
        while names and (yield from self._round(DUEL, self._joined((DEFAULT, *names)))):
            ran += 1
            if not (gains := self._gains(names, stage=DUEL)):
                break
            best = self._simplest(gains)
            ratio, is_long = rounds.judge(best, level=0.8, stage=DUEL).ratio, ran >= VERDICT_ROUNDS
            is_vain = is_long and others and ratio and ratio.high < 1 + rounds.resolution
            if is_vain or rounds.judge(best, level=INTERIM, stage=DUEL).verdict != OPEN:
                break
            names = [best] if is_long else [*gains]
        self._ends += [best] if best else []

    def _complete(self) -> Steps:
        """Give settings without a verdict the rounds they lack as time allows, fixed ones first."""
        rounds = self.rounds
        yield from self._begin("fixed", self._fixed)
        while due := self._due((*FILES, comparison.UPSTREAM)):
            if not (yield from self._round("fixed", (DEFAULT, *due))):
                break
        while lacks := {
            name: needed
            for name in rounds.good([*self._stacks][1:])
            if self._ran(name)
            and (needed := rounds.lacks(self._judged(name)))
            and rounds.affords((DEFAULT, name), ahead=needed)
        }:
            name = min(lacks, key=lambda each: lacks[each])
            _, ratio, verdict = rounds.shown(name)
            if is_in := ratio is None or verdict == FASTER or rounds.in_duel(name):
                self._enter([name])
            # Few looks: each gives chance another chance.
            for _ in range(max(lacks[name], VERDICT_ROUNDS)):
                yield from self._round(DUEL if is_in else "knobs", (DEFAULT, name))

    def _decision(self) -> Decision:
        """Return the decision that the verdicts of duels, if there were any, lead to."""
        rounds, near, others = self.rounds, self.rounds.resolution, [*self._stacks][1:]
        names = rounds.good(self._ends) if self.best == DEFAULT else [self.best]
        ends = sorted(map(self._judged, names), key=lambda each: each.verdict != OPEN)
        name, ratio, verdict = end = (*ends, Judged(DEFAULT, None, OPEN))[0]
        tried, changes = [*filter(self._ran, others)], (*self._space.threads, *self._owners)
        left, done = (
            {change.name for name in names for change in self._stacks[name]}
            for names in (others, tried)
        )
        untried = list(dict.fromkeys(each.name for each in changes if each.name in left - done))
        missing = [*untried, *(each for each in self._fixed if not self._ran(each))]
        short = [f"to try {', '.join(missing)}"] if missing else []
        if ratio:
            seconds = rounds.cost((DEFAULT, name)) * rounds.lacks(end)
            why = {
                FASTER: "Confirmed by more runs, in turns with the default.",
                EQUAL: f"The best other setting, {name}, is equal within {100 * near:g} %.",
                SLOWER: f"The best other setting, {name}, is slower.",
                OPEN: f"{name} came closest, but whether it is faster is not decided: that would "
                f"need about {duration(seconds)} more{'' if short else ' (see --budget)'}.",
            }[verdict]
        elif any(map(rounds.measured, rounds.good(tried))):
            why, short = "", ["to confirm the best", *short]
        else:
            why = f"No other setting {'that was tried works' if tried else 'was tried'}."
        if untried and verdict != FASTER:
            verdict = OPEN
        if short:
            why += f" Time was too short {' and '.join(short)} (see --budget)."
        return Decision(self.best, verdict, ratio, None, why.strip(), near)
