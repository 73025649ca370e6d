"""The command benchmark_optimized.py, which finds and saves the fastest settings."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence

from bitnet_tuning.bench.knobs import MODES
from bitnet_tuning.cli.arguments import Parser, add_engine, add_model, expanded, integer, number
from bitnet_tuning.console import guarded
from bitnet_tuning.errors import UsageError
from bitnet_tuning.plan.profile import OBJECTIVES
from bitnet_tuning.plan.setting import MOST_THREADS_ENGINE
from bitnet_tuning.store.codec import to_json

LEAST_BUDGET = 5.0
_LONGEST = 7 * 24 * 3600.0


def main(arguments: Sequence[str] | None = None) -> int:
    return guarded(_run, arguments)


def _run(arguments: list[str]) -> int:
    options = read_options(arguments)
    if options.compare:
        first, second = options.compare
        return _compare(first, second, options.json)
    if options.builds:
        from bitnet_tuning.bench.builds import compare_builds  # noqa: PLC0415

        return compare_builds(options)
    from bitnet_tuning.bench.tune import tune  # noqa: PLC0415

    return tune(options)


def read_options(arguments: list[str]) -> argparse.Namespace:
    """Return the parsed options. Raise UsageError for a mistake in them."""
    parser = Parser(
        description="Find the fastest settings for this engine and this model on this machine, "
        "and save them for run_inference.py.",
    )
    _add_subject(parser)
    _add_search(parser)
    _add_output(parser)
    options = parser.parse_args(arguments)
    if options.quick and options.full:
        raise UsageError("argument --full: not allowed with --quick", "use one of the two")
    options.effort = "quick" if options.quick else "full" if options.full else "normal"
    if options.builds:
        _check_builds(options)
    if options.resume:
        _check_resume(options)
    for path in (options.output, options.csv, options.report):
        _check_place(path)
    _check_apart(options)
    if options.report:
        from bitnet_tuning.bench.plots import available  # noqa: PLC0415

        available()
    return options


def _add_subject(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_engine(parser)


def _add_search(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    budget = number(LEAST_BUDGET, _LONGEST)
    add(
        "--budget",
        type=budget,
        metavar="SECONDS",
        help="time to spend (default: 300; --quick: 60; --full: 1200)",
    )
    add("--quick", action="store_true", help="try threads and mmap only, in a minute")
    add("--full", action="store_true", help="try every knob and value, in 20 minutes")
    counts = several(integer(1, MOST_THREADS_ENGINE))
    add("--builds", action="store_true", help="compare the builds of a checkout, not settings")
    add("--threads", type=counts, default=(), metavar="N,N", help="try only these thread counts")
    add(
        "--modes",
        type=several(_mode),
        default=(),
        metavar="MODE,MODE",
        help="measure only these: default (bitnet.cpp's own 2 threads), optimized (the plan, and a "
        "search from there) and performance (performance mode)",
    )
    goals = "tune token generation (tg, default), prompt processing (pp) or both (request)"
    add("--objective", choices=OBJECTIVES, default="tg", help=goals)
    add("--n-prompt", type=integer(1, 1 << 20), metavar="N", help="number of tokens in a prompt")
    add("--n-gen", type=integer(1, 1 << 20), metavar="N", help="number of tokens in an answer")
    what = "also measure an engine that writes wrong words"
    add("--no-selftest", "--force", action="store_true", help=what)


def _add_output(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--output", type=expanded, metavar="FILE", help="results (default: a new file)")
    add("--csv", type=expanded, metavar="FILE", help="write all samples as CSV")
    add("--report", type=expanded, metavar="FILE", help="write an HTML page with plots")
    add("--json", action="store_true", help="print JSON instead of text")
    add("--resume", type=expanded, metavar="FILE", help="go on with an interrupted benchmark")
    add("--no-remember", action="store_true", help="do not save a profile")
    add("--compare", nargs=2, metavar=("A", "B"), help="compare results B with A, measure nothing")


def several(one: Callable[[str], object]) -> Callable[[str], tuple[object, ...]]:
    """Return an argparse type for a comma-separated list, without repetitions."""

    def parse(text: str) -> tuple[object, ...]:
        return tuple(dict.fromkeys(one(part.strip()) for part in text.split(",")))

    return parse


def _mode(text: str) -> str:
    if text not in MODES:
        raise argparse.ArgumentTypeError(f"unknown mode {text} (choose from {', '.join(MODES)})")
    return text


def _check_resume(options: argparse.Namespace) -> None:
    """Raise UsageError for options that the saved benchmark already has."""
    asked = {
        "--budget": options.budget,
        "--quick": options.quick,
        "--full": options.full,
        "--threads": options.threads,
        "--modes": options.modes,
        "--n-prompt": options.n_prompt,
        "--n-gen": options.n_gen,
        "--objective": options.objective != "tg",
    }
    for flag, given in asked.items():
        if given:
            raise UsageError(
                f"argument {flag}: not allowed with --resume",
                "leave it out: a benchmark is resumed with its own options",
            )


def _check_builds(options: argparse.Namespace) -> None:
    """Raise UsageError for options of a search: each build is measured with its default setting."""
    given = vars(options)
    for name in ("threads", "modes", "output", "csv", "report", "resume", "compare"):
        if given[name]:
            raise UsageError(f"argument --{name}: not allowed with --builds", "leave it out")


def _check_place(path: str | None) -> None:
    """Raise UsageError for a file that cannot be written, before minutes of measuring."""
    if path is None:
        return
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        raise UsageError(f"{path} is a folder", "name a file in it")
    if not os.path.isdir(folder):
        raise UsageError(f"no such folder: {folder}", "create it, or name another one")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise UsageError(f"{path} cannot be written", "name another file")


def _check_apart(options: argparse.Namespace) -> None:
    """Raise UsageError if two options name the same file: one would overwrite the other."""
    output = options.output or options.resume
    named = {"-m": options.model, "--output": output, "--csv": options.csv}
    places: dict[str, str] = {}
    for flag, path in {**named, "--report": options.report}.items():
        place = os.path.realpath(path) if path else None
        if place in places:
            raise UsageError(
                f"argument {flag}: the same file as {places[place]}", "name another file"
            )
        if place:
            places[place] = flag


def _compare(a: str, b: str, as_json: bool) -> int:
    from bitnet_tuning.bench import compare  # noqa: PLC0415
    from bitnet_tuning.bench.results import load  # noqa: PLC0415

    found = compare.compare(load(a), load(b))
    if as_json:
        print(json.dumps(to_json(found), indent=2))
    else:
        print(compare.as_text(found, (a, b)))
    return 0
