"""What a search is given, and what it asks for; pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import fsum, log, sqrt
from statistics import median
from typing import TypeVar

from bitnet_tuning.bench import statistics
from bitnet_tuning.bench.samples import Round, value
from bitnet_tuning.launch.death import NO_END
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.profile import Estimate, Objective
from bitnet_tuning.plan.setting import Change, Setting
from bitnet_tuning.store.codec import Annotated, Via

DEFAULT, UPSTREAM, PERFORMANCE = "default", "upstream", "performance"
"""Names of settings: what our plan computes, what bitnet.cpp's own script does, and
performance mode."""

MODES = ("default", "optimized", "performance")
"""As --modes has them: bitnet.cpp's own launcher, our plan and what is found from there,
performance mode."""


class Knob(NamedTuple):
    """Something other than the number of threads, with its values besides the default's."""

    name: str
    changes: tuple[Change, ...]


_FIXED = Via(dict[str, Setting], lambda named: tuple(named.items()), dict)
_KNOBS = Via(
    dict[str, tuple[Change, ...]],
    lambda named: tuple(Knob(*each) for each in named.items()),
    dict,
)


class Space(NamedTuple):
    """All that may be measured."""

    default: Setting
    fixed: Annotated[tuple[tuple[str, Setting], ...], _FIXED]
    """Measured and shown, but never winners."""
    threads: tuple[Change, ...]
    knobs: Annotated[tuple[Knob, ...], _KNOBS]


class Limits(NamedTuple):
    """What a search may spend, and on what. Shares are of the budget and add up."""

    budget: float
    """Seconds. Only what a round's ``elapsed`` says counts as spent."""
    objective: Objective = Objective()
    threads_share: float = 0.3
    """For numbers of threads; without knobs, theirs too."""
    knobs_share: float = 0.25
    """For the other knobs. What is left is the duel's: half of all runs for one
    comparison, since only its samples decide."""
    paired_rounds: int = 6
    """Rounds of the first stage that run the default against itself; and rounds that a
    fixed setting gets."""


class Measure(NamedTuple):
    """Please run these settings once each, in this order, as one round."""

    stage: str
    order: tuple[str, ...]
    """The default may stand there twice."""


class Check(NamedTuple):
    """Please say whether this setting's output is right."""

    name: str


class Done(NamedTuple):
    """What the search found."""

    winner: str
    verdict: str
    """``faster``: the winner beats the default; ``no difference shown``: the default stays."""
    estimate: Estimate | None
    """Speed over the default's in the duel; None without a duel."""
    floor: float | None
    """The noise floor that the estimate was held against."""
    reason: str
    """One sentence."""
    problem: str | None = None
    """Why the default itself could not be measured: then nothing is known."""
    short: bool = False
    """Whether the default stays for lack of trying: then nothing is known of the others."""


FAILURES = 2
"""So many, and a setting is out. One alone may be the machine's fault."""


class Ledger:
    """All rounds and checks so far. Everything else is computed from them."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.rounds: list[Round] = []
        self.checks: dict[str, str | None] = {}
        self._failures: dict[str, list[str]] = defaultdict(list)
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._fit: tuple[int, Fit] | None = None

    def add(self, told: Round) -> None:
        self.rounds.append(told)
        for run in told.runs:
            self._seconds[run.setting].append(run.seconds)
            if run.problem is not None:
                self._failures[run.setting].append(run.problem)

    def problem(self, name: str) -> str | None:
        """Why a setting is out, or None."""
        wrong = self.checks.get(name)
        if wrong is not None:
            return wrong
        failures = self._failures[name]
        # Once is enough: each that hung costs minutes.
        hangs = [each for each in failures if each.startswith(NO_END)]
        return (hangs or failures)[-1] if hangs or len(failures) >= FAILURES else None

    def good(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if self.problem(name) is None]

    @property
    def spent(self) -> float:
        """Seconds of the budget."""
        return self.rounds[-1].elapsed if self.rounds else 0.0

    def cost(self, order: Sequence[str]) -> float:
        """Seconds that a round of these will take; 0 before anything ran."""
        every = [second for each in self._seconds.values() for second in each]
        if not every:
            return 0.0
        between = max(1.0, self.spent / fsum(every)) if fsum(every) else 1.0
        usual = fsum(every) / len(every)
        return between * fsum(self._usual(name, usual) for name in order)

    def _usual(self, name: str, otherwise: float) -> float:
        seconds = self._seconds.get(name)
        return fsum(seconds) / len(seconds) if seconds else otherwise

    def affords(self, order: Sequence[str], share: float = 1.0) -> bool:
        """Whether a round of these ends within that share of the budget."""
        return self.spent + self.cost(order) <= share * self.limits.budget

    def fit(self) -> Fit:
        """Scores from all rounds."""
        if self._fit is None or self._fit[0] != len(self.rounds):
            self._fit = len(self.rounds), fit(self.rounds, self.limits.objective)
        return self._fit[1]

    def ratios(self, name: str, reference: str = DEFAULT, since: int = 0) -> list[float]:
        """Paired by round, from the rounds whose index is ``since`` or later."""
        return statistics.ratios(self.rounds[since:], name, reference, self.limits.objective)

    def floor(self, count: int, level: float = statistics.FLOOR_LEVEL) -> float | None:
        """The noise floor for a comparison over ``count`` rounds."""
        pairs = statistics.itself(self.rounds, DEFAULT, self.limits.objective)
        return statistics.floor(pairs, count, level)

    def noise(self) -> Estimate | None:
        """The default against itself."""
        return statistics.noise(self.rounds, DEFAULT, self.limits.objective)

    def paired(self, name: str, reference: str = DEFAULT) -> int:
        """Rounds that have both."""
        return len(self.ratios(name, reference))

    def measured(self, name: str) -> int:
        """Good runs."""
        runs = (run for each in self.rounds for run in each.runs if run.setting == name)
        return sum(1 for run in runs if value(run, self.limits.objective))


Key = TypeVar("Key", int, str)

LEAST_SPREAD = 0.003
"""Of the logarithm of one run's speed: below it, equal runs are luck."""

PASSES = 8
"""Of the fit: the estimates then move by less than a tenth of their error."""

TAILS = 4.0
"""Degrees of freedom of the t distribution that runs are taken to have: one run that took
five times as long counts like a twentieth of a good one."""


class Fit(NamedTuple):
    """Logarithms of speed by setting, freed from what the rounds had in common."""

    means: Mapping[str, float]
    weights: Mapping[str, float]
    """How many good runs each mean is worth."""
    spread: float | None
    """Standard deviation of one run; None where the runs are too few to tell."""
    tops: Mapping[str, float] = {}
    """Each setting's best run. Of two runs that disagree nothing tells which one is the
    outlier, so one bad run may not throw a setting out."""

    def gap(self, name: str, other: str) -> float:
        """Logarithm of the ratio of two speeds."""
        return self.means[name] - self.means[other]

    def error(self, name: str, other: str) -> float:
        """Standard error of their gap; without limit where the spread is not known."""
        if self.spread is None:
            return float("inf")
        return self.spread * sqrt(1 / self.weights[name] + 1 / self.weights[other])


def fit(rounds: Iterable[Round], objective: Objective) -> Fit:
    """One mean by setting, one level by round, and weights that spare both from outliers."""
    entries = [
        (index, run.setting, log(speed))
        for index, each in enumerate(rounds)
        for run in each.runs
        if (speed := value(run, objective))
    ]
    if not entries:
        return Fit({}, {}, None)
    whens, names, speeds = zip(*entries, strict=True)
    weights = [1.0] * len(entries)
    means = _medians(names, speeds)
    spread: float | None = None
    for _ in range(PASSES):
        levels = _averages(
            whens, [y - means[n] for n, y in zip(names, speeds, strict=True)], weights
        )
        means = _averages(
            names, [y - levels[w] for w, y in zip(whens, speeds, strict=True)], weights
        )
        left = [y - means[n] - levels[w] for w, n, y in entries]
        spread = _spread(left, weights, len(entries) - len(means) - len(levels) + 1)
        weights = _weights(left, spread)
    tops = {name: means[name] + max(_of(name, names, left)) for name in means}
    return Fit(means, _totals(names, weights), spread, tops)


def _of(name: str, names: Sequence[str], values: Sequence[float]) -> list[float]:
    return [each for other, each in zip(names, values, strict=True) if other == name]


def _medians(names: Sequence[str], speeds: Sequence[float]) -> dict[str, float]:
    found: dict[str, list[float]] = defaultdict(list)
    for name, speed in zip(names, speeds, strict=True):
        found[name].append(speed)
    return {name: median(each) for name, each in found.items()}


def _averages(
    keys: Sequence[Key], values: Sequence[float], weights: Sequence[float]
) -> dict[Key, float]:
    """Weighted means by key."""
    sums: dict[Key, float] = defaultdict(float)
    totals: dict[Key, float] = defaultdict(float)
    for key, each, weight in zip(keys, values, weights, strict=True):
        sums[key] += each * weight
        totals[key] += weight
    return {key: sums[key] / totals[key] for key in sums}


def _spread(left: Sequence[float], weights: Sequence[float], freedom: int) -> float | None:
    """From what the fit leaves over; None where it leaves nothing by its nature."""
    if freedom < 1:
        return None
    squares = fsum(weight * each**2 for weight, each in zip(weights, left, strict=True))
    return max(LEAST_SPREAD, sqrt(squares / freedom))


def _weights(left: Sequence[float], spread: float | None) -> list[float]:
    if spread is None:
        return [1.0] * len(left)
    return [(TAILS + 1) / (TAILS + (each / spread) ** 2) for each in left]


def _totals(names: Sequence[str], weights: Sequence[float]) -> dict[str, float]:
    totals: dict[str, float] = defaultdict(float)
    for name, weight in zip(names, weights, strict=True):
        totals[name] += min(1.0, weight)
    return totals
