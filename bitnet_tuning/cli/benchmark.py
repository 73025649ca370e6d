"""The command benchmark_optimized.py, which finds and saves the fastest settings."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence

from bitnet_tuning.bench import compare
from bitnet_tuning.bench.builds import compare_builds
from bitnet_tuning.bench.comparison import DEFAULT, UPSTREAM
from bitnet_tuning.bench.knobs import MODES
from bitnet_tuning.bench.report import comparison_page
from bitnet_tuning.bench.results import load
from bitnet_tuning.bench.statistics import RESOLUTION
from bitnet_tuning.bench.tune import export, publish, tune
from bitnet_tuning.cli.arguments import Parser, add_engine, expanded, integer, number
from bitnet_tuning.console import guarded, printable, text_width
from bitnet_tuning.errors import UsageError
from bitnet_tuning.plan.profile import OBJECTIVES
from bitnet_tuning.plan.setting import MOST_THREADS_ENGINE
from bitnet_tuning.store.codec import to_json

BUDGETS = {"quick": 60.0, "normal": 300.0, "full": 1200.0}
"""Default time budgets in seconds, by effort."""


def main(arguments: Sequence[str] | None = None) -> int:
    return guarded(run, arguments)


def run(arguments: list[str]) -> int:
    options = read_options(arguments)
    if options.compare:
        (a, b), names = map(load, options.compare), options.compare
        if a == b:
            same = f"{names[0]} and {names[1]} are the same results"
            raise UsageError(same, "name two benchmarks")
        found = compare.compare(a, b)
        text = "" if options.json else compare.as_text(found, names, text_width())
        print(printable(text) or json.dumps(to_json(found), indent=2))
        export(options, lambda: compare.to_csv(found), lambda: comparison_page(found, names))
        return 0
    if source := getattr(options, "from"):
        publish(load(source), options, source)
        return 0
    if options.builds:
        return compare_builds(options)
    return tune(options)


_TIME, _SEARCH = "budget quick full", "threads modes n_prompt n_gen objective resolution"
"""Options of a search: its time, and all others."""


def read_options(arguments: list[str]) -> argparse.Namespace:
    """Return the parsed options. Raise UsageError for a mistake in them."""
    options = make_parser().parse_args(arguments)
    if options.builds:
        # Each build is measured with its default setting.
        names = "threads modes output csv report resume compare from"
        _exclude(options, names, "--builds", "leave it out")
    for saved in filter(lambda name: getattr(options, name), ("from", "compare")):
        names = f"engine model output no_remember no_selftest resume {_TIME} {_SEARCH}"
        names += " compare" if saved == "from" else ""
        remedy = "leave it out: saved results are only shown, nothing is measured"
        _exclude(options, names, f"--{saved}", remedy)
    if options.resume:
        remedy = "leave it out: a benchmark is resumed with its own options, but for more time"
        _exclude(options, _SEARCH, "--resume", remedy)
    options.effort = "quick" if options.quick else "full" if options.full else "normal"
    has_time = options.budget or options.quick or options.full
    options.budget = options.budget or BUDGETS[options.effort]
    options.more = options.budget if has_time else None
    options.objective = options.objective or "tg"
    options.resolution = options.resolution or RESOLUTION
    _check_files(options)
    return options


def make_parser() -> Parser:
    parser = Parser(
        "bench",
        "[options]",
        "--quick",
        "--threads 2,4,6 --report report.html",
        "--compare before.json after.json",
        description="Find the fastest settings for this engine and this model on this machine, "
        "and save them for all later runs.",
    )
    add_engine(parser, model=True)
    _add_flags(parser)
    return parser


def _add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    what = "time to spend (default: 300; --quick: 60; --full: 1200); with --resume, more time"
    add("--budget", type=number(5, 7 * 24 * 3600), metavar="SECONDS", help=what)
    effort = parser.add_mutually_exclusive_group().add_argument
    effort("--quick", action="store_true", help="try threads and mmap only, in a minute")
    effort("--full", action="store_true", help="try every knob and value, in 20 minutes")
    counts = several(integer(1, MOST_THREADS_ENGINE))
    add("--builds", action="store_true", help="compare the builds of a checkout, not settings")
    add("--threads", type=counts, default=(), metavar="N,N", help="try only these thread counts")
    what = (
        "besides a run's default, measure only these: upstream (bitnet.cpp's own 2 "
        "threads), optimized (a search from the default) and performance (--performance-mode)"
    )
    add("--modes", type=several(_mode), default=(), metavar="MODE,MODE", help=what)
    what = "difference that counts as equal, in percent (default: 2)"
    add("--resolution", type=_percent, metavar="PERCENT", help=what)
    goals = "tune token generation (tg, default), prompt processing (pp) or both (request)"
    add("--objective", choices=OBJECTIVES, help=goals)
    add("--n-prompt", type=integer(1, 1 << 20), metavar="N", help="number of tokens in a prompt")
    add("--n-gen", type=integer(1, 1 << 20), metavar="N", help="number of tokens in an answer")
    what = "also measure an engine that writes wrong words"
    add("--no-selftest", "--force", action="store_true", help=what)

    add("--output", type=expanded, metavar="FILE", help="results (default: a new file)")
    add("--csv", type=expanded, metavar="FILE", help="write all samples, or a comparison, as CSV")
    add("--report", type=expanded, metavar="FILE", help="write an HTML page with a plot")
    what = "show saved results and write what --csv and --report ask for, measure nothing"
    add("--from", type=expanded, metavar="FILE", help=what)
    add("--json", action="store_true", help="print JSON instead of text")
    add("--resume", type=expanded, metavar="FILE", help="go on with a benchmark")
    add("--no-remember", action="store_true", help="do not save a profile")
    add("--compare", nargs=2, metavar=("A", "B"), help="compare results B with A, measure nothing")


def several(one: Callable[[str], object]) -> Callable[[str], tuple[object, ...]]:
    """Return an argparse type for a comma-separated list, without repetitions."""

    def parse(text: str) -> tuple[object, ...]:
        return tuple(dict.fromkeys(one(part.strip()) for part in text.split(",")))

    return parse


def _percent(text: str) -> float:
    return number(0.1, 50)(text.removesuffix("%")) / 100


def _mode(text: str) -> str:
    text = UPSTREAM if text == DEFAULT else text  # its name in older versions
    if text not in MODES:
        raise argparse.ArgumentTypeError(f"unknown mode {text} (choose from {', '.join(MODES)})")
    return text


def _exclude(options: argparse.Namespace, names: str, by: str, remedy: str) -> None:
    for name in names.split():
        if getattr(options, name):
            flag = name.replace("_", "-")
            raise UsageError(f"argument --{flag}: not allowed with {by}", remedy)


def _check_files(options: argparse.Namespace) -> None:
    """Raise UsageError, before minutes of measuring, for a file that cannot be written, and if two
    options name the same file: one would overwrite the other."""
    for path in filter(None, (options.output, options.csv, options.report)):
        place = os.path.dirname(os.path.abspath(path)) if not os.path.exists(path) else path
        if os.path.isdir(path) or not os.access(place, os.W_OK):
            remedy = "name a file in a folder that you may write to"
            raise UsageError(f"cannot write {path}", remedy)
    output = options.output or options.resume
    named = [("-m", options.model), ("--output", output), ("--from", getattr(options, "from"))]
    named += [("--compare", path) for path in options.compare or ()]
    places: dict[str, str] = {}
    for flag, path in (*named, ("--csv", options.csv), ("--report", options.report)):
        other = places.setdefault(os.path.realpath(path), flag) if path else flag
        if other != flag:
            raise UsageError(f"argument {flag}: the same file as {other}", "name another file")
