"""A report on one page that needs nothing else: for a phone, a desk and a printer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bitnet_tuning.bench import plots
from bitnet_tuning.bench.comparison import DEFAULT
from bitnet_tuning.bench.plots import (
    Bar,
    Scaling,
    definitions,
    element,
    escape,
    figure,
    forest,
    items,
    paragraph,
    scalings,
    section,
    table,
)
from bitnet_tuning.bench.results import FINISHED, Part, Results, write
from bitnet_tuning.bench.statistics import FASTER, SLOWER
from bitnet_tuning.bench.summary import (
    FAILED,
    TIMES,
    TO,
    WRONG,
    Row,
    answer,
    digits,
    failures,
    guide_row,
    noise_floor,
    rows,
    speed,
    times,
)
from bitnet_tuning.console import GIBIBYTE, MEBIBYTE
from bitnet_tuning.machine.root import format_list
from bitnet_tuning.plan.profile import PP, TG

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
    parts.append(paragraph(certainty(results)))
    return element("header", "\n".join(parts))


def _main(results: Results) -> str:
    shown = rows(results)
    drawn = element("div", _scaling(results) + _forest(results, shown), "plots")
    parts = (
        section("What may have spoilt the figures", [items(results.warnings, "warnings")]),
        drawn,
        section("Every configuration", [_table(shown), paragraph(guide_row(results).sentence)]),
        section("How near the limit", limits(results)),
        section("What went wrong", [_failures(results)]),
        section("How it was measured", method(results)),
        section("The machine", machine(results)),
        section("Engine and model", subjects(results)),
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
        f"Ratios to the default, paired by round, with 95 % intervals. {floor_words(found.floor)}"
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


GB = 10**9


def certainty(results: Results) -> str:
    """How sure the answer is, in a sentence."""
    decision = results.decision
    if decision is None:
        return floor_words(noise_floor(results))
    found = decision.estimate
    floor = floor_words(decision.floor)
    if decision.winner == DEFAULT:
        return floor
    sure = f"{decision.reason} " if decision.reason else ""
    counted = "" if found is None else f"Its interval rests on {found.count} rounds. "
    kept = results.profile
    stored = "Later runs use it by themselves. " if kept is not None and kept.stored else ""
    return f"{sure}{counted}{stored}{floor}"


def floor_words(floor: float | None) -> str:
    if floor is None:
        return "The noise floor is not known, so that nothing counts as a difference."
    return (
        f"Noise floor: the default differs from itself by up to {TIMES}{floor:.2f} in the median "
        "of as many rounds; nothing within that counts as a difference."
    )


def limits(results: Results) -> Iterator[str]:
    """The memory's bandwidth, how much of it is used, and the energy."""
    bandwidth = results.bandwidth.facts
    rate = _number(bandwidth, "median")
    threads = _number(bandwidth, "threads")
    yield definitions(
        (
            ("Memory, read", _with(rate, GB, "GB/s")),
            ("with threads", "" if threads is None else f"{threads:g}"),
        )
    )
    for what, part in (("Generation reads", results.roof), ("Energy:", results.energy)):
        words = (part.facts or {}).get("words")
        yield "" if words is None else paragraph(f"{what} {words}.")
    for part in (results.bandwidth, results.roof, results.energy):
        yield _reason(part)


def _reason(part: Part) -> str:
    return "" if part.reason is None else paragraph(f"Not known: {part.reason}.", "muted")


def _with(value: float | None, unit: float, name: str) -> str:
    return "" if value is None else f"{digits(value / unit)} {name}"


def _number(facts: Mapping[str, Any] | None, name: str) -> float | None:
    """A number by its name; None where there is none."""
    place = (facts or {}).get(name)
    return place if isinstance(place, (int, float)) and not isinstance(place, bool) else None


def method(results: Results) -> Iterator[str]:
    """How the figures came about."""
    sizes, options = results.options.sizes, results.options
    measured = results.measured
    floor, pairs = measured.floor(), len(measured.itself())
    noise = None if floor is None else f"within {TIMES}{floor:.2f}, {pairs} rounds"
    yield paragraph(
        "Configurations were run in rounds, each after the other within a round and in "
        "another order from round to round, so that what disturbs the machine meets all of "
        "them. Ratios compare runs of the same round; their intervals are bootstrapped. A "
        "configuration that looked good was measured again, against the default, before it "
        "could win."
    )
    yield definitions(
        (
            ("Rounds", len(measured)),
            ("Runs", measured.runs),
            ("Time spent", f"{measured.spent:.0f} s of {options.budget:g} s"),
            ("To be fast", _objective(results)),
            ("One run", "" if sizes is None else _sizes_words(sizes)),
            ("Default against itself", noise),
        )
    )


def _sizes_words(sizes: Any) -> str:
    repeated = "once" if sizes.repetitions == 1 else f"{sizes.repetitions} times"
    return f"{sizes.n_prompt} tokens of prompt, {sizes.n_gen} generated, {repeated}"


def _objective(results: Results) -> str:
    wanted = results.options.objective
    if wanted.name == TG:
        return "token generation"
    if wanted.name == PP:
        return "prompt processing"
    return f"requests of {wanted.n_prompt} tokens with answers of {wanted.n_gen}"


def machine(results: Results) -> Iterator[str]:
    """The host, and its state around the measurement."""
    host, hybrid = results.host, results.host.hybrid
    before, after, during = results.conditions
    around = [each for each in (before, after) if each is not None]
    clocks = [each.clock.mean_mhz for each in around if each.clock]
    heat = [each.temperature.celsius for each in around if each.temperature]
    kinds = (
        f" ({hybrid.performance_cores} performance, {hybrid.efficiency_cores} efficiency)"
        if hybrid
        else ""
    )
    usable = f"{len(host.allowed_cpus)} of {len(host.logical_cpus)}"
    yield definitions(
        (
            ("Processor", host.brand or host.vendor),
            ("Physical cores", f"{host.physical_cores}{kinds}"),
            ("Logical CPUs that may be used", f"{usable} ({format_list(host.allowed_cpus)})"),
            ("CPU quota", "" if host.cpu_quota is None else f"{host.cpu_quota:g} CPUs"),
            ("NUMA nodes", len(host.numa_nodes)),
            ("Memory", _with(host.memory_total, GIBIBYTE, "GiB")),
            ("Memory available", _with(host.memory_available, GIBIBYTE, "GiB")),
            ("Governor", host.governor),
            ("WSL", host.wsl),
            ("Other load before", _with(before and before.other_load_cpus, 1, "CPUs")),
            ("Other load meanwhile", _with(during and during.other_load_cpus, 1, "CPUs")),
            ("Clock before and after", _both("MHz", clocks)),
            ("Temperature before and after", _both("\u00b0C", heat)),
        )
    )


def _both(unit: str, values: Iterable[float]) -> str:
    known = [f"{value:.0f}" for value in values]
    return f"{f' {TO} '.join(known)} {unit}" if known else ""


def subjects(results: Results) -> Iterator[str]:
    """The engine and the model."""
    engine, model = results.engine, results.model
    yield definitions(
        (
            ("Engine", engine.path),
            ("Version", engine.version),
            ("Commit", engine.git_commit),
            ("OpenMP", engine.openmp),
            ("Instruction sets", " ".join(engine.isa)),
            ("Measured with", " ".join(engine.bench) if engine.bench else "the cli's own timings"),
            ("Model", model.path),
            ("Architecture", model.architecture),
            ("Quantization", model.quantization),
            ("Size", _with(model.size, MEBIBYTE, "MiB")),
            ("Read per token", _with(model.bytes_per_token, MEBIBYTE, "MiB")),
        )
    )
