"""Prepare a tuning: find engine and model, look at the machine, choose lengths, list settings."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from bitnet_tuning import demo
from bitnet_tuning.bench import results
from bitnet_tuning.bench.comparison import DEFAULT, Run
from bitnet_tuning.bench.knobs import Assignment, Choices, Space, make_space
from bitnet_tuning.bench.results import ModelFacts, Results, Surroundings, model_facts
from bitnet_tuning.bench.runner import Runner, choose_sizes, make_runner
from bitnet_tuning.console import Progress, clock, command, say, word
from bitnet_tuning.engine.find import EMBEDDED
from bitnet_tuning.errors import TuningError, UnsupportedError, UsageError
from bitnet_tuning.launch.signals import Stop
from bitnet_tuning.machine import conditions
from bitnet_tuning.machine.conditions import Conditions
from bitnet_tuning.machine.host import host_facts
from bitnet_tuning.machine.warnings import warnings_before
from bitnet_tuning.model.find import file_beside
from bitnet_tuning.model.types import ModelFile, gain_text, is_wide, slim_advice
from bitnet_tuning.plan.facts import Facts, Request
from bitnet_tuning.plan.profile import PP, TG, Objective
from bitnet_tuning.plan.setting import describe
from bitnet_tuning.prepare import read_facts, runs_unnamed, with_all_means
from bitnet_tuning.store.state import State, moment
from bitnet_tuning.verify import selftest


def progress_of(budget: float) -> Progress:
    """Return a progress display that shows how much of the budget, in seconds, is left."""
    return Progress(budget, lambda spent: f"at most {clock(budget - spent)} left")


def find_runner(options: argparse.Namespace, earlier: Results | None, state: State) -> Runner:
    """Return what measures the engine and the model that ``options`` name, else those of the
    ``earlier`` tuning. Raise TuningError if one cannot be found or used."""
    request = Request(engine=options.engine, model=options.model, profile=False, force=True)
    if earlier is not None:
        engine, model = earlier.engine, options.model or earlier.model.path
        used = EMBEDDED if engine.generation == "embedded" else engine.path
        request = request._replace(engine=options.engine or used, model=model)
    facts = with_all_means(read_facts(request, state))
    facts = facts._replace(beside=file_beside(facts.model, state))
    say(facts.note, state.warning)
    if earlier and earlier.options.sizes:
        return make_runner(facts, earlier.options.budget, *earlier.options.sizes[:2])
    return make_runner(facts, options.budget, options.n_prompt, options.n_gen)


def self_tested(facts: Facts) -> str | None:
    """Run the self-test; return a note if it cannot run. Raise UnsupportedError for wrong words."""
    try:
        report = selftest.run_selftest(facts.engine, facts.host)
    except TuningError as error:
        return f"the engine was not self-tested: {error.cause}"
    if report.passed:
        return None
    if report.passed is None:
        return f"the engine was not self-tested: {report.cause}"
    cause = f"{facts.engine.path} writes wrong words, so its speed means nothing: {report.cause}"
    remedy = f"run `{command('selftest')}` to see them; --no-selftest measures it anyway"
    raise UnsupportedError(cause, remedy)


def calibrate(runner: Runner, options: argparse.Namespace, shown: Progress) -> None:
    """Choose the sizes of all later runs from two short ones, and check the clock of what measures.
    Raise UnsupportedError if the default setting cannot be measured."""
    run = runner.first_runs(lambda what: shown.running(f"preparing: {what}", 0))
    _checked(runner, run)
    pp, tg = (max(run.samples[phase]) for phase in (PP, TG))
    context = runner.facts.model.context_length
    runner.sizes = choose_sizes(pp, tg, context, options.n_prompt, options.n_gen)
    shown.running("preparing: checking the clock", 0)
    phases = Objective(options.objective).phases
    if wrong := runner.contradiction(DEFAULT, runner.default, phases):
        _checked(runner, Run(DEFAULT, {}, 0.0, wrong))


def _checked(runner: Runner, run: Run) -> None:
    if run.problem is None:
        return
    remedy = f"to see the engine's whole log: {to_see(runner)}"
    # llama-bench reads -m as a list with commas between; string_split() in llama.cpp's common.h
    # of 2024, which bitnet.cpp has, also cuts a name at its first space.
    if runner.bench is not None and set(" ,") & set(runner.facts.model.path):
        remedy = (
            f"the path {runner.facts.model.path} has a space or a comma, which llama-bench may "
            "not accept: name a link to the model whose path has neither (ln -s)"
        )
    cause = f"the engine cannot be measured with its default setting: {run.problem}"
    raise UnsupportedError(cause, remedy)


def to_see(runner: Runner) -> str:
    """Return the command that runs the default setting and shows the engine's log."""
    engine = EMBEDDED if runner.facts.engine.embedded else runner.facts.engine.path
    named = f"--engine {word(engine)} -m {word(runner.facts.model.path)}"
    return f"{command('run')} {named} --no-profile --force --verbose -n 8 -p Hello"


def begin(runner: Runner, options: argparse.Namespace, stop: Stop, shown: Progress) -> Results:
    """Return results that are ready for their first round. Raise Stopped if a signal interrupts
    this, and UnsupportedError if nothing can be measured."""
    with stop.interruptible():
        shown.running("preparing: self-test", 0)
        note = None if options.no_selftest else self_tested(runner.facts)
        before, warnings = _snapshot(runner, shown)
        calibrate(runner, options, shown)
    asked = Assignment(
        budget=options.budget,
        effort=options.effort,
        objective=Objective(options.objective, options.n_prompt or 128, options.n_gen or 128),
        threads=options.threads or None,
        modes=options.modes or None,
        sizes=runner.sizes,
        remember=not options.no_remember,
        resolution=options.resolution,
    )
    choices = Choices(runner.facts, asked, runner.bench_flags)
    space, left_out = make_space(choices, runner.default)
    notes, model = (*((note,) if note else ()), *left_out), runner.facts.model
    say(*notes)
    if runner.facts.beside is None and is_wide(model) and model.path not in demo.MODELS:
        notes += (f"{gain_text(model)}; {slim_advice(model, ())}",)
    found = _document(runner, asked, space)
    return found._replace(notes=notes, warnings=warnings, conditions=Surroundings(before))


def _snapshot(runner: Runner, shown: Progress) -> tuple[Conditions, tuple[str, ...]]:
    """Snapshot the machine before measuring, warn about anything that skews results, and measure
    the memory's bandwidth, against which all speeds are checked."""
    shown.running("preparing: the machine's state and memory", 0)
    host = runner.facts.host
    before = conditions.take(host)
    seen = warnings_before(before, host, runner.facts.model.size)
    warnings = tuple(warning.text for warning in seen)
    say(*(f"warning: {warning}" for warning in warnings))
    runner.ceiling.look()
    return before, warnings


def _document(runner: Runner, asked: Assignment, space: Space) -> Results:
    """Return results without a round. Raise MissingError if the model file is damaged."""
    facts, bench, residents = runner.facts, runner.bench, runner.residents
    measuring = (None, residents.server.program) if residents else (bench and bench.program, None)
    created, beside, state = moment(), facts.beside, State()

    def stored(model: ModelFile) -> ModelFacts:
        return model_facts(model, runs_unnamed(model.path, facts.engine.location, state))

    return Results(
        created=created,
        updated=created,
        state="running",
        program=results.program(),
        options=asked,
        host=host_facts(facts.host),
        engine=results.engine_facts(facts.engine, *measuring),
        model=stored(facts.model),
        beside=stored(beside) if beside else None,
        space=space,
        settings={DEFAULT: space.default, **dict(space.fixed)},
    )


def extended(earlier: Results, more: float | None, path: str) -> Results:
    """Return the results in the file ``path`` with so many seconds ``more`` to spend, if they are
    given. Raise UsageError if the tuning is finished and gets none."""
    if more is None and earlier.decision is not None:
        again = f"{command('bench')} --resume {shlex.quote(path)} --budget 300"
        raise UsageError("that tuning is finished", f"to give it 300 seconds more: {again}")
    if more is None:
        return earlier
    options, spent = earlier.options, earlier.measured.spent
    past = (*options.extended, (spent, options.budget))
    options = options._replace(budget=max(spent, options.budget) + more, extended=past)
    return earlier._replace(options=options, decision=None, profile=None)


def resume(runner: Runner, earlier: Results, stop: Stop, shown: Progress) -> Results:
    """Return the results of an earlier tuning, ready for the next round. Raise UsageError if
    machine, engine or model have changed, and Stopped if a signal interrupts this."""
    if earlier.options.sizes is None:
        raise UsageError("an older version began that tuning", "tune without --resume")
    if earlier.engine.server is None:
        runner.use_processes()
    _check_same(runner, earlier)
    runner.sizes = earlier.options.sizes
    with stop.interruptible():
        before, warnings = _snapshot(runner, shown)
        shown.running("preparing: loading the model", 0)
        _checked(runner, runner.warm())
    warnings = tuple(dict.fromkeys((*earlier.warnings, *warnings)))
    return earlier._replace(state="running", warnings=warnings, conditions=Surroundings(before))


def _check_same(runner: Runner, earlier: Results) -> None:
    new = _document(runner, earlier.options, earlier.space)
    passing: dict[str, Any] = {"memory_available": None, "memory_total": None, "governor": None}
    settings = earlier.space.default, runner.default
    was, now_is = map(describe, settings)
    then, now = (
        {
            "machine": each.host._replace(**passing),
            "engine": each.engine._replace(bench=None, server=None),
            "program that measures": (each.engine.bench, each.engine.server),
            # Older results have fewer facts of a model.
            "model": each.model[:6],
            # Whether it runs where no model is named depends on the folder and on variables.
            "other file of the model": earlier.beside and each.beside and each.beside[:-1],
            "program": each.program.version,
            f"default setting (it was: {was}; it is: {now_is})": setting,
        }
        for each, setting in zip((earlier, new), settings, strict=True)
    )
    if changed := [f"the {name} has changed" for name in then if then[name] != now[name]]:
        cause = f"that tuning cannot be resumed: {', '.join(changed)}"
        raise UsageError(cause, "tune without --resume; --compare shows how two results differ")
