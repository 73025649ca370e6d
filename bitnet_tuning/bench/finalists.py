"""Who enters a duel with the default besides the first; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from bitnet_tuning.bench.race import Fit
from bitnet_tuning.bench.stages import ALIKE
from bitnet_tuning.setting import Change, Setting

CLOSE = 1.0
"""Standard errors behind the first finalist, within which others join the duel: the default's
runs serve all of them."""

FINALISTS = 3
"""In one duel at most."""

Stacks = Mapping[str, Sequence[Change]]
Simplicity = Callable[[str], tuple[int, int, int]]


def simplicity(setting: Setting, default: Setting) -> tuple[int, int, int]:
    """Fewer threads, then closer to the default: the smaller, the simpler."""
    fields = zip(setting._replace(env=()), default._replace(env=()), strict=True)
    env = len(set(setting.env) ^ set(default.env))
    return setting.threads, setting.threads_batch, sum(a != b for a, b in fields) + env


def finalists(
    rest: Sequence[str], stacks: Stacks, found: Fit, simple: Simplicity
) -> tuple[str, ...]:
    """The first of ``rest``, who are promising, the best first; what it was built on; and
    those that may well be as good."""
    first = rest[0]
    parts = [name for name in _parts(first, stacks) if name in rest]
    near = [n for n in rest[1:] if found.gap(first, n) < CLOSE * found.error(first, n)]
    alike = [n for n in rest[1:] if abs(found.gap(first, n)) < ALIKE]
    simpler = sorted((n for n in alike if simple(n) < simple(first)), key=simple)
    return tuple(dict.fromkeys((first, *parts, *simpler, *near)))[:FINALISTS]


def _parts(name: str, stacks: Stacks) -> Iterator[str]:
    """The settings that this one was built on, the nearest first: a change that came on top
    by luck must show that it is worth something."""
    names = {tuple(changes): each for each, changes in stacks.items()}
    changes = tuple(stacks[name])
    for count in range(len(changes) - 1, 0, -1):
        if changes[:count] in names:
            yield names[changes[:count]]
