"""How long a measurement is to be: long enough for the clock, short enough for many; pure."""

from __future__ import annotations

from typing import NamedTuple

PHASE_SECONDS = 0.6
"""Aimed at for one phase of one run. Many short runs beat a few long ones: what disturbs a
shared machine lasts for seconds, and a paired comparison needs rounds."""

LEAST_PROMPT, MOST_PROMPT = 16, 512
LEAST_GENERATED, MOST_GENERATED = 8, 128
MOST_REPETITIONS = 5


class Sizes(NamedTuple):
    """What every run of a benchmark measures, in tokens."""

    n_prompt: int
    n_gen: int
    repetitions: int
    """Samples of each phase that one process takes."""


FIRST = Sizes(16, 4, 1)
"""For the first run, which reads the model from disk and tells how fast it is at all."""

SECOND = Sizes(32, 8, 1)


def choose_sizes(
    prompt_rate: float,
    generation_rate: float,
    context: int | None,
    n_prompt: int | None = None,
    n_gen: int | None = None,
) -> Sizes:
    """From tokens/s that were seen. Sizes that the user named stay, and each phase fits
    into the model's ``context``."""
    prompt = n_prompt or _power_of_two(prompt_rate * PHASE_SECONDS, LEAST_PROMPT, MOST_PROMPT)
    generated = n_gen or _power_of_two(
        generation_rate * PHASE_SECONDS, LEAST_GENERATED, MOST_GENERATED
    )
    if context is not None and not n_prompt:
        prompt = min(prompt, max(1, context // 2))
    if context is not None and not n_gen:
        generated = min(generated, max(1, context // 4))
    # The shorter phase may take a while longer; the longer one sets the pace.
    seconds = max(prompt / prompt_rate, generated / generation_rate)
    repetitions = max(1, min(MOST_REPETITIONS, round(PHASE_SECONDS / seconds)))
    return Sizes(prompt, generated, repetitions)


def _power_of_two(wanted: float, least: int, most: int) -> int:
    """The largest one that is not above ``wanted``, within the limits."""
    size = least
    while size * 2 <= min(wanted, most):
        size *= 2
    return size
