"""The tables and the chart of against_upstream.py, from what it saved."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.chart import Bar, Group, chart
from benchmarks.upstream_rows import AIM, ONE, OURS, ROWS, SIDES, UPSTREAM, USUAL, VARIANT, Row
from benchmarks.weather import (
    Sample,
    estimate,
    failures,
    load_samples,
    markdown,
    medians,
    paired,
    thread_counts,
    words,
)
from bitnet_tuning.bench.summary import digits
from bitnet_tuning.console import counted
from bitnet_tuning.engine.find import NONE
from bitnet_tuning.plan.profile import Estimate


class Compared(NamedTuple):
    """This launcher against another side in one row."""

    row: Row
    speeds: Mapping[str, Sequence[float]]
    """Tokens/s of every good run, by side."""
    threads: str
    """What this launcher chose."""
    speed: Estimate | None
    """Ratio of generated tokens/s."""
    time: Estimate | None
    """Ratio of whole times, the other's over ours."""


def compare(samples: Sequence[Sample], other: str = UPSTREAM) -> list[Compared]:
    """Return the outcome of every row in which the other side was measured."""
    found = []
    for row in ROWS:
        runs = [each for each in samples if each.weather == row.name]
        if any(each.setting == other for each in runs):
            speeds = {
                side: [each.speed for each in runs if each.setting == side and each.speed]
                for side in SIDES
            }
            speed = estimate(paired(runs, OURS, other))
            whole = estimate(paired(runs, other, OURS, "seconds"))
            found.append(Compared(row, speeds, thread_counts(runs, OURS), speed, whole))
    return found


def mean(compared: Iterable[Compared], names: Iterable[str] = ()) -> float | None:
    """Return the geometric mean of the rows' ratios, of all rows or of those named."""
    chosen = set(names)
    ratios = [
        each.speed.median
        for each in compared
        if each.speed and (each.row.name in chosen or not chosen)
    ]
    return geometric_mean(ratios) if ratios else None


def builds(engines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of builds for readers: their OpenMP, and their folder where two have it."""
    kinds = [
        "no OpenMP" if each["openmp"] == NONE else each["openmp"] or "unknown" for each in engines
    ]
    return [
        kind if kinds.count(kind) == 1 else f"{kind}, {each['name']}"
        for kind, each in zip(kinds, engines, strict=True)
    ]


def introduction(report: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know of a report: machine, day and runs."""
    facts, engines = report.get("machine") or {}, report["engines"]
    cpus, busy = facts.get("cpus"), facts.get("busy")
    parts = [
        facts.get("processor") or "unknown processor",
        counted(cpus, "CPU") if cpus else None,
        report.get("kernel"),
        report.get("date"),
    ]
    runs = [
        ", ".join(dict.fromkeys(each["model"] for each in engines)),
        f"{report['tokens']} tokens a run" if report.get("tokens") else None,
        f"at most {counted(report['rounds'], 'round')}" if report.get("rounds") else None,
        f"{busy:.2f} CPUs busy before" if isinstance(busy, float) else None,
    ]
    return [", ".join(filter(None, line)) for line in (parts, runs)]


HEADINGS = ("build", "", "{other}, tokens/s", "this launcher (threads)", "tokens/s", "whole time")


def table(engines: Sequence[Mapping[str, Any]], other: str = UPSTREAM) -> str:
    """Return the rows of all engines against another side as a table; empty without any."""
    rows = [
        (
            build,
            each.row.title,
            _speeds(each.speeds[other]),
            f"{_speeds(each.speeds[OURS])}{f' ({each.threads})' * (each.threads != '–')}",
            words(each.speed),
            words(each.time),
            str(max(len(each.speeds[other]), len(each.speeds[OURS]))),
        )
        for build, engine in zip(builds(engines), engines, strict=True)
        for each in compare(load_samples(engine), other)
    ]
    headings = (*(text.format(other=other) for text in HEADINGS), "rounds")
    return markdown(headings, rows) if rows else ""


def _speeds(speeds: Sequence[float]) -> str:
    """Return the median with the lowest and the highest speed."""
    if not speeds:
        return "–"
    ends = f" ({digits(min(speeds))}–{digits(max(speeds))})" if len(speeds) > 1 else ""
    return f"{digits(median(speeds))}{ends}"


def show_all(report: Mapping[str, Any]) -> None:
    """Print all tables of a report."""
    engines = report["engines"]
    print("\n".join(introduction(report)))
    main_table = table(engines)
    print(f"\n{main_table or 'nothing was measured'}\n")
    for build, engine in zip(builds(engines), engines, strict=True):
        samples = load_samples(engine)
        compared = compare(samples)
        usual = [each for each in compared if each.row.name in USUAL]
        below = [each.row.title for each in compared if each.speed and each.speed.median < AIM]
        if compared:
            print(
                f"{build}: geometric mean of {', '.join(each.row.title for each in usual) or '–'}: "
                f"{_number(mean(usual), 3)}; of all rows: {_number(mean(compared), 3)}; "
                f"below {AIM}: {', '.join(below) or 'none'}"
            )
        for line in failures(samples):
            print(f"{build}: {line}")
    if variant := table(engines, VARIANT):
        print(f"\nAgainst upstream's launcher of before July 2026:\n\n{variant}")
    for engine in engines:
        show_pairs(engine)
    if any(run["setting"] == ONE for each in engines for run in each["samples"]):
        show_quotas(engines)


def picture(report: Mapping[str, Any]) -> str:
    """Return the chart of a report as SVG."""
    engines = report["engines"]
    groups = [
        Group(build, [Bar(each.row.title, each.speed) for each in compared if each.speed])
        for build, engine in zip(builds(engines), engines, strict=True)
        if (compared := compare(load_samples(engine)))
    ]
    title = "Tokens/s as a multiple of upstream's launcher"
    explained = (
        "1: as fast. Thin lines: 95 % intervals; with fewer than 6 rounds, the lowest and the "
        "highest ratio. 32 prompts: tokens/s of the whole time."
    )
    return chart(title, groups, (explained, *introduction(report)))


def show_pairs(engine: Mapping[str, Any]) -> None:
    """Print what two programs at once reached, and how often they computed on the same CPU."""
    samples, lines = load_samples(engine), []
    for row in ROWS:
        for side in row.sides() if row.programs > 1 else ():
            runs = [
                each
                for each in samples
                if each.weather == row.name and each.setting == side and each.speed
            ]
            if runs:
                both = " + ".join(
                    f"{median(part):.1f}"
                    for part in zip(*(sorted(each.parts) for each in runs), strict=True)
                )
                looks = [each.crowded for each in runs if each.crowded is not None]
                crowded = f"{median(looks):.0%}" if looks else "–"
                lines.append((row.title, side, both, thread_counts(runs, side), crowded))
    if lines:
        print(f"\n{engine['name']}: two programs at once, tokens/s, the slower one first:\n")
        print(markdown(("", "", "tokens/s", "threads", "both on one CPU"), lines))


def show_quotas(engines: Sequence[Mapping[str, Any]]) -> None:
    """Print what one and two threads reach under each quota, by engine."""
    lines = []
    for row in ROWS:
        if ONE not in row.sides(more=True) or row.programs > 1:
            continue
        cells = [row.title]
        for engine in engines:
            runs = [each for each in load_samples(engine) if each.weather == row.name]
            found = medians(runs)
            speeds = ", ".join(_number(found.get(side)) for side in (ONE, UPSTREAM))
            cells.append(f"{speeds}: {words(estimate(paired(runs, UPSTREAM, ONE)))}")
        lines.append(cells)
    print("\nUnder a quota, tokens/s with 1 and with 2 threads, and the ratio of 2 to 1:\n")
    print(markdown(["", *builds(engines)], lines))


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
