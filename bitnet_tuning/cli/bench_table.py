"""What a benchmark found, as a table and a few sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bitnet_tuning.bench.summary import answer, guide_row, noise_floor, rows, speed, times

if TYPE_CHECKING:
    from rich.table import Table

    from bitnet_tuning.bench.document import Part, Results
    from bitnet_tuning.bench.stats import Estimate
    from bitnet_tuning.bench.summary import Row


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
