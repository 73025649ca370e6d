"""Every check on one case; pure."""

from __future__ import annotations

from collections.abc import Sequence

from bitnet_tuning.doctor import build, clock, cpus, environment, memory, model, wsl
from bitnet_tuning.doctor.case import Case, Finding, Knob, Verdict, bad, ordered, unknown
from bitnet_tuning.errors import TuningError

KNOBS: tuple[Knob, ...] = (
    *build.KNOBS,
    *model.KNOBS,
    *memory.KNOBS,
    *cpus.KNOBS,
    *environment.KNOBS,
    *clock.KNOBS,
    *wsl.KNOBS,
)
"""What keeps an engine from running at all comes first: of equally bad findings the first
one is where to begin."""


def examine(case: Case, knobs: Sequence[Knob] = KNOBS) -> list[Finding]:
    """A finding for every knob that this machine has, the worst first."""
    found = []
    for knob in knobs:
        verdict = _verdict(knob, case)
        if verdict is not None:
            advice = verdict.advice and _printable(verdict.advice)
            text = _printable(verdict.text)
            found.append(Finding(knob.name, verdict.state, text, advice, knob.source))
    return ordered(found)


def _verdict(knob: Knob, case: Case) -> Verdict | None:
    """No check keeps the others from being made."""
    try:
        return knob.check(case)
    except TuningError as error:
        return bad(error.cause, error.remedy)
    except Exception as error:
        return unknown(
            f"this check failed: {type(error).__name__}: {error}",
            "this is a fault of bitnet-tuning; report it with the output of "
            "`python3 -m bitnet_tuning host --json`",
        )


def _printable(text: str) -> str:
    """Paths and variables may hold what moves a terminal's cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
