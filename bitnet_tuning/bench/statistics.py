"""Compute medians with bootstrap intervals, ratios, noise floors and verdicts. The same values
always give the same result: nothing here draws random numbers.

- B. Efron, "Bootstrap Methods: Another Look at the Jackknife", Annals of Statistics 7, 1979
- B. Efron and R. Tibshirani, "An Introduction to the Bootstrap", 1993
- K. Lange, R. Little and J. Taylor, "Robust Statistical Modeling Using the t Distribution",
  Journal of the American Statistical Association 84, 1989
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from math import comb, exp, fsum, log, sqrt
from statistics import median
from typing import NamedTuple, TypeVar

from bitnet_tuning.engine.builds import FASTER, OPEN, SLOWER
from bitnet_tuning.plan.profile import Estimate

LEVEL = 0.95
"""Level of all intervals that are shown."""

FLOOR_LEVEL = 0.7
"""Level of the interval whose upper end is the noise floor, chosen by simulation
(benchmarks/tuner_trials.py): where all settings are equal, 0.5 let one win in 2 to 5 % of
tunings, 0.7 in 1 to 2 %, while a gain of 20 % was found about as often."""

FLOOR_PAIRS = 3
"""Fewest rounds with two runs of the reference that give a noise floor: with fewer, one unusual
run would decide it."""

FLOOR_LEAST = 1.01
"""Smallest noise floor: a gain below 1 % is not worth another setting, however certain."""

VERDICT_ROUNDS = 6
"""Fewest rounds for a verdict. In a comparison of a setting with itself, by chance all of five
rounds favour the same side with probability 2 / 2**5 = 6 %, all of six with 3 %, which is below
1 - LEVEL (sign test)."""

MOST_VALUES = 201
"""Most values that an interval is computed from: the time grows with their square, and binomial
coefficients of more than a thousand values do not fit into a float."""


def estimate(values: Iterable[float], level: float = LEVEL) -> Estimate:
    """Return the median with its bootstrap percentile interval (Efron and Tibshirani, chapter 13).
    Raise ValueError without values.

    It is the interval of infinitely many resamples, computed from the exact distribution of
    a resample's median (see ``_middle_ranks``). With fewer than ``VERDICT_ROUNDS`` values the
    interval is too narrow; with one it has no width. Of more than ``MOST_VALUES`` values,
    ``MOST_VALUES`` evenly spaced ones are used.
    """
    ordered = sorted(_thinned(list(values)))
    if not ordered:
        raise ValueError("no values")
    middle = _distribution(ordered, len(ordered))
    low, high = _quantile(*middle, _lower(level)), _quantile(*middle, _upper(level))
    return Estimate(median(ordered), low, high, len(ordered))


def ratio(ratios: Iterable[float], level: float = LEVEL) -> Estimate:
    """Return the estimate of a ratio, computed from logarithms: exp(median(log r)). So the
    estimate of 1/r is the inverse of the estimate of r."""
    logs = estimate((log(each) for each in ratios), level)
    return Estimate(exp(logs.median), exp(logs.low), exp(logs.high), logs.count)


def unpaired(a: Sequence[float], b: Sequence[float], level: float = LEVEL) -> Estimate:
    """Return median(a) / median(b) for two samples that share no rounds.

    Both are resampled independently. With a resample's medians A and B, the interval's ends
    are quantiles of P(A/B <= x) = sum over b of P(B = b) P(A <= x b). ``count`` is the size
    of the smaller sample. Raise ValueError for an empty sample or a value that is not positive.
    """
    if not a or not b or min(*a, *b) <= 0:
        raise ValueError("a ratio needs positive values")
    above, under = sorted(_thinned(a)), sorted(_thinned(b))
    counter = _distribution(above, len(above))
    points, below = _distribution(under, len(under))
    masses = [share - before for share, before in zip(below, (0.0, *below), strict=False)]
    divisor = list(zip(points, masses, strict=True))

    def at_most(bound: float) -> float:
        return fsum(mass * _share(*counter, bound * point) for point, mass in divisor)

    widest = (above[0] / under[-1], above[-1] / under[0])
    low, high = (_bisect(at_most, share, *widest) for share in (_lower(level), _upper(level)))
    return Estimate(median(above) / median(under), low, high, min(len(above), len(under)))


def floor(pairs: Sequence[float], count: int) -> float | None:
    """Return the noise floor of a comparison over ``count`` rounds: the factor, at least
    ``FLOOR_LEAST``, by which such a comparison of the reference with itself may differ from 1.

    ``pairs`` are ratios of two runs of the reference in the same round. The floor is the upper
    end of the interval, at FLOOR_LEVEL, of the median of ``count`` draws from these ratios and
    their inverses: which of two equal runs is the numerator is arbitrary. Return None for
    fewer than ``FLOOR_PAIRS`` pairs.
    """
    if len(pairs) < FLOOR_PAIRS or not count:
        return None
    logs = sorted(sign * log(pair) for pair in _thinned(pairs) for sign in (-1, 1))
    draws = min(count, MOST_VALUES)
    return max(FLOOR_LEAST, exp(_quantile(*_distribution(logs, draws), _upper(FLOOR_LEVEL))))


def verdict(found: Estimate, noise_floor: float | None) -> str:
    """Return the verdict on a ratio: ``faster`` if its whole interval lies above the noise floor
    f, ``slower`` if it lies below 1/f, else ``no difference shown``. Without a floor, or with
    fewer than ``VERDICT_ROUNDS`` rounds, it is ``no difference shown`` as well."""
    if noise_floor is None or found.count < VERDICT_ROUNDS:
        return OPEN
    if found.low > noise_floor:
        return FASTER
    return SLOWER if found.high < 1 / noise_floor else OPEN


def geometric_mean(speeds: Sequence[float]) -> float:
    """Return the geometric mean of positive values."""
    return exp(fsum(map(log, speeds)) / len(speeds))


def _thinned(values: Sequence[float]) -> Sequence[float]:
    if len(values) <= MOST_VALUES:
        return values
    return [values[index * len(values) // MOST_VALUES] for index in range(MOST_VALUES)]


def _lower(level: float) -> float:
    """Return the probability of the lower end of an interval of that level."""
    return (1 - level) / 2 - _SLACK


def _upper(level: float) -> float:
    """Return the probability of the upper end of an interval of that level."""
    return (1 + level) / 2 + _SLACK


_SLACK = 1e-9
"""Tolerance for rounding. If a sum of probabilities meets an end exactly, both ends move outwards,
so that the interval of the inverse values is the inverse interval."""


def _distribution(ordered: Sequence[float], draws: int) -> tuple[list[float], list[float]]:
    """Return the distribution of the median of ``draws`` draws with replacement from sorted
    values: the possible medians, ascending, and the probability of at most each."""
    pairs = (
        ((ordered[low] + ordered[high]) / 2, mass)
        for low, high, mass in _middle_ranks(len(ordered), draws)
    )
    points, masses = zip(*sorted(pairs), strict=True)
    return list(points), list(accumulate(masses))


@lru_cache(maxsize=256)
def _middle_ranks(size: int, draws: int) -> tuple[tuple[int, int, float], ...]:
    """Return the ranks (from 0) of the two middle draws, of ``draws`` draws with replacement
    from ``size`` sorted values, with their probability. An odd number has one middle, twice.

    With n values, k ranks are at or below rank k - 1, and B(m, p) successes in m trials:

    - m = 2h + 1 draws: P(middle rank < k) = P(B(m, k/n) >= h + 1) (Efron).
    - m = 2h draws, ranks i < j: h draws are at most i, one of them is i, and h are at least j,
      one of them is j: C(2h, h) (((i+1)/n)^h - (i/n)^h) (((n-j)/n)^h - ((n-j-1)/n)^h).
    - m = 2h draws, both at rank i: P(lower middle = i) less the sum of the above over j.
    """
    half, odd = divmod(draws, 2)
    at_most = [_at_least(half + 1, draws, rank / size) for rank in range(size + 1)]
    if odd:
        steps = zip(at_most[1:], at_most, strict=False)
        return tuple((rank, rank, now - before) for rank, (now, before) in enumerate(steps))
    lower = [_at_least(half, draws, rank / size) for rank in range(size + 1)]
    powers = [(rank / size) ** half for rank in range(size + 1)]
    steps_up = [now - before for now, before in zip(powers[1:], powers, strict=False)]
    found = []
    for low in range(size):
        apart = [
            (low, high, comb(draws, half) * steps_up[low] * steps_up[size - 1 - high])
            for high in range(low + 1, size)
        ]
        both = lower[low + 1] - lower[low] - fsum(mass for _, _, mass in apart)
        found += [(low, low, max(0.0, both)), *apart]
    return tuple(each for each in found if each[2] > _NOTHING)


_NOTHING = 1e-15
"""Smallest probability that is kept: a smaller one moves no end of an interval."""


def _at_least(wanted: int, draws: int, share: float) -> float:
    """Return the binomial probability P(B(draws, share) >= wanted)."""
    return fsum(
        comb(draws, hits) * share**hits * (1 - share) ** (draws - hits)
        for hits in range(wanted, draws + 1)
    )


def _quantile(points: Sequence[float], below: Sequence[float], share: float) -> float:
    """Return the smallest point that has at least ``share`` of the probability at or below it."""
    return points[min(bisect_left(below, share), len(points) - 1)]


def _share(points: Sequence[float], below: Sequence[float], bound: float) -> float:
    index = bisect_right(points, bound)
    return below[index - 1] if index else 0.0


def _bisect(at_most: Callable[[float], float], share: float, low: float, high: float) -> float:
    """Return the smallest bound between positive ones for which ``at_most`` reaches ``share``."""
    if at_most(low) >= share:
        return low
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if at_most(middle) >= share else (middle, high)
    return high


_HALVINGS = 40
"""Steps of the bisection: 40 give 12 digits of any ratio up to 10."""

Key = TypeVar("Key", int, str)

LEAST_SPREAD = 0.003
"""Smallest standard deviation assumed for the logarithm of a run's speed: less is luck."""

PASSES = 8
"""Passes of ``fit``, after which the means move by less than a tenth of their standard error."""

TAILS = 4.0
"""Degrees of freedom of the t distribution assumed for runs: a disturbed run that took five times
as long counts about a twentieth of a good one (at 15 % noise)."""


class Fit(NamedTuple):
    """Estimated speeds of settings, without the disturbances that all runs of a round share."""

    means: dict[str, float]
    """Logarithm of the speed, by setting."""
    weights: dict[str, float]
    """Number of undisturbed runs that each mean is worth."""
    spread: float | None
    """Standard deviation of one run's logarithm; None if there are too few runs to tell."""
    tops: dict[str, float]
    """Logarithm of the best run, by setting. If two runs disagree, nothing tells which one is
    the outlier, so a single bad run must not rule a setting out."""

    def gap(self, name: str, other: str) -> float:
        """Return the logarithm of the first setting's speed over the second's."""
        return self.means[name] - self.means[other]

    def error(self, name: str, other: str) -> float:
        """Return the standard error of ``gap``, s sqrt(1/w1 + 1/w2); infinite if the spread s is
        not known."""
        if self.spread is None:
            return float("inf")
        return self.spread * sqrt(1 / self.weights[name] + 1 / self.weights[other])


def fit(entries: Sequence[tuple[int, str, float]]) -> Fit:
    """Fit log(speed) = mean of the setting + level of the round + error.

    ``entries`` are the round, the setting and the logarithm of the speed of each run. Means
    and levels are averaged in turn, with weights that make outliers harmless: with a residual
    r and the spread s, a run weighs (TAILS + 1) / (TAILS + (r/s)^2), the weight of a t
    distribution (Lange, Little and Taylor).
    """
    if not entries:
        return Fit({}, {}, None, {})
    whens, names, speeds = zip(*entries, strict=True)
    weights = [1.0] * len(entries)
    means = {name: median(each) for name, each in _by(names, speeds).items()}
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
    tops = {name: means[name] + max(each) for name, each in _by(names, left).items()}
    worth = {n: sum(min(1.0, weight) for weight in each) for n, each in _by(names, weights).items()}
    return Fit(means, worth, spread, tops)


def _by(keys: Sequence[Key], values: Sequence[float]) -> dict[Key, list[float]]:
    found: dict[Key, list[float]] = defaultdict(list)
    for key, each in zip(keys, values, strict=True):
        found[key].append(each)
    return found


def _averages(
    keys: Sequence[Key], values: Sequence[float], weights: Sequence[float]
) -> dict[Key, float]:
    sums: dict[Key, float] = defaultdict(float)
    totals: dict[Key, float] = defaultdict(float)
    for key, each, weight in zip(keys, values, weights, strict=True):
        sums[key] += each * weight
        totals[key] += weight
    return {key: sums[key] / totals[key] for key in sums}


def _spread(left: Sequence[float], weights: Sequence[float], freedom: int) -> float | None:
    """Return the standard deviation of the residuals ``left``; None without degrees of freedom."""
    if freedom < 1:
        return None
    squares = fsum(weight * each**2 for weight, each in zip(weights, left, strict=True))
    return max(LEAST_SPREAD, sqrt(squares / freedom))


def _weights(left: Sequence[float], spread: float | None) -> list[float]:
    if spread is None:
        return [1.0] * len(left)
    return [(TAILS + 1) / (TAILS + (each / spread) ** 2) for each in left]
