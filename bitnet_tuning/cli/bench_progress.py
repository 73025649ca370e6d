"""How far a tuning is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from bitnet_tuning.bench.asks import DEFAULT
from bitnet_tuning.bench.summary import times
from bitnet_tuning.cli import say

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress, TaskID

    from bitnet_tuning.bench.rounds import Round
    from bitnet_tuning.bench.search import Search

LINE_SECONDS = 10.0
"""Between two plain lines that tell nothing but the time."""


def standing(search: Search) -> str:
    """Who is ahead, and how sure that is."""
    best = search.best()
    found = search.standing(best)
    if best == DEFAULT or found is None:
        return "the default leads"
    return f"{best} leads, {times(found)}"


class Lines:
    """A line when the stage or the leader changes, and now and then. ``budget`` in seconds."""

    def __init__(self, budget: float) -> None:
        self._budget = budget
        self._said: tuple[str, str] | None = None
        self._last = -LINE_SECONDS

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to take down."""

    def running(self, stage: str, name: str, elapsed: float) -> None:
        """Runs are too many for a line each."""

    def measured(self, search: Search, done: Round) -> None:
        news = done.stage, search.best()
        if news == self._said and done.elapsed < self._last + LINE_SECONDS:
            return
        self._said, self._last = news, done.elapsed
        self.note(
            f"{done.elapsed:.0f} of {self._budget:.0f} s, round {done.number} ({done.stage}): "
            f"{standing(search)}"
        )

    def note(self, text: str) -> None:
        say(text)


class Bar:
    """A bar with the time left, what runs, and who leads."""

    def __init__(self, budget: float) -> None:
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415

        self._budget = budget
        self._progress: Progress = Progress(
            TextColumn("{task.fields[left]}"),
            BarColumn(bar_width=20),
            TextColumn("{task.description}", markup=False),
            console=Console(stderr=True, highlight=False),
            transient=True,
        )
        self._task: TaskID = self._progress.add_task("", total=budget, left="")
        self._leader = ""

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def running(self, stage: str, name: str, elapsed: float) -> None:
        left = max(0.0, self._budget - elapsed)
        text = f"{stage}: {name}" + (f" | {self._leader}" if self._leader else "")
        self._progress.update(
            self._task,
            completed=min(elapsed, self._budget),
            description=text,
            left=f"at most {left // 60:.0f}:{left % 60:02.0f} left",
        )

    def measured(self, search: Search, done: Round) -> None:
        self._leader = standing(search)

    def note(self, text: str) -> None:
        self._progress.console.print(f"bitnet-tuning: {text}", markup=False)


def watcher(budget: float) -> Bar | Lines:
    """What suits standard error."""
    return Bar(budget) if sys.stderr is not None and sys.stderr.isatty() else Lines(budget)
