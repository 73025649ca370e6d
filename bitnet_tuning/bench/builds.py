"""Compare builds: measure each with its default setting, in rounds, and judge all by the first."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from bitnet_tuning.bench import begin
from bitnet_tuning.bench.begin import progress_of
from bitnet_tuning.bench.comparison import DEFAULT, Rounds, Run, compare, phases_of
from bitnet_tuning.bench.limits import disturbances
from bitnet_tuning.bench.runner import PROGRAMS, Runner, make_runner
from bitnet_tuning.bench.statistics import VERDICT_ROUNDS
from bitnet_tuning.bench.summary import heading, speed, stacked
from bitnet_tuning.bench.tune import alone_in
from bitnet_tuning.console import Progress, counted, fitted, say, table, text_width, times
from bitnet_tuning.engine import builds as known
from bitnet_tuning.engine.builds import FASTER, OPEN, OUT, BuildResult, build_name
from bitnet_tuning.engine.find import Engine
from bitnet_tuning.errors import MissingError, UnsupportedError
from bitnet_tuning.launch.signals import Stop, Stopped
from bitnet_tuning.machine import conditions
from bitnet_tuning.machine.conditions import Meanwhile
from bitnet_tuning.machine.detect import read_host
from bitnet_tuning.machine.warnings import warnings_before
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.facts import Facts
from bitnet_tuning.plan.profile import PP, TG, Estimate, Objective
from bitnet_tuning.prepare import find_builds
from bitnet_tuning.store.codec import to_json
from bitnet_tuning.store.state import State, moment


class Build(NamedTuple):
    """One build and its result in the comparison."""

    name: str
    path: str
    isa: tuple[str, ...]
    speeds: dict[str, Estimate]
    """Speeds in tokens/s by phase (see ``Rounds.relative``)."""
    ratio: Estimate | None
    """Ratio to the first build's speed; None for the first, and without a common round."""
    verdict: str


class Compared(NamedTuple):
    """The result of a comparison of builds."""

    builds: tuple[Build, ...]
    """The reference first, builds that write wrong words last."""
    rounds: int
    program: str = PROGRAMS[0]


def compare_builds(options: argparse.Namespace) -> int:
    """Compare the builds, save which one is fastest and print the result. Return the exit code.
    Raise TuningError if there are not two builds that can be measured."""
    started = time.monotonic()
    state = State()
    engines, choice = find_builds(options.engine, options.model, state)
    if len(engines) == 1:
        raise MissingError(
            f"only one build was found: {engines[0].path}",
            "compile another one in a folder of its own (cmake -B build-other …), or name a "
            "checkout that has several with --engine",
        )
    host, model = read_host(), choice.model
    every = [Facts(host, each, *choice[:2], os.environ, force=True) for each in engines]
    with alone_in(state):
        before = conditions.take(host)
        say(*(f"warning: {each.text}" for each in warnings_before(before, host, model.size)))
        try:
            compared = _compare(every, options, lambda: time.monotonic() - started)
        except Stopped as end:
            say("interrupted: nothing was saved")
            return 128 + end.number
        meanwhile = conditions.between(before, conditions.take(host))
    kept = None if options.no_remember else _remember(every, state, compared, options, meanwhile)
    fastest = known.load_fastest(state, host, engines, model)
    chosen = known.choose_build(engines, host, model, fastest)
    if options.json:
        facts = {**to_json(compared), "chosen": chosen.path, "reason": chosen.location.source}
        print(json.dumps({"objective": options.objective, **facts}, indent=2))
        say(kept)
    else:
        print(heading(model, host), _as_text(compared, options.resolution), sep="\n\n")
        used = f"Runs use {chosen.path}: {chosen.location.source}"
        print(fitted(f"{used}\n{kept or 'Not saved: --no-remember.'}"))
    say(state.warning and f"warning: {state.warning}")
    return 0


def _compare(
    every: list[Facts], options: argparse.Namespace, clock: Callable[[], float]
) -> Compared:
    """Measure and judge. Raise Stopped, or UnsupportedError if fewer than two can be measured."""
    budget = options.budget
    objective = Objective(options.objective, options.n_prompt or 128, options.n_gen or 128)
    with Stop() as stop, progress_of(budget) as shown, ExitStack() as ends, stop.interruptible():
        sound, out = _measurable(every, options.no_selftest, shown, clock)
        runners = _runners(sound, options, shown, ends)

        def measure(name: str, number: int) -> Run:
            shown.running(f"round {number}: {name}", clock())
            # A runner derives its time limit from the runs that are named DEFAULT.
            runner, phases = runners[name], phases_of(number, objective)
            return runner.measure(DEFAULT, runner.default, phases)._replace(setting=name)

        left, near = budget - clock(), options.resolution
        rounds = compare(tuple(runners), measure, objective, left, clock, resolution=near)
        program = next(iter(runners.values())).program
    engines = {name: each.facts.engine for name, each in runners.items()}
    return judge(rounds, engines, out)._replace(program=program)


def judge(rounds: Rounds, engines: Mapping[str, Engine], out: tuple[Engine, ...] = ()) -> Compared:
    """Judge the measured builds against the first. Those in ``out`` write wrong words."""
    builds = []
    every = {phase: rounds.relative(phase) for phase in (PP, TG)}
    for name, engine in (*engines.items(), *((build_name(each.path), each) for each in out)):
        judged = rounds.judge(name)
        problem = "wrong words" if engine in out else rounds.problem(name)
        verdict = f"{OUT}: {problem}" if problem else judged.verdict
        speeds = {phase: each[name] for phase, each in every.items() if name in each}
        ratio = None if name == rounds.reference else judged.ratio
        isa = tuple(sorted(engine.isa))
        builds.append(Build(build_name(engine.path), engine.path, isa, speeds, ratio, verdict))
    return Compared(tuple(builds), len(rounds))


def _measurable(
    every: list[Facts], untested: bool, shown: Progress, clock: Callable[[], float]
) -> tuple[list[Facts], tuple[Engine, ...]]:
    """Return the builds that can be measured, and the engines that write wrong words. Raise
    UnsupportedError if fewer than two can be measured."""
    able, refused = known.usable([each.engine for each in every], every[0].host, every[0].model)
    for path, why in refused:
        say(f"{build_name(path)} is left out: it {why}")
    sound, out = [], []
    for facts in (each for each in every if each.engine in able):
        name = build_name(facts.engine.path)
        shown.running(f"self-test: {name}", clock())
        try:
            note = None if untested else begin.self_tested(facts)
        except UnsupportedError as error:
            say(f"{name} is left out: {error.cause}")
            out.append(facts.engine)
            continue
        say(note and f"{name}: {note}")
        sound.append(facts)
    if len(sound) < 2:
        raise UnsupportedError(
            f"only {len(sound)} of {len(every)} builds can be measured here, so there is "
            "nothing to compare",
            "compile another one for this CPU (cmake -B build-other -DGGML_NATIVE=ON)",
        )
    return sound, tuple(out)


def _runners(
    sound: list[Facts], options: argparse.Namespace, shown: Progress, ends: ExitStack
) -> dict[str, Runner]:
    """Return what measures each build, all alike, by name. ``ends`` ends their servers."""
    asked = options.budget, options.n_prompt, options.n_gen
    runners = {build_name(facts.engine.path): make_runner(facts, *asked) for facts in sound}
    first, *others = runners.values()
    has_bench = all(each.bench for each in runners.values())
    if not all(each.residents for each in runners.values()):
        first.use_processes()
    for runner in runners.values():
        ends.callback(runner.close)
        runner.bench = runner.bench if has_bench else None
    begin.calibrate(first, options, shown)
    for runner in others:
        runner.sizes = first.sizes
        if first.residents is not None and (problem := runner.warm().problem):
            first.use_processes(problem, build_name(runner.facts.engine.path))
            begin.calibrate(first, options, shown)
    for runner in others:
        runner.sizes = first.sizes
        if first.residents is None:
            runner.use_processes()
    return runners


def _remember(
    every: list[Facts],
    state: State,
    compared: Compared,
    options: argparse.Namespace,
    meanwhile: Meanwhile | None,
) -> str:
    """Save what was decided; of what was measured while something disturbed it, only that a build
    is faster or out. Return a sentence that says where, or why nothing was saved."""
    if compared.rounds < VERDICT_ROUNDS:
        return "Not saved: too few rounds for a verdict; allow more time with --budget."
    first, *others = compared.builds
    disturbed = next(disturbances(meanwhile), None)
    builds = {first.path: BuildResult(first.verdict, None)}
    for each in others:
        sure = not disturbed or each.verdict == FASTER or each.verdict.startswith(OUT)
        ratio = each.ratio and each.ratio[:3]
        builds[each.path] = BuildResult(each.verdict if sure else OPEN, ratio)
    if all(builds[each.path].verdict == OPEN for each in others):
        why = "nothing was decided; allow more time with --budget"
        if disturbed:
            _, cause, what = disturbed
            why = f"{cause}, and another build may be best without that; {what} and compare again"
        return f"Not saved: {why}."
    found = known.ComparedBuilds(moment(), options.objective, first.path, builds)
    engines = [each.engine for each in every]
    path = known.store_fastest(state, every[0].host, engines, every[0].model, found)
    return f"Results: {path}" if path else "Not saved: the file cannot be written."


def _as_text(compared: Compared, resolution: float) -> str:
    first = compared.builds[0].name
    rows = [("build", "pp\ntokens/s", "tg\ntokens/s", f"over\n{first}", "verdict")]
    for each in compared.builds:
        pp, tg = (speed(each.speeds[phase]) if phase in each.speeds else "-" for phase in (PP, TG))
        ratio = times(*each.ratio) if each.ratio else "-"
        judged = each.ratio or each.verdict.startswith(OUT)
        verdict = known.verdict_words(each.verdict, resolution) if judged else "-"
        rows.append((each.name, stacked(pp), stacked(tg), stacked(ratio), verdict))
    rounds = counted(compared.rounds, "round")
    return f"{table(rows, text_width())}\n\n{rounds} with {compared.program}"
