"""What a search is given, and what it asks for; pure."""

from __future__ import annotations

from typing import NamedTuple

from bitnet_tuning.bench.rounds import Objective
from bitnet_tuning.bench.stats import Estimate
from bitnet_tuning.setting import Change, Setting

DEFAULT, UPSTREAM, PERFORMANCE = "default", "upstream", "performance"
"""Names of settings: what our plan computes, what bitnet.cpp's own script does, and
performance mode."""

MODES = ("default", "optimized", "performance")
"""As --modes has them: bitnet.cpp's own launcher, our plan and what is found from there,
performance mode."""


class Knob(NamedTuple):
    """Something other than the number of threads, with its values besides the default's."""

    name: str
    changes: tuple[Change, ...]


class Space(NamedTuple):
    """All that may be measured."""

    default: Setting
    fixed: tuple[tuple[str, Setting], ...]
    """Measured and shown, but never winners."""
    threads: tuple[Change, ...]
    knobs: tuple[Knob, ...]


class Limits(NamedTuple):
    """What a search may spend, and on what. Shares are of the budget and add up."""

    budget: float
    """Seconds. Only what a round's ``elapsed`` says counts as spent."""
    objective: Objective = Objective()
    threads_share: float = 0.3
    """For numbers of threads; without knobs, theirs too."""
    knobs_share: float = 0.25
    """For the other knobs. What is left is the duel's: half of all runs for one
    comparison, since only its samples decide."""
    paired_rounds: int = 6
    """Rounds of the first stage that run the default against itself; and rounds that a
    fixed setting gets."""


class Measure(NamedTuple):
    """Please run these settings once each, in this order, as one round."""

    stage: str
    order: tuple[str, ...]
    """The default may stand there twice."""


class Check(NamedTuple):
    """Please say whether this setting's output is right."""

    name: str


class Done(NamedTuple):
    """What the search found."""

    winner: str
    verdict: str
    """``faster``: the winner beats the default; ``no difference shown``: the default stays."""
    estimate: Estimate | None
    """Speed over the default's in the duel; None without a duel."""
    floor: float | None
    """The noise floor that the estimate was held against."""
    reason: str
    """One sentence."""
    problem: str | None = None
    """Why the default itself could not be measured: then nothing is known."""
    short: bool = False
    """Whether the default stays for lack of trying: then nothing is known of the others."""
