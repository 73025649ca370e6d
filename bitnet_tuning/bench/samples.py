"""What was measured: runs, in rounds; and what a run is worth; pure."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.profile import PP, TG, Objective, Phase
from bitnet_tuning.store.codec import Annotated, DamagedError, Positive

Speeds = Annotated[tuple[Positive, ...], {"minItems": 1}]


class Run(NamedTuple):
    """One process that measured one setting."""

    setting: str
    """The setting's name within the search."""
    samples: Mapping[Phase, Speeds]
    """tokens/s by phase, every sample; empty for a failure."""
    seconds: float
    """Wall time of the process, loading included."""
    problem: str | None = None
    """Why there are no samples."""

    def validate(self) -> None:
        """Raise DamagedError for a run that neither went well nor failed, or both."""
        if bool(self.samples) != (self.problem is None):
            raise DamagedError("a run has samples or a problem, and only one of the two")


class Round(NamedTuple):
    """Runs close to each other in time, so that their ratios mean something."""

    number: int
    stage: str
    """``threads``, ``knobs``, ``duel``; ``again`` for a second race of those left open, ``fixed``
    for rounds that only show settings which cannot win."""
    runs: tuple[Run, ...]
    """In the order in which they ran. A setting may stand there twice: against itself."""
    elapsed: float
    """Seconds of the budget that were spent when the round ended."""


def value(run: Run, objective: Objective) -> float | None:
    """Higher is better: tokens/s, or requests/s; None where it was not measured."""
    speeds = {phase: median(run.samples[phase]) for phase in (PP, TG) if run.samples.get(phase)}
    if not all(phase in speeds for phase in objective.phases):
        return None
    if objective.name != "request":
        return speeds[objective.name]
    return 1 / (objective.n_prompt / speeds[PP] + objective.n_gen / speeds[TG])


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


class Absent(NamedTuple):
    """Stands where a figure would: a machine that does not show it is no error."""

    reason: str
    """Half a sentence, with the remedy where there is one."""
