#!/usr/bin/env python3
"""Measure whole runs of this launcher against upstream's, on the machines that people have.

Upstream's run_inference.py starts llama-cli with -t 2 and -b 1 and sets no variables. Both
launchers take turns, in random order within a round: on the idle machine, on one CPU, under CPU
quotas, and beside busy programs. Ratios are taken within rounds, of generated tokens/s and of the
time of the whole program; above 1, this launcher is faster.

Under quotas upstream's launcher also runs with -t 1, which shows what quota deserves two threads.
Two more rows run two programs at once, whose speeds are added: with -t 1, and each under a quota of
one CPU. There, single threads that are bound (OMP_PROC_BIND and OMP_PLACES) take turns too, and the
engines' threads are watched: bound ones of both programs compute on the same CPU.

    python3 benchmarks/against_upstream.py --engine FOLDER -m MODEL [--rounds N] [--rows NAME,...]

Quotas need write access to a CPU control group (version 1 or 2); without it, their rows are left
out. Stop other programs on the machine first.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.launch_overhead import BARE
from benchmarks.weather import (
    BOUND,
    IDLE,
    SECONDS,
    UNBOUND,
    Report,
    Sample,
    Subject,
    Weather,
    engine_folders,
    estimate,
    failures,
    load_samples,
    machine,
    markdown,
    medians,
    neighbours,
    paired,
    parse_weather,
    prepare,
    read_sample,
    sample,
    settings_of_the_user,
    stop_on_signals,
    thread_counts,
    warn_if_busy,
    words,
)
from bitnet_tuning.bench.statistics import geometric_mean
from bitnet_tuning.launch.background import Captured, serve
from bitnet_tuning.launch.program import Launch
from bitnet_tuning.machine.cgroups import read_cgroups
from bitnet_tuning.machine.process import Family
from bitnet_tuning.machine.root import Root
from bitnet_tuning.plan.profile import Estimate

OURS, UPSTREAM, ONE, ONE_BOUND = "ours", "upstream", "1 thread", "1 thread, bound"
AIM = 0.97
"""Smallest ratio to upstream that is acceptable in any row."""

PERIOD = 100_000
"""Period of a CPU quota in microseconds, the kernel's default (admin-guide/cgroup-v2.rst)."""
QUOTAS = (0.5, 1.0, 1.25, 1.5, 1.75)
LOOK_SECONDS = 0.1
"""Seconds between two looks at the threads of two programs at once; a look takes 3 ms."""


class Row(NamedTuple):
    """The conditions of a run."""

    name: str
    weather: Weather = IDLE
    one_cpu: bool = False
    """True to bind the whole launcher to one CPU."""
    quota: float | None = None
    """CPUs that each program may use."""
    programs: int = 1
    """Number of programs at once."""
    threads: int | None = None
    """The user's -t for both launchers; None leaves it to them."""

    @property
    def sides(self) -> tuple[str, ...]:
        """The names of what takes turns. With one thread, upstream is unbound as well."""
        if self.programs == 1:
            return (OURS, UPSTREAM) if self.quota is None else (OURS, UPSTREAM, ONE)
        return (OURS, UPSTREAM, *(() if self.threads else (ONE,)), ONE_BOUND)


ROWS = (
    Row("idle"),
    Row("one CPU", one_cpu=True),
    *(Row(f"quota {quota:g}", quota=quota) for quota in QUOTAS),
    Row("spin-1", parse_weather("spin-1")),
    Row("spin-2", parse_weather("spin-2")),
    Row("two at once", programs=2, threads=1),
    Row("two containers", programs=2, quota=1.0),
)
USUAL = ("idle", "one CPU", "quota 1", "quota 1.5", "spin-1", "spin-2")
"""Rows of which the geometric mean is also printed alone."""


def cpu_groups() -> Iterator[Path]:
    """Yield the folders in which a control group with a CPU quota might be made: this process's own
    groups and their parents."""
    groups = read_cgroups(Root())
    for level in (*groups.cpu, *groups.unified):
        yield Path("/", level)


@contextmanager
def quota_group(quota: float, name: str, parents: Iterable[Path] | None = None) -> Iterator[Path]:
    """Make a control group with a quota of so many CPUs, yield its folder, and remove it. Raise
    OSError if none of the folders lets us."""
    problem = OSError("there is no CPU control group")
    for parent in cpu_groups() if parents is None else parents:
        group = parent / f"{name}-{os.getpid()}"
        try:
            try:
                _limit(group, round(quota * PERIOD))
            except OSError as error:
                problem = error
                continue
            yield group
            return
        finally:
            _remove(group)
    raise problem


def _limit(group: Path, quota: int) -> None:
    """Make the group and set its quota, in microseconds per period. Raise OSError."""
    controllers = group.parent / "cgroup.controllers"
    version_2 = controllers.exists()
    if version_2 and "cpu" in controllers.read_text().split():
        # Children have a controller's files once it is in their parent's list, which takes no new
        # one while the parent itself has processes (admin-guide/cgroup-v2.rst).
        control = group.parent / "cgroup.subtree_control"
        if "cpu" not in control.read_text().split():
            _write(control, "+cpu")
    group.mkdir()
    if version_2:
        _write(group / "cpu.max", f"{quota} {PERIOD}")
    else:
        _write(group / "cpu.cfs_period_us", str(PERIOD))
        _write(group / "cpu.cfs_quota_us", str(quota))


def _write(path: Path, text: str) -> None:
    # In a control group only the kernel creates files: a missing one must stay an error.
    handle = os.open(path, os.O_WRONLY | os.O_TRUNC)
    try:
        os.write(handle, text.encode())
    finally:
        os.close(handle)


def _remove(group: Path) -> None:
    """Remove the group once the last process has left it."""
    for _ in range(100):
        try:
            group.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.05)


def inside(group: Path, argv: Sequence[str]) -> tuple[str, ...]:
    """Return the argv of a program that starts in the group."""
    script = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
    return ("/bin/sh", "-c", script, str(group), *argv)


class Start(NamedTuple):
    """How one side of a row starts."""

    argv: tuple[str, ...]
    variables: Mapping[str, str]


def start_of(side: str, row: Row, subject: Subject, bare: str) -> Start:
    """Return how a side starts. ``bare`` is the script that does what upstream's does."""
    if side == OURS:
        at = subject.ours.index("-p")
        flags = ("-t", str(row.threads)) if row.threads else ()
        return Start((*subject.ours[:at], *flags, *subject.ours[at:]), subject.variables())
    threads = row.threads or (2 if side == UPSTREAM else 1)
    planned = subject.planned
    argv = [sys.executable, bare, "-t", str(threads)]
    for flag, name in (("-m", "-m"), ("-n", "-n"), ("-p", "-p"), ("-c", "-c"), ("--temp", "-temp")):
        argv += [name, planned[planned.index(flag) + 1]]
    argv += [flag for flag in ("--ignore-eos", "-no-cnv") if flag in planned]
    return Start(tuple(argv), BOUND if side == ONE_BOUND else UNBOUND)


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


def measure(
    subject: Subject, rows: Sequence[Row], rounds: int, bare: str
) -> Iterator[list[Sample]]:
    """Yield the samples of one row in one round after another."""
    for number in range(1, rounds + 1):
        for row in random.sample(rows, len(rows)):
            sides = random.sample(row.sides, len(row.sides))
            with neighbours(row.weather):
                found = [_run(row, number, side, subject, bare) for side in sides]
            yield found


def possible(rows: Sequence[Row]) -> list[Row]:
    """Return the rows without those whose quota cannot be set here, which are named on stderr."""
    try:
        with quota_group(1.0, "bitnet-upstream"):
            return list(rows)
    except OSError as error:
        left = [row.name for row in rows if row.quota is not None]
        if left:
            reason = f"no CPU quota can be set here ({error})"
            print(f"left out: {', '.join(left)}: {reason}", file=sys.stderr)
        return [row for row in rows if row.quota is None]


def _run(row: Row, number: int, side: str, subject: Subject, bare: str) -> Sample:
    start = start_of(side, row, subject, bare)
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


class Compared(NamedTuple):
    """This launcher against upstream's in one row."""

    row: str
    medians: Mapping[str, float]
    """Median tokens/s by side."""
    threads: str
    """What this launcher chose."""
    speed: Estimate | None
    """Ratio of generated tokens/s."""
    time: Estimate | None
    """Ratio of whole times, upstream's over ours."""


def compare(samples: Sequence[Sample]) -> list[Compared]:
    """Return the outcome of every row that was measured."""
    found = []
    for name in dict.fromkeys([row.name for row in ROWS]):
        runs = [each for each in samples if each.weather == name]
        if runs:
            speed = estimate(paired(runs, OURS, UPSTREAM))
            whole = estimate(paired(runs, UPSTREAM, OURS, "seconds"))
            found.append(Compared(name, medians(runs), thread_counts(runs, OURS), speed, whole))
    return found


def mean(compared: Iterable[Compared], names: Iterable[str] = ()) -> float | None:
    """Return the geometric mean of the rows' ratios, of all rows or of those named."""
    chosen = set(names)
    ratios = [
        each.speed.median for each in compared if each.speed and (each.row in chosen or not chosen)
    ]
    return geometric_mean(ratios) if ratios else None


def show(engine: Mapping[str, Any]) -> None:
    """Print the tables of one engine of a report."""
    samples = load_samples(engine)
    rounds = max((each.round for each in samples), default=0)
    print(f"\n{engine['name']} ({engine['openmp']}), {engine['model']}: {rounds} rounds")
    compared = compare(samples)
    if not compared:
        print("nothing was measured")
        return
    rows = [
        (
            each.row,
            *(_number(each.medians.get(side)) for side in (UPSTREAM, OURS)),
            each.threads,
            words(each.speed),
            words(each.time),
        )
        for each in compared
    ]
    headings = ("", "upstream, tokens/s", "ours, tokens/s", "threads", "tokens/s", "whole time")
    print(markdown(headings, rows))
    below = [each.row for each in compared if each.speed and each.speed.median < AIM]
    usual = [each for each in compared if each.row in USUAL]
    print(
        f"geometric mean of {', '.join(each.row for each in usual) or 'no rows'}: "
        f"{_number(mean(usual), 3)}; of all rows: {_number(mean(compared), 3)}"
    )
    print(f"below {AIM}: {', '.join(below) or 'none'}")
    show_pairs(samples)
    for line in failures(samples):
        print(line)


def show_all(engines: Sequence[Mapping[str, Any]]) -> None:
    """Print the tables of every engine of a report."""
    for each in engines:
        show(each)
    if any(run["setting"] == ONE for each in engines for run in each["samples"]):
        show_quotas(engines)


def show_pairs(samples: Sequence[Sample]) -> None:
    """Print what two programs at once reached, and how often they computed on the same CPU."""
    lines = []
    for row in ROWS:
        for side in row.sides if row.programs > 1 else ():
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
                lines.append((row.name, side, both, thread_counts(runs, side), crowded))
    if lines:
        print("\nTwo programs at once, tokens/s, the slower one first:")
        print(markdown(("", "", "tokens/s", "threads", "both on one CPU"), lines))


def show_quotas(engines: Sequence[Mapping[str, Any]]) -> None:
    """Print what one and two threads reach under each quota, by engine."""
    lines = []
    for row in (each for each in ROWS if ONE in each.sides and each.programs == 1):
        cells = [row.name]
        for engine in engines:
            runs = [each for each in load_samples(engine) if each.weather == row.name]
            found = medians(runs)
            speeds = ", ".join(_number(found.get(side)) for side in (ONE, UPSTREAM))
            cells.append(f"{speeds}: {words(estimate(paired(runs, UPSTREAM, ONE)))}")
        lines.append(cells)
    print("\nUnder a quota, tokens/s with 1 and with 2 threads, and the ratio of 2 to 1:")
    print(markdown(["", *(engine["name"] for engine in engines)], lines))


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    engine = "folder with a llama-cli; may be repeated (default: those in BITNET_TEST_ENGINES)"
    parser.add_argument("--engine", action="append", metavar="FOLDER", help=engine)
    parser.add_argument("-m", "--model", help="model (default: as run_inference.py finds it)")
    parser.add_argument("--rounds", type=int, default=8, help="rounds (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=16, help="tokens (default: %(default)s)")
    rows = f"rows, with commas (default: all): {', '.join(row.name for row in ROWS)}"
    parser.add_argument("--rows", type=_rows, default=ROWS, metavar="NAMES", help=rows)
    parser.add_argument("--json", metavar="FILE", help="write every sample to this file")
    parser.add_argument("--show", metavar="FILE", help="print the tables of such a file")
    return parser.parse_args(arguments)


def _rows(text: str) -> tuple[Row, ...]:
    known = {row.name: row for row in ROWS}
    try:
        return tuple(known[name.strip()] for name in text.split(","))
    except KeyError as error:
        raise ValueError(f"no such row: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    options = read_options(arguments)
    if options.show:
        show_all(json.loads(Path(options.show).read_text())["engines"])
        return 0
    stop_on_signals()
    facts = machine()
    warn_if_busy(facts)
    report = Report(options.json, machine=facts, tokens=options.tokens)
    try:
        with tempfile.TemporaryDirectory() as folder:
            rows = possible(options.rows)
            for engine in engine_folders(options.engine):
                subject = prepare(engine, options.model, options.tokens, folder)
                run_engine(subject, rows, options, report)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    finally:
        show_all(report.engines)
    return 0


def run_engine(
    subject: Subject, rows: Sequence[Row], options: argparse.Namespace, report: Report
) -> None:
    keep = report.add(subject)
    bare = write_bare(subject, subject.state)
    sample("", 0, UPSTREAM, start_of(UPSTREAM, ROWS[0], subject, bare).argv)  # fills the page cache
    began, total = time.monotonic(), options.rounds * len(rows)
    for done, found in enumerate(measure(subject, rows, options.rounds, bare), 1):
        keep(found)
        left = (time.monotonic() - began) / done * (total - done)
        where = f"round {found[0].round} of {options.rounds}, {found[0].weather}"
        print(f"{subject.name}: {where}; {left / 60:.1f} minutes left", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
