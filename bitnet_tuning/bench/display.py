"""How far a tuning is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from bitnet_tuning.bench.comparison import DEFAULT
from bitnet_tuning.bench.summary import answer, guide_row, noise_floor, rows, speed, times
from bitnet_tuning.console import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress, TaskID
    from rich.table import Table

    from bitnet_tuning.bench.comparison import Round
    from bitnet_tuning.bench.results import Part, Results
    from bitnet_tuning.bench.search import Search
    from bitnet_tuning.bench.summary import Row
    from bitnet_tuning.plan.profile import Estimate


LINE_SECONDS = 10.0
"""Between two plain lines that tell nothing but the time."""


def standing(search: Search) -> str:
    """Who is ahead, and how sure that is."""
    best = search.best()
    found = search.rounds.shown(best).ratio
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


def show(results: Results) -> None:
    """To standard output, as wide as the terminal."""
    from rich.console import Console  # noqa: PLC0415

    console = Console(highlight=False)
    console.print(table(results))
    for line in sentences(results):
        console.print(line, markup=False, soft_wrap=not console.is_terminal)


def table(results: Results) -> Table:
    """A row for every setting that ran; speeds in tokens/s, with their intervals."""
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    made = Table(box=box.SIMPLE, pad_edge=False, title_justify="left")
    for name in ("setting", "pp/s", "tg/s", "to -t 2", "to default", "verdict"):
        made.add_column(name, overflow="fold")
    for row in rows(results):
        made.add_row(*map(_escaped, _cells(row)), style="bold" if row.winner else None)
    return made


def _cells(row: Row) -> tuple[str, ...]:
    return (
        f"{row.name} *" if row.winner else row.name,
        _speed(row.pp),
        _speed(row.tg),
        _ratio(row.to_upstream),
        _ratio(row.to_default),
        row.verdict.partition(":")[0] or "-",
    )


def _escaped(text: str) -> str:
    from rich.markup import escape  # noqa: PLC0415

    return escape(text)


def _speed(found: Estimate | None) -> str:
    return "-" if found is None else _two_lines(speed(found))


def _ratio(found: Estimate | None) -> str:
    return "-" if found is None else _two_lines(times(found))


def _two_lines(text: str) -> str:
    """The interval below its median: six columns fit into 80 characters."""
    return text.replace(" (", "\n").rstrip(")")


def sentences(results: Results) -> Iterator[str]:
    """The answer first, then what it is to be held against."""
    yield answer(results)
    yield guide_row(results).sentence
    floor = noise_floor(results)
    if floor is not None:
        yield f"Noise floor: the default differs from itself by up to ×{floor:.2f}."
    for what, part in (
        ("Memory", results.roof),
        ("Energy", results.energy),
    ):
        said = _said(part)
        if said:
            yield f"{what}: {said}."
    yield from (f"{name} {what}." for name, what in _out(results))
    yield from (f"Warning: {warning}" for warning in results.warnings)
    yield from (f"Note: {note}" for note in results.notes)
    if results.profile is not None:
        yield results.profile.reason


def _out(results: Results) -> Iterator[tuple[str, str]]:
    """Settings of which the table says only that they are out, and why."""
    for row in rows(results):
        _, has_reason, _ = row.verdict.partition(":")
        if has_reason:
            yield row.name, row.verdict


def _said(part: Part) -> str | None:
    """What is known in words, or why nothing is."""
    return part.facts["words"] if part.facts and "words" in part.facts else part.reason
