"""A report on one page that needs nothing else: for a phone, a desk and a printer."""

from __future__ import annotations

import os
from collections.abc import Iterator

from bitnet_tuning.bench import plots, report_facts
from bitnet_tuning.bench.curves import Bar, Scaling, forest, scalings
from bitnet_tuning.bench.document import FINISHED, Results
from bitnet_tuning.bench.markup import element, escape, figure, items, paragraph, section, table
from bitnet_tuning.bench.results import write
from bitnet_tuning.bench.rounds import TG
from bitnet_tuning.bench.stats import FASTER, SLOWER
from bitnet_tuning.bench.summary import (
    FAILED,
    WRONG,
    Row,
    answer,
    digits,
    failures,
    guide_row,
    rows,
    speed,
    times,
)

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Nothing is loaded and no script runs, whatever the names in a document hold."""

_HEADS = (
    "Configuration",
    "Generation",
    "Prompt",
    "To 2 threads",
    "To default",
    "Rounds",
    "Verdict",
)


def write_report(results: Results, path: str) -> None:
    """Replaces ``path`` in one step. Raises MissingError without matplotlib, and UsageError
    where the file cannot be written."""
    write(path, page(results), "the report", "--report")


def page(results: Results) -> str:
    """The whole page. Raises MissingError without matplotlib."""
    plots.available()
    title = escape(f"Benchmark of {results.model.name or results.model.path}")
    body = "\n".join((_header(results), element("main", _main(results)), _footer(results)))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>\n{_style()}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _style() -> str:
    place = os.path.join(os.path.dirname(os.path.abspath(__file__)), "report.css")
    with open(place, encoding="utf-8") as file:
        return file.read()


def _header(results: Results) -> str:
    model, host = results.model, results.host
    name = model.name or os.path.basename(model.path)
    heading = f"{name} ({model.quantization}) on {host.brand or host.vendor or 'this machine'}"
    parts = [element("h1", escape(heading)), paragraph(answer(results), "answer")]
    if results.state != FINISHED:
        text = f"This benchmark is {results.state}: more rounds may change what it shows."
        parts.append(paragraph(text, "unfinished"))
    parts.append(paragraph(report_facts.certainty(results)))
    return element("header", "\n".join(parts))


def _main(results: Results) -> str:
    shown = rows(results)
    drawn = element("div", _scaling(results) + _forest(results, shown), "plots")
    parts = (
        section("What may have spoilt the figures", [items(results.warnings, "warnings")]),
        drawn,
        section("Every configuration", [_table(shown), paragraph(guide_row(results).sentence)]),
        section("How near the limit", report_facts.limits(results)),
        section("What went wrong", [_failures(results)]),
        section("How it was measured", report_facts.method(results)),
        section("The machine", report_facts.machine(results)),
        section("Engine and model", report_facts.subjects(results)),
        section("Notes", [items(results.notes)]),
    )
    return "\n".join(part for part in parts if part)


def _scaling(results: Results) -> str:
    found = scalings(results)
    if not found:
        return ""
    words = " ".join(map(_in_words, found))
    caption = (
        f"{words} Medians with 95 % intervals; all but the number of threads as in the "
        "default, whose own number is bold."
    )
    return section("Speed by threads", [figure(plots.scaling_svg(found, words), caption)])


def _in_words(scaling: Scaling) -> str:
    what = "Generation" if scaling.phase == TG else "Prompt processing"
    points = ", ".join(f"{point.threads}: {digits(point.speed.median)}" for point in scaling.points)
    roof = "" if scaling.roof is None else f" Memory allows {digits(scaling.roof)}."
    return f"{what} in tokens/s by threads: {points}.{roof}"


def _forest(results: Results, shown: tuple[Row, ...]) -> str:
    found = forest(results, shown)
    if not found.bars:
        return ""
    label = f"Speed over the default's: {', '.join(map(_bar_in_words, found.bars))}."
    caption = (
        "Ratios to the default, paired by round, with 95 % intervals. "
        f"{report_facts.floor_words(found.floor)}"
    )
    if found.left_out:
        caption += f" {found.left_out} slower ones are only in the table."
    drawing = plots.forest_svg(found, label)
    return section("Ratio to the default", [figure(drawing, caption)])


def _bar_in_words(bar: Bar) -> str:
    return f"{bar.name} {times(bar.ratio)}"


def _table(shown: tuple[Row, ...]) -> str:
    explained = (
        "Generation and prompt processing in tokens/s, and speed as a multiple of that of 2 "
        "threads (upstream) and of the default: medians with 95 % intervals, ratios paired by "
        "round. Verdicts are against the default."
    )
    body = [(_class(row), tuple(_cells(row))) for row in shown]
    return paragraph(explained, "muted") + table("All that was measured", _HEADS, body)


def _class(row: Row) -> str:
    return "winner" if row.winner else ""


def _cells(row: Row) -> Iterator[str]:
    mark = " (use this)" if row.winner else ""
    yield escape(row.name + mark) + element("small", escape(row.words))
    for found in (row.tg, row.pp):
        yield _two_lines(speed(found)) if found else _nothing()
    for ratio in (row.to_upstream, row.to_default):
        yield _two_lines(times(ratio)) if ratio else _nothing()
    yield str(row.rounds)
    yield element("span", escape(row.verdict or "the default"), _verdict_class(row.verdict))


def _two_lines(text: str) -> str:
    """The median, and below it the interval."""
    middle, _, interval = text.partition(" ")
    return escape(middle) + element("small", escape(interval.strip("()")))


def _nothing() -> str:
    return '<span class="muted">-</span>'


def _verdict_class(verdict: str) -> str:
    if verdict.startswith((FAILED, WRONG)):
        return "out"
    return verdict if verdict in (FASTER, SLOWER) else ""


def _failures(results: Results) -> str:
    return items(
        f"{name}: {problem}{f' ({count} times)' if count > 1 else ''}"
        for name, problem, count in failures(results)
    )


def _footer(results: Results) -> str:
    program = results.program
    commit = f", commit {program.git_commit[:12]}" if program.git_commit else ""
    text = f"{program.name} {program.version}{commit}. Measured from {results.created} on."
    return element("footer", escape(text))
