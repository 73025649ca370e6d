"""Runs an engine as a plan has it, and looks at it while it generates."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from bitnet_tuning.bench.acting_work import Look, Work, work_of
from bitnet_tuning.bench.failure import failure
from bitnet_tuning.host.root import Root
from bitnet_tuning.host.running import Family, shows_programs
from bitnet_tuning.launch import capture
from bitnet_tuning.request import Request

if TYPE_CHECKING:
    from bitnet_tuning.command import Plan
    from bitnet_tuning.ggml_types import ModelFile

PROMPT = "How many threads"

WATCHED_SECONDS = 1.5
"""That the generation is to last."""

FEWEST, MOST = 24, 1500
"""Tokens of it."""

CONTEXT = 2048

TOO_SOON = "the engine ended too soon to be looked at"

SECONDS = 120.0
"""After these the run counts as hung. It is made once the model is in memory."""


class Watched(NamedTuple):
    """A run that was looked at."""

    work: Work | None
    """None where nothing could be seen."""
    log: str
    """The engine's stderr."""
    problem: str | None = None
    """Why the run failed, or why nothing could be seen of it."""
    failed: bool = False


def watched_request(rate: float, model: ModelFile, flags: frozenset[str], seed: int) -> Request:
    """A generation that lasts, at ``rate`` tokens/s.

    A text that the model knows by heart would end too early, and not every engine can be
    kept from ending it. So each token is drawn from the 40 likeliest, nearly all alike.
    """
    context = min(CONTEXT, model.context_length or CONTEXT)
    wanted = max(FEWEST, min(MOST, round(rate * WATCHED_SECONDS)))
    return Request(
        prompt=PROMPT,
        n_predict=max(1, min(wanted, context - 4 * len(PROMPT.split()))),
        ctx_size=context,
        temperature=50.0,
        top_k=40,
        top_p=1.0,
        min_p=0.0,
        seed=seed,
        extra=("--ignore-eos",) if "--ignore-eos" in flags else (),
    )


def watch(plan: Plan, root: Root, seconds: float = SECONDS) -> Watched:
    """Runs the plan's command, as a launcher would."""
    eyes = _Eyes(root)
    done = capture(plan.command, plan.env, seconds, cpus=plan.cpus, nice=plan.nice, watch=eyes.look)
    wrong = failure(done, seconds)
    if wrong:
        return Watched(None, done.stderr, wrong, failed=True)
    work = work_of(eyes.looks)
    if work is not None:
        return Watched(work, done.stderr)
    if any(eyes.looks) or shows_programs(root):
        return Watched(None, done.stderr, TOO_SOON)
    return Watched(None, done.stderr, "only Linux shows the threads of a running engine")


class _Eyes:
    """All that was seen of one program, oldest first."""

    def __init__(self, root: Root) -> None:
        self.looks: list[Look] = []
        self._root = root
        self._family: Family | None = None

    def look(self, process: int) -> None:
        if self._family is None:
            self._family = Family(self._root, process)
        self.looks.append(self._family.look())
