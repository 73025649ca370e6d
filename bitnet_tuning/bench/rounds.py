"""What was measured: runs, in rounds; and what a run is worth; pure."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import NamedTuple

PP, TG = "pp", "tg"
"""Prompt processing and token generation: kept apart, as keys of samples everywhere."""

OBJECTIVES = (TG, PP, "request")


class Run(NamedTuple):
    """One process that measured one setting."""

    setting: str
    """The setting's name within the search."""
    samples: Mapping[str, tuple[float, ...]]
    """tokens/s by phase, every sample; empty for a failure."""
    seconds: float
    """Wall time of the process, loading included."""
    problem: str | None = None
    """Why there are no samples."""


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


class Objective(NamedTuple):
    """What is to be fast. ``request`` weighs a prompt of ``n_prompt`` tokens with an answer
    of ``n_gen``."""

    name: str = TG
    n_prompt: int = 128
    n_gen: int = 128

    @property
    def phases(self) -> tuple[str, ...]:
        """What must be measured for it."""
        return (PP, TG) if self.name == "request" else (self.name,)


def value(run: Run, objective: Objective) -> float | None:
    """Higher is better: tokens/s, or requests/s; None where it was not measured."""
    speeds = {phase: median(run.samples[phase]) for phase in (PP, TG) if run.samples.get(phase)}
    if not all(phase in speeds for phase in objective.phases):
        return None
    if objective.name != "request":
        return speeds[objective.name]
    return 1 / (objective.n_prompt / speeds[PP] + objective.n_gen / speeds[TG])
