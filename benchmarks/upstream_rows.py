"""The rows of against_upstream.py: in what conditions which sides take turns."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.weather import IDLE, Weather, parse_weather
from bitnet_tuning.console import counted

OURS, UPSTREAM, VARIANT, ONE, ONE_BOUND = SIDES = (
    "ours",
    "upstream",
    "upstream, -b 1",
    "1 thread",
    "1 thread, bound",
)
AIM = 0.97
"""Smallest ratio to upstream that is acceptable in any row."""

QUOTAS = (0.5, 1.0, 1.25, 1.5, 1.75)
PROMPTS = 32


class Row(NamedTuple):
    """The conditions of a run."""

    name: str
    title: str
    """The row's name for readers."""
    weather: Weather = IDLE
    one_cpu: bool = False
    """True to bind the whole launcher to one CPU."""
    quota: float | None = None
    """CPUs that each program may use."""
    programs: int = 1
    """Number of programs at once."""
    threads: int | None = None
    """The user's -t for both launchers; None leaves it to them."""
    slim: bool = False
    """True to give this launcher the slim copy of the model."""
    many: bool = False
    """True to answer many prompts."""

    def sides(self, more: bool = False) -> tuple[str, ...]:
        """Return the names of what takes turns. With one thread, upstream is unbound as well."""
        if self.programs > 1:
            return (OURS, UPSTREAM, *(() if self.threads else (ONE,)), ONE_BOUND)
        variant = (VARIANT,) if more or self.name == IDLE.name else ()
        return (OURS, UPSTREAM, *variant, *((ONE,) if more and self.quota is not None else ()))


ROWS = (
    Row("idle", "idle"),
    Row("one CPU", "pinned to one CPU", one_cpu=True),
    *(
        Row(f"quota {quota:g}", f"quota of {counted(quota, 'CPU')}", quota=quota)
        for quota in QUOTAS
    ),
    Row("spin-1", "one busy program", parse_weather("spin-1")),
    Row("spin-2", "two busy programs", parse_weather("spin-2")),
    Row("slim file", "slim file", slim=True),
    Row("32 prompts", f"{PROMPTS} prompts", many=True),
    Row("two at once", "two runs at once", programs=2, threads=1),
    Row("two containers", "two containers", programs=2, quota=1.0),
)
USUAL = ("idle", "one CPU", "quota 1", "quota 1.5", "spin-1", "spin-2")
"""Rows of which the geometric mean is also printed alone: the same file and one prompt."""
DEFAULT = (*USUAL, "slim file", "32 prompts")
"""Rows that are measured unless others are named."""
