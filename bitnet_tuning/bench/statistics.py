"""How sure a figure is: medians with bootstrap intervals, ratios paired by round, the noise
floor and verdicts; pure, and without random numbers."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from math import comb, exp, fsum, log
from statistics import median

from bitnet_tuning.bench.samples import Round, value
from bitnet_tuning.plan.profile import Estimate, Objective

LEVEL = 0.95
"""Of every interval that is shown."""

FLOOR_LEVEL = 0.7
"""Of the interval whose far end is the noise floor. Chosen by simulation (see
benchmarks/tuner_trials.py): among equal settings 0.5 crowned one in 2 to 5 % of tunings, 0.7 in
1 to 2 %, and a gain of 20 % was found about as often."""

FLOOR_PAIRS = 3
"""Pairs of the reference with itself, below which there is no floor: it would rest on one
run that went well or badly."""

FLOOR_LEAST = 1.01
"""Smaller gains are not worth another setting, however surely measured."""

VERDICT_ROUNDS = 6
"""Fewer show nothing: by chance all of five rounds point the same way in 2 / 2**5 = 6 % of
comparisons of a setting with itself, all of six in 3 %, which is within 1 - LEVEL."""

FASTER, SLOWER, OPEN = "faster", "slower", "no difference shown"


def estimate(values: Iterable[float], level: float = LEVEL) -> Estimate:
    """The median with its bootstrap percentile interval.

    It is the ideal bootstrap, as from infinitely many resamples: which ranks the middle of
    a resample has follows from the binomial distribution. Intervals of fewer than
    ``VERDICT_ROUNDS`` values are too narrow; of one value they have no width. Raises
    ValueError without values.
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    middle = _distribution(ordered, len(ordered))
    low, high = _quantile(*middle, _lower(level)), _quantile(*middle, _upper(level))
    return Estimate(median(ordered), low, high, len(ordered))


def ratio(ratios: Sequence[float], level: float = LEVEL) -> Estimate:
    """As ``estimate``, but equal to its own inverse when the ratios are turned round: of an
    even number the geometric mean of the two middle ones."""
    logs = estimate((log(each) for each in ratios), level)
    return Estimate(exp(logs.median), exp(logs.low), exp(logs.high), logs.count)


def unpaired(a: Sequence[float], b: Sequence[float], level: float = LEVEL) -> Estimate:
    """Median of ``a`` over the median of ``b``, two samples without common rounds.

    The interval is the ideal bootstrap's, with both resampled apart. ``count`` is the
    smaller sample's. Raises ValueError for an empty sample or a value that is not positive.
    """
    if not a or not b or min(*a, *b) <= 0:
        raise ValueError("a ratio needs positive values")
    above, under = sorted(a), sorted(b)
    counter = _distribution(above, len(above))
    points, below = _distribution(under, len(under))
    masses = [share - before for share, before in zip(below, (0.0, *below), strict=False)]
    divisor = list(zip(points, masses, strict=True))

    def at_most(bound: float) -> float:
        return fsum(mass * _share(*counter, bound * point) for point, mass in divisor)

    widest = (above[0] / under[-1], above[-1] / under[0])
    ends = [_bisect(at_most, share, *widest) for share in (_lower(level), _upper(level))]
    return Estimate(median(a) / median(b), ends[0], ends[1], min(len(a), len(b)))


def ratios(rounds: Iterable[Round], name: str, reference: str, objective: Objective) -> list[float]:
    """A setting's speed over the reference's, one per round that has both.

    Where one ran several times in a round, the geometric mean of its runs counts. The
    reference against itself has no such ratio: see ``itself``.
    """
    found = []
    for each in rounds:
        speeds = _speeds(each, objective)
        if name in speeds and reference in speeds:
            found.append(_geometric(speeds[name]) / _geometric(speeds[reference]))
    return found


def itself(rounds: Iterable[Round], reference: str, objective: Objective) -> list[float]:
    """The reference's later run over its earlier one, for rounds that ran it twice or more."""
    runs = (_speeds(each, objective).get(reference, []) for each in rounds)
    return [later / first for first, *rest in filter(None, runs) for later in rest[-1:]]


def noise(
    rounds: Iterable[Round], reference: str, objective: Objective, level: float = LEVEL
) -> Estimate | None:
    """The median ratio of the reference to itself; None without a round that ran it twice.

    Which of two equal runs goes on top is arbitrary. So each pair enters both ways, and
    the interval is symmetric around 1.
    """
    pairs = itself(rounds, reference, objective)
    if not pairs:
        return None
    far = floor(pairs, len(pairs), level, least=1.0, enough=1)
    return None if far is None else Estimate(1.0, 1 / far, far, len(pairs))


def floor(
    pairs: Sequence[float],
    count: int,
    level: float = FLOOR_LEVEL,
    least: float = FLOOR_LEAST,
    enough: int = FLOOR_PAIRS,
) -> float | None:
    """The noise floor, at least ``least``: how far from 1 the reference gets against itself.

    It is the far end of the interval of a median of ``count`` ratios, drawn from ``pairs``
    (what ``itself`` found) and their inverses: so it fits a comparison over ``count``
    rounds, however many rounds ran the reference twice. None below ``enough`` pairs.
    """
    if len(pairs) < enough or not count:
        return None
    logs = sorted(sign * log(pair) for pair in pairs for sign in (-1, 1))
    return max(least, exp(_quantile(*_distribution(logs, count), _upper(level))))


def verdict(found: Estimate, noise_floor: float | None) -> str:
    """``faster`` or ``slower`` than the reference only where the whole interval lies on one
    side of 1 and beyond the noise floor; else ``no difference shown``."""
    if noise_floor is None or found.count < VERDICT_ROUNDS:
        return OPEN
    if found.low > noise_floor:
        return FASTER
    return SLOWER if found.high < 1 / noise_floor else OPEN


def _speeds(each: Round, objective: Objective) -> dict[str, list[float]]:
    speeds: dict[str, list[float]] = defaultdict(list)
    for run in each.runs:
        speed = value(run, objective)
        if speed:
            speeds[run.setting].append(speed)
    return speeds


def _geometric(speeds: Sequence[float]) -> float:
    return exp(fsum(map(log, speeds)) / len(speeds))


def _lower(level: float) -> float:
    """The probability below an interval of that level."""
    return (1 - level) / 2 - _SLACK


def _upper(level: float) -> float:
    """The probability below its upper end. Where a probability meets it exactly, both ends
    move outwards, so that turning the values round turns the interval round."""
    return (1 + level) / 2 + _SLACK


_SLACK = 1e-9
"""For sums of rounded probabilities."""


def _distribution(ordered: Sequence[float], draws: int) -> tuple[list[float], list[float]]:
    """The median of ``draws`` draws with replacement from sorted values: what it can be,
    ascending, and the probability of at most that."""
    pairs = (
        ((ordered[low] + ordered[high]) / 2, mass)
        for low, high, mass in _middle_ranks(len(ordered), draws)
    )
    points, masses = zip(*sorted(pairs), strict=True)
    return list(points), list(accumulate(masses))


@lru_cache(maxsize=256)
def _middle_ranks(size: int, draws: int) -> tuple[tuple[int, int, float], ...]:
    """The ranks of the two middle ones of ``draws`` draws from ``size`` sorted values, as
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
"""Probabilities below are left out: they move no end of an interval."""


def _at_least(wanted: int, draws: int, share: float) -> float:
    """Probability of ``wanted`` hits or more."""
    return fsum(
        comb(draws, hits) * share**hits * (1 - share) ** (draws - hits)
        for hits in range(wanted, draws + 1)
    )


def _quantile(points: Sequence[float], below: Sequence[float], share: float) -> float:
    """The least point that has ``share`` of the probability at or below it."""
    return points[min(bisect_left(below, share), len(points) - 1)]


def _share(points: Sequence[float], below: Sequence[float], bound: float) -> float:
    """Probability of at most ``bound``."""
    index = bisect_right(points, bound)
    return below[index - 1] if index else 0.0


def _bisect(at_most: Callable[[float], float], share: float, low: float, high: float) -> float:
    """The least bound between two positive ones at which ``at_most`` reaches ``share``."""
    if at_most(low) >= share:
        return low
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if at_most(middle) >= share else (middle, high)
    return high


_HALVINGS = 40
"""Enough for 12 digits of any ratio up to 10."""
