"""Other processes, as tests watch them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 60.0
"""After which what a test waits for counts as not happening."""


def until(condition: Callable[[], Any]) -> None:
    """Waits for something another process does."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def alive(process: int) -> bool:
    """Whether it runs; one that ended and was not asked for its exit code does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
