"""Write a report as one HTML file that loads nothing else, for phones, desktops and printers.

The template is report.html. All text is escaped where it enters the page.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from string import Template

from bitnet_tuning.bench import plots
from bitnet_tuning.bench.compare import Comparison
from bitnet_tuning.bench.plots import escape
from bitnet_tuning.bench.results import Results, write
from bitnet_tuning.bench.summary import (
    FAILED,
    LEGEND,
    WRONG,
    Curve,
    Summary,
    digits,
    facts,
    figures,
    headings,
)
from bitnet_tuning.console import times
from bitnet_tuning.plan.profile import PP, TG


def write_report(results: Results, path: str) -> None:
    """Write the report to ``path``, which is replaced atomically. Raise MissingError without
    matplotlib, and UsageError if the file cannot be written."""
    write(path, page(results), "the report", "--report")


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
    """Return the report of a comparison as HTML; ``names`` are the files of A and B. Raise
    MissingError without matplotlib."""
    plots.available()
    rows = [(name, "", (phase, ratio), said) for name, phase, ratio, said in comparison.rows]
    bars = [
        (f"{name}, {phase}", each.ratio, False)
        for each, (name, phase, *_) in zip(comparison.settings, comparison.rows, strict=True)
    ]
    title, what = "speed of B as a multiple of A's", "Ratios of all runs of both"
    drawing = _bars(bars, comparison.resolution, title, what) if bars else ""
    differences = {each.what: f"A: {each.a}; B: {each.b}" for each in comparison.differences}
    return _filled(
        title="Comparison of two benchmarks",
        heading="Comparison of two benchmarks",
        answer=escape(comparison.answer if rows else "No setting was measured in both."),
        certainty=listing(f"{letter}: {name}" for letter, name in zip("AB", names, strict=True)),
        plots=section("Speed of B over A", drawing),
        table=section("All settings", _table(("phase", "B over A"), rows)),
        remarks=section("Remarks", listing(filter(None, [comparison.rest]))),
        facts=section("Not the same in both", definitions(differences) if differences else ""),
    )


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
    caption = (
        f"{words} With 95 % intervals. Only the number of threads differs from the default, whose "
        "number is bold."
    )
    return section("Speed by threads", _figure(plots.curves_svg(curves, words), caption))


def _curve_in_words(curve: Curve) -> str:
    what = "Generation" if curve.phase == TG else "Prompt processing"
    points = ", ".join(f"{count}: {digits(found.median)}" for count, found in curve.speeds.items())
    limit = "" if curve.limit is None else f" Memory allows {digits(curve.limit)}."
    return f"{what} in tokens/s by threads: {points}.{limit}"


def _ratios(summary: Summary) -> str:
    bars = [(row.name, row.to_default, row.winner) for row in summary.rows if not row.is_out]
    shown = [(name, ratio, best) for name, ratio, best in bars if ratio is not None]
    near, title = summary.measured.resolution, "speed as a multiple of the default's"
    drawing = _bars(shown, near, title, "Ratios to the default, paired by round") if shown else ""
    return section("Speed compared with the default", drawing)


def _bars(bars: Sequence[plots.Bar], near: float, title: str, what: str) -> str:
    caption = (
        f"{what}, with 95 % intervals. Inside the band, speeds are equal within {100 * near:g} %."
    )
    said = ", ".join(f"{name} {times(*ratio)}" for name, ratio, _ in bars)
    drawing = plots.ratios_svg(bars, near, title, f"{title.capitalize()}: {said}.")
    return _figure(drawing, caption)


def _figure(drawing: str, caption: str) -> str:
    return f"<figure>\n{drawing}\n<figcaption>{escape(caption)}</figcaption>\n</figure>"


def _settings(summary: Summary) -> str:
    rows = []
    for row in summary.rows:
        name = f"{row.name} (use this)" if row.winner else row.name
        rows.append((name, row.words, figures(row), row.verdict or "the default"))
    return _table(headings(summary.results.options.objective), rows)


def _table(titles: Sequence[str], rows: Iterable[tuple[str, str, Sequence[str], str]]) -> str:
    """Return a table of settings: name, description, figures and verdict. On a phone each row
    becomes a block, in which every figure has its heading."""
    titles = [" ".join(title.split()).replace(" /", "/") for title in titles]
    top = "".join(
        f'<th scope="col">{escape(each)}</th>' for each in ("setting", *titles, "verdict")
    )
    body = []
    for name, words, shown, verdict in rows:
        cells = ""
        for title, figure in zip(titles, shown, strict=True):
            middle, _, interval = figure.partition("\n")
            text = f"{escape(middle)}<small>{escape(interval)}</small>"
            cells += f'<td data-title="{escape(title)}">{text}</td>'
        first = f'<th scope="row">{escape(name)}<small>{escape(words)}</small></th>'
        style = "out" if verdict.startswith((FAILED, WRONG)) else verdict.split(",")[0]
        last = f'<td><span class="{escape(style)}">{escape(verdict)}</span></td>'
        body.append(f"<tr>{first}{cells}{last}</tr>")
    lines = "\n".join(body)
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="All settings">\n<table>\n'
        f"<caption>All settings that were measured</caption>\n<thead><tr>{top}</tr></thead>\n"
        f"<tbody>\n{lines}\n</tbody>\n</table>\n</div>"
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
