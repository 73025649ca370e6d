"""Compare the results of two benchmarks, such as before and after an update."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress

from bitnet_tuning.bench import statistics
from bitnet_tuning.bench.results import Results
from bitnet_tuning.bench.summary import Summary, csv_text, facts, stacked
from bitnet_tuning.console import NARROWEST, aligned, table, times
from bitnet_tuning.engine.builds import verdict_words
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.profile import PP, TG, Estimate
from bitnet_tuning.store.state import FileIdentity, moment_of


class Difference(NamedTuple):
    """A fact other than a speed that is not the same in both benchmarks, as texts."""

    what: str
    a: str
    b: str


class Pair(NamedTuple):
    """One phase of a setting that both benchmarks measured."""

    name: str
    other: str
    """``name`` and ``other`` are the setting's names in the first and the second benchmark."""
    phase: str
    ratio: Estimate
    """Speed in the second over speed in the first. ``count`` is the smaller number of runs."""
    verdict: str
    """Stored form of the verdict on the second against the first."""


class Comparison(NamedTuple):
    """The comparison of benchmark B with benchmark A."""

    differences: tuple[Difference, ...]
    settings: tuple[Pair, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    resolution: float = statistics.RESOLUTION


def compare(a: Results, b: Results) -> Comparison:
    """Compare the settings that have equal values in both, whatever their names."""
    both = Summary(a), Summary(b)
    same = tuple(_same(a, b))
    return Comparison(
        differences=_differences(a, b),
        settings=tuple(pair for names in same for pair in _pairs(both, names)),
        only_a=tuple(name for name in a.settings if name not in {each for each, _ in same}),
        only_b=tuple(name for name in b.settings if name not in {each for _, each in same}),
        resolution=b.options.resolution,
    )


def _same(a: Results, b: Results) -> Iterator[tuple[str, str]]:
    """Yield the names of equal settings in both, of several that are equal the same name first."""
    names = {setting: name for name, setting in reversed(tuple(b.settings.items()))}
    for name, setting in a.settings.items():
        if b.settings.get(name) == setting:
            yield name, name
        elif setting in names:
            yield name, names[setting]


def _pairs(both: tuple[Summary, Summary], names: tuple[str, str]) -> Iterator[Pair]:
    named = tuple(zip(both, names, strict=True))
    for phase in (PP, TG):
        before, after = (each.measured.speeds(name, phase) for each, name in named)
        if before and after:
            # Of many pairs at once, some differ by chance at a usual level.
            found, strict = (
                statistics.unpaired(after, before, level)
                for level in (statistics.LEVEL, statistics.INTERIM)
            )
            verdict = statistics.verdict(strict, both[1].measured.resolution, statistics.INTERIM)
            yield Pair(*names, phase, found, verdict)


def _differences(a: Results, b: Results) -> tuple[Difference, ...]:
    one, two = (
        {
            **facts(each),
            "engine's files": _in_words(set(each.engine.files) - set(other.engine.files)),
            "model's size": f"{each.model.size} bytes",
            "warnings": "; ".join(each.warnings),
        }
        for each, other in ((a, b), (b, a))
    )
    return tuple(Difference(what, one[what], two[what]) for what in one if one[what] != two[what])


def _in_words(files: set[FileIdentity]) -> str:
    found = []
    for file in sorted(files):
        when = "at an unknown time"
        with suppress(OverflowError, ValueError, OSError):  # a damaged file may have any number
            when = moment_of(file.modified / 1e9)
        found.append(f"{file.path}: {file.size} bytes, modified {when}")
    return "; ".join(found)


_ADVICE = {
    "model": "the ratios tell how the models differ, whatever else does",
    "machine": "the ratios tell how the machines differ, whatever else does",
    "tokens measured": "speeds depend on them: measure again with the same --n-prompt and --n-gen",
    "governor": "it sets the clock: measure again with the same governor",
    "measured by": "loaded servers and whole processes differ: measure again with the same one",
}
"""What to do about a difference that distorts the comparison, by ``Difference.what``."""

_SAID_BY = {"engine's files": "engine", "model's size": "model", "model's path": "model"}
"""Differences that another one, if there is it, explains well enough."""


def as_text(
    comparison: Comparison, names: Sequence[str] = ("A", "B"), width: int = NARROWEST
) -> str:
    """Return the comparison as text of ``width`` characters; ``names`` are the files of A and B."""
    (a, b), near, unlike = names, comparison.resolution, list[tuple[str, str]]()
    differ = {each.what for each in comparison.differences}
    for what, *sides in comparison.differences:
        if _SAID_BY.get(what) in differ:
            continue
        parts = "; " if what in ("engine's files", "warnings") else ", "
        first, second = (_but(each, other, parts) for each, other in (sides, sides[::-1]))
        advice = f"\n({_ADVICE[what]})" if what in _ADVICE else ""
        unlike.append((what, f"A: {first}\nB: {second}{advice}"))
    lines = ["Not the same in both:", aligned(unlike, width), ""] if unlike else []
    lines.append(f"Speed of B ({b}) over A ({a}):")
    rows = [("setting", "phase", "B over A", "verdict")]
    for name, other, phase, ratio, verdict in comparison.settings:
        both = name if name == other else f"{name} = {other}"
        rows.append((both, phase, stacked(times(*ratio)), verdict_words(verdict, near)))
    found = Counter(verdict for *_, verdict in rows[1:])
    said = ", ".join(f"{number} {verdict}" for verdict, number in found.most_common())
    said = f"B against A: {said}." if said else "No setting was measured in both."
    lines += [table(rows, width), "", said]
    every = (("A", comparison.only_a), ("B", comparison.only_b))
    lines += [f"Only in {name}: {', '.join(only)}" for name, only in every if only]
    return "\n".join(lines)


def _but(text: str, other: str, separator: str) -> str:
    """Return the parts of a text that the other one lacks."""
    known = other.split(separator)
    return separator.join(part for part in text.split(separator) if part not in known) or "-"


def to_csv(comparison: Comparison) -> str:
    """Return CSV with a line for each phase of a setting."""
    columns = ("setting", "other", "phase", "ratio", "low", "high", "runs", "verdict")
    return csv_text([columns, *((*each[:3], *each[3], each[4]) for each in comparison.settings)])
