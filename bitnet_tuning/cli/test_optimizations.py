"""test_optimizations.py: run the engine and print whether each optimisation takes effect."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from math import ceil
from shlex import quote
from statistics import geometric_mean

from bitnet_tuning import demo
from bitnet_tuning.bench import comparison
from bitnet_tuning.bench.comparison import DEFAULT, FILES, SLIM_FILE, UPSTREAM, Round, Rounds, Run
from bitnet_tuning.bench.knobs import UNLOCKED, measurable, other_file
from bitnet_tuning.bench.runner import PROGRAMS, SECOND, Runner, choose_sizes, make_runner
from bitnet_tuning.bench.statistics import VERDICT_ROUNDS, estimate
from bitnet_tuning.bench.summary import digits
from bitnet_tuning.bench.words import Checker
from bitnet_tuning.cli.arguments import Parser, add_engine, add_no_profile, number
from bitnet_tuning.cli.show import outcomes
from bitnet_tuning.console import Progress, columns, command, counted, guarded, say, times, word
from bitnet_tuning.engine.builds import FASTER, SLOWER, verdict_words
from bitnet_tuning.errors import TuningError
from bitnet_tuning.machine.root import Root
from bitnet_tuning.model.find import file_beside
from bitnet_tuning.plan.facts import Facts, Plan, Request
from bitnet_tuning.plan.plan import make_plan
from bitnet_tuning.plan.profile import TG, Objective
from bitnet_tuning.plan.setting import UPSTREAM as UPSTREAM_SETTING
from bitnet_tuning.plan.setting import Setting
from bitnet_tuning.prepare import read_facts
from bitnet_tuning.store.codec import to_json
from bitnet_tuning.store.state import State
from bitnet_tuning.verify import checks
from bitnet_tuning.verify.checks import FAIL, HINT, PASS, SKIP, Line
from bitnet_tuning.verify.running import TOO_SOON, Watched, watch, watched_request
from bitnet_tuning.verify.selftest import run_selftest

SECONDS = 50.0
"""Seconds that the whole program takes by default, unless a single run takes long."""

SMALL_MODEL, WIDE = 64 << 20, 80
"""Size in bytes of models with which it takes no more rounds than a verdict needs; characters of a
line in which names have a column of their own."""

LIKELY_RATE = 20.0
"""Assumed speed in tokens/s where the engine cannot be measured."""

RATE_MARGIN = 20.0
"""Factor by which the first measured speed may be too low."""

MOST_SPEED_ROUNDS = 20
"""Most rounds that compare speeds; more would only narrow the interval."""

WATCHED_RUNS = 3
"""Most runs that are observed until as many threads as planned are seen working."""


def main(arguments: Sequence[str] | None = None) -> int:
    return guarded(run, arguments)


def run(arguments: list[str]) -> int:
    started = time.monotonic()
    options = make_parser().parse_args(arguments)
    limit = options.seconds or SECONDS
    options.again = " ".join([command("test"), *map(quote, arguments)])
    state = State()
    plan, runner = _find(options, state)
    facts, lines = runner.facts, list[Line]()
    if not options.json:
        print(f"engine {facts.engine.path}\nmodel  {facts.model.path}", flush=True)
    say(f"this takes up to {limit:.0f} s")
    bar = Progress(limit, lambda done: f"{max(0.0, limit - done):.0f} s left")

    def show(what: str) -> None:
        bar.running(what, time.monotonic() - started)

    with closing(runner), bar:
        for line in _answers(plan, runner, options, started + limit, show):
            lines.append(line)
            if not options.json:
                cells = [f"{line.name:18}", line.reason]
                if columns() < WIDE:
                    cells = [f"{line.name}: {line.reason}"]
                bar.apart(partial(print, outcomes([[line.state, *cells]]), flush=True))
    spent = time.monotonic() - started
    passed = not any(line.state == FAIL for line in lines)
    if options.json:
        found = {
            "engine": facts.engine.path,
            "model": facts.model.path,
            "setting": to_json(plan.setting),
            "passed": passed,
            "seconds": round(spent, 3),
            "lines": [line._asdict() for line in lines],
        }
        print(json.dumps(found, indent=2))
    else:
        counts = Counter(line.state for line in lines)
        hints = f", {counted(counts[HINT], 'hint')}" if counts[HINT] else ""
        text = f"{counts[PASS]} passed, {counts[FAIL]} failed, {counts[SKIP]} skipped{hints}"
        print(outcomes([(PASS if passed else FAIL, f"{text}, in {spent:.0f} s")]))
    say(state.warning and f"warning: {state.warning}")
    return 0 if passed else 1


def make_parser() -> Parser:
    parser = Parser(
        "test",
        description="Observe the engine while it runs and print for every optimisation whether it "
        "takes effect, with the reason: PASS, FAIL, SKIP (it cannot be told) or HINT (what would "
        "be faster).",
    )
    parser.exits = "0 nothing fails, 1 something does"
    add = parser.add_argument
    add_engine(parser, model=True)
    add("--performance-mode", action="store_true", help="check the plan of performance mode")
    limit = f"time limit in seconds (default: {SECONDS:g}, less with a small model)"
    add("--seconds", type=number(1, 3600), metavar="S", help=limit)
    add("--no-speed", action="store_true", help="leave out the comparison of speeds")
    add_no_profile(parser)
    add("--json", action="store_true", help="print JSON")
    return parser


def _find(options: argparse.Namespace, state: State) -> tuple[Plan, Runner]:
    """Return the plan and what measures its setting, as far as possible. Raise TuningError."""
    request = Request(engine=options.engine, model=options.model, force=True)
    request = request._replace(performance=options.performance_mode, profile=options.profile)
    facts = read_facts(request, state)
    facts = facts._replace(beside=file_beside(facts.model, state))
    plan = make_plan(request, facts)
    say(facts.note, *(f"warning: {each}" for each in plan.warnings))
    runner = make_runner(facts, options.seconds or SECONDS)
    runner.default = measurable(plan.setting, runner.bench_flags)
    return plan, runner


def _answers(
    plan: Plan,
    runner: Runner,
    options: argparse.Namespace,
    until: float,
    show: Callable[[str], None],
) -> Iterator[Line]:
    """Yield the lines. ``until`` is when the time is up; ``show`` is told what runs."""
    facts, early = runner.facts, (2 * time.monotonic() + until) / 3  # the rest is for speeds
    alone = make_plan(Request(), facts._replace(environ={}, profile=None)).setting
    yield checks.detected(plan, alone.threads, facts.host)
    run = runner.first_runs(show)
    if (applied := measurable(plan.setting, runner.bench_flags)) != runner.default:
        runner.default = applied
        run = runner.first_runs(show)
    show("watching the engine's threads")
    rate = max(run.samples.get(TG, (LIKELY_RATE,)))
    watched = _watched(facts, rate, options.performance_mode, early)
    yield checks.environment(plan, watched)
    yield checks.working(plan, watched)
    yield checks.places(plan, watched, facts.host, facts.engine.openmp)
    yield checks.own_count(plan, watched)
    lockable = facts.privileges.lockable if facts.privileges else None
    # A system without niceness has no plans that change it.
    niceness = os.getpriority(os.PRIO_PROCESS, 0) if hasattr(os, "getpriority") else 0
    yield from checks.kernel(plan, watched, facts.model.size, niceness, lockable)
    show("checking the engine's texts")
    words = _output(plan, runner, early)
    yield words
    yield checks.quantization(facts.engine, facts.model)
    if facts.beside is None and facts.model.path not in demo.MODELS:
        yield from checks.embedding(facts.model)
    if options.no_speed or words.state == FAIL:
        why = "--no-speed" if options.no_speed else "the texts are wrong"
        names = (NAME, checks.EMBEDDING) if facts.beside else (NAME,)
        yield from (Line(name, SKIP, f"not measured: {why}") for name in names)
        return
    show("comparing speeds")
    yield from _speeds(plan, runner, run, options, until)


def _watched(facts: Facts, rate: float, performance: bool, until: float) -> Watched:
    """Run the engine at about ``rate`` tokens/s and return what was observed. On a busy machine a
    run may be too short, because the speed was measured far too low, or a thread may get hardly any
    CPU time. Then run again, with another text, if there is time."""
    tries: list[Watched] = []
    for seed in range(1, WATCHED_RUNS + 1):
        request = watched_request(rate, facts.model, facts.engine.flags, seed, performance)
        plan = make_plan(request, facts)
        nodes = checks.wanted_nodes(plan) is not None
        watched = watch(plan, Root(), checks.asks_huge(plan), nodes)
        tries.append(watched)
        if watched.problem == TOO_SOON:
            rate *= RATE_MARGIN
        elif watched.process is None or len(watched.workers) >= plan.setting.threads:
            break
        if time.monotonic() >= until:
            break
    return max(tries, key=lambda watched: (watched.failed, len(watched.workers)))


def _output(plan: Plan, runner: Runner, until: float) -> Line:
    facts, setting = runner.facts, plan.setting
    try:
        report = run_selftest(facts.engine, facts.host, until=until)
        default = make_plan(Request(), facts._replace(profile=None)).setting
    except TuningError as error:
        return Line(checks.OUTPUT, SKIP, f"the self-test cannot be run: {error.cause}")
    problem = None
    if report.passed and setting != default:
        checker = Checker(facts, default, runner.patience, runner.residents)
        problem = checker.problem(setting)
    return checks.output(report, problem)


def _speeds(
    plan: Plan, runner: Runner, first: Run, options: argparse.Namespace, until: float
) -> Iterator[Line]:
    """Compare the plan, whose ``first`` run is given, with bitnet.cpp's own default, and with the
    other file of the model if there is one."""
    facts, limit = runner.facts, options.seconds
    others = {UPSTREAM: UPSTREAM_SETTING} | dict(other_file(facts, runner.default))
    if runner.default == UPSTREAM_SETTING:
        why = "the plan is bitnet.cpp's own default (2 threads, no variables)"
        yield Line(NAME, SKIP, f"not measured: {why}")
        del others[UPSTREAM]
    if others and runner.default != plan.setting:
        say(UNLOCKED)
    is_small = limit is None and facts.model.size <= SMALL_MODEL
    most = VERDICT_ROUNDS if is_small else MOST_SPEED_ROUNDS
    path = facts.beside.path if facts.beside else ""
    for shares, name in zip(range(len(others), 0, -1), others, strict=True):
        seconds = (until - time.monotonic()) / shares
        settings = {name: others[name], DEFAULT: runner.default}
        rounds = _compared(runner, first, settings, seconds, most)
        line = partial(speed_line, program=runner.program, again=options.again)
        yield line(rounds, seconds, limit or SECONDS, name, path)


def _compared(
    runner: Runner, first: Run, settings: Mapping[str, Setting], seconds: float, most: int
) -> Rounds:
    def measure(name: str, _: int) -> Run:
        return runner.measure(name, settings[name], (TG,))

    began, runner.sizes = time.monotonic(), SECOND
    runs = (first,) if first.problem else (first, measure(next(iter(settings)), 0))
    rates = [max(run.samples[TG]) for run in runs if run.problem is None]
    seconds -= time.monotonic() - began
    if len(rates) == len(settings):
        # On a busy machine one of them may be a hundred times as fast as the other.
        rate = geometric_mean(rates)
        runner.sizes = choose_sizes(rate, rate, runner.facts.model.context_length, n_prompt=1)
        if VERDICT_ROUNDS * sum(runner.sizes.n_gen / each for each in rates) <= seconds:
            names, clock = tuple(settings), time.monotonic
            return comparison.compare(names, measure, Objective(), seconds, clock, most=most)
    return Rounds(Objective(), [Round(1, "first", runs, 0.0)])


NAME = "tokens/s"
"""Name of the line that compares speeds."""


def speed_line(
    rounds: Rounds,
    seconds: float,
    limit: float,
    other: str = UPSTREAM,
    path: str = "",
    *,
    program: str = PROGRAMS[0],
    again: str = "",
) -> Line:
    """Return what the rounds of the ``program`` show of the plan and the ``other`` setting:
    upstream's, or the plan's with the model's other file, at ``path``. ``seconds`` of the
    whole program's ``limit`` were left for them. ``again`` is the command that was called."""
    is_file, is_slim = other in FILES, other == SLIM_FILE
    name, who, broken, keys = NAME, "bitnet.cpp's own default", FAIL, ("upstream", "planned")
    if is_file:
        name, who, broken, keys = checks.EMBEDDING, f"the {other}", SKIP, ("original", "slim")
    for each, called, state in ((DEFAULT, "the plan", broken), (other, who, SKIP)):
        failures = rounds.failures(each)
        if failures and (rounds.problem(each) or not rounds.count(each)):
            return Line(name, state, f"{called} cannot be measured: {failures[-1]}")
    ours, theirs = (other, DEFAULT) if is_slim else (DEFAULT, other)
    judged = rounds.judge(ours, theirs)
    assert judged.ratio is not None
    # So that the two speeds agree with the ratio, which compares within rounds.
    base_speed = estimate(rounds.speeds(theirs, TG)).median
    speeds = [base_speed, base_speed * judged.ratio.median]
    facts = {
        "verdict": judged.verdict,
        "ratio": judged.ratio._asdict(),
        **dict(zip(keys, speeds, strict=True)),
        "phase": TG,
    }
    if judged.ratio.count < VERDICT_ROUNDS:
        return Line(name, SKIP, _too_few(rounds, seconds, limit, again), facts)
    base = "the original file" if is_file else "bitnet.cpp's own default (2 threads, no variables)"
    reason = (
        f"{verdict_words(judged.verdict)}: {digits(speeds[1])} tokens/s, {digits(speeds[0])} with "
        f"{base}: {times(*judged.ratio)} in {judged.ratio.count} rounds with {program}"
    )
    if judged.verdict != (FASTER if is_slim else SLOWER):
        return Line(name, PASS, reason, facts)
    advice = f"find a faster setting: {command('bench')}"
    if is_file:
        advice = f"to run the {other}, whose words may differ: -m {word(path)}"
    return Line(name, HINT if is_slim else FAIL, f"{reason}; {advice}", facts)


def _too_few(rounds: Rounds, seconds: float, limit: float, again: str) -> str:
    every = (rounds.reference, *(run.setting for each in rounds for run in each.runs))
    enough = 1.2 * rounds.cost(tuple(dict.fromkeys(every)), VERDICT_ROUNDS)
    # Two comparisons may share what is left.
    more = ceil(max(limit + 2 * (enough - seconds), 1.5 * limit))
    again = f"{again or command('test')} --seconds {more}"
    return (
        f"not decided, since the machine is busy or slow: {VERDICT_ROUNDS} rounds take about "
        f"{enough:.0f} s, and {max(0.0, seconds):.0f} s were left; allow more time: {again}"
    )
