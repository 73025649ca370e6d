#!/usr/bin/env python3
"""Measure how often duels of two settings are right, on a real engine and model.

A duel compares the default setting with itself, or with itself slowed down by a known share (see
slowed.py). Three methods get equal time:

- servers: two loaded servers by turns, as benchmark_optimized.py measures
- processes: llama-bench processes by turns, judged by the same statistics
- means: llama-bench -r 5 by turns, of which the higher mean counts as faster

    python3 benchmarks/duels.py --engine FOLDER -m MODEL [--slower SHARE] [--weather spin-2]
        [--duels N] [--seconds S] [--method NAME] [--output FILE]

Stop other programs on the machine first.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from math import log
from pathlib import Path
from statistics import mean, median, pstdev
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.weather import explained, machine, neighbours, parse_weather, warn_if_busy
from bitnet_tuning.bench.comparison import DEFAULT, Run, Sizes, compare
from bitnet_tuning.bench.llama_bench import Bench
from bitnet_tuning.bench.resident import Residents, find_residents
from bitnet_tuning.bench.runner import Runner, find_bench
from bitnet_tuning.engine.builds import EQUAL, FASTER, OPEN, SLOWER
from bitnet_tuning.plan.facts import Facts, Request
from bitnet_tuning.plan.plan import make_plan
from bitnet_tuning.plan.profile import TG, Objective
from bitnet_tuning.prepare import read_facts
from bitnet_tuning.store.state import State

OTHER = "other"
SLOWED = str(Path(__file__).resolve().with_name("slowed.py"))
METHODS = ("servers", "processes", "means")


class Duel(NamedTuple):
    """The outcome of one duel."""

    verdict: str
    ratio: float
    """Speed of the other setting over the default's."""
    low: float
    high: float
    rounds: int
    seconds: float
    spread: float
    """Standard deviation of the logarithms of the rounds' ratios."""
    speed: float
    """Median of the default's tokens/s."""


def runners(facts: Facts, method: str, slower: float, tokens: int) -> dict[str, Runner]:
    """Return what measures each of the two settings. Raise SystemExit if the engine lacks the
    program."""
    before = (sys.executable, "-IS", SLOWED, str(slower)) if slower else ()
    sizes = Sizes(16, tokens, 5 if method == "means" else 1)
    if method == "servers":
        found = find_residents(facts), find_residents(facts)
        if found[0] is None or found[1] is None:
            raise SystemExit("the engine has no server, or memory has no room for two")
        other = found[1].server._replace(program=(*before, *found[1].server.program))
        slowed = Residents(facts, other)
        return {
            DEFAULT: Runner(facts, None, sizes, residents=found[0]),
            OTHER: Runner(facts, None, sizes, residents=slowed),
        }
    bench = find_bench(facts.engine)
    if bench is None:
        raise SystemExit("the engine has no llama-bench")
    return {
        DEFAULT: Runner(facts, bench, sizes),
        OTHER: Runner(facts, Bench((*before, *bench.program), bench.flags), sizes),
    }


def duel(facts: Facts, options: argparse.Namespace) -> Duel:
    """Let the default meet the other setting. Raise SystemExit if a run fails twice."""
    setting = make_plan(Request(), facts).setting
    found = runners(facts, options.method, options.slower, options.tokens)
    began = time.monotonic()

    def measure(name: str, _number: int) -> Run:
        return found[name].measure(name, setting, (TG,))

    def passed() -> float:
        return time.monotonic() - began

    with closing(found[DEFAULT]), closing(found[OTHER]):
        for name in found if options.method == "servers" else ():
            measure(name, 0)  # loads the model
        if options.method == "means":
            return _means(measure, passed, options.seconds)
        rounds = compare(
            *((DEFAULT, OTHER), measure, Objective(), options.seconds - passed(), time.monotonic),
            resolution=options.resolution,
        )
    problem = rounds.problem(DEFAULT) or rounds.problem(OTHER)
    judged = rounds.judge(OTHER)
    if problem or judged.ratio is None:
        raise SystemExit(f"the engine cannot be measured: {problem}")
    logs = [log(each) for each in rounds.ratios(OTHER)]
    speed = median(rounds.speeds(DEFAULT, TG))
    ratio = judged.ratio
    return Duel(judged.verdict, *ratio, seconds=passed(), spread=pstdev(logs), speed=speed)


def _means(measure: Callable[[str, int], Run], passed: Callable[[], float], seconds: float) -> Duel:
    """Return which of the two has the higher mean after the time, as users of llama-bench judge."""
    speeds: dict[str, list[float]] = {DEFAULT: [], OTHER: []}
    rounds = 0
    while not rounds or passed() * (1 + 1 / rounds) < seconds:
        for name in speeds:
            speeds[name] += measure(name, rounds).samples.get(TG, ())
        rounds += 1
    ratio = mean(speeds[OTHER]) / mean(speeds[DEFAULT])
    verdict = FASTER if ratio > 1 else SLOWER
    spread = pstdev([log(a / b) for a, b in zip(speeds[OTHER], speeds[DEFAULT], strict=False)])
    return Duel(verdict, ratio, ratio, ratio, rounds, passed(), spread, median(speeds[DEFAULT]))


def show(duels: Sequence[Duel]) -> None:
    """Print how many duels had which verdict, and what they measured."""
    counts = Counter(each.verdict for each in duels)
    verdicts = ", ".join(f"{name} {counts[name]}" for name in (FASTER, SLOWER, EQUAL, OPEN))
    ratios = [each.ratio for each in duels]
    rounds, seconds, spread, speed = (
        median(getattr(each, field) for each in duels)
        for field in ("rounds", "seconds", "spread", "speed")
    )
    wide = pstdev([log(each) for each in ratios])
    print(
        f"{len(duels)} duels: {verdicts}; ratio {median(ratios):.4f} "
        f"({min(ratios):.4f}-{max(ratios):.4f}, standard deviation {wide:.4f}); medians: "
        f"{rounds:g} rounds, {seconds:.1f} s, spread of a round {spread:.3f}, {speed:.1f} tokens/s"
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--engine", required=True, help="folder with llama-server or llama-bench")
    add("-m", "--model", required=True, help="model file")
    add("--slower", type=float, default=0.0, help="share by which the other is slowed (default: 0)")
    add("--weather", default="idle", help="what other programs do, such as spin-2 (default: idle)")
    add("--duels", type=int, default=10, help="number of duels (default: 10)")
    add("--seconds", type=float, default=60.0, help="time limit of a duel (default: 60)")
    add("--tokens", type=int, default=8, help="tokens generated in a run (default: 8)")
    add("--method", choices=METHODS, default=METHODS[0], help="how to measure (default: servers)")
    add("--resolution", type=float, default=0.02, help="difference of interest (default: 0.02)")
    add("--output", help="JSON file for all duels")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    here = machine()
    warn_if_busy(here)
    with tempfile.TemporaryDirectory() as state:
        request = Request(engine=options.engine, model=options.model, profile=False, force=True)
        facts = read_facts(request, State(state))
        print(f"{options.method}, {options.weather}, slower {options.slower:g}: {here}")
        found: list[Duel] = []
        with neighbours(parse_weather(options.weather)):
            for _ in range(options.duels):
                found.append(duel(facts, options))
                each = found[-1]
                print(
                    f"  {each.verdict:12} {each.ratio:.4f} ({each.low:.4f}-{each.high:.4f}), "
                    f"{each.rounds} rounds, {each.seconds:.1f} s",
                    flush=True,
                )
                if options.output:
                    content = {**vars(options), "machine": here}
                    content["duels"] = [each._asdict() for each in found]
                    Path(options.output).write_text(json.dumps(content, indent=1) + os.linesep)
    show(found)
    return 0


if __name__ == "__main__":
    sys.exit(explained(main))
