"""Write a report as one HTML file that loads nothing else, for phones, desktops and printers.

The template is report.html. All text is escaped where it enters the page.
"""

from __future__ import annotations

import html
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from string import Template

from bitnet_tuning.bench import plots
from bitnet_tuning.bench.compare import Comparison, as_text
from bitnet_tuning.bench.plots import escape
from bitnet_tuning.bench.results import Results
from bitnet_tuning.bench.summary import (
    LEGEND,
    Curve,
    Summary,
    digits,
    facts,
    figures,
    headings,
)
from bitnet_tuning.console import printable, times
from bitnet_tuning.plan.profile import PP, TG

PHONE = 42
"""Width of preformatted text in characters that a phone of 360 pixels shows."""


def page(results: Results) -> str:
    """Return the report as HTML. Raise MissingError without matplotlib."""
    plots.available()
    summary, model, host = Summary(results), results.model, results.host
    name = model.name or os.path.basename(model.path)
    machine = host.brand or host.vendor or "this machine"
    text = f"This benchmark is {results.state}: more rounds may change its results."
    return _filled(
        title=escape(f"Benchmark of {model.name or model.path}"),
        heading=escape(f"{name} ({model.quantization}) on {machine}"),
        answer=escape(summary.answer),
        unfinished="" if results.state == "finished" else paragraph(text, "unfinished"),
        certainty="".join(map(paragraph, summary.details())),
        warnings=section("What may skew the results", listing(results.warnings, "warnings")),
        plots=_curves(summary) + _ratios(summary),
        table=section("All settings", paragraph(LEGEND, "muted"), _settings(summary)),
        remarks=section("Remarks", listing(summary.remarks())),
        method=section("How it was measured", *_method(summary)),
        facts=section("Machine, engine and model", definitions(facts(results))),
        created=escape(f"Benchmark started at {results.created}."),
    )


def comparison_page(comparison: Comparison, names: Sequence[str]) -> str:
    """Return the text of a comparison as HTML, as wide as a phone; ``names`` are the files of A and
    B."""
    title, text = "Comparison of two benchmarks", as_text(comparison, names, PHONE)
    text = html.escape(printable(text))
    heading = escape(" and ".join(names))
    return _filled(title=title, heading=heading, answer=title, table=f"<pre>{text}</pre>")


def _filled(**parts: str) -> str:
    place = os.path.join(os.path.dirname(os.path.abspath(__file__)), "report.html")
    with open(place, encoding="utf-8") as file:
        template = Template(file.read())
    return template.substitute(defaultdict(str, parts))


# Plots and the table


def _curves(summary: Summary) -> str:
    curves = summary.curves
    if not curves:
        return ""
    words = " ".join(map(_curve_in_words, curves))
    caption = f"{words} With 95 % intervals. Only the number of threads differs from the default."
    return section("Speed by threads", _figure(plots.curves_svg(curves, words), caption))


def _curve_in_words(curve: Curve) -> str:
    what = "Generation" if curve.phase == TG else "Prompt processing"
    points = ", ".join(
        f"{count}{' (default)' if count == curve.default else ''}: {digits(found.median)}"
        for count, found in curve.speeds.items()
    )
    limit = "" if curve.limit is None else f" Memory allows {digits(curve.limit)}."
    return f"{what} in tokens/s by threads: {points}.{limit}"


def _ratios(summary: Summary) -> str:
    bars = [(row.name, row.to_default, row.winner) for row in summary.rows if not row.is_out]
    shown = [(name, ratio, best) for name, ratio, best in bars if ratio is not None]
    if not shown:
        return ""
    near, title = summary.measured.resolution, "speed as a multiple of the default's"
    said = ", ".join(f"{name} {times(*ratio)}" for name, ratio, _ in shown)
    drawing = plots.ratios_svg(shown, near, title, f"{title.capitalize()}: {said}.")
    caption = (
        "Ratios to the default, paired by round, with 95 % intervals. Inside the band, speeds are "
        f"equal within {100 * near:g} %."
    )
    return section("Speed compared with the default", _figure(drawing, caption))


def _figure(drawing: str, caption: str) -> str:
    return f"<figure>\n{drawing}\n<figcaption>{escape(caption)}</figcaption>\n</figure>"


def _settings(summary: Summary) -> str:
    """Return the table of settings. On a phone each row becomes a block, in which every figure has
    its heading."""
    titles = headings(summary.results.options.objective)
    titles = tuple(" ".join(title.split()).replace(" /", "/") for title in titles)
    top = "".join(
        f'<th scope="col">{escape(each)}</th>' for each in ("setting", *titles, "verdict")
    )
    lines = ""
    for row in summary.rows:
        name = f"{row.name} (use this)" if row.winner else row.name
        cells = f'<th scope="row">{escape(name)}<small>{escape(row.words)}</small></th>'
        for title, figure in zip(titles, figures(row), strict=True):
            middle, _, interval = figure.partition("\n")
            text = f"{escape(middle)}<small>{escape(interval)}</small>"
            cells += f'<td data-title="{escape(title)}">{text}</td>'
        style, verdict = "out" if row.is_out else row.verdict, row.verdict or "the default"
        cells += f'<td><span class="{escape(style)}">{escape(verdict)}</span></td>'
        lines += f"<tr>{cells}</tr>\n"
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="All settings">\n<table>\n'
        f"<caption>All settings that were measured</caption>\n<thead><tr>{top}</tr></thead>\n"
        f"<tbody>\n{lines}</tbody>\n</table>\n</div>"
    )


def _method(summary: Summary) -> Iterator[str]:
    options, measured = summary.results.options, summary.measured
    wanted = options.objective
    yield paragraph(
        "Each round ran its settings one after the other, in changing order, so that a disturbance "
        "of the machine affects all of them. Ratios compare runs of the same round: they are "
        "Hodges-Lehmann estimates with Wilcoxon's interval. A setting that looked fast was "
        "measured again, in a duel with the default, before it could win."
    )
    requests = f"requests of {wanted.n_prompt} tokens with answers of {wanted.n_gen}"
    goals = {TG: "token generation", PP: "prompt processing"}
    scope = {
        "optimized for": goals.get(wanted.name, requests),
        "rounds": f"{len(measured)} with {measured.runs} runs",
        "time spent": f"{measured.spent:.0f} s, with a budget of {options.budget:g} s",
    }
    yield definitions(scope)


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
