"""Choose which settings to measure next, and when to stop:

    threads ──> other knobs, one on top of the other ──> duel with the default ──> decision
    (a race)    (races on top of the best so far)        (fresh samples)

In a race, settings run in rounds, in an order at random; who is clearly behind leaves. Of many
thread counts, those halfway between the best and its neighbours join, round by round. Settings that
cannot win, such as upstream's, run along until they have enough rounds. All rounds help to choose
(``statistics.fit``), but only those of a duel decide: its finalists were chosen because they looked
fast in the others. A search never measures: told the same rounds and checks again, it asks for the
same next step, so a saved search can be resumed.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from hashlib import sha256
from math import log
from operator import ge

from bitnet_tuning.bench import comparison, statistics
from bitnet_tuning.bench.comparison import DEFAULT, FILES, CheckFacts, Judged, Round, Rounds
from bitnet_tuning.bench.knobs import Space
from bitnet_tuning.bench.statistics import INTERIM, LEVEL, RESOLUTION, VERDICT_ROUNDS
from bitnet_tuning.engine.builds import EQUAL, FASTER, OPEN, SLOWER
from bitnet_tuning.errors import UsageError
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.profile import Estimate
from bitnet_tuning.plan.setting import Change, apply
from bitnet_tuning.store.codec import LATER, Annotated, Positive

THREADS_SHARE, KNOBS_SHARE, SMALL_SHARE = 0.33, 0.7, 0.6
"""Shares of the races' time left that the threads get, each race of the other knobs, and any race
of one or two settings with their base."""

DUEL_SHARES, DUEL_ROUNDS = (0.15, 0.4), 28
"""What the races leave to the duel: time for so many rounds, which show a gain of 20 % where runs
vary by 15 %, but at least and at most these shares of the budget."""

LEAST, FEW = 3, 5
"""Fewest runs of a setting that is built upon or leaves, since one of two may be disturbed; and
most thread counts that all race from the beginning. Of more, those halfway between others join."""

LOST, ADOPT, HOPE = 2.0, 1.0, 0.8
"""Standard errors behind the leader at which a setting leaves a race; by which it must lead its
base to be built upon, which does little harm where it is wrong, since only the duel decides; and
that are taken off a lead: of those alike, the one measured more often meets the default first."""

FINALISTS, TOGETHER = 2, VERDICT_ROUNDS
"""Most finalists of a duel, and the rounds after which only the best of them stays."""

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


Steps = Generator["Measure | Check", None, Decision]
Choice = Generator["Measure | Check", None, str]
Trial = Generator["Measure | Check", None, Judged]


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
        self._stacks: dict[str, tuple[Change, ...]] = {DEFAULT: ()}
        """The changes that turn the default into each setting."""
        self._needless: list[str] = []
        """Thread counts on the far side of slower ones."""
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
            if len(told.runs) < len(self._pending.order) and good and self.rounds.good([DEFAULT]):
                self._pending = self._pending._replace(order=good)
            else:
                self._advance()

    def tell_check(self, name: str, problem: str | None, elapsed: float = 0.0) -> None:
        """Add the result of a check: what is wrong with a setting's output, or None; and the
        seconds spent of the budget when it ended."""
        self.rounds.add_check(name, problem, elapsed)
        if isinstance(self._pending, Check) and self._pending.name == name:
            self._advance()

    def replay(self, rounds: Iterable[Round], checks: Iterable[CheckFacts]) -> None:
        """Repeat in order what an earlier search was told. Raise UsageError if this search would
        have asked for other rounds."""
        left = list(checks)
        for told in (*rounds, None):
            while left and (told is None or left[0].after_round < told.number):
                check = left.pop(0)
                self.tell_check(check.setting, check.problem, check.elapsed)
            if told is None:
                return
            ran = tuple(run.setting for run in told.runs)
            if not isinstance(self._pending, Measure) or self._pending.order[: len(ran)] != ran:
                raise UsageError(
                    "that tuning cannot be resumed: another version of the search began it",
                    "tune without --resume",
                )
            self.tell(told)

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
        counts = self._variants(DEFAULT, self._space.threads)
        share = THREADS_SHARE if self._space.knobs else 1.0
        self.best = yield from self._race("threads", DEFAULT, counts, share)
        self.best = yield from self._knobs(self.best, counts)
        decision = yield from self._final()
        while due := [name for name in self.rounds.good(self._fixed) if self._is_due(name)]:
            if not self.rounds.affords((DEFAULT, *due)):
                break
            yield Measure("fixed", self._order((DEFAULT, *due)))
        return decision

    def _is_due(self, name: str) -> bool:
        _, ratio, verdict = self.rounds.judge(name, level=INTERIM)
        count = ratio.count if ratio else 0
        most = VERDICT_ROUNDS * (1 if name == comparison.PERFORMANCE else 4)
        return count < VERDICT_ROUNDS or (verdict == OPEN and count < most)

    def _knobs(self, base: str, counts: Sequence[str]) -> Choice:
        """Try every other knob on top of ``base``, then on top of the best of them those that
        helped, too, and so on. Return the best."""
        owner = {change: knob.name for knob in self._space.knobs for change in knob.changes}
        changes, others = list(owner), list[str]()
        interacting = [change for change in changes if owner[change] in INTERACTING]
        planned = [base, *(each.name for each in (*changes, *interacting))]
        if self.rounds.affords(planned, self._races_end(), 2 * VERDICT_ROUNDS):
            second = [name for name in self._ranked([DEFAULT, *counts]) if name != base][:1]
            others = [new for name in second for new in self._variants(name, interacting)]
        while names := [*self._variants(base, changes), *others]:
            best = yield from self._race("knobs", base, names, KNOBS_SHARE)
            if best == base:
                break
            helped = [n for n in self._ranked(names) if self.rounds.fit().gap(n, base) > 0]
            changes = [self._stacks[name][-1] for name in helped]
            changes = [c for c in changes if owner[c] != owner[self._stacks[best][-1]]]
            base, others = best, []
        return base

    def _race(self, stage: str, base: str, names: Sequence[str], share: float) -> Choice:
        """Run a base and others in rounds, in that share of the races' time. Return the best whose
        output is right: the base, unless another one leads it."""
        rounds, start, aside = self.rounds, self.rounds.spent, 0.0
        line = sorted([base, *names], key=lambda name: self.settings[name][:2])
        is_line = stage == "threads" and len(names) > FEW
        names = self._halfway(line, [base], [base]) if is_line else names
        field = [base, *names]
        # A small race costs little, and its losers are shown with a verdict.
        is_small = len(names) < LEAST and not is_line
        few, share = (VERDICT_ROUNDS, SMALL_SHARE) if is_small else (0, share)
        while len(field) > 1:
            whole = share * (self._races_end() - start)
            end = start + aside + whole + rounds.cost(self._with_fixed(field)[len(field) :])
            # The first round does not tell how little time the next ones take.
            end, ahead = (end, LEAST) if len(rounds) > 1 else (rounds.budget, 1)
            while len(field) > 2 and not self._ran(field[-1]):
                if rounds.affords(field, end, ahead):
                    break
                field.pop()
            order = self._order(field)
            if len(rounds) and not rounds.affords(order, end):
                break
            yield Measure(stage, order)
            if len(rounds) == 1:  # what came before it was preparation
                start = rounds.spent - rounds.cost(order)
            aside += rounds.cost([name for name in order if name in self._fixed])
            ranked = self._ranked(field)
            failed = [name for name in rounds.good(field) if name not in ranked]
            stays = {n for n in ranked if rounds.measured(n) < few or not self._lost(n, ranked[0])}
            field = [name for name in ranked if name in stays] + failed
            new = self._halfway(line, [base, *names], ranked) if is_line else []
            names, field = [*names, *new], [*field, *new]
            if is_line:
                self._needless = [] if new else [name for name in line if name not in names]
            if not (failed or new) and all(self._near(ranked[0], name, 2.0) for name in field):
                break
        # To be built upon, a setting leads by its error and by half the resolution.
        while leaders := [
            name
            for name in self._ranked(names)
            if self._errors(name, base) > ADOPT and not self._near(name, base)
        ]:
            best = self._simplest(leaders)
            if stage != "threads" or not self._space.knobs:
                yield from self._checked(best)
            if rounds.problem(best) is None:
                return best
        return base

    def _halfway(
        self, line: Sequence[str], tried: Sequence[str], ranked: Sequence[str]
    ) -> list[str]:
        """Return those in the line halfway between the leader and the next ones that were tried,
        or the ends; if there are none, the same for the second, and so on."""
        places = [line.index(name) for name in tried]
        for at in (line.index(name) for name in ranked if not self._lost(name, ranked[0])):
            below = max((place for place in places if place < at), default=-1)
            above = min((place for place in places if place > at), default=len(line))
            if found := {(below + at) // 2, (at + above + 1) // 2} - {below, at, above}:
                return [line[place] for place in sorted(found)]
        return []

    def _races_end(self) -> float:
        """Return the seconds of the budget after which no race goes on."""
        least, most = (share * self.rounds.budget for share in DUEL_SHARES)
        wanted = DUEL_ROUNDS * self.rounds.cost((DEFAULT, self.best))
        return self.rounds.budget - min(most, max(least, wanted))

    def _ran(self, name: str) -> bool:
        return bool(self.rounds.measured(name) or self.rounds.failures(name))

    def _ranked(self, names: Iterable[str]) -> list[str]:
        """Return the settings that ran and are not out, the fastest first."""
        means = self.rounds.fit().means
        return sorted((n for n in self.rounds.good(names) if n in means), key=lambda n: -means[n])

    def _lost(self, name: str, leader: str) -> bool:
        """Return whether a setting is clearly behind, and not by one disturbed run."""
        return self._errors(leader, name, 1) > LOST

    def _errors(self, name: str, other: str, least: int = LEAST) -> float:
        """Return by how many standard errors a setting leads another that ran ``LEAST`` times; 0
        if it ran less often than ``least`` times."""
        found = self.rounds.fit()
        runs = (found.counts.get(each, 0) for each in (name, other))
        known = name != other and all(map(ge, runs, (least, LEAST)))
        return found.gap(name, other) / found.error(name, other) if known else 0.0

    def _near(self, leader: str, name: str, errors: float = 0.0) -> bool:
        """Return whether a setting is less than half the resolution behind the leader, even if that
        many standard errors are added."""
        found, half = self.rounds.fit(), log(1 + self.rounds.resolution) / 2
        if name == leader or name not in found.means:
            return name == leader
        return found.gap(leader, name) + (errors and errors * found.error(leader, name)) < half

    def _simplest(self, ranked: Sequence[str]) -> str:
        """Return the one with fewest threads, then changes, of those as fast as the first."""
        alike = [(self.settings[name], name) for name in ranked if self._near(ranked[0], name)]
        return min(alike, key=lambda each: (*each[0][:2], len(self._stacks[each[1]])))[1]

    def _with_fixed(self, names: Sequence[str]) -> list[str]:
        """Return the names with the fixed settings that need more rounds, if the default runs."""
        fixed = [each for each in self.rounds.good(self._fixed) if DEFAULT in names]
        few = {name for name in fixed if self.rounds.measured(name) < VERDICT_ROUNDS}
        due = [name for name in fixed if name in few or (name in FILES and self._is_due(name))]
        return list(dict.fromkeys((*names, *due)))

    def _order(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the names with those of fixed settings that need more rounds, in an order at
        random, so that no place is anybody's own; always the same for the same round, so that a
        search can be resumed."""
        seed, names = len(self.rounds), self._with_fixed(names)
        return tuple(sorted(names, key=lambda name: sha256(f"{seed} {name}".encode()).digest()))

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

    def _checked(self, name: str) -> Generator[Check, None, None]:
        if not self.rounds.is_checked(name):
            yield Check(name)

    def _final(self) -> Steps:
        """Let the most promising settings meet the default with fresh samples, then the next ones,
        as long as none is faster."""
        rounds, met, ends = self.rounds, list[str](), list[Judged]()
        while names := [name for name in self._promising() if name not in met]:
            if not rounds.affords((DEFAULT, names[0]), ahead=VERDICT_ROUNDS):
                break
            # What the best is built on comes along, so that the duel shows whether more helps.
            base = [n for n in names if self._stacks[n] == self._stacks[names[0]][:-1]]
            names = list(dict.fromkeys((names[0], *base, *names)))[:FINALISTS]
            met += names
            # Every further setting gives chance another chance. All share the default's runs, so
            # half of Bonferroni's correction keeps false winners below 5 % (tuner_trials.py).
            level = 1 - (1 - LEVEL) / (1 + (len(met) - 1) / 2)
            yield from self._checked(names[0])
            judged = yield from self._duel(rounds.good(names), level)
            if judged.verdict == FASTER:
                yield from self._checked(judged.name)
            if rounds.problem(judged.name) is None and judged.ratio:
                ends.append(judged)
            if ends and ends[-1].verdict == FASTER:
                return self._decision(ends[-1])
        return self._decision(*sorted(ends, key=lambda each: each.verdict != OPEN)[:1])

    def _promising(self) -> list[str]:
        """Return the settings that may be faster than the default, the most promising first; at
        least the best of all others, so that what is said of the default is decided."""
        found, near = self.rounds.fit(), log(1 + self.rounds.resolution)
        names = self._ranked(n for n in self._stacks if n != DEFAULT in found.means)
        gaps = {name: (found.gap(name, DEFAULT), found.error(name, DEFAULT)) for name in names}
        names.sort(key=lambda name: gaps[name][0] - HOPE * gaps[name][1], reverse=True)
        return [n for n in names if gaps[n][0] + 2 * gaps[n][1] > near] or names[:1]

    def _duel(self, names: list[str], level: float) -> Trial:
        """Run finalists against the default until the best is decided, time is up or, unless all
        others are worse still, it is in vain. Return the verdict on the best, which is faster only
        at that level."""
        rounds, since, best = self.rounds, len(self.rounds), (*names, DEFAULT)[0]
        if not rounds.affords(self._with_fixed((DEFAULT, *names)), ahead=VERDICT_ROUNDS):
            names = names[:1]
        others = len(self._promising()) > len(names)
        while names and rounds.affords(order := self._order((DEFAULT, *names))):
            yield Measure(comparison.DUEL, order)
            names = self._ranked(names)
            best = self._simplest(names) if names else best
            judged, ran = rounds.judge(best, since=since, level=INTERIM), len(rounds) - since
            if judged.verdict != OPEN or (
                others and ran >= TOGETHER and self._is_vain(best, since)
            ):
                break
            names = [best][: len(names)] if ran >= TOGETHER else names
        judged, strict = (rounds.judge(best, since=since, level=each) for each in (LEVEL, level))
        return strict if judged.verdict == FASTER != strict.verdict else judged

    def _is_vain(self, name: str, since: int) -> bool:
        """Return whether a duel already shows, at a level of 80 %, that a setting hardly gains."""
        ratio = self.rounds.judge(name, since=since, level=0.8).ratio
        return ratio is not None and ratio.high < 1 + self.rounds.resolution

    def _decision(self, judged: Judged | None = None) -> Decision:
        """Return the decision that a verdict, of a duel if there was one, leads to."""
        name, ratio, verdict = judged or Judged(DEFAULT, None, OPEN)
        near, untried = self.rounds.resolution, ", ".join(self._untried())
        self.best = name if verdict == FASTER else DEFAULT
        if ratio is None:
            tried = any(self._stacks[each] for each in self._ranked(self._stacks))
            short = "Time was too short for a duel (see --budget)."
            why = short if tried else "No other setting was tried."
        else:
            seconds = self.rounds.cost((DEFAULT, name)) * statistics.more_rounds(ratio, near)
            why = {
                FASTER: f"{name} beat the default in a duel, with fresh samples.",
                EQUAL: f"The best other setting, {name}, is equal within {100 * near:g} %.",
                SLOWER: f"The best other setting, {name}, is slower.",
                OPEN: f"{name} came closest, but whether it is faster is not decided: that would "
                f"need about {seconds:.0f} s more (see --budget).",
            }[verdict]
        if untried:
            why += f" Time was too short to try {untried} (see --budget)."
            verdict = verdict if verdict == FASTER else OPEN
        return Decision(self.best, verdict, ratio, None, why, near)

    def _untried(self) -> list[str]:
        """Return the names of changes that no setting has that ran or is out."""
        ran = [name for name in self._stacks if self._ran(name)]
        tried = {change.name for name in ran for change in self._stacks[name]} | {*self._needless}
        changes = [*self._space.threads, *(c for knob in self._space.knobs for c in knob.changes)]
        new = [c for c in changes if apply(c, self._space.default) != self._space.default]
        return list(dict.fromkeys(change.name for change in new if change.name not in tried))
