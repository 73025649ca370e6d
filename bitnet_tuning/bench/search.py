"""Choose which settings to measure next, and when to stop:

    threads ──> other knobs, one on top of the other ──> duel with the default ──> decision
    (a race)    (races on top of the best so far)        (fresh samples)

In a race, settings run in rounds; who is behind leaves, and the field is halved as time passes.
Settings that cannot win, such as upstream's, run along until they have enough rounds. All rounds
help to choose (``statistics.fit``), but only those of a duel decide: its finalists were chosen
because they looked fast in the others. A search never measures: told the same rounds and checks
again, it asks for the same next step, so a saved search can be resumed.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from math import ceil, log, log2, sqrt

from bitnet_tuning.bench import comparison, statistics
from bitnet_tuning.bench.comparison import DEFAULT, CheckFacts, Judged, Round, Rounds
from bitnet_tuning.bench.knobs import Space
from bitnet_tuning.bench.statistics import INTERIM, LEVEL, RESOLUTION, VERDICT_ROUNDS
from bitnet_tuning.engine.builds import EQUAL, FASTER, OPEN, SLOWER
from bitnet_tuning.errors import UsageError
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.profile import Estimate
from bitnet_tuning.plan.setting import Change, apply
from bitnet_tuning.store.codec import LATER, Annotated, Positive

THREADS_SHARE, KNOBS_SHARE = 0.33, 0.7
"""Shares of the races' time left that the threads get, and each race of the other knobs."""

DUEL_SHARES, DUEL_ROUNDS = (0.25, 0.5), 24
"""What the races leave to the duel: time for so many rounds, which show a gain of 20 % where runs
vary by 15 %, but at least and at most these shares of the budget."""

LOST, DROPPED, ADOPT, HOPE = 2.5, 1.0, 1.0, 0.8
"""Standard errors behind the leader at which a setting leaves a race, and a duel, which needs its
time for one; by which it must lead its base to be built upon, which does little harm where it is
wrong, since only the duel decides; and that are added to a lead that may still win a duel."""

FINALISTS, TOGETHER = 2, 8
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
Trial = Generator["Measure | Check", None, "Judged | None"]


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

    def tell_check(self, name: str, problem: str | None) -> None:
        """Add the result of a check: what is wrong with a setting's output, or None."""
        self.rounds.add_check(name, problem)
        if isinstance(self._pending, Check) and self._pending.name == name:
            self._advance()

    def replay(self, rounds: Iterable[Round], checks: Iterable[CheckFacts]) -> None:
        """Repeat in order what an earlier search was told. Raise UsageError if this search would
        have asked for other rounds."""
        left = list(checks)
        for told in (*rounds, None):
            while left and (told is None or left[0].after_round < told.number):
                self.tell_check(left[0].setting, left.pop(0).problem)
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
            yield Measure("fixed", self._turned((DEFAULT, *due)))
        return decision

    def _is_due(self, name: str) -> bool:
        _, ratio, verdict = self.rounds.judge(name)
        count = ratio.count if ratio else 0
        most = VERDICT_ROUNDS * (1 if name == comparison.PERFORMANCE else 4)
        return count < VERDICT_ROUNDS or (verdict == OPEN and count < most)

    def _knobs(self, base: str, counts: Sequence[str]) -> Choice:
        """Try every other knob on top of ``base``, then on top of the best of them those that
        helped, too, and so on. Return the best."""
        owner = {change: knob.name for knob in self._space.knobs for change in knob.changes}
        changes, others = list(owner), list[str]()
        for second in [name for name in self._ranked([DEFAULT, *counts]) if name != base][:1]:
            others = self._variants(second, [c for c in changes if owner[c] in INTERACTING])
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
        field = [base, *names]
        while len(field) > 1:
            whole = share * (self._races_end() - start)
            end = start + aside + whole + rounds.cost(self._with_fixed(field)[len(field) :])
            while len(field) > 2 and not rounds.affords(self._with_fixed(field), end):
                field.pop()
            order = self._turned(self._with_fixed(field))
            if len(rounds) and not rounds.affords(order, end):
                break
            yield Measure(stage, order)
            aside += rounds.cost([name for name in order if name in self._fixed])
            passed = min(1.0, max(0.0, rounds.spent - start - aside) / max(1e-9, whole))
            keep = ceil((1 + len(names)) / 2 ** int(passed * log2(1 + len(names))))
            ranked = self._ranked(field)
            failed = [name for name in rounds.good(field) if name not in ranked]
            field = [n for n in ranked[:keep] if not self._lost(n, ranked[0])] + failed
            if not failed and all(self._near(ranked[0], name, 2.0) for name in field):
                break
        # To be built upon, a setting leads by its error and by half the resolution.
        while leaders := [
            name
            for name in self._ranked(names)
            if self._errors(name, base) > ADOPT and not self._near(name, base)
        ]:
            best = self._simplest(leaders)
            yield from self._checked(best)
            if rounds.problem(best) is None:
                return best
        return base

    def _races_end(self) -> float:
        """Return the seconds of the budget after which no race goes on."""
        least, most = (share * self.rounds.budget for share in DUEL_SHARES)
        wanted = DUEL_ROUNDS * self.rounds.cost((DEFAULT, self.best))
        return self.rounds.budget - min(most, max(least, wanted))

    def _ranked(self, names: Iterable[str]) -> list[str]:
        """Return the settings that ran and are not out, the fastest first."""
        found = self.rounds.fit()
        ran = [name for name in self.rounds.good(names) if name in found.means]
        return sorted(ran, key=found.score, reverse=True)

    def _lost(self, name: str, leader: str) -> bool:
        """Return whether a setting is clearly behind, and not by one disturbed run."""
        found = self.rounds.fit()
        behind = found.means[leader] - found.score(name)
        return found.counts[name] > 1 and behind > LOST * found.error(leader, name)

    def _errors(self, name: str, other: str) -> float:
        """Return by how many standard errors a setting leads another."""
        found = self.rounds.fit()
        known = name != other and {name, other} <= found.means.keys()
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
        fixed = self.rounds.good(self._fixed) if DEFAULT in names else []
        return [*names, *(each for each in fixed if self.rounds.measured(each) < VERDICT_ROUNDS)]

    def _turned(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return an order that changes from round to round, so that no place is anybody's own."""
        turn = len(self.rounds) // 2 % len(names)
        order = (*names[turn:], *names[:turn])
        return order[::-1] if len(self.rounds) % 2 else order

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
        met: list[str] = []
        ends: list[Judged] = []
        while names := [name for name in self._promising() if name not in met]:
            # What the best is built on comes along, so that the duel shows whether more helps.
            base = [n for n in names if self._stacks[n] == self._stacks[names[0]][:-1]]
            names = list(dict.fromkeys((names[0], *base, *names)))[:FINALISTS]
            met += names
            for name in names:
                yield from self._checked(name)
            # Every further setting gives chance another chance. All share the default's runs, so
            # half of Bonferroni's correction keeps false winners below 5 % (tuner_trials.py).
            level = 1 - (1 - LEVEL) / (1 + (len(met) - 1) / 2)
            is_last = all(name in met for name in self._promising())
            judged = yield from self._duel(self.rounds.good(names), level, is_last)
            ends += [judged] if judged else []
            if judged and judged.verdict == FASTER:
                return self._decision(judged)
        return self._decision(*sorted(ends, key=lambda each: each.verdict != OPEN)[:1])

    def _promising(self) -> list[str]:
        """Return the settings that may be faster than the default, the most promising first; at
        least the best of all others, so that what is said of the default is decided."""
        found, near = self.rounds.fit(), log(1 + self.rounds.resolution)
        names = self._ranked(n for n in self._stacks if n != DEFAULT in found.means)
        gaps = {name: (found.gap(name, DEFAULT), found.error(name, DEFAULT)) for name in names}
        names.sort(key=lambda name: gaps[name][0] - HOPE * gaps[name][1], reverse=True)
        return [n for n in names if gaps[n][0] + 2 * gaps[n][1] > near] or names[:1]

    def _duel(self, names: list[str], level: float, is_last: bool) -> Trial:
        """Run finalists against the default until the best is decided, time is up or, unless they
        are the last ones, none can win. Return the verdict on the best, which is faster only at
        that level; None without a round."""
        rounds, since, best = self.rounds, len(self.rounds), ""
        left = (rounds.budget - rounds.spent) / VERDICT_ROUNDS
        while len(names) > 1 and rounds.cost(self._with_fixed((DEFAULT, *names))) > left:
            names = names[:-1]
        names = names if names and rounds.cost((DEFAULT, *names)) <= left else []
        while names:
            order = self._turned(self._with_fixed((DEFAULT, *names)))
            if not rounds.affords(order):
                break
            yield Measure(comparison.DUEL, order)
            names = self._ranked(names)
            best = self._simplest(names) if names else best
            if rounds.judge(best, since=since, level=INTERIM).verdict != OPEN:
                break
            if len(rounds) - since >= TOGETHER:
                names = [best][: len(names)]
            top = names[0] if names else ""
            names = [n for n in names if self._near(top, n) or self._errors(n, top) > -DROPPED]
            names = [name for name in names if is_last or self._may_win(name, since)]
        if not best or rounds.problem(best) is not None:
            return None
        judged, strict = (rounds.judge(best, since=since, level=each) for each in (LEVEL, level))
        return strict if judged.verdict == FASTER != strict.verdict else judged

    def _may_win(self, name: str, since: int) -> bool:
        """Return whether a duel in the time left may show that the setting is faster."""
        rounds, found = self.rounds, self.rounds.fit()
        count = len(rounds.ratios(name, since=since))
        left = (rounds.budget - rounds.spent) / rounds.cost((DEFAULT, name))
        # An interval of 95 % reaches to 1.96 standard errors, s sqrt(2 / n) for n pairs.
        shown = 1.96 * found.spread * sqrt(2 / max(1.0, count + left))
        hoped = found.gap(name, DEFAULT) + HOPE * found.error(name, DEFAULT)
        return count < VERDICT_ROUNDS or hoped > shown

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
        ran = [n for n in self._stacks if self.rounds.measured(n) or self.rounds.problem(n)]
        tried = {change.name for name in ran for change in self._stacks[name]}
        changes = [*self._space.threads, *(c for knob in self._space.knobs for c in knob.changes)]
        new = [c for c in changes if apply(c, self._space.default) != self._space.default]
        return list(dict.fromkeys(change.name for change in new if change.name not in tried))
