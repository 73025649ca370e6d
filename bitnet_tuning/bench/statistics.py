"""Compute medians with bootstrap intervals, ratios, noise floors and verdicts.

All of it is pure, and without random numbers.
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
"""Level of every interval that is shown."""

FLOOR_LEVEL = 0.7
"""Level of the interval whose far end is the noise floor. Chosen by simulation (see
benchmarks/tuner_trials.py): among equal settings 0.5 crowned one in 2 to 5 % of tunings, 0.7 in
1 to 2 %, and a gain of 20 % was found about as often."""

FLOOR_PAIRS = 3
"""Fewest pairs of the reference with itself that make a noise floor: with fewer it would rest
on one run that went well or badly."""

FLOOR_LEAST = 1.01
"""Smaller gains are not worth another setting, however surely measured."""

VERDICT_ROUNDS = 6
"""Fewer rounds show nothing: by chance all of five rounds point the same way in 2 / 2**5 = 6 %
of comparisons of a setting with itself, all of six in 3 %, which is within 1 - LEVEL."""

MOST_VALUES = 201
"""Most values that enter an interval. Computing one takes the square of their number, and
binomial coefficients of more than a thousand values do not fit into a float."""


def estimate(values: Iterable[float], level: float = LEVEL) -> Estimate:
    """Return the median with its bootstrap percentile interval.

    It is the ideal bootstrap, as from infinitely many resamples: which ranks the middle of
    a resample has follows from the binomial distribution. Intervals of fewer than
    ``VERDICT_ROUNDS`` values are too narrow; that of one value has no width. Of more than
    ``MOST_VALUES``, so many are taken evenly. Raises ValueError without values.
    """
    ordered = sorted(_thinned(list(values)))
    if not ordered:
        raise ValueError("no values")
    middle = _distribution(ordered, len(ordered))
    low, high = _quantile(*middle, _lower(level)), _quantile(*middle, _upper(level))
    return Estimate(median(ordered), low, high, len(ordered))


def ratio(ratios: Iterable[float], level: float = LEVEL) -> Estimate:
    """Return the estimate of a ratio from its logarithms, so that turning the ratios round
    turns the estimate round. The median of an even number of ratios is the geometric mean of
    the two in the middle."""
    logs = estimate((log(each) for each in ratios), level)
    return Estimate(exp(logs.median), exp(logs.low), exp(logs.high), logs.count)


def unpaired(a: Sequence[float], b: Sequence[float], level: float = LEVEL) -> Estimate:
    """Return the median of ``a`` over the median of ``b``, two samples without common rounds.

    The interval is the ideal bootstrap's, with both resampled apart. ``count`` is the
    smaller sample's. Raises ValueError for an empty sample or a value that is not positive.
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
    """Return the noise floor: how far from 1, as a factor, the reference gets against itself.

    It is the far end of the interval of a median of ``count`` ratios, drawn from ``pairs``
    (ratios of the reference to itself) and their inverses, since which of two equal runs
    goes on top is arbitrary. So it fits a comparison over ``count`` rounds, however many
    rounds ran the reference twice. None below ``FLOOR_PAIRS`` pairs.
    """
    if len(pairs) < FLOOR_PAIRS or not count:
        return None
    logs = sorted(sign * log(pair) for pair in _thinned(pairs) for sign in (-1, 1))
    draws = min(count, MOST_VALUES)
    return max(FLOOR_LEAST, exp(_quantile(*_distribution(logs, draws), _upper(FLOOR_LEVEL))))


def verdict(found: Estimate, noise_floor: float | None) -> str:
    """Return ``faster`` or ``slower`` only where the whole interval lies on one side of 1 and
    beyond the noise floor; else ``no difference shown``."""
    if noise_floor is None or found.count < VERDICT_ROUNDS:
        return OPEN
    if found.low > noise_floor:
        return FASTER
    return SLOWER if found.high < 1 / noise_floor else OPEN


def geometric_mean(speeds: Sequence[float]) -> float:
    """Return the geometric mean of positive values."""
    return exp(fsum(map(log, speeds)) / len(speeds))


def _thinned(values: Sequence[float]) -> Sequence[float]:
    """Return at most MOST_VALUES of them, evenly over the whole sequence."""
    if len(values) <= MOST_VALUES:
        return values
    return [values[index * len(values) // MOST_VALUES] for index in range(MOST_VALUES)]


def _lower(level: float) -> float:
    """Return the probability below an interval of that level."""
    return (1 - level) / 2 - _SLACK


def _upper(level: float) -> float:
    """Return the probability below its upper end. Where a probability meets it exactly, both
    ends move outwards, so that turning the values round turns the interval round."""
    return (1 + level) / 2 + _SLACK


_SLACK = 1e-9
"""Tolerance for sums of rounded probabilities."""


def _distribution(ordered: Sequence[float], draws: int) -> tuple[list[float], list[float]]:
    """Return what the median of ``draws`` draws with replacement from sorted values can be,
    ascending, and the probability of at most that."""
    pairs = (
        ((ordered[low] + ordered[high]) / 2, mass)
        for low, high, mass in _middle_ranks(len(ordered), draws)
    )
    points, masses = zip(*sorted(pairs), strict=True)
    return list(points), list(accumulate(masses))


@lru_cache(maxsize=256)
def _middle_ranks(size: int, draws: int) -> tuple[tuple[int, int, float], ...]:
    """Return the ranks of the two middle ones of ``draws`` draws from ``size`` sorted values, as
    pairs with their probabilities; an odd number of draws has one middle, twice."""
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
"""Probabilities below it are left out: they move no end of an interval."""


def _at_least(wanted: int, draws: int, share: float) -> float:
    """Return the probability of ``wanted`` hits or more."""
    return fsum(
        comb(draws, hits) * share**hits * (1 - share) ** (draws - hits)
        for hits in range(wanted, draws + 1)
    )


def _quantile(points: Sequence[float], below: Sequence[float], share: float) -> float:
    """Return the least point that has ``share`` of the probability at or below it."""
    return points[min(bisect_left(below, share), len(points) - 1)]


def _share(points: Sequence[float], below: Sequence[float], bound: float) -> float:
    """Return the probability of at most ``bound``."""
    index = bisect_right(points, bound)
    return below[index - 1] if index else 0.0


def _bisect(at_most: Callable[[float], float], share: float, low: float, high: float) -> float:
    """Return the least bound between two positive ones at which ``at_most`` reaches ``share``."""
    if at_most(low) >= share:
        return low
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if at_most(middle) >= share else (middle, high)
    return high


_HALVINGS = 40
"""Enough for 12 digits of any ratio up to 10."""


Key = TypeVar("Key", int, str)

LEAST_SPREAD = 0.003
"""Least spread of the logarithm of one run's speed: below it, equal runs are luck."""

PASSES = 8
"""Passes of the fit: the estimates then move by less than a tenth of their error."""

TAILS = 4.0
"""Degrees of freedom of the t distribution that runs are taken to have: one run that took
five times as long counts like a twentieth of a good one."""


class Fit(NamedTuple):
    """Logarithms of speed by setting, freed from what the rounds had in common."""

    means: dict[str, float]
    weights: dict[str, float]
    """How many good runs each mean is worth."""
    spread: float | None
    """Standard deviation of one run; None where the runs are too few to tell."""
    tops: dict[str, float]
    """Each setting's best run. Of two runs that disagree nothing tells which one is the
    outlier, so one bad run may not throw a setting out."""

    def gap(self, name: str, other: str) -> float:
        """Return the logarithm of the ratio of two speeds."""
        return self.means[name] - self.means[other]

    def error(self, name: str, other: str) -> float:
        """Return the standard error of their gap; infinite where the spread is not known."""
        if self.spread is None:
            return float("inf")
        return self.spread * sqrt(1 / self.weights[name] + 1 / self.weights[other])


def fit(entries: Sequence[tuple[int, str, float]]) -> Fit:
    """Fit one mean by setting and one level by round, with weights that spare both from
    outliers. ``entries`` are rounds, settings and logarithms of speeds."""
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
    """Return the values of each key, in their order."""
    found: dict[Key, list[float]] = defaultdict(list)
    for key, each in zip(keys, values, strict=True):
        found[key].append(each)
    return found


def _averages(
    keys: Sequence[Key], values: Sequence[float], weights: Sequence[float]
) -> dict[Key, float]:
    """Return weighted means by key."""
    sums: dict[Key, float] = defaultdict(float)
    totals: dict[Key, float] = defaultdict(float)
    for key, each, weight in zip(keys, values, weights, strict=True):
        sums[key] += each * weight
        totals[key] += weight
    return {key: sums[key] / totals[key] for key in sums}


def _spread(left: Sequence[float], weights: Sequence[float], freedom: int) -> float | None:
    """Return the spread of what the fit leaves over; None where it leaves nothing by its nature."""
    if freedom < 1:
        return None
    squares = fsum(weight * each**2 for weight, each in zip(weights, left, strict=True))
    return max(LEAST_SPREAD, sqrt(squares / freedom))


def _weights(left: Sequence[float], spread: float | None) -> list[float]:
    if spread is None:
        return [1.0] * len(left)
    return [(TAILS + 1) / (TAILS + (each / spread) ** 2) for each in left]
