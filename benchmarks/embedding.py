#!/usr/bin/env python3
"""Measure what a smaller embedding gains: the slim copies of a model against the original.

Token generation is measured by llama-bench (by the cli, if there is none) with each number of
threads. In each round every file runs once, the original first or last. A ratio is the
Hodges-Lehmann estimate of the ratios within the rounds, with its 95 % interval. Clear cases end
before the last round.

    python3 benchmarks/embedding.py --engine FOLDER -m ORIGINAL [--copy FILE ...] [--rounds N]

The copies are those beside the original that ``python3 -m bitnet_tuning model slim`` made, or those
that are named. Stop other programs on the machine first.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.weather import (
    Report,
    engine_folders,
    explained,
    machine,
    markdown,
    stop_on_signals,
    usable_cpus,
    warn_if_busy,
)
from bitnet_tuning.bench.comparison import Round, Rounds, Run, Sizes, compare
from bitnet_tuning.bench.runner import Runner, find_bench
from bitnet_tuning.bench.statistics import estimate
from bitnet_tuning.bench.summary import digits, speed
from bitnet_tuning.cli.arguments import integer
from bitnet_tuning.console import times
from bitnet_tuning.engine.builds import verdict_words
from bitnet_tuning.errors import TuningError
from bitnet_tuning.model.find import know, slim_copies
from bitnet_tuning.model.types import ModelFile, bytes_per_token, output_matrix
from bitnet_tuning.plan.facts import Facts, Request
from bitnet_tuning.plan.plan import make_plan
from bitnet_tuning.plan.profile import TG, Objective
from bitnet_tuning.plan.setting import Setting
from bitnet_tuning.prepare import read_facts
from bitnet_tuning.store.state import State, default_folder

HEADINGS = ("threads", "embedding", "MB per token", "bound", "tg tokens/s", "ratio", "verdict")


def files_of(original: ModelFile, named: Sequence[str], state: State) -> dict[str, ModelFile]:
    """Return the original and its copies by the types of their embeddings. Raise SystemExit if
    there is no copy or if two files have the same type."""
    copies = [know(path, state) for path in named] or slim_copies(original, state)
    found: dict[str, ModelFile] = {}
    for model in (original, *copies):
        matrix = output_matrix(model.parts)
        kind = matrix.type if matrix else "unknown"
        if kind in found:
            raise SystemExit(f"{found[kind].path} and {model.path} both have a {kind} embedding")
        found[kind] = model
    if len(found) < 2:
        raise SystemExit(f"{original.path} has no slim copy beside it; name one with --copy")
    return found


def measure(
    facts: Facts, files: Mapping[str, ModelFile], options: argparse.Namespace
) -> Iterator[tuple[int, Rounds]]:
    """Yield the rounds of each number of threads, after a run of each file that only loads it."""
    bench = find_bench(facts.engine)
    sizes = Sizes(1, options.tokens, 1)
    runners = {
        kind: Runner(facts._replace(model=model), bench, sizes) for kind, model in files.items()
    }
    for threads in options.threads:
        setting = make_plan(Request(threads=threads), facts).setting
        yield threads, _compared(runners, setting, options.rounds)


def _compared(runners: Mapping[str, Runner], setting: Setting, count: int) -> Rounds:
    """Return ``count`` rounds of all files with one setting, the original as the reference."""

    def run(kind: str, number: int = 0) -> Run:
        print(f"{setting.threads} threads, round {number}: {kind}", file=sys.stderr)
        return runners[kind].measure(kind, setting, (TG,))

    for kind in runners:
        run(kind)
    return compare(tuple(runners), run, Objective(), math.inf, time.monotonic, most=count)


def show(engine: Mapping[str, Any]) -> None:
    """Print the table of one engine of a report."""
    counts = [len(each["rounds"]) for each in engine["compared"]]
    rounds = "–".join(str(count) for count in sorted({*counts[:1], *counts}))
    print(f"\n{engine['name']} ({engine['openmp']}), {engine['model']}: {rounds} rounds\n")
    rows, notes = [], []
    for each in engine["compared"]:
        made = [
            Round(one["number"], "", tuple(Run(**run) for run in one["runs"]), 0.0)
            for one in each["rounds"]
        ]
        first, *_ = engine["files"]
        measured = Rounds(Objective(), made, reference=first)
        rows += [(str(each["threads"]), *cells(kind, measured, engine)) for kind in engine["files"]]
        failures = {kind: measured.failures(kind) for kind in engine["files"]}
        notes += [f"{kind}: failed: {why[-1]}" for kind, why in failures.items() if why]
    print("\n".join([markdown(HEADINGS, rows), "", *notes]))


def cells(kind: str, measured: Rounds, engine: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of one file behind the number of threads."""
    read, most = engine["files"][kind], engine["files"][measured.reference]
    speeds, judged = measured.speeds(kind, TG), measured.judge(kind)
    is_other = kind != measured.reference and judged.ratio is not None
    return (
        kind,
        digits(read / 1e6) if read else "–",
        f"×{most / read:.2f}" if read and most and is_other else "–",
        speed(estimate(speeds)) if speeds else "–",
        times(*judged.ratio) if is_other and judged.ratio else "–",
        verdict_words(judged.verdict) if is_other else "–",
    )


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    engine = "folder with a llama-cli; may be repeated (default: those in BITNET_TEST_ENGINES)"
    parser.add_argument("--engine", action="append", metavar="FOLDER", help=engine)
    parser.add_argument("-m", "--model", metavar="FILE", help="the original model")
    copy = "a copy of it; may be repeated (default: those beside it)"
    parser.add_argument("--copy", action="append", default=[], metavar="FILE", help=copy)
    parser.add_argument(
        "--rounds", type=integer(1), default=12, help="rounds (default: %(default)s)"
    )
    parser.add_argument(
        "--tokens", type=integer(1), default=32, help="tokens (default: %(default)s)"
    )
    counts = "thread counts, with commas (default: 1, and all CPUs up to 2)"
    parser.add_argument("--threads", type=_counts, metavar="COUNTS", help=counts)
    parser.add_argument("--json", metavar="FILE", help="write every sample to this file")
    parser.add_argument("--show", metavar="FILE", help="print the tables of such a file")
    options = parser.parse_args(arguments)
    if not options.model and not options.show:
        parser.error("name the original model with -m")
    options.threads = options.threads or sorted({1, min(2, usable_cpus())})
    return options


def _counts(text: str) -> tuple[int, ...]:
    return tuple(map(integer(1, 512), text.split(",")))


def main(arguments: Sequence[str] | None = None) -> int:
    options = read_options(arguments)
    if options.show:
        try:
            for engine in json.loads(Path(options.show).read_text())["engines"]:
                show(engine)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SystemExit(f"{options.show} is no report of this benchmark: {error}") from error
        return 0
    stop_on_signals()
    facts = machine()
    warn_if_busy(facts)
    report = Report(options.json, machine=facts)
    try:
        report.save()  # so that a place that cannot be written is known at once
        for folder in engine_folders(options.engine):
            measure_engine(folder, options, report)
    except OSError as error:
        raise SystemExit(f"cannot write {options.json}: {error.strerror}") from error
    except TuningError as error:
        raise SystemExit(f"{error.cause}; {error.remedy}") from error
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def measure_engine(folder: str, options: argparse.Namespace, report: Report) -> None:
    """Measure one engine with all files and print its table. The report is saved after each number
    of threads."""
    state = State(default_folder(os.environ))
    facts = read_facts(Request(engine=folder, model=options.model, profile=False), state)
    files = files_of(facts.model, options.copy, state)
    compared: list[dict[str, Any]] = []
    engine = {
        "name": os.path.basename(facts.engine.checkout or os.path.dirname(facts.engine.path)),
        "engine": facts.engine.path,
        "openmp": facts.engine.openmp,
        "model": os.path.basename(facts.model.path),
        "files": {kind: bytes_per_token(model.parts) for kind, model in files.items()},
        "compared": compared,
    }
    report.engines.append(engine)
    for threads, rounds in measure(facts, files, options):
        kept = [
            {"number": each.number, "runs": [run._asdict() for run in each.runs]} for each in rounds
        ]
        compared.append({"threads": threads, "rounds": kept})
        report.save()
    show(engine)


if __name__ == "__main__":
    sys.exit(explained(main))
