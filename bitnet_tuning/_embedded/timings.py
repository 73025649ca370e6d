"""How long a completion took, by the engine's own clock, in llama.cpp's own words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

PREFIX = "llama_perf_context_print:"


class Timings(NamedTuple):
    """Tokens processed and the milliseconds that they took.

    The engine starts ``predicted_ms`` when it has sampled the first token, which
    comes out of the prompt's last step and is paid for in ``prompt_ms``. So
    ``predicted_n`` tokens cost ``predicted_n - 1`` steps: the ``runs``.
    """

    prompt_n: int = 0
    prompt_ms: float = 0.0
    runs: int = 0
    predicted_ms: float = 0.0


def from_result(timings: Mapping[str, Any]) -> Timings:
    """Read the ``timings`` object of a completion's result."""
    runs = max(int(timings["predicted_n"]) - 1, 0)
    return Timings(
        prompt_n=int(timings["prompt_n"]),
        prompt_ms=float(timings["prompt_ms"]),
        runs=runs,
        # With no step after the prompt, what the clock shows is the reading of the clock.
        predicted_ms=float(timings["predicted_ms"]) if runs else 0.0,
    )


def total(each: Iterable[Timings]) -> Timings:
    """The sums over several completions, such as a chat's turns."""
    rows = list(each)
    return Timings(
        sum(row.prompt_n for row in rows),
        sum(row.prompt_ms for row in rows),
        sum(row.runs for row in rows),
        sum(row.predicted_ms for row in rows),
    )


def perf_lines(load_ms: float, wall_ms: float, timings: Timings) -> str:
    """The four lines that every llama.cpp program ends with, times in milliseconds.

    ``wall_ms`` counts from the end of loading.
    """
    return (
        f"\n{PREFIX}        load time = {load_ms:10.2f} ms\n"
        f"{PREFIX} prompt eval time = {_rate(timings.prompt_ms, timings.prompt_n, 'tokens')}\n"
        f"{PREFIX}        eval time = {_rate(timings.predicted_ms, timings.runs, 'runs  ')}\n"
        f"{PREFIX}       total time = {wall_ms:10.2f} ms / "
        f"{timings.prompt_n + timings.runs:5d} tokens"
    )


def _rate(milliseconds: float, count: int, noun: str) -> str:
    each = milliseconds / count if count else 0.0
    per_second = 1e3 * count / milliseconds if milliseconds else 0.0
    return (
        f"{milliseconds:10.2f} ms / {count:5d} {noun} "
        f"({each:8.2f} ms per token, {per_second:8.2f} tokens per second)"
    )
