#!/usr/bin/env python3
"""Measure the gain of performance mode, of ways to load a model, of micro-batches and of --prompts.

Each comparison runs every setting once per round. It prints the ratio to the first setting within
a round with its 95 % interval.

    python3 benchmarks/performance.py --engine FOLDER -m MODEL [--rounds N] [WHAT ...]

WHAT is mode, memory, ubatch or prompts (default: all). Stop other programs on the machine first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.weather import explained
from bitnet_tuning.bench.comparison import Round, Rounds, Run, Sizes, turns
from bitnet_tuning.bench.llama_bench import words
from bitnet_tuning.bench.runner import Runner, find_bench
from bitnet_tuning.bench.statistics import estimate
from bitnet_tuning.bench.words import Checker
from bitnet_tuning.console import times
from bitnet_tuning.engine.builds import verdict_words
from bitnet_tuning.plan.facts import Facts, Request
from bitnet_tuning.plan.plan import make_plan
from bitnet_tuning.plan.profile import PP, TG, Objective
from bitnet_tuning.plan.setting import Setting, describe
from bitnet_tuning.prepare import read_facts, with_all_means
from bitnet_tuning.store.state import State, default_folder

REPOSITORY = Path(__file__).resolve().parent.parent

LONG = "a " * 400
"""A prompt so long that the plan leaves the micro-batch at the engine's default."""

UBATCHES = (64, 256, 512)
PROMPTS = 32
PROMPT_WORDS, ANSWER_TOKENS = 4, 16


def main() -> int:
    options = read_options()
    facts = facts_of(options)
    print(f"engine {facts.engine.path} ({facts.engine.openmp}); model {facts.model.path}")
    for what in options.what or ("mode", "memory", "ubatch", "prompts"):
        COMPARISONS[what](facts, options)
    return 0


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", help="llama-cli, or a folder that holds it")
    parser.add_argument("-m", "--model", help="model file (default: as run_inference.py finds it)")
    parser.add_argument("--rounds", type=int, default=12, help="rounds (default: %(default)s)")
    slots = "numbers of slots to compare (default: 1 2 4 8)"
    parser.add_argument("--slots", type=int, nargs="*", default=[1, 2, 4, 8], help=slots)
    what = f"what to compare: {', '.join(COMPARISONS)} (default: all)"
    parser.add_argument("what", nargs="*", metavar="WHAT", choices=(*COMPARISONS, []), help=what)
    return parser.parse_args()


def facts_of(options: argparse.Namespace) -> Facts:
    request = Request(engine=options.engine, model=options.model, profile=False)
    return with_all_means(read_facts(request, State(default_folder(os.environ))))


def planned(facts: Facts, **wishes: object) -> Setting:
    """Return the plan's setting for a long prompt."""
    request = Request(prompt=LONG)._replace(**wishes)  # type: ignore[arg-type]
    plan = make_plan(request, facts)
    for warning in plan.warnings:
        print(f"  note: {warning}")
    return plan.setting


def compare_modes(facts: Facts, options: argparse.Namespace) -> None:
    settings = {"default": planned(facts), "performance": planned(facts, performance=True)}
    runner = Runner(facts, None, Sizes(24, 32, 1))
    show("performance mode, by the cli", settings, run_rounds(runner, settings, options.rounds))


def compare_memory(facts: Facts, options: argparse.Namespace) -> None:
    ways = ("mmap", "copy", "locked", "huge")
    settings = {way: planned(facts, memory=way) for way in ways}
    runner = Runner(facts, None, Sizes(24, 32, 1))
    title = "how the model gets into memory, by the cli"
    show(title, settings, run_rounds(runner, settings, options.rounds))


def compare_ubatches(facts: Facts, options: argparse.Namespace) -> None:
    default = planned(facts)
    checker = Checker(facts, default)
    for tokens in (16, 128, 1024):
        settings = {"512": default}
        settings |= {str(size): default._replace(ubatch=size) for size in UBATCHES if size != 512}
        repetitions = max(1, 128 // tokens)
        runner = Runner(facts, find_bench(facts.engine), Sizes(tokens, 1, repetitions))
        rounds = run_rounds(runner, settings, options.rounds, (PP,))
        show(f"micro-batches for a prompt of {tokens} tokens, by llama-bench", settings, rounds)
    for size in UBATCHES:
        problem = checker.problem(default._replace(ubatch=size))
        print(f"  micro-batch {size}: {problem or 'same greedy text as the default'}")
    for note in checker.notes.values():
        print(f"  note: {note}")


def run_rounds(
    runner: Runner,
    settings: Mapping[str, Setting],
    count: int,
    phases: tuple[str, ...] = (PP, TG),
) -> list[Round]:
    """Measure ``count`` rounds, after a run that only loads the model."""
    first = next(iter(settings))
    runner.measure(first, settings[first], phases)
    rounds = []
    for number in range(1, count + 1):
        order = turns(tuple(settings), number)
        runs = tuple(runner.measure(name, settings[name], phases) for name in order)
        rounds.append(Round(number, "", runs, 0.0))
    return rounds


def show(title: str, settings: Mapping[str, Setting], rounds: Sequence[Round]) -> None:
    print(f"\n{title}: {len(rounds)} rounds")
    first = next(iter(settings))
    for name, setting in settings.items():
        print(f"  {name}: {describe(setting)}")
        runs = [run for each in rounds for run in each.runs if run.setting == name]
        for run in runs:
            if run.problem:
                print(f"    failed: {run.problem}")
        for phase in (PP, TG):
            measured = Rounds(Objective(phase), rounds, reference=first)
            speeds = measured.speeds(name, phase)
            if speeds:
                print(f"    {phase} {spread(speeds)} tokens/s{against(measured, name)}")
        walls = [run.seconds for run in runs if not run.problem]
        if walls:
            print(f"    whole process {spread(walls)} s{shorter(rounds, name, first)}")


def against(measured: Rounds, name: str) -> str:
    if name == measured.reference:
        return ""
    judged = measured.judge(name)
    return f"; {times(*judged.ratio)}: {verdict_words(judged.verdict)}" if judged.ratio else ""


def shorter(rounds: Sequence[Round], name: str, first: str) -> str:
    """Return the speed-up of the whole process, loading included."""
    return "" if name == first else f"; {times(*estimate(wall_ratios(rounds, name, first)))}"


def wall_ratios(rounds: Sequence[Round], name: str, first: str) -> list[float]:
    found = []
    for each in rounds:
        walls = {
            which: [run.seconds for run in each.runs if run.setting == which and not run.problem]
            for which in (first, name)
        }
        if all(walls.values()):
            found.append(median(walls[first]) / median(walls[name]))
    return found


def spread(values: Sequence[float]) -> str:
    digits = 0 if median(values) >= 100 else 2
    low, middle, high = min(values), median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def compare_prompts(facts: Facts, options: argparse.Namespace) -> None:
    """Compare one run with --prompts to a run per prompt, as a user starts them."""
    prompts = [f"{index} {words(PROMPT_WORDS)}" for index in range(PROMPTS)]
    ways = {"single runs": 0, **{f"{count} slots": count for count in options.slots}}
    rounds, texts = [], {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "prompts.jsonl")
        path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
        for number in range(max(3, options.rounds // 4)):
            order = [*ways, "single runs"] if number % 2 else ["single runs", *reversed(ways)]
            runs = []
            for name in order:
                run, texts[name] = timed(facts, name, ways[name], prompts, path)
                runs.append(run)
            rounds.append(Round(number, "", tuple(runs), 0.0))
    show_prompts(rounds, ways, texts)


def timed(
    facts: Facts, name: str, slots: int, prompts: Sequence[str], path: Path
) -> tuple[Run, list[str]]:
    started = time.monotonic()
    texts = at_once(facts, path, slots) if slots else one_by_one(facts, prompts)
    seconds = time.monotonic() - started
    return Run(name, {TG: (PROMPTS * ANSWER_TOKENS / seconds,)}, seconds), texts


def at_once(facts: Facts, path: Path, slots: int) -> list[str]:
    done = start(facts, "--prompts", str(path), "--slots", str(slots))
    return [json.loads(line)["text"] for line in done.splitlines()]


def one_by_one(facts: Facts, prompts: Sequence[str]) -> list[str]:
    texts = [start(facts, "-p", prompt) for prompt in prompts]
    return [text.lstrip().removeprefix(prompt) for text, prompt in zip(texts, prompts, strict=True)]


def start(facts: Facts, *flags: str) -> str:
    program = str(REPOSITORY / "run_inference_optimized.py")
    named = ("--engine", facts.engine.path, "-m", facts.model.path)
    shared = ("-n", str(ANSWER_TOKENS), "-temp", "0", "-c", "256", "--quiet")
    done = subprocess.run(
        [sys.executable, program, *named, *shared, *flags],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(flags)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def show_prompts(
    rounds: Sequence[Round], ways: Mapping[str, int], texts: Mapping[str, list[str]]
) -> None:
    print(f"\n{PROMPTS} prompts, {ANSWER_TOKENS} tokens each: {len(rounds)} rounds")
    first = next(iter(ways))
    for name in ways:
        runs = [run for each in rounds for run in each.runs if run.setting == name]
        speeds = [run.samples[TG][0] for run in runs]
        line = f"  {name}: {spread([run.seconds for run in runs])} s, {spread(speeds)} tokens/s"
        if name != first:
            same = sum(
                a.strip() == b.strip() for a, b in zip(texts[name], texts[first], strict=True)
            )
            found = estimate(wall_ratios(rounds, name, first))
            line += f"; {times(*found)}; {same} of {PROMPTS} texts the same"
        print(line)


COMPARISONS = {
    "mode": compare_modes,
    "memory": compare_memory,
    "ubatch": compare_ubatches,
    "prompts": compare_prompts,
}


if __name__ == "__main__":
    sys.exit(explained(main))
