"""What the plots of a report show, as figures; pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bitnet_tuning.bench import stats
from bitnet_tuning.bench.asks import DEFAULT
from bitnet_tuning.bench.document import Results
from bitnet_tuning.bench.rounds import PP, TG
from bitnet_tuning.bench.stats import Estimate
from bitnet_tuning.bench.summary import Row, noise_floor, phase_speeds, problem_of
from bitnet_tuning.openmp import THREAD_COUNTS
from bitnet_tuning.setting import Setting

MOST_BARS = 24
"""Of the plot of ratios; more would be no overview."""


class Point(NamedTuple):
    """Speed in tokens/s with so many threads."""

    threads: int
    speed: Estimate
    default: bool
    """Whether the default uses so many."""


class Scaling(NamedTuple):
    """One phase's speed by threads, all else as in the default."""

    phase: str
    points: tuple[Point, ...]
    """Ascending by threads."""
    roof: float | None
    """tokens/s that the memory's bandwidth allows; only generation is bound by it."""


class Bar(NamedTuple):
    """A setting's ratio to the default."""

    name: str
    ratio: Estimate
    winner: bool


class Forest(NamedTuple):
    """Ratios to the default, and how far the default strays from itself."""

    bars: tuple[Bar, ...]
    floor: float | None
    left_out: int
    """Settings for which there was no place: the slowest."""


def scalings(results: Results) -> tuple[Scaling, ...]:
    """Generation, then prompts; only those with a curve: two counts of threads or more."""
    found = (
        Scaling(TG, _points(results, TG), roof_speed(results)),
        Scaling(PP, _points(results, PP), None),
    )
    return tuple(each for each in found if len(each.points) > 1)


def roof_speed(results: Results) -> float | None:
    """tokens/s of generation that the memory allows, where its bandwidth is known."""
    limit = (results.roof.facts or {}).get("limit_tokens_per_second")
    known = isinstance(limit, (int, float)) and not isinstance(limit, bool) and limit > 0
    return float(limit) if known and limit is not None else None


def _points(results: Results, phase: str) -> tuple[Point, ...]:
    """Settings that use the same number of threads in this phase count as one."""
    default = results.settings.get(DEFAULT)
    speeds: dict[int, list[float]] = {}
    for name, setting in results.settings.items():
        alike = default is not None and _but_threads(setting) == _but_threads(default)
        if alike and problem_of(results, name) is None:
            found = phase_speeds(results, name)[phase]
            if found:
                speeds.setdefault(_threads(setting, phase), []).extend(found)
    return tuple(
        Point(count, stats.estimate(speeds[count]), count == _threads(default, phase))
        for count in sorted(speeds)
        if default is not None
    )


def _threads(setting: Setting, phase: str) -> int:
    return setting.threads if phase == TG else setting.threads_batch


def _but_threads(setting: Setting) -> Setting:
    env = tuple(pair for pair in setting.env if pair[0] not in THREAD_COUNTS)
    return setting._replace(threads=1, threads_batch=1, env=env)


def forest(results: Results, rows: Sequence[Row]) -> Forest:
    """In the order of ``rows``; settings that failed or write wrong words are not there."""
    bars = [
        Bar(row.name, row.to_default, row.winner)
        for row in rows
        if row.to_default is not None and problem_of(results, row.name) is None
    ]
    return Forest(tuple(bars[:MOST_BARS]), noise_floor(results), len(bars[MOST_BARS:]))
