"""A figure that cannot be had, and why; pure."""

from __future__ import annotations

from typing import NamedTuple


class Absent(NamedTuple):
    """Stands where a figure would: a machine that does not show it is no error."""

    reason: str
    """Half a sentence, with the remedy where there is one."""
