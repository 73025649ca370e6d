"""Write a report as one HTML file that loads nothing else, for phones, desktops and printers.

The template is report.html. All text is escaped where it enters the page.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from string import Template

from bitnet_tuning.bench import plots
from bitnet_tuning.bench.plots import escape
from bitnet_tuning.bench.results import Results, write
from bitnet_tuning.bench.summary import Curve, Row, Summary, digits, facts, speed, stacked
from bitnet_tuning.console import times
from bitnet_tuning.engine.builds import FASTER, SLOWER
from bitnet_tuning.plan.profile import PP, TG

_TITLES = ("Setting", "Generation", "Prompt", "Over upstream", "Over default", "Rounds", "Verdict")


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
    place = os.path.join(os.path.dirname(os.path.abspath(__file__)), "report.html")
    with open(place, encoding="utf-8") as file:
        template = Template(file.read())
    text = f"This benchmark is {results.state}: more rounds may change its results."
    return template.substitute(
        model=escape(model.name or model.path),
        heading=escape(f"{name} ({model.quantization}) on {machine}"),
        answer=escape(summary.answer),
        unfinished="" if results.state == "finished" else paragraph(text, "unfinished"),
        certainty=escape(summary.over_upstream),
        warnings=section("What may skew the results", listing(results.warnings, "warnings")),
        plots=_curves(summary) + _ratios(summary),
        table=section("All settings", _table(summary.rows)),
        remarks=section("Remarks", listing(summary.remarks())),
        method=section("How it was measured", *_method(summary)),
        facts=section("Machine, engine and model", definitions(facts(results))),
        created=escape(results.created),
    )


# Plots and the table


def _curves(summary: Summary) -> str:
    curves = summary.curves
    if not curves:
        return ""
    words = " ".join(map(_curve_in_words, curves))
    caption = (
        f"{words} Medians with 95 % intervals. Only the number of threads differs from the "
        "default, whose number is bold."
    )
    return section("Speed by threads", _figure(plots.curves_svg(curves, words), caption))


def _curve_in_words(curve: Curve) -> str:
    what = "Generation" if curve.phase == TG else "Prompt processing"
    points = ", ".join(f"{count}: {digits(found.median)}" for count, found in curve.speeds.items())
    limit = "" if curve.limit is None else f" Memory allows {digits(curve.limit)}."
    return f"{what} in tokens/s by threads: {points}.{limit}"


def _ratios(summary: Summary) -> str:
    shown = [row for row in summary.rows if row.to_default is not None and not row.is_out]
    if not shown:
        return ""
    bars = ", ".join(f"{row.name} {times(*row.to_default)}" for row in shown if row.to_default)
    near = summary.measured.resolution
    caption = (
        "Ratios to the default, paired by round, with 95 % intervals. Inside the band, speeds are "
        f"equal within {100 * near:g} %."
    )
    drawing = plots.ratios_svg(shown, near, f"Speed divided by the default's: {bars}.")
    return section("Speed compared with the default", _figure(drawing, caption))


def _figure(drawing: str, caption: str) -> str:
    return f"<figure>\n{drawing}\n<figcaption>{escape(caption)}</figcaption>\n</figure>"


def _table(rows: Iterable[Row]) -> str:
    explained = (
        "Token generation and prompt processing in tokens/s; speed as a multiple of that with 2 "
        "threads (upstream) and of the default's, compared within rounds. All are medians with "
        "95 % intervals. Verdicts compare with the default."
    )
    top = "".join(f'<th scope="col">{heading}</th>' for heading in _TITLES)
    body = "\n".join(map(_table_row, rows))
    return (
        f"{paragraph(explained, 'muted')}\n"
        '<div class="wide" role="region" tabindex="0" aria-label="All settings">\n<table>\n'
        f"<caption>All settings that were measured</caption>\n<thead><tr>{top}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def _table_row(row: Row) -> str:
    figures = [speed(found) if found else "-" for found in (row.tg, row.pp)]
    figures += [times(*found) if found else "-" for found in (row.to_upstream, row.to_default)]
    style = "out" if row.is_out else row.verdict if row.verdict in (FASTER, SLOWER) else ""
    verdict = escape(row.verdict or "the default")
    parts = (stacked(figure).partition("\n") for figure in figures)
    cells = [f"{escape(middle)}<small>{escape(interval)}</small>" for middle, _, interval in parts]
    cells += [str(row.rounds), f'<span class="{style}">{verdict}</span>']
    return (
        f'<tr class="{"winner" if row.winner else ""}"><th scope="row">{escape(row.name)}'
        f"{' (use this)' if row.winner else ''}<small>{escape(row.words)}</small></th>"
        f"{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
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
        "time spent": f"{measured.spent:.0f} s of {options.budget:g} s",
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
