"""Who is ahead while many settings are measured: scores that use every run; pure.

They choose what to measure next and whom to send into the duel. They never decide: the
best of many noisy scores is too good to be true.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import fsum, log, sqrt
from statistics import median
from typing import NamedTuple, TypeVar

from bitnet_tuning.bench.rounds import Objective, Round, value

Key = TypeVar("Key", int, str)

LEAST_SPREAD = 0.003
"""Of the logarithm of one run's speed: below it, equal runs are luck."""

PASSES = 8
"""Of the fit: the estimates then move by less than a tenth of their error."""

TAILS = 4.0
"""Degrees of freedom of the t distribution that runs are taken to have: one run that took
five times as long counts like a twentieth of a good one."""

_FROM_TAILS = 1.0
"""Standard deviation of normally distributed runs over what the t distribution's scale comes
to for them."""


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
    return max(LEAST_SPREAD, _FROM_TAILS * sqrt(squares / freedom))


def _weights(left: Sequence[float], spread: float | None) -> list[float]:
    if spread is None:
        return [1.0] * len(left)
    return [(TAILS + 1) / (TAILS + (each / spread) ** 2) for each in left]


def _totals(names: Sequence[str], weights: Sequence[float]) -> dict[str, float]:
    totals: dict[str, float] = defaultdict(float)
    for name, weight in zip(names, weights, strict=True):
        totals[name] += min(1.0, weight)
    return totals
