"""Estimate speeds and ratios from ranks, with intervals and verdicts. All that they assume is that
noise is symmetric, as in the logarithm of the ratio of two equally disturbed runs.

- J. L. Hodges and E. L. Lehmann, "Estimates of Location Based on Rank Tests", Annals of
  Mathematical Statistics 34, 1963: the median of all pairs' means, or of all differences
- M. Hollander and D. Wolfe, "Nonparametric Statistical Methods", 1999, sections 3.3 and 4.3: the
  intervals that belong to them, of Wilcoxon's tests
- J. L. Haybittle, "Repeated Assessment of Results in Clinical Trials of Cancer Treatment", British
  Journal of Radiology 44, 1971: looks before the last one need a much stricter level
- G. Y. Zou and A. Donner, "Construction of confidence limits about effect measures", Statistics in
  Medicine 27, 2008: the interval of a difference from those of its parts
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from math import ceil, exp, floor, hypot, log, log2, sqrt
from statistics import NormalDist, median

from bitnet_tuning.engine.builds import EQUAL, FASTER, OPEN, SLOWER
from bitnet_tuning.plan.profile import Estimate

LEVEL, INTERIM = 0.95, 0.999
"""Level of all intervals that are shown and of the last look at a comparison, and that of every
earlier look (Haybittle), 3.3 standard errors."""

RESOLUTION = 0.02
"""Smallest difference of interest, as a share, if the user names none."""

EXACT, MOST_VALUES = 25, 201
"""Most values whose rank sum is counted out (above, the normal approximation is as good), and that
an interval is computed from, evenly spaced, since time grows with their square."""


def least_rounds(level: float = LEVEL) -> int:
    """Return the fewest rounds for a verdict at a level. Of n comparisons of equal settings, all
    favour the same side with probability 2 / 2**n."""
    return 1 + ceil(-log2(1 - level) - 1e-9)


VERDICT_ROUNDS = least_rounds()


def estimate(values: Iterable[float], level: float = LEVEL) -> Estimate:
    """Return the Hodges-Lehmann estimate of positive values, computed from their logarithms so that
    that of inverse ratios is the inverse, with Wilcoxon's signed-rank interval, of a lower level
    with fewer than ``least_rounds(level)`` values. Raise ValueError without values."""
    logs = tuple(_logs(list(values)))
    return _between(_means(logs), _signed_rank(len(logs), level), len(logs))


@lru_cache(maxsize=64)
def _means(logs: tuple[float, ...]) -> list[float]:
    """Return all pairs' means in order. A search asks for the same ones at several levels."""
    return sorted((a + b) / 2 for number, a in enumerate(logs, 1) for b in logs[number - 1 :])


def unpaired(a: Sequence[float], b: Sequence[float], level: float = LEVEL) -> Estimate:
    """Return the ratio of two samples that share no rounds, with the interval of the Mann-Whitney
    test (normal approximation). ``count`` is the size of the smaller one. Raise ValueError for
    an empty sample or a value that is not positive."""
    above, below = _logs(a), _logs(b)
    pairs = len(above) * len(below)
    cut = _cut(pairs / 2, pairs * (len(above) + len(below) + 1) / 12, level)
    shifts = sorted(high - low for high in above for low in below)
    return _between(shifts, cut, min(len(above), len(below)))


def verdict(found: Estimate, resolution: float = RESOLUTION, level: float = LEVEL) -> str:
    """Return the verdict on a ratio whose interval has that level: ``equal`` if it lies within the
    resolution of 1, ``faster`` or ``slower`` if 1 lies outside, else ``not decided``."""
    if found.count < least_rounds(level):
        return OPEN
    if max(found.high, 1 / found.low) <= 1 + resolution:
        return EQUAL
    return FASTER if found.low > 1 else SLOWER if found.high < 1 else OPEN


def more_rounds(found: Estimate, resolution: float = RESOLUTION) -> int:
    """Return about how many more rounds a verdict needs if the estimate stays where it is: the
    interval's width shrinks with the root of their number."""
    gap, wide = abs(log(found.median)), log(found.high / found.low) / 2
    shrink: float = wide / max(gap, log(1 + resolution) - gap)
    return max(1, ceil(max(found.count * shrink**2, VERDICT_ROUNDS)) - found.count)


def scaled(found: Estimate, factor: float) -> Estimate:
    """Return the estimate and its interval times a factor."""
    median, low, high, count = found
    return Estimate(factor * median, factor * low, factor * high, count)


def quotient(a: Estimate, b: Estimate) -> Estimate:
    """Return the quotient of two ratios, so that all three agree. The interval is that of
    independent ones (Zou and Donner); noise that they share makes it too wide."""
    low = hypot(log(a.median / a.low), log(b.high / b.median))
    high = hypot(log(a.high / a.median), log(b.median / b.low))
    middle = a.median / b.median
    return Estimate(middle, middle * exp(-low), middle * exp(high), min(a.count, b.count))


def _logs(values: Sequence[float]) -> list[float]:
    count = min(len(values), MOST_VALUES)
    return [log(values[index * len(values) // count]) for index in range(count)]


def _between(ordered: Sequence[float], cut: int, count: int) -> Estimate:
    """Return the median and the values before which, and behind which, ``cut`` values lie."""
    if not ordered:
        raise ValueError("no values")
    low, high = ordered[cut], ordered[-1 - cut]
    return Estimate(exp(median(ordered)), exp(low), exp(high), count)


@lru_cache(maxsize=256)
def _signed_rank(count: int, level: float) -> int:
    """Return how many of the ordered means lie outside each end of the interval: the largest rank
    sum that equal settings reach or fall below with at most half of the error's probability."""
    if count > EXACT:
        return _cut(count * (count + 1) / 4, count * (count + 1) * (2 * count + 1) / 24, level)
    ways = [1]  # by rank sum
    for rank in range(1, count + 1):
        ways = [a + b for a, b in zip([*ways, *[0] * rank], [*[0] * rank, *ways], strict=True)]
    few: float = (1 - level) / 2 * 2**count + 1e-9
    return max(0, sum(total <= few for total in accumulate(ways)) - 1)


def _cut(mean: float, variance: float, level: float) -> int:
    """Return the same from the normal approximation, with continuity correction."""
    far = NormalDist().inv_cdf((1 + level) / 2) * sqrt(variance)
    return max(0, floor(mean - 0.5 - far))
