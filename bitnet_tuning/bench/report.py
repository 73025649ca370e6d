"""Write a report as one HTML file that loads nothing else, for phones, desktops and printers.

The template is report.html. All text is escaped where it enters the page.
"""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Mapping, Sequence
from string import Template

from bitnet_tuning.bench.compare import Comparison, as_text
from bitnet_tuning.bench.results import Results
from bitnet_tuning.bench.summary import Row, Summary, facts, figures, headings
from bitnet_tuning.console import printable, times
from bitnet_tuning.plan.profile import PP, TG, Estimate

PHONE = 42
"""Width of preformatted text in characters that a phone of 360 pixels shows."""


def page(results: Results) -> str:
    summary, model, options = Summary(results), results.model, results.options
    measured, (goal, prompt, answer) = summary.measured, options.objective
    requests = f"requests of {prompt} tokens with answers of {answer}"
    scope = {
        "optimized for": {TG: "token generation", PP: "prompt processing"}.get(goal, requests),
        "rounds": f"{len(measured)} with {sum(len(each.runs) for each in measured)} runs",
        "time spent": f"{measured.spent:.0f} s, with a budget of {options.budget:g} s",
    }
    what, how = summary.headings
    text = f"This benchmark is {results.state}: more rounds may change its results."
    titles = [" ".join(each.split()).replace(" /", "/") for each in headings(options.objective)]
    place = os.path.join(os.path.dirname(os.path.abspath(__file__)), "report.html")
    with open(place, encoding="utf-8") as file:
        template = Template(file.read())
    return template.substitute(
        title=escape(f"Benchmark of {model.name or model.path}"),
        heading=escape(what),
        answer=escape(summary.answer),
        unfinished="" if results.state == "finished" else paragraph(text, "unfinished"),
        certainty="".join(map(paragraph, summary.details())),
        warnings=section("What may skew the results", listing(summary.warnings, "warnings")),
        plots=_ratios(summary),
        legend=escape(summary.legend),
        titles="".join(f'<th scope="col">{each}</th>' for each in ("setting", *titles, "verdict")),
        rows="".join(_row(row, titles) for row in summary.rows),
        remarks=section("Remarks", listing(summary.remarks())),
        scope=definitions(scope),
        facts=definitions(facts(results)),
        created=escape(f"Benchmark: {how}."),
    )


def comparison_page(comparison: Comparison, names: Sequence[str]) -> str:
    """Return a comparison's text as HTML, as wide as a phone; ``names`` are the files compared."""
    text = html.escape(printable(as_text(comparison, names, PHONE)))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        "<title>Comparison of two benchmarks</title>\n"
        f'<pre style="white-space: pre-wrap; font-size: .8rem">{text}</pre>\n</html>\n'
    )


# The plot and the table

_WIDE, _ROW, _LONGEST = 340, 30, 32
"""Width of the plot and height of a bar in SVG units, of which a phone's page is about as wide in
pixels; and most characters of a name that have room beside a ratio."""


def _ratios(summary: Summary) -> str:
    bars = [(row.name, row.to_default, row.winner) for row in summary.rows if not row.is_out]
    shown = [(name, ratio, best) for name, ratio, best in bars if ratio is not None]
    if not shown:
        return ""
    near = summary.measured.resolution
    caption = (
        "Ratios to the default, paired by round, with 95 % intervals. The line is the default; "
        f"inside the band, speeds are equal within {100 * near:g} %."
    )
    drawing = f"{ratios_svg(shown, near)}\n<figcaption>{escape(caption)}</figcaption>"
    return section("Speed compared with the default", f"<figure>\n{drawing}\n</figure>")


def ratios_svg(bars: Sequence[tuple[str, Estimate, bool]], resolution: float) -> str:
    """Draw bars (name, ratio, whether to use it) with intervals, and what is equal as a band."""
    near, height = 1 + resolution, _ROW * len(bars)
    left = min(1 / near, *(ratio.low for _, ratio, _ in bars))
    right = max(near, *(ratio.high for _, ratio, _ in bars))

    def at(ratio: float) -> float:
        return round(4 + (_WIDE - 8) * (ratio - left) / (right - left), 1)

    said = ", ".join(f"{name} {times(*ratio)}" for name, ratio, _ in bars)
    band = f"M{at(1 / near)} 0H{at(near)}V{height}H{at(1 / near)}Z"
    parts = [
        f'<svg role="img" aria-label="{escape(f"Speed over the default: {said}.")}" '
        f'viewBox="0 0 {_WIDE} {height}" font-size="11">',
        f'<path d="{band}" fill="var(--band)"/>',
        f'<path d="M{at(1)} 0V{height}" stroke="var(--muted)"/>',
    ]
    for number, (name, ratio, best) in enumerate(bars):
        y, colour = _ROW * number + 22, f"var(--{'accent' if best else 'text'})"
        short = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
        low, middle, high = at(ratio.low), at(ratio.median), at(ratio.high)
        arms = f"M{low} {y}H{high}M{low} {y - 3}v6M{high} {y - 3}v6"
        style = f'y="{y - 9}" fill="{colour}" class="{"best" if best else ""}"'
        parts += [
            f'<path d="{arms}" stroke="{colour}" fill="none"/>',
            f'<circle cx="{middle}" cy="{y}" r="3" fill="{colour}"/>',
            f'<text x="0" {style}>{escape(short)}</text>',
            f'<text x="{_WIDE}" text-anchor="end" {style}>{escape(times(*ratio))}</text>',
        ]
    return "\n".join((*parts, "</svg>"))


def _row(row: Row, titles: Sequence[str]) -> str:
    """Return a row of the table, on a phone a block with the ``titles`` beside the figures."""
    name = f"{row.name} (use this)" if row.winner else row.name
    cells = f'<th scope="row">{escape(name)}<small>{escape(row.words)}</small></th>'
    for title, figure in zip(titles, figures(row), strict=True):
        middle, _, interval = figure.partition("\n")
        text = f"{escape(middle)}<small>{escape(interval)}</small>"
        cells += f'<td data-title="{escape(title)}">{text}</td>'
    style, verdict = "out" if row.is_out else row.verdict, row.verdict or "the default"
    return f'<tr>{cells}<td><span class="{escape(style)}">{escape(verdict)}</span></td></tr>\n'


def section(title: str, *parts: str) -> str:
    """Return a section with a heading; ``parts`` are HTML. Without content it is empty."""
    content = "\n".join(filter(None, parts))
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>" if content else ""


def paragraph(text: str, style: str = "") -> str:
    """Return a paragraph with the CSS class ``style``."""
    return f'<p class="{style}">{escape(text)}</p>'


def listing(texts: Iterable[str], style: str = "") -> str:
    """Return a list with the CSS class ``style``; empty without texts."""
    found = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<ul class="{style}">{found}</ul>' if found else ""


def definitions(facts: Mapping[str, str]) -> str:
    """Return a list of names with their values."""
    rows = (f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return f"<dl>{''.join(f'<div>{row}</div>' for row in rows)}</dl>"


def escape(text: object) -> str:
    """Return the text for an HTML element or quoted attribute, on one line, ? for unprintable."""
    return html.escape(printable(" ".join(str(text).split())))
