"""Read llama.cpp's own timings from an engine's log."""

from __future__ import annotations

import re

from bitnet_tuning.namedtuple import NamedTuple


class Speed(NamedTuple):
    """One phase of a run, in the engine's own figures."""

    tokens: int
    milliseconds: float

    @property
    def rate(self) -> float | None:
        """Tokens per second."""
        return self.tokens / self.milliseconds * 1000 if self.milliseconds > 0 else None


class Timings(NamedTuple):
    """A run's phases; None for one that the log does not have."""

    prompt: Speed | None
    generation: Speed | None


_LINE = r"{} time\s*=\s*([\d.]+) ms\s*/\s*(\d+) (?:tokens|runs)"
_PROMPT = re.compile(_LINE.format(r"prompt eval"))
_GENERATION = re.compile(_LINE.format(r"(?<!prompt )eval"))


def parse_timings(log: str) -> Timings:
    """Return what llama.cpp's timing lines say, in any generation's spelling."""
    return Timings(*(_speed(pattern.search(log)) for pattern in (_PROMPT, _GENERATION)))


def _speed(found: re.Match[str] | None) -> Speed | None:
    return Speed(int(found[2]), float(found[1])) if found else None
