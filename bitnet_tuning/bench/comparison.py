"""Compare settings that are measured in rounds: keep the rounds and derive ratios and verdicts.

The tuner's search, ``--builds``, test_optimizations.py and benchmarks/ all judge by ``Rounds``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from math import fsum, inf
from statistics import fmean, geometric_mean, median

from bitnet_tuning.bench import statistics
from bitnet_tuning.bench.statistics import INTERIM
from bitnet_tuning.engine.builds import FASTER, OPEN
from bitnet_tuning.launch.failure import NO_END
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.profile import PP, TG, Estimate, Objective, Phase
from bitnet_tuning.plan.setting import Tokens
from bitnet_tuning.store.codec import LARGEST, LATER, Annotated, Count, DamagedError, Positive

DEFAULT, UPSTREAM, PERFORMANCE = "default", "upstream", "performance"
SLIM_FILE, ORIGINAL_FILE = FILES = "slim file", "original file"
FIXED = (DEFAULT, UPSTREAM, PERFORMANCE, *FILES)
"""Names of the settings that no search chose: the plan's, that of bitnet.cpp's own script,
performance mode, and the default with the model's slim copy, or with the original if that is the
copy. All their rounds count as evidence."""

DUEL = "duel"
"""Name of the stage whose rounds alone judge settings that a search chose."""

FAILURES = 2
"""Number of failed runs after which a setting is out: one alone may be the machine's fault."""

BOTH_EVERY, FIRST_BOTH = 8, 3
"""Rounds from one measurement of both phases to the next, and the first one of a search. The others
measure only the phase that is tuned, so that the other one gets an interval at little cost."""

MOST_ROUNDS = 200
"""Most rounds of a comparison without a search: more would hardly narrow its intervals."""

MOST_GAIN = 10.0
"""Largest ratio to the default that is believed without a duel. Settings of the same work differ
by a factor of 5 at most, as far as is known."""

Seconds = Annotated[float, {"minimum": 0, "maximum": LARGEST}]

PhaseSpeeds = Annotated[tuple[Positive, ...], {"minItems": 1}]


class Run(NamedTuple):
    """One measurement of one setting: a process, or slices of a server's time."""

    setting: str
    samples: Mapping[Phase, PhaseSpeeds]
    """Every sample in tokens/s, by phase; empty if the run failed."""
    seconds: Seconds
    """Wall time in seconds, including that of loading the model if it was loaded for this run."""
    problem: str | None = None
    """Why the run failed; None if it went well."""
    cpu: Annotated[Positive | None, LATER] = None
    """CPU seconds of all threads per generated token; None if unknown."""

    def validate(self) -> None:
        """Raise DamagedError unless the run has either samples or a problem."""
        if bool(self.samples) != (self.problem is None):
            raise DamagedError("a run has samples or a problem, and only one of the two")

    def value(self, objective: Objective) -> float | None:
        """Return the speed in tokens/s, of a ``request`` in requests/s; None if not measured."""
        speeds = {phase: median(found) for phase, found in self.samples.items() if found}
        if not all(phase in speeds for phase in objective.phases):
            return None
        if objective.name != "request":
            return speeds[objective.name]
        return 1 / (objective.n_prompt / speeds[PP] + objective.n_gen / speeds[TG])


class Round(NamedTuple):
    """Runs close in time, so that a disturbance affects all and cancels out in their ratios."""

    number: int
    stage: str
    """``threads``, ``knobs``, ``duel`` or ``fixed`` (only settings that cannot win)."""
    runs: tuple[Run, ...]
    """The runs in their order; in files of older versions, the default may run twice."""
    elapsed: Seconds
    """Seconds of the budget spent when the round ended."""


class Sizes(NamedTuple):
    """Tokens and samples that every run of a benchmark measures."""

    n_prompt: Tokens
    n_gen: Tokens
    repetitions: Annotated[int, {"minimum": 1, "maximum": 100}]
    """Number of samples of each phase that one process takes."""


class CheckFacts(NamedTuple):
    """The result of a check of a setting's output."""

    setting: str
    problem: str | None
    """What is wrong with the output; None if it is right."""
    after_round: Count
    """Number of the last round before the check; 0 for none."""
    elapsed: Annotated[Seconds, LATER] = 0.0
    """Seconds of the budget spent when the check ended; 0 if unknown."""


class Judged(NamedTuple):
    """The verdict on one setting."""

    name: str
    ratio: Estimate | None
    """Its speed over the reference's; None without a round that has both."""
    verdict: str
    """``faster``, ``slower``, ``equal`` or ``not decided``."""


class Rounds:
    """The rounds and output checks of one benchmark, running or saved, and all figures of them."""

    def __init__(
        self,
        objective: Objective,
        rounds: Iterable[Round] = (),
        checks: Iterable[CheckFacts] = (),
        *,
        reference: str = DEFAULT,
        budget: float = inf,
        resolution: float = statistics.RESOLUTION,
    ) -> None:
        """``budget`` is in seconds. The last round's ``elapsed`` is what is spent of it. Speeds
        that differ by at most the share ``resolution`` count as equal."""
        self.objective = objective
        self.reference = reference
        self.budget = budget
        self.resolution = resolution
        self._rounds: list[Round] = []
        self.checks = list(checks)
        self._runs: dict[str, list[Run]] = defaultdict(list)
        for each in rounds:
            self.add(each)

    def __iter__(self) -> Iterator[Round]:
        return iter(self._rounds)

    def __len__(self) -> int:
        return len(self._rounds)

    def add(self, told: Round) -> None:
        self._rounds.append(told)
        for run in told.runs:
            self._runs[run.setting].append(run)

    def wrong(self, name: str) -> str | None:
        """Return what is wrong with the setting's output; None if nothing is known."""
        found = (check.problem for check in reversed(self.checks) if check.setting == name)
        return next(filter(None, found), None)

    def failures(self, name: str) -> list[str]:
        return [run.problem for run in self._runs[name] if run.problem is not None]

    def problem(self, name: str) -> str | None:
        """Return why a setting is out, because of its output or failed runs; None if it is in."""
        failures = self.failures(name)
        # One hang is enough: each costs minutes.
        hangs = [each for each in failures if each.startswith(NO_END)]
        is_out = hangs or len(failures) >= FAILURES
        return self.wrong(name) or ((hangs or failures)[-1] if is_out else None)

    def good(self, names: Iterable[str]) -> list[str]:
        """Return the names of the settings that are not out."""
        return [name for name in names if self.problem(name) is None]

    def measured(self, name: str) -> int:
        """Return the number of runs that measured the objective."""
        return sum(1 for run in self._runs[name] if run.value(self.objective))

    def count(self, name: str) -> int:
        """Return the number of rounds in which a run of the setting went well."""
        return sum(1 for each in self._rounds if _ran(each, name))

    def speeds(self, name: str, phase: str) -> list[float]:
        """Return a speed in tokens/s for each run, the median: its samples are not independent."""
        found = (run.samples.get(phase) for run in self._runs[name])
        return [median(samples) for samples in found if samples]

    def relative(
        self, goal: str, ratios: Mapping[str, Estimate | None] | None = None
    ) -> dict[str, Estimate]:
        """Return settings' speeds for a goal, of ``OBJECTIVES``, as the reference's times their
        ``ratios``, by default those of ``linked``: so speeds that stand side by side agree with
        their ratios, however the machine's speed drifts. The reference's is over all its runs."""
        other = Rounds(self.objective._replace(name=goal), self, reference=self.reference)
        values = {
            name: [speed for run in runs if (speed := run.value(other.objective))]
            for name, runs in self._runs.items()
        }
        if not values.get(self.reference):
            return {name: statistics.estimate(each) for name, each in values.items() if each}
        base = statistics.estimate(values[self.reference])
        found = {name: ratios[name] if ratios else other.linked(name) for name in values}
        scaled = {n: statistics.scaled(each, base.median) for n, each in found.items() if each}
        return {**scaled, self.reference: base}

    def linked(self, name: str, seen: frozenset[str] = frozenset()) -> Estimate | None:
        """Return the ratio to the reference, of common rounds or else by way of another setting
        that ran in the rounds of both; None without such rounds. ``seen`` are not the way."""
        if (direct := self.shown(name).ratio or self.judge(name).ratio) is not None:
            return direct
        seen |= {name}
        rounds = (each.runs for each in self._rounds if _ran(each, name))
        near = Counter(run.setting for runs in rounds for run in runs if run.setting not in seen)
        for other, _ in near.most_common():
            found = self.judge(name, other).ratio
            if found and (base := self.linked(other, seen)):
                inverse = statistics.quotient(Estimate(1, 1, 1, base.count), base)
                return statistics.quotient(found, inverse)
        return None

    def cpu(self, name: str) -> float | None:
        """Return the median of CPU seconds per generated token; None if no run has them."""
        found = [run.cpu for run in self._runs[name] if run.cpu is not None]
        return median(found) if found else None

    def ratios(
        self, name: str, reference: str | None = None, stage: str | None = None
    ) -> list[float]:
        """Return the setting's speed over the reference's for each round, of that stage or of all,
        that has both. Of several runs in one round, the geometric mean counts."""
        names, goal = (name, reference or self.reference), self.objective
        pairs = (
            [
                [speed for run in each.runs if run.setting == which and (speed := run.value(goal))]
                for which in names
            ]
            for each in self._rounds
            if stage in (None, each.stage)
        )
        means = (tuple(map(geometric_mean, pair)) for pair in pairs if all(pair))
        return [ours / theirs for ours, theirs in means]

    def judge(
        self,
        name: str,
        reference: str | None = None,
        level: float = statistics.LEVEL,
        stage: str | None = None,
    ) -> Judged:
        """Return the ratio (see ``ratios``), with an interval of that level, and the verdict."""
        ratios = self.ratios(name, reference, stage)
        if not ratios:
            return Judged(name, None, OPEN)
        found = statistics.estimate(ratios, level)
        return Judged(name, found, statistics.verdict(found, self.resolution, level))

    def phases(self, name: str) -> tuple[str, ...]:
        """Return the phases to measure in a setting's next run of a search. One that the search
        chose and that lost every round so far never has its other phase measured."""
        ratio, number = self.judge(name).ratio, len(self) + 2 - FIRST_BOTH
        has_lost = name not in FIXED and ratio is not None and ratio.high < 1
        return self.objective.phases if has_lost else phases_of(number, self.objective)

    def in_duel(self, name: str) -> bool:
        return any(each.stage == DUEL and _ran(each, name) for each in self._rounds)

    def doubts(self, name: str) -> bool:
        """Return whether a setting that was in no duel leads by more than can be believed."""
        ratio = self.shown(name).ratio
        return bool(ratio and ratio.median > MOST_GAIN and not self.in_duel(name))

    def shown(self, name: str) -> Judged:
        """Return the verdict on a setting for users. Only the rounds of duels count for one that
        entered a duel, since it was chosen because it looked fast in the others."""
        chosen = name not in FIXED and self.in_duel(name)
        return self.judge(name, stage=DUEL if chosen else None)

    def lacks(self, judged: Judged) -> int:
        """Return about how many more rounds a setting needs for a verdict; 0 if that is one."""
        name, ratio, verdict = judged
        if ratio and verdict == OPEN:
            return statistics.more_rounds(ratio, self.resolution)
        # The best of many is often just lucky, so only the fresh samples of a duel decide.
        is_chance = verdict == FASTER and name not in FIXED and not self.in_duel(name)
        return statistics.VERDICT_ROUNDS if ratio is None or is_chance else 0

    @property
    def spent(self) -> float:
        """Seconds spent of the budget."""
        measured = self._rounds[-1].elapsed if self._rounds else 0.0
        return max(measured, self.checks[-1].elapsed if self.checks else 0.0)

    def cost(self, order: Sequence[str], rounds: int = 1) -> float:
        """Return the seconds that so many rounds in this order probably take; 0 before the first
        run. A first run often loads the model, unless it is the reference's, which is loaded before
        all others; and one of both phases is rare. So these tell nothing of later ones."""
        firsts, usual = list[float](), dict[str, float]()
        for name, runs in self._runs.items():
            later = runs if name == self.reference else runs[1:]
            firsts += [runs[0].seconds] if runs and later is not runs else []
            most = len(self.objective.phases)
            if few := [each for each in later if len(each.samples) <= most] or later:
                usual[name] = fmean(each.seconds for each in few)
        known = median(usual.values() or firsts or [0.0])
        new = [name for name in order if not self._runs.get(name)]
        loading = median(firsts or [known]) - known
        took = rounds * fsum(usual.get(name, known) for name in order) + len(new) * loading
        return took * max(1.0, self._between)

    @property
    def _between(self) -> float:
        """Seconds that a round takes for each second of its runs, without preparation."""
        pairs = zip(self._rounds, self._rounds[1:], strict=False)
        found = [
            (after.elapsed - before.elapsed) / seconds
            for before, after in pairs
            if (seconds := fsum(run.seconds for run in after.runs))
        ]
        return median(found) if found else 1.0

    def affords(self, order: Sequence[str], until: float = inf, ahead: int = 1) -> bool:
        """Return whether so many rounds probably end within ``until`` seconds of the budget."""
        return self.spent + self.cost(order, ahead) <= min(until, self.budget)


def _ran(each: Round, name: str) -> bool:
    return any(run.setting == name and run.problem is None for run in each.runs)


def phases_of(number: int, objective: Objective) -> tuple[str, ...]:
    """Return the phases to measure in the round with that number, which counts from 1."""
    return (PP, TG) if number % BOTH_EVERY == 1 else objective.phases


def compare(
    names: Sequence[str],
    measure: Callable[[str, int], Run],
    objective: Objective,
    seconds: float,
    clock: Callable[[], float],
    *,
    most: int | None = None,
    resolution: float = statistics.RESOLUTION,
) -> Rounds:
    """Measure settings in rounds; the first is the reference. Stop after about ``seconds``, after
    ``most`` rounds (by default ``MOST_ROUNDS``), or early in clear cases (``statistics.INTERIM``).
    ``measure`` gets a name and the round's number. Too few for a verdict are cut to one."""
    rounds = Rounds(objective, reference=names[0], resolution=resolution)
    began = clock()
    for number in range(1, (most or MOST_ROUNDS) + 1):
        good = rounds.good(names)
        if names[0] not in good or len(good) < 2:
            break
        wanted = max(1, 1 + statistics.VERDICT_ROUNDS - number)
        if number > 1 and not rounds.affords(good, seconds, wanted):
            break
        if all(rounds.judge(each, level=INTERIM).verdict != OPEN for each in good[1:]):
            break
        runs = tuple(measure(name, number) for name in turns(good, number))
        rounds.add(Round(number, "compare", runs, clock() - began))
    return rounds


def turns(names: Iterable[str], number: int) -> tuple[str, ...]:
    """Return the order in which the round with that number runs the settings: at random, so that no
    place is anybody's own, and always the same, so that a search can be resumed."""
    return tuple(sorted({*names}, key=lambda name: sha256(f"{number} {name}".encode()).digest()))
