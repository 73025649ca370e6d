"""What a check answers, and what all answers come to; pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from bitnet_tuning.doctor.facts import Case

GOOD, WARN, BAD, UNKNOWN = "good", "warn", "bad", "unknown"

WORST_FIRST = (BAD, WARN, UNKNOWN, GOOD)


class Verdict(NamedTuple):
    """What a check says of its knob."""

    state: str
    """``good``, ``warn``, ``bad`` or ``unknown``."""
    text: str
    advice: str | None = None
    """What to do; commands are ready to paste, and never run by the doctor."""


class Finding(NamedTuple):
    """A verdict with the knob's name and where its knowledge is from."""

    name: str
    state: str
    text: str
    advice: str | None
    source: str


Check = Callable[["Case"], Verdict | None]
"""Answers None where the knob does not exist, or there is nothing to judge."""


class Knob(NamedTuple):
    name: str
    check: Check
    source: str
    """What the verdict rests on: documentation, source code, a measurement."""


def good(text: str, advice: str | None = None) -> Verdict:
    return Verdict(GOOD, text, advice)


def warn(text: str, advice: str) -> Verdict:
    return Verdict(WARN, text, advice)


def bad(text: str, advice: str) -> Verdict:
    return Verdict(BAD, text, advice)


def unknown(text: str, advice: str | None = None) -> Verdict:
    return Verdict(UNKNOWN, text, advice)


def ordered(findings: Sequence[Finding]) -> list[Finding]:
    """The worst first; else as they were checked."""
    return sorted(findings, key=lambda finding: WORST_FIRST.index(finding.state))


def counts(findings: Sequence[Finding]) -> dict[str, int]:
    """How many there are of each state."""
    states = [finding.state for finding in findings]
    return {state: states.count(state) for state in WORST_FIRST}


def exit_code(findings: Sequence[Finding], strict: bool) -> int:
    """1 where something is bad; 2 where ``strict`` minds warnings and there are some."""
    found = counts(findings)
    return 1 if found[BAD] else 2 if strict and found[WARN] else 0


def summary(findings: Sequence[Finding]) -> str:
    """One line."""
    found = counts(findings)
    total = f"{found[BAD]} bad, {found[WARN]} to improve, {found[UNKNOWN]} not known"
    worst = ordered(findings)[0] if findings else None
    begin = f" Begin with: {worst.name}." if worst and worst.state in (BAD, WARN) else ""
    return f"{len(findings)} checks: {total}, {found[GOOD]} good.{begin}"


def as_json(findings: Sequence[Finding], strict: bool) -> dict[str, Any]:
    """``findings`` worst first, and ``summary`` with a count for each state, the exit code
    and the line that is printed."""
    return {
        "findings": [finding._asdict() for finding in ordered(findings)],
        "summary": {
            **counts(findings),
            "exit_code": exit_code(findings, strict),
            "text": summary(findings),
        },
    }
