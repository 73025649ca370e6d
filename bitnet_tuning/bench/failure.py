"""Why a captured run gave nothing, in one line; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitnet_tuning.outcome import explain

if TYPE_CHECKING:
    from bitnet_tuning.launch import Captured

LONGEST = 160
"""Characters of a reason: it stands in a table and in a file of results."""

NO_END = "no end after"
"""How the reason of a run that hung begins."""

_SIGNS = ("error", "assert", "failed", "cannot", "invalid")


def failure(done: Captured, seconds: float) -> str | None:
    """None where the run ended well. ``seconds`` is the time that it had."""
    if done.code is None:
        return f"{NO_END} {seconds:.3g} seconds"
    if done.code == 0:
        return None
    code = done.code if done.code >= 0 else 128 - done.code
    why = explain(code, None, None) or f"the engine ended with exit code {code}"
    said = _last_error(done.stderr, any_line=done.code > 0)
    return shorten(f"{_briefly(why)}{said and f': {said}'}")


def _briefly(why: str) -> str:
    """Without its remedy, and without figures in brackets that are not known here."""
    return why.partition(";")[0].partition(" (")[0]


def shorten(text: str, most: int = LONGEST) -> str:
    """On one line, its end replaced by an ellipsis where it is too long."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _last_error(log: str, any_line: bool) -> str:
    """The last line that tells of an error, else the last one if ``any_line`` will do: what
    a signal ends has not said why."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if any(sign in line.lower() for sign in _SIGNS)]
    return (errors or lines * any_line or [""])[-1]
