"""How far ``--prompts`` is: a bar on a terminal, plain lines elsewhere; and the sums."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from typing import Protocol

from bitnet_tuning.console import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from bitnet_tuning.prompts.session import Total


LINE_SECONDS = 10.0
"""Between two plain lines."""


class Shows(Protocol):
    def update(self, total: Total) -> None: ...


class Silent:
    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to take down."""

    def update(self, total: Total) -> None:
        """Nothing is shown."""


class Lines(Silent):
    """A line now and then."""

    def __init__(self, prompts: int, before: int) -> None:
        self._prompts = prompts
        self._before = before
        self._last = time.monotonic()

    def update(self, total: Total) -> None:
        now = time.monotonic()
        if now >= self._last + LINE_SECONDS:
            self._last = now
            say(f"{self._before + total.prompts} of {self._prompts} prompts, {speed(total)}")


class Bar:
    """A bar with the speed and the time left."""

    def __init__(self, prompts: int, before: int) -> None:
        from rich.console import Console  # noqa: PLC0415 (not there in a drop-in copy)
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._before = before
        self._progress: Progress = Progress(
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.description}", markup=False),
            TimeRemainingColumn(),
            console=Console(stderr=True, highlight=False),
            transient=True,
        )
        self._task: TaskID = self._progress.add_task(
            "the model is ready", total=prompts, completed=before
        )

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, total: Total) -> None:
        done = self._before + total.prompts
        self._progress.update(self._task, completed=done, description=speed(total))


def progress(prompts: int, before: int, quiet: bool) -> AbstractContextManager[Shows]:
    """What suits standard error. A bar needs rich, which a copy of these scripts may lack."""
    if quiet:
        return Silent()
    if sys.stderr is not None and sys.stderr.isatty():
        try:
            return Bar(prompts, before)
        except ImportError:
            pass
    return Lines(prompts, before)


def speed(total: Total) -> str:
    rate = total.tokens / total.seconds if total.seconds else 0.0
    return f"{rate:.1f} tokens/s"


def summary(total: Total, slots: int, load_seconds: float) -> str:
    """One line at the end."""
    noun = "slot" if slots == 1 else "slots"
    return (
        f"{total.prompts} prompts, {total.tokens} tokens generated, {speed(total)}, "
        f"{total.seconds:.1f} s, {slots} {noun}; the model was loaded in {load_seconds:.1f} s"
    )


def stats_line(total: Total) -> str:
    """By the server's clock. Slots run side by side: their times overlap."""
    work = total.work
    if not work.prompt_ms and not work.ms:
        return "the server gave no timings"
    return (
        f"in each slot: prompt {_rate(work.prompt_tokens, work.prompt_ms)}, "
        f"generation {_rate(work.tokens, work.ms)}"
    )


def _rate(tokens: int, milliseconds: float) -> str:
    if not milliseconds:
        return "not measured"
    return f"{tokens / milliseconds * 1000:.1f} tokens/s ({tokens} tokens)"
