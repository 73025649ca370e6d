#!/usr/bin/env python3
"""Measure how close the default comes to the best thread count while other programs are busy.

In each weather (idle, or beside programs that spin, spin at nice 19, compute in bursts or read
memory) run_inference.py as installed takes turns with the engine started directly with every
sensible thread count, and three ways to wait: as is (no variables), bound (OMP_PROC_BIND and
OMP_PLACES) and passive (waiting threads sleep at once). The order is random within a round, and
ratios are taken within rounds.

    python3 benchmarks/neighbours.py --engine FOLDER -m MODEL [--rounds N] [--weathers NAME,...]
    python3 benchmarks/neighbours.py --starts 200 [--weathers idle,blink,compile]

The second form starts run_inference.py --dry-run that often, and counts the starts whose plan has
fewer threads than plans on an idle machine. Stop other programs on the machine first.

A weather is "idle", or a kind of program and how many run: spin-2; nice-2 (spinning at nice 19);
session-2 (the same in other sessions, where autogroups let niceness cost nothing); burst-2 (50 ms
on, 50 ms off); memory-2; blink (0.1 s every 1 to 2 s); compile (0.3 to 1 s, one after another).
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.weather import (
    ANY_LOAD,
    BOUND,
    IDLE,
    KINDS,
    PASSIVE,
    PROMPT,
    SETTLE_SECONDS,
    UNBOUND,
    Report,
    Sample,
    Subject,
    Weather,
    engine_folders,
    estimate,
    explained,
    failures,
    has_autogroups,
    launcher,
    load_samples,
    machine,
    markdown,
    medians,
    neighbours,
    paired,
    parse_weather,
    prepare,
    sample,
    started,
    stop_on_signals,
    thread_counts,
    usable_cpus,
    warn_if_busy,
    words,
)
from bitnet_tuning import demo
from bitnet_tuning.plan.profile import Estimate

DEFAULT = "default"
AIM, IDLE_AIM = 0.95, 0.99
"""Smallest ratios of the default to the best setting that are acceptable, busy and idle."""
LOST_AIM = 0.01
"""Largest share of starts on an idle machine that may lose a thread."""

QUICK = ("idle", "spin-1", "spin-2")
STARTS = ("idle", "blink", "compile", "spin-1")
PAUSE = (0.3, 0.8)
"""Seconds between two starts, so that blinks come at any time, and so that the starts themselves
make no load average that looks like a busy machine."""
ALL_COUNTS = 4
"""Most CPUs for which every thread count is tried."""


def usual_weathers(cpus: int, autogroups: bool = False) -> tuple[str, ...]:
    """Return the names of the weathers for a machine with so many CPUs: idle, and each kind of
    program on one CPU, on half of them and on all, and programs that spin on twice as many; on 2
    CPUs that is 1, 2 and 4."""
    counts = sorted({1, max(1, cpus // 2), cpus})
    found = [IDLE.name]
    for kind in ("spin", "nice", *(["session"] if autogroups else []), "burst", "memory"):
        more = [2 * cpus] if kind in ("spin", "nice") else []
        found += [f"{kind}-{count}" for count in counts + more]
    return tuple(found)


def sensible_counts(cpus: int) -> tuple[int, ...]:
    """Return the thread counts to try: all on a small machine, else powers of two, all CPUs, and
    all but one."""
    if cpus <= ALL_COUNTS:
        return tuple(range(1, cpus + 1))
    powers = {1 << exponent for exponent in range(cpus.bit_length()) if 1 << exponent <= cpus}
    return tuple(sorted(powers | {cpus - 1, cpus}))


def settings(
    runtime: str | None, counts: Iterable[int]
) -> dict[str, tuple[int, Mapping[str, str]]]:
    """Return threads and variables by the setting's name. How threads wait, and where, does not
    matter for one of them, and only builds with GNU's or LLVM's OpenMP obey the variables."""
    ways: dict[str, Mapping[str, str]] = {"as is": UNBOUND}
    if runtime in PASSIVE:
        ways |= {"bound": BOUND, "passive": PASSIVE[runtime]}
    return {
        f"{count}, {way}": (count, variables)
        for count in counts
        for way, variables in ways.items()
        if count > 1 or way == "as is"
    }


def measure(
    subject: Subject,
    weathers: Sequence[Weather],
    counts: Sequence[int],
    rounds: int,
    settle: float,
) -> Iterator[list[Sample]]:
    """Yield the samples of one weather in one round after another."""
    tried = settings(subject.engine.openmp, counts)
    for number in range(1, rounds + 1):
        for weather in random.sample(weathers, len(weathers)):
            with neighbours(weather, settle):
                found = []
                for name in random.sample([DEFAULT, *tried], len(tried) + 1):
                    argv, variables = subject.ours, subject.variables()
                    if name != DEFAULT:
                        threads, variables = tried[name]
                        argv = subject.direct(threads)
                    found.append(sample(weather.name, number, name, argv, variables=variables))
            yield found


class Row(NamedTuple):
    """The outcome of one weather."""

    weather: str
    medians: Mapping[str, float]
    """Median tokens/s by setting."""
    threads: str
    """What the default chose."""
    best: str
    """The setting with the highest median; the default is none of them."""
    ratio: Estimate | None
    """The default over the best."""
    fair: Estimate | None
    """The default over the setting that is the best of the other rounds, in each round."""

    @property
    def aim(self) -> float:
        return IDLE_AIM if self.weather == IDLE.name else AIM

    @property
    def missed(self) -> bool:
        return self.ratio is not None and self.ratio.median < self.aim

    def speeds(self, names: Iterable[str]) -> list[str]:
        """Return the median speeds of these settings for a table."""
        return [f"{self.medians[name]:.1f}" if name in self.medians else "–" for name in names]


def judge(weather: str, samples: Sequence[Sample]) -> Row | None:
    """Return the outcome of one weather from its samples; None before anything can be compared.

    The highest of several medians is too high by luck, the more so the noisier the runs. So there
    is a second ratio, for which the runs of a round do not choose what they are compared with.
    """
    others = [each for each in samples if each.setting != DEFAULT]
    found = medians(samples)
    if DEFAULT not in found or len(found) < 2:
        return None
    best = fastest(others)
    fair = []
    for number in sorted({each.round for each in samples}):
        now = [each for each in samples if each.round == number]
        chosen = fastest([each for each in others if each.round != number])
        fair += paired(now, DEFAULT, chosen)
    return Row(
        weather,
        found,
        thread_counts(samples, DEFAULT),
        best,
        estimate(paired(samples, DEFAULT, best)),
        estimate(fair),
    )


def fastest(samples: Iterable[Sample]) -> str:
    """Return the setting with the highest median speed; empty without samples."""
    found = medians(samples)
    return max(found, key=found.__getitem__, default="")


def judge_all(samples: Sequence[Sample]) -> list[Row]:
    """Return the outcome of every weather, in the order of ``usual_weathers``."""
    names = sorted({each.weather for each in samples}, key=_place)
    rows = (judge(name, [each for each in samples if each.weather == name]) for name in names)
    return [row for row in rows if row is not None]


def _place(name: str) -> tuple[int, int, str]:
    weather = parse_weather(name)
    kind = name.partition("-")[0]
    return (-1 if weather == IDLE else KINDS.index(kind), weather.programs, name)


def show(engine: Mapping[str, Any]) -> None:
    """Print the tables of one engine of a report."""
    samples = load_samples(engine)
    rows = judge_all(samples)
    rounds = max((each.round for each in samples), default=0)
    print(f"\n{engine['name']} ({engine['openmp']}), {engine['model']}: {rounds} rounds")
    if not rows:
        print("nothing was measured")
        return
    # A setting belongs to the table even if it failed in some weather.
    names = sorted({each.setting for each in samples} - {DEFAULT})
    headings = ("weather", "threads chosen", DEFAULT, *names)
    speeds = ((row.weather, row.threads, *row.speeds((DEFAULT, *names))) for row in rows)
    print("Generation, tokens/s, medians:")
    print(markdown(headings, speeds))
    print("\nRatio default/best with its 95 % interval:")
    ratios = ((row.weather, row.best, words(row.ratio), words(row.fair)) for row in rows)
    print(markdown(("weather", "best", "default/best", "best of the other rounds"), ratios))
    for line in failures(samples):
        print(line)
    # A default that never ended has no ratio.
    judged = {row.weather for row in rows}
    missed = [row.weather for row in rows if row.missed]
    missed += sorted({each.weather for each in samples} - judged)
    print(f"goal: {AIM} in every weather, {IDLE_AIM} idle; below it: {', '.join(missed) or 'none'}")


class Started(NamedTuple):
    """One start of the launcher, as far as its plan."""

    weather: str
    threads: int
    milliseconds: float
    """Time of the whole dry run."""
    reason: str
    """The beginning of the reason for the threads, without the names of programs."""


def starts(
    argv: Sequence[str], variables: Mapping[str, str], weathers: Sequence[Weather], count: int
) -> Iterator[Started]:
    """Yield ``count`` starts in each weather."""
    for weather in weathers:
        with neighbours(weather):
            for _ in range(count):
                time.sleep(random.uniform(*PAUSE))
                began = time.monotonic()
                done = started(argv, variables)
                took = 1000 * (time.monotonic() - began)
                if done.code:
                    raise SystemExit(done.stderr.strip())
                plan = json.loads(done.stdout)
                reason = plan["reasons"]["threads"].partition(" (")[0].partition(";")[0]
                yield Started(weather.name, plan["threads"], took, reason)


def lost_share(threads: Sequence[int], full: int) -> float:
    """Return the share of starts that planned fewer than ``full`` threads."""
    return sum(each < full for each in threads) / len(threads)


def count_starts(options: argparse.Namespace, state: str) -> dict[str, Any]:
    """Return what the launcher planned in each weather, as a report's part, and print it."""
    folder = (options.engine or [stand_in(Path(state))])[0]
    argv = (*launcher(folder, options.model or demo.I2_S), "-p", PROMPT, "--dry-run", "--json")
    variables = {"BITNET_TUNING_HOME": state}
    full = next(starts(argv, {**variables, **ANY_LOAD}, [IDLE], 1)).threads
    weathers = [parse_weather(name) for name in options.weathers or STARTS]
    print(f"{options.starts} starts in each weather; with every CPU free: {full} threads\n")
    found = list(starts(argv, variables, weathers, options.starts))
    show_starts(found, full)
    return {"full": full, "starts": [each._asdict() for each in found]}


def show_starts(found: Sequence[Started], full: int) -> None:
    rows, reasons = [], []
    for weather in dict.fromkeys(each.weather for each in found):
        here = [each for each in found if each.weather == weather]
        threads = [each.threads for each in here]
        counts = ", ".join(f"{n}: {often}" for n, often in sorted(Counter(threads).items()))
        middle = median(each.milliseconds for each in here)
        rows.append((weather, counts, f"{lost_share(threads, full):.1%}", f"{middle:.0f}"))
        usual = Counter(each.reason for each in here).most_common(3)
        reasons += [f"{weather}: {often} times: {reason}" for reason, often in usual]
    print(markdown(("weather", "threads: starts", f"fewer than {full}", "ms to the plan"), rows))
    print(f"goal: at most {LOST_AIM:.0%} of the starts on an idle machine\n")
    print("\n".join(reasons))


def stand_in(folder: Path) -> str:
    """Return an engine that only echoes: a plan for an unknown engine needs no more."""
    engine = folder / "build" / "bin" / "llama-cli"
    engine.parent.mkdir(parents=True)
    shutil.copy(shutil.which("echo") or "/bin/echo", engine)
    return str(engine)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    engine = "folder with a llama-cli; may be repeated (default: those in BITNET_TEST_ENGINES)"
    parser.add_argument("--engine", action="append", metavar="FOLDER", help=engine)
    parser.add_argument("-m", "--model", help="model (default: as run_inference.py finds it)")
    parser.add_argument("--rounds", type=int, help="rounds (default: 6; 3 with --quick)")
    parser.add_argument("--tokens", type=int, default=16, help="tokens (default: %(default)s)")
    listed = "names, with commas (default: idle, and every kind on one CPU, half of them, and all)"
    parser.add_argument("--weathers", type=_names, metavar="NAMES", help=listed)
    counts = "thread counts to try, with commas (default: all up to 4 CPUs, else a choice)"
    parser.add_argument("--threads", type=_counts, metavar="COUNTS", help=counts)
    settle = "seconds for which programs run before a round (default: %(default)s)"
    parser.add_argument("--settle", type=float, default=SETTLE_SECONDS, help=settle)
    parser.add_argument("--quick", action="store_true", help=f"weathers {', '.join(QUICK)} only")
    parser.add_argument("--starts", type=int, metavar="N", help="count the plans of N starts")
    parser.add_argument("--json", metavar="FILE", help="write every sample to this file")
    parser.add_argument("--show", metavar="FILE", help="print the tables of such a file")
    return parser.parse_args(arguments)


def _names(text: str) -> tuple[str, ...]:
    return tuple(parse_weather(name).name for name in text.split(","))


def _counts(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def main(arguments: Sequence[str] | None = None) -> int:
    options = read_options(arguments)
    if options.show:
        for engine in json.loads(Path(options.show).read_text())["engines"]:
            show(engine)
        return 0
    stop_on_signals()
    facts = machine()
    warn_if_busy(facts)
    try:
        with tempfile.TemporaryDirectory() as state:
            if options.starts:
                report = Report(options.json, machine=facts, starts=count_starts(options, state))
                report.save()
            else:
                run_all(options, facts, state)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def run_all(options: argparse.Namespace, facts: dict[str, object], state: str) -> None:
    cpus = usable_cpus()
    names = options.weathers or (QUICK if options.quick else usual_weathers(cpus, has_autogroups()))
    weathers = [parse_weather(name) for name in names]
    rounds = options.rounds or (3 if options.quick else 6)
    counts = options.threads or sensible_counts(cpus)
    report = Report(options.json, machine=facts, tokens=options.tokens)
    for folder in engine_folders(options.engine):
        subject = prepare(folder, options.model, options.tokens, state)
        sample(
            "", 0, DEFAULT, subject.ours, variables=subject.variables()
        )  # reads the model from the disk
        keep = report.add(subject)
        began = time.monotonic()
        total = rounds * len(weathers)
        runs = measure(subject, weathers, counts, rounds, options.settle)
        try:
            for done, found in enumerate(runs, 1):
                keep(found)
                left = (time.monotonic() - began) / done * (total - done)
                what = f"round {found[0].round} of {rounds}, {found[0].weather}"
                print(f"{subject.name}: {what}; {left / 60:.1f} minutes left", file=sys.stderr)
        finally:
            show(report.engines[-1])


if __name__ == "__main__":
    sys.exit(explained(main))
