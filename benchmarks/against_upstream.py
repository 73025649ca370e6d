#!/usr/bin/env python3
"""Measure whole runs of this launcher against upstream's, on the machines that people have.

Upstream's run_inference.py starts llama-cli with -t 2 and sets no variables; until July 2026 it
also passed -b 1, which is the variant here. In every round of a row both launchers run once, by
turns: on the idle machine, on one CPU, under CPU quotas, and beside busy programs. Ratios are taken
within rounds, of generated tokens/s and of the time of the whole program; above 1, this launcher is
faster. "slim file" gives this launcher the Q6_K copy of the model that ``python3 -m bitnet_tuning
model slim`` writes. "32 prompts" are one run with --prompts against as many runs of upstream's
launcher, one after the other; there, tokens/s are those of the whole time.

    python3 benchmarks/against_upstream.py --engine FOLDER [--engine FOLDER ...] -m MODEL \\
        --json FILE --svg FILE
    python3 benchmarks/against_upstream.py --show FILE [FILE ...] [--svg FILE]

With --more, upstream's launcher also runs with -b 1 in every row, and with -t 1 under quotas, which
shows what quota deserves two threads. Two rows, which are not measured unless named, run two
programs at once, whose speeds are added: with -t 1, and each under a quota of one CPU. There,
single threads that are bound (OMP_PROC_BIND and OMP_PLACES) take turns too, and the engines'
threads are watched: bound ones of both programs compute on the same CPU.

Quotas need write access to a CPU control group (version 1 or 2); without it, their rows are left
out. Stop other programs on the machine first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.launch_overhead import BARE
from benchmarks.quota import inside, quota_group
from benchmarks.upstream_rows import DEFAULT, ONE_BOUND, OURS, PROMPTS, ROWS, UPSTREAM, VARIANT, Row
from benchmarks.upstream_tables import picture, show_all, table
from benchmarks.weather import (
    BOUND,
    PROMPT,
    REPOSITORY,
    SECONDS,
    SETTLE_SECONDS,
    UNBOUND,
    Report,
    Sample,
    Subject,
    engine_folders,
    explained,
    machine,
    neighbours,
    paired,
    prepare,
    read_sample,
    sample,
    settings_of_the_user,
    started,
    stop_on_signals,
    usable_cpus,
    warn_if_busy,
)
from bitnet_tuning.bench import statistics
from bitnet_tuning.bench.comparison import FAILURES, turns
from bitnet_tuning.bench.statistics import INTERIM, verdict
from bitnet_tuning.cli.arguments import integer
from bitnet_tuning.console import clock
from bitnet_tuning.engine.builds import OPEN
from bitnet_tuning.engine.probe import parse_timings
from bitnet_tuning.launch.background import Captured, serve
from bitnet_tuning.launch.failure import failure
from bitnet_tuning.launch.start import Launch
from bitnet_tuning.machine.process import Family
from bitnet_tuning.machine.root import Root

LOOK_SECONDS = 0.1
"""Seconds between two looks at the threads of two programs at once; a look takes 3 ms."""

LEAST_ROUNDS = 2
"""Rounds of a row however long they take: one alone has no spread."""


class Case(NamedTuple):
    """An engine and all that its runs need."""

    subject: Subject
    bare: str
    """Script that does what upstream's does."""
    tokens: int
    slim: str | None = None
    """Slim copy of the model."""
    prompts: int = PROMPTS


class Start(NamedTuple):
    """How one side of a row starts."""

    argv: tuple[str, ...]
    variables: Mapping[str, str]


def start_of(side: str, row: Row, case: Case, prompt: str = PROMPT) -> Start:
    """Return how a side starts with one prompt."""
    subject = case.subject
    if side == OURS:
        at = subject.ours.index("-p")
        flags = ["-t", str(row.threads)] if row.threads else []
        flags += ["-m", case.slim] if row.slim and case.slim else []
        return Start((*subject.ours[:at], *flags, *subject.ours[at:]), subject.variables())
    threads = row.threads or (2 if side in (UPSTREAM, VARIANT) else 1)
    planned = subject.planned
    argv = [sys.executable, case.bare, "-t", str(threads), "-p", prompt]
    for flag, name in (("-m", "-m"), ("-n", "-n"), ("-c", "-c"), ("--temp", "-temp")):
        argv += [name, planned[planned.index(flag) + 1]]
    argv += [flag for flag in ("--ignore-eos", "-no-cnv") if flag in planned]
    argv += ["-b", "1"] if side == VARIANT else []
    return Start(tuple(argv), BOUND if side == ONE_BOUND else UNBOUND)


def answer_all(number: int, side: str, row: Row, case: Case) -> Sample:
    """Answer many prompts, in one run of ours or in as many runs of upstream's, one after the
    other, and return the tokens per second of the whole time."""
    texts = [f"{PROMPT} {index}?" for index in range(1, case.prompts + 1)]
    answer = _with_prompts if side == OURS else _one_by_one
    began = time.monotonic()
    tokens, threads, problem = answer(side, row, case, texts)
    seconds = time.monotonic() - began
    speed = None if problem else tokens / seconds
    return Sample(row.name, number, side, speed, seconds, threads, None, problem)


_Answered = tuple[int, int | None, str | None]
"""Tokens, threads and why it failed."""


def _with_prompts(side: str, row: Row, case: Case, texts: Sequence[str]) -> _Answered:
    subject = case.subject
    with tempfile.TemporaryDirectory(dir=subject.state) as folder:
        file, out = Path(folder, "prompts.jsonl"), Path(folder, "answers.jsonl")
        file.write_text("".join(json.dumps(text) + "\n" for text in texts))
        script = str(REPOSITORY / "run_inference_optimized.py")
        named = subject.ours[2 : subject.ours.index("-p")]
        flags = ("--prompts", str(file), "-n", str(case.tokens), "-temp", "0.8", "-o", str(out))
        done = started((sys.executable, script, *named, *flags), subject.variables())
        if problem := failure(done, SECONDS):
            return 0, None, problem
        answers = [json.loads(line) for line in out.read_text().splitlines()]
    refused = next((each["error"] for each in answers if "error" in each), None)
    if refused or len(answers) < len(texts):
        return 0, None, refused or f"only {len(answers)} answers"
    return sum(each["tokens"] for each in answers), None, None


def _one_by_one(side: str, row: Row, case: Case, texts: Sequence[str]) -> _Answered:
    tokens, threads = 0, None
    for text in texts:
        start = start_of(side, row, case, text)
        argv = list(start.argv)
        argv[argv.index("-temp") + 1] = "0.8"  # both launchers' default
        done = started(argv, start.variables)
        read = read_sample(row.name, 0, side, done, 0.0)
        found = parse_timings(done.stderr).generation
        if read.problem or found is None:
            return 0, None, read.problem
        # The first token comes from the prompt's own computation.
        tokens, threads = tokens + found.tokens + 1, read.threads
    return tokens, threads, None


def write_bare(subject: Subject, folder: str) -> str:
    """Write a script that starts the engine as upstream's does, and return its path."""
    program = subject.engine.program(chat=False)[-1]
    path = Path(folder, f"upstream-{subject.name}.py")
    path.write_text(BARE.format(engine=program))
    return str(path)


def together(name: str, number: int, side: str, starts: Sequence[Start]) -> Sample:
    """Run programs at once and return the sum of their speeds, and where their threads were."""
    began = time.monotonic()
    with ExitStack() as stack:
        running = [
            stack.enter_context(
                serve(Launch(each.argv, each.variables, unset=settings_of_the_user()))
            )
            for each in starts
        ]
        families = [Family(Root(), each.pid) for each in running]
        looks: list[bool] = []
        while any(each.ended(LOOK_SECONDS / 2) is None for each in running):
            places = [busy_cpus(family) for family in families]
            if all(places):
                looks.append(bool(set.intersection(*places)))
            if time.monotonic() - began > SECONDS:
                break
        done = [Captured(each.ended(), "", each.log()) for each in running]
    seconds = time.monotonic() - began
    return joined([read_sample(name, number, side, each, seconds) for each in done], looks)


def joined(samples: Sequence[Sample], looks: Sequence[bool]) -> Sample:
    """Return one sample for programs that ran at once. It failed if one of them did."""
    speeds = tuple(each.speed for each in samples if each.speed is not None)
    problem = next((each.problem for each in samples if each.problem), None)
    return samples[0]._replace(
        speed=None if problem else sum(speeds),
        prompt_speed=None,
        problem=problem,
        parts=speeds,
        crowded=sum(looks) / len(looks) if looks else None,
    )


def busy_cpus(family: Family) -> set[int]:
    """Return the CPUs on which threads of these programs run, or wait for their turn."""
    found = set()
    for process in family.look():
        for thread in process.threads:
            with suppress(OSError, IndexError):
                text = Path(f"/proc/{process.id}/task/{thread.id}/stat").read_text()
                # The words after the name: the state, and 36 further on the CPU (proc_pid_stat(5)).
                words_after = text.rpartition(")")[2].split()
                if words_after[0] == "R":
                    found.add(int(words_after[36]))
    return found


def measure(row: Row, case: Case, options: argparse.Namespace) -> Iterator[list[Sample]]:
    """Yield the samples of one round of a row after another. It ends before the last one if its
    verdict is clear, if a side has failed twice, or if the next round would take the row longer
    than ``row_seconds``."""
    sides, runs = row.sides(options.more), list[Sample]()
    with neighbours(row.weather):
        began = time.monotonic()
        for number in range(1, options.rounds + 1):
            spent = time.monotonic() - began
            if number > LEAST_ROUNDS and spent * number / (number - 1) > options.row_seconds:
                return
            found = [_run(row, number, side, case) for side in turns(sides, number)]
            yield found
            runs += found
            failed = Counter(each.setting for each in runs if each.problem)
            if is_clear(runs) or max(failed.values(), default=0) >= FAILURES:
                return


def is_clear(runs: Sequence[Sample]) -> bool:
    """Return whether the ratio of speeds is decided at the level of a look before the last one."""
    ratios = paired(runs, OURS, UPSTREAM)
    return bool(ratios) and (verdict(statistics.estimate(ratios, INTERIM), level=INTERIM) != OPEN)


def possible(rows: Sequence[Row]) -> list[Row]:
    """Return the rows without those whose quota cannot be set here, which are named on stderr."""
    if all(row.quota is None for row in rows):
        return list(rows)
    try:
        with quota_group(1.0, "bitnet-upstream"):
            return list(rows)
    except OSError as error:
        left = [row for row in rows if row.quota is not None]
        return without(rows, left, f"no CPU quota can be set here ({error})")


def without(rows: Sequence[Row], left: Sequence[Row], reason: str) -> list[Row]:
    """Return the rows that are not left out for a reason, which is printed on stderr."""
    print(f"left out: {', '.join(row.name for row in left)}: {reason}", file=sys.stderr)
    return [row for row in rows if row not in left]


def write_slim(subject: Subject, folder: str) -> tuple[str | None, str]:
    """Write the slim copy of the subject's model into a folder, with the command that users have.
    Return its path, or None and what the command said."""
    model = subject.planned[subject.planned.index("-m") + 1]
    out = os.path.join(folder, "slim.gguf")
    named = ("slim", model, "--engine", subject.engine.path, "-o", out)
    variables = {**subject.variables(), "PYTHONPATH": str(REPOSITORY)}
    print(f"writing a slim copy of {model}", file=sys.stderr)
    done = started((sys.executable, "-m", "bitnet_tuning", "model", *named), variables)
    said = (done.stderr or done.stdout).strip().splitlines() or [failure(done, SECONDS) or ""]
    return (out if os.path.exists(out) else None), said[-1]


def _run(row: Row, number: int, side: str, case: Case) -> Sample:
    if row.many:
        return answer_all(number, side, row, case)
    start = start_of(side, row, case)
    with ExitStack() as stack:
        starts = []
        for index in range(row.programs):
            argv = start.argv
            if row.quota is not None:
                group = quota_group(row.quota, f"bitnet-upstream-{index}")
                argv = inside(stack.enter_context(group), argv)
            starts.append(start._replace(argv=argv))
        if row.programs > 1:
            return together(row.name, number, side, starts)
        cpus = frozenset({max(os.sched_getaffinity(0))}) if row.one_cpu else None
        argv = starts[0].argv
        return sample(row.name, number, side, argv, variables=start.variables, cpus=cpus)


def expected_seconds(row: Row, run: float, options: argparse.Namespace, cpus: int) -> float:
    """Return about how long a row takes if a run of upstream's launcher takes ``run`` seconds on
    the idle machine. Threads that wait for each other may take much longer."""
    busy = row.weather.programs
    share = 1 if row.one_cpu else min(cpus, 2, row.quota or 2) / (1 + busy / max(cpus, 1))
    one = run * max(1.0, 2 / share) * (1 + busy / 4)
    if row.many:
        one = run * options.prompts * 0.7  # ours loads the model once and takes less than half
    turn = one * len(row.sides(options.more))
    rounds = max(
        min(options.rounds, LEAST_ROUNDS), min(options.rounds, options.row_seconds // turn)
    )
    return float(rounds * turn) + (SETTLE_SECONDS if busy else 0)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Callable[..., object] = parser.add_argument
    engine = "folder with a llama-cli; may be repeated (default: those in BITNET_TEST_ENGINES)"
    add("--engine", action="append", metavar="FOLDER", help=engine)
    add("-m", "--model", help="model (default: as run_inference.py finds it)")
    slim = "slim copy of the model (default: a temporary one is written)"
    add("--slim", metavar="FILE", help=slim)
    whole = integer(1)
    add("--rounds", type=whole, default=6, help="most rounds of a row (default: %(default)s)")
    most = "seconds after which a row begins no further round, but for the second (default: 60)"
    add("--row-seconds", type=whole, default=60, metavar="S", help=most)
    add("--tokens", type=whole, default=16, help="tokens (default: %(default)s)")
    add("--prompts", type=whole, default=PROMPTS, help="prompts of that row (default: %(default)s)")
    names = ", ".join(row.name for row in ROWS)
    rows = f"rows, with commas, of: {names}; or all (default: {','.join(DEFAULT)})"
    add("--rows", type=_rows, default=_rows(",".join(DEFAULT)), metavar="NAMES", help=rows)
    add("--more", action="store_true", help="also run the sides described above")
    add("--json", metavar="FILE", help="write every sample to this file")
    add("--show", nargs="+", metavar="FILE", help="print the tables of such files, as one report")
    add("--svg", metavar="FILE", help="draw the ratios as a bar chart into this file")
    return parser.parse_args(arguments)


def _rows(text: str) -> tuple[Row, ...]:
    known = {row.name: row for row in ROWS}
    names = [name.strip() for name in text.split(",")] if text != "all" else list(known)
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"no such row: {', '.join(unknown)}")
    return tuple(known[name] for name in names)


def main(arguments: Sequence[str] | None = None) -> int:
    options = read_options(arguments)
    if options.show:
        present(read_reports(options.show), options.svg)
        return 0
    stop_on_signals()
    facts = machine()
    warn_if_busy(facts)
    report = Report(
        options.json,
        machine=facts,
        tokens=options.tokens,
        rounds=options.rounds,
        kernel=f"{platform.system()} {platform.release()}",
        date=time.strftime("%Y-%m-%d"),
    )
    code = 0
    try:
        report.save()  # so that a place that cannot be written is known at once
    except OSError as error:
        raise SystemExit(f"cannot write {options.json}: {error.strerror}") from error
    try:
        with tempfile.TemporaryDirectory() as folder:
            measure_all(options, report, folder)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = 130
    finally:
        present(report.content(), options.svg)
    return code


def read_reports(paths: Sequence[str]) -> Mapping[str, Any]:
    """Return saved reports as one, with the engines of all and the machine of the first. Raise
    SystemExit for a file that is none."""
    reports = []
    for path in paths:
        try:
            reports.append(json.loads(Path(path).read_text()))
            table(reports[-1]["engines"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SystemExit(f"{path} is no report of this benchmark: {error}") from error
    return {**reports[0], "engines": [each for report in reports for each in report["engines"]]}


def present(report: Mapping[str, Any], svg: str | None) -> None:
    """Print the tables of a report and draw its chart."""
    show_all(report)
    if svg:
        try:
            Path(svg).write_text(picture(report), encoding="utf-8")
        except OSError as error:
            raise SystemExit(f"cannot write {svg}: {error.strerror}") from error


def measure_all(options: argparse.Namespace, report: Report, folder: str) -> None:
    """Measure all rows of one engine after the other."""
    rows = possible(options.rows)
    subjects = [
        prepare(engine, options.model, options.tokens, folder)
        for engine in engine_folders(options.engine)
    ]
    slim = options.slim
    if slim is None and (wanted := [row for row in rows if row.slim]):
        slim, said = write_slim(subjects[0], folder)
        rows = rows if slim else without(rows, wanted, said)
    cases = [
        Case(each, write_bare(each, folder), options.tokens, slim, options.prompts)
        for each in subjects
    ]
    expected = sum(warm_up(case, rows, options) for case in cases)
    print(
        f"{len(rows)} rows of {len(cases)} builds: about {expected / 60:.0f} minutes, longer where "
        "threads wait for each other",
        file=sys.stderr,
    )
    began = time.monotonic()
    for case in cases:
        keep = report.add(case.subject)
        for row in rows:
            for found in measure(row, case, options):
                keep(found)
                where = f"{case.subject.name}, {row.name}, round {found[0].round}"
                gone = clock(time.monotonic() - began)
                print(f"{where}; {gone} of about {clock(expected)}", file=sys.stderr)


def warm_up(case: Case, rows: Sequence[Row], options: argparse.Namespace) -> float:
    """Run both launchers once, which fills the page cache and lets ours learn what it keeps, and
    return about how many seconds the rows will take."""
    runs = [_run(ROWS[0], 0, side, case) for side in (UPSTREAM, OURS, UPSTREAM)]
    run, cpus = runs[-1].seconds, usable_cpus()
    return sum(expected_seconds(row, run, options, cpus) for row in rows)


if __name__ == "__main__":
    sys.exit(explained(main))
