"""Trying how many prompts at a time are fastest, on a server that is there for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

from bitnet_tuning.prompts.flight import in_flight
from bitnet_tuning.prompts.slots import ROUNDS, Finding, Speeds, find, levels_up_to, tokens_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.prompts.server import Waiting


BUDGET = 20.0
"""Seconds that the rounds may take. They are planned as if nothing were gained."""

LEAST_TOKENS, MOST_TOKENS = 4, 16
_TRIAL_TOKENS = 8

CONTEXT = 256
"""Tokens for each slot of the server that is measured."""

Complete = Callable[[dict[str, Any]], dict[str, Any]]


class Measured(NamedTuple):
    finding: Finding | None
    """None where there was too little time for one."""
    rounds: int
    seconds: float
    is_full: bool = False
    """Whether there was time for all levels. There is less of it while others work here."""


class _Wave(NamedTuple):
    texts: tuple[str, ...]
    speed: float
    """tokens/s"""


def measure(
    complete: Complete, most: int, waiting: Waiting = nullcontext, budget: float = BUDGET
) -> Measured:
    """Compares levels up to ``most`` in rounds, each close in time, for about ``budget``
    seconds. What ``complete`` raises is raised."""
    start = time.monotonic()
    chosen = _size(complete, most, waiting, budget)
    if chosen is None:
        return Measured(None, 0, time.monotonic() - start)
    levels, tokens = chosen
    alone = [_wave(complete, [n], tokens, waiting).texts[0] for n in range(max(levels))]
    rounds: list[Speeds] = []
    out: set[int] = set()
    for number in range(ROUNDS):
        if time.monotonic() - start > 2 * budget:
            break
        order = levels if number % 2 == 0 else levels[::-1]  # getting slower favours nobody
        waves = {level: _wave(complete, range(level), tokens, waiting) for level in order}
        out.update(level for level in order if list(waves[level].texts) != alone[:level])
        rounds.append({level: wave.speed for level, wave in waves.items()})
    seconds = time.monotonic() - start
    return Measured(find(rounds, out), len(rounds), seconds, levels == levels_up_to(most))


def _size(
    complete: Complete, most: int, waiting: Waiting, budget: float
) -> tuple[tuple[int, ...], int] | None:
    """The levels and the tokens for which there is time; fewer levels rather than answers
    that are too short to tell anything. None where there is not."""
    _wave(complete, [0], _TRIAL_TOKENS, waiting)  # the first one warms up
    seconds = 1 / _wave(complete, [0], _TRIAL_TOKENS, waiting).speed
    levels = levels_up_to(most)
    while len(levels) > 1:
        tokens = tokens_for(levels, seconds, 1.5 * budget, LEAST_TOKENS, MOST_TOKENS)
        if tokens is not None:
            return levels, tokens
        levels = levels[:-1]
    return None


def _wave(complete: Complete, numbers: Sequence[int], tokens: int, waiting: Waiting) -> _Wave:
    """All these prompts at a time."""
    start = time.monotonic()
    found = dict(
        in_flight(numbers, lambda number: complete(_body(number, tokens)), len(numbers), waiting)
    )
    seconds = time.monotonic() - start
    texts = tuple(str(found[number].get("content")) for number in numbers)
    return _Wave(texts, len(numbers) * tokens / max(seconds, 1e-6))


def _body(number: int, tokens: int) -> dict[str, Any]:
    """A short prompt with a greedy answer of this very length."""
    return {
        "prompt": f"{number}: how many",
        "n_predict": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
    }
