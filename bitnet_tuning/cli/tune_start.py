"""The start of a tuning: who is tuned, what else runs, what is worth measuring; or where an
earlier one stopped."""

from __future__ import annotations

import argparse
import os
from datetime import datetime, timezone
from typing import NamedTuple

from bitnet_tuning.bench import finish, snapshot, subjects, tuning
from bitnet_tuning.bench.absent import Absent
from bitnet_tuning.bench.asks import DEFAULT, Space
from bitnet_tuning.bench.bandwidth import Bandwidth, measure_bandwidth
from bitnet_tuning.bench.conditions import Conditions, as_json
from bitnet_tuning.bench.document import (
    RUNNING,
    Machine,
    Options,
    Results,
    Surroundings,
    machine,
)
from bitnet_tuning.bench.results import stamp
from bitnet_tuning.bench.rounds import Objective
from bitnet_tuning.bench.runner import Place, Runner, find_bench
from bitnet_tuning.bench.sizes import SECOND
from bitnet_tuning.bench.spoilers import warnings_before
from bitnet_tuning.bench.stop import Stop
from bitnet_tuning.bench.tuning import BUDGETS, Wish
from bitnet_tuning.cli import say
from bitnet_tuning.cli.bench_progress import Bar, Lines
from bitnet_tuning.cli.host import host_facts
from bitnet_tuning.cli.inference import find_pair, with_all_means
from bitnet_tuning.engine import EMBEDDED
from bitnet_tuning.errors import UsageError
from bitnet_tuning.host import read_host
from bitnet_tuning.plan import Facts
from bitnet_tuning.profile_record import EngineKey
from bitnet_tuning.profiles import engine_key
from bitnet_tuning.setting import Setting
from bitnet_tuning.state import State


def now() -> datetime:
    """With its time zone."""
    return datetime.now(timezone.utc)


class Subject(NamedTuple):
    """What is tuned, and with what."""

    facts: Facts
    engine: EngineKey
    """As it was when the tuning began."""
    default: Setting
    runner: Runner
    state: State


def find_subject(options: argparse.Namespace, earlier: Results | None, state: State) -> Subject:
    """The engine and the model that are named, or the earlier ones; raises TuningError."""
    engine_named, model_named = options.engine, options.model
    if earlier is not None:
        embedded = earlier.engine.generation == "embedded"
        engine_named = engine_named or (EMBEDDED if embedded else earlier.engine.path)
        model_named = model_named or earlier.model.path
    engine, choice = find_pair(engine_named, model_named, state)
    host = read_host()
    facts = with_all_means(Facts(host, engine, choice.model, choice.reason, os.environ))
    for note in (choice.note, state.warning):
        if note:
            say(note)
    runner = Runner(Place(host, engine, choice.model), find_bench(engine), SECOND)
    default = tuning.default_setting(facts)
    return Subject(facts, engine_key(engine), default, runner, state)


class Seen(NamedTuple):
    """The machine before this program measured."""

    before: Conditions
    warnings: tuple[str, ...]
    bandwidth: Bandwidth | Absent
    """For the default's threads."""


class Begun(NamedTuple):
    """A tuning of which nothing, or some rounds, are measured."""

    results: Results
    seen: Seen


def begin(subject: Subject, options: argparse.Namespace, stop: Stop, shown: Bar | Lines) -> Begun:
    """Raises Stopped where a signal comes, UnsupportedError where nothing can be measured."""
    with stop.interruptible():
        shown.running("preparing", "self-test", 0)
        note = None if options.no_selftest else tuning.self_tested(subject.facts)
        seen = _look(subject, shown)
        sizes = tuning.calibrated(
            subject.runner,
            subject.default,
            options.n_prompt,
            options.n_gen,
            lambda what: shown.running("preparing", what, 0),
        )
    objective = Objective(options.objective, options.n_prompt or 128, options.n_gen or 128)
    wish = Wish(options.effort, objective, options.threads, options.modes)
    course = tuning.course(subject.facts, subject.runner.bench, subject.default, sizes, wish)
    asked = Options(
        budget=options.budget or BUDGETS[options.effort],
        effort=options.effort,
        objective=objective,
        threads=options.threads or None,
        modes=options.modes or None,
        sizes=sizes,
    )
    notes = (*((note,) if note else ()), *course.notes)
    for text in notes:
        shown.note(text)
    results = _document(subject, asked, course.space)._replace(
        notes=notes, warnings=seen.warnings, conditions=Surroundings(as_json(seen.before))
    )
    return Begun(results, seen)


def _look(subject: Subject, shown: Bar | Lines) -> Seen:
    """At the machine, before anything is measured; what may spoil the figures is said."""
    shown.running("preparing", "what else runs here", 0)
    host, default = subject.facts.host, subject.default
    before = snapshot.take(host)
    warnings = warnings_before(before, host, subject.facts.model.size)
    for warning in warnings:
        shown.note(f"warning: {warning}")
    return Seen(before, warnings, measure_bandwidth(default.threads, host, default.cpus))


def _document(subject: Subject, asked: Options, space: Space) -> Results:
    facts, bench = subject.facts, subject.runner.bench
    read = finish.read_per_token(facts.model.path)
    created = stamp(now())
    return Results(
        created=created,
        updated=created,
        state=RUNNING,
        program=subjects.program(),
        options=asked,
        host=machine(host_facts(facts.host)),
        engine=subjects.engine_facts(facts.engine, bench.program if bench else None),
        model=subjects.model_facts(facts.model, None if isinstance(read, Absent) else read),
        space=space,
        settings={DEFAULT: space.default, **dict(space.fixed)},
    )


def resume(subject: Subject, earlier: Results, stop: Stop, shown: Bar | Lines) -> Begun:
    """Raises UsageError where it would go on with something else, and Stopped."""
    if earlier.decision is not None or earlier.options.sizes is None:
        raise UsageError("nothing is left to do: that tuning came to its end")
    _check_same(subject, earlier)
    subject.runner.sizes = earlier.options.sizes
    with stop.interruptible():
        seen = _look(subject, shown)
        shown.running("preparing", "loading the model", 0)
        tuning.warm(subject.runner, subject.default)
    warnings = tuple(dict.fromkeys((*earlier.warnings, *seen.warnings)))
    return Begun(earlier._replace(state=RUNNING, warnings=warnings), seen)


def _check_same(subject: Subject, earlier: Results) -> None:
    new = _document(subject, earlier.options, earlier.space)
    parts = {
        "machine": (_lasting(earlier.host), _lasting(new.host)),
        "engine": (earlier.engine, new.engine),
        "model": (earlier.model, new.model),
        "program": (earlier.program.version, new.program.version),
        "environment or plan": (earlier.space.default, subject.default),
    }
    changed = [name for name, (then, now) in parts.items() if then != now]
    if changed:
        raise UsageError(
            f"this is not what was measured before: another {', another '.join(changed)}",
            "measure anew, without --resume; --compare sets two results side by side",
        )


def _lasting(host: Machine) -> Machine:
    return host._replace(memory_available=None, memory_total=None, governor=None)
