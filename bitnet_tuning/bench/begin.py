"""What a tuning starts with: the settings to compare, and runs of a useful length."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import datetime, timezone
from typing import NamedTuple

from bitnet_tuning.bench import finish, knobs, subjects
from bitnet_tuning.bench.bandwidth import Bandwidth, measure_bandwidth
from bitnet_tuning.bench.display import Bar, Lines
from bitnet_tuning.bench.knobs import QUICK, Knobs
from bitnet_tuning.bench.ledger import DEFAULT, MODES, PERFORMANCE, UPSTREAM, Space
from bitnet_tuning.bench.results import (
    RUNNING,
    Assignment,
    Results,
    Surroundings,
    stamp,
)
from bitnet_tuning.bench.runner import Place, Runner, find_bench
from bitnet_tuning.bench.samples import FIRST, SECOND, Absent, Run, Sizes, choose_sizes
from bitnet_tuning.engine.find import EMBEDDED
from bitnet_tuning.errors import TuningError, UnsupportedError, UsageError
from bitnet_tuning.launch.stop import Stop
from bitnet_tuning.machine import conditions
from bitnet_tuning.machine.conditions import Conditions
from bitnet_tuning.machine.host import HostFacts, host_facts
from bitnet_tuning.machine.warnings import warnings_before
from bitnet_tuning.plan.facts import Facts, Request
from bitnet_tuning.plan.plan import make_plan
from bitnet_tuning.plan.profile import PP, TG, EngineKey, Objective
from bitnet_tuning.plan.profiles import engine_key
from bitnet_tuning.plan.setting import UPSTREAM as UPSTREAM_SETTING
from bitnet_tuning.plan.setting import Setting
from bitnet_tuning.prepare import read_facts, say_all, with_all_means
from bitnet_tuning.store.state import State
from bitnet_tuning.verify import selftest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.bench.llama_bench import Bench


BUDGETS = {"quick": 60.0, "normal": 300.0, "full": 1200.0}
"""Seconds, by effort."""

UNLOCKED = "performance mode is measured without its lock: llama-bench has none"

TRIES = 2


class Wish(NamedTuple):
    """What the user asked of a tuning."""

    effort: str
    objective: Objective
    threads: tuple[int, ...] = ()
    """The only counts to try; empty for those that suit the machine."""
    modes: tuple[str, ...] = ()


class Course(NamedTuple):
    """A space, and what is to be said of it."""

    space: Space
    notes: tuple[str, ...]


def default_setting(facts: Facts) -> Setting:
    """What the plan computes by itself. Raises TuningError."""
    return make_plan(Request(), facts._replace(profile=None)).setting


def self_tested(facts: Facts) -> str | None:
    """A note where the engine could not be tested. Raises UnsupportedError where it writes
    the wrong words: how fast it does is of no interest."""
    try:
        report = selftest.run_selftest(facts.engine, facts.host)
    except TuningError as error:
        return f"the engine is not self-tested: {error.cause}"
    if report.passed:
        return None
    raise UnsupportedError(
        f"{facts.engine.path} writes wrong words, so its speed means nothing: {report.cause}",
        "`python3 -m bitnet_tuning selftest` shows them; --no-selftest measures all the same",
    )


def calibrated(
    runner: Runner,
    default: Setting,
    n_prompt: int | None,
    n_gen: int | None,
    running: Callable[[str], None],
) -> Sizes:
    """Sizes for every later run, from two short ones; the first also reads the model from
    disk. Raises UnsupportedError where the default cannot be measured."""
    run = Run(DEFAULT, {}, 0.0)
    for sizes, what in ((FIRST, "loading the model"), (SECOND, "how fast it is at all")):
        running(what)
        runner.sizes = sizes
        run = warm(runner, default)
    speeds = [max(run.samples[phase]) for phase in (PP, TG)]
    return choose_sizes(speeds[0], speeds[1], runner.place.model.context_length, n_prompt, n_gen)


def warm(runner: Runner, default: Setting) -> Run:
    """One run of the default, tried twice; the model is in memory then. Raises
    UnsupportedError."""
    for _ in range(TRIES):
        run = runner.measure(DEFAULT, default)
        if run.problem is None:
            break
    else:
        raise UnsupportedError(
            f"the engine cannot be measured with its default setting: {run.problem}",
            "try the same with run_inference.py, which shows all that the engine says",
        )
    return run


def course(facts: Facts, bench: Bench | None, default: Setting, sizes: Sizes, wish: Wish) -> Course:
    """All that may be measured. Without the mode ``optimized`` only the others, with the
    default for comparison."""
    known = Knobs(
        facts.host,
        facts.engine,
        bench.flags if bench else None,
        facts.model,
        facts.environ,
        wish.objective,
        sizes.n_prompt,
        wish.effort,
        facts.numactl,
        facts.huge,
        facts.privileges,
    )
    modes = wish.modes or MODES[: 2 if wish.effort == QUICK else 3]
    fixed = [(UPSTREAM, UPSTREAM_SETTING)] if "default" in modes else []
    notes: list[str] = []
    if "performance" in modes:
        setting = _performance(facts, bench, notes)
        if setting == default:
            notes.append("performance mode is not measured: nothing of it is permitted here")
        else:
            fixed.append((PERFORMANCE, setting))
    if "optimized" not in modes:
        return Course(Space(default, tuple(fixed), (), ()), tuple(notes))
    threads = knobs.thread_changes(known, default, wish.threads)
    return Course(Space(default, tuple(fixed), threads, knobs.knobs(known, default)), tuple(notes))


def _performance(facts: Facts, bench: Bench | None, notes: list[str]) -> Setting:
    """The plan of performance mode, as far as the program that measures obeys it."""
    setting = make_plan(Request(performance=True), facts._replace(profile=None)).setting
    found = measurable(setting, bench)
    if found != setting:
        notes.append(UNLOCKED)
    return found


def measurable(setting: Setting, bench: Bench | None) -> Setting:
    """Return the setting without its lock where the ``llama-bench`` that measures has none."""
    has_lock = bench is None or "-lm" in bench.flags
    return setting if has_lock else setting._replace(mlock=False)


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
    request = Request(engine=engine_named, model=model_named, profile=False)
    facts = with_all_means(read_facts(request, state))
    say_all(facts.note, state.warning)
    runner = Runner(Place(*facts[:3]), find_bench(facts.engine), SECOND)
    return Subject(facts, engine_key(facts.engine), default_setting(facts), runner, state)


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
        note = None if options.no_selftest else self_tested(subject.facts)
        seen = _look(subject, shown)
        sizes = calibrated(
            subject.runner,
            subject.default,
            options.n_prompt,
            options.n_gen,
            lambda what: shown.running("preparing", what, 0),
        )
    objective = Objective(options.objective, options.n_prompt or 128, options.n_gen or 128)
    wish = Wish(options.effort, objective, options.threads, options.modes)
    chosen = course(subject.facts, subject.runner.bench, subject.default, sizes, wish)
    asked = Assignment(
        budget=options.budget or BUDGETS[options.effort],
        effort=options.effort,
        objective=objective,
        threads=options.threads or None,
        modes=options.modes or None,
        sizes=sizes,
    )
    notes = (*((note,) if note else ()), *chosen.notes)
    for text in notes:
        shown.note(text)
    results = _document(subject, asked, chosen.space)._replace(
        notes=notes, warnings=seen.warnings, conditions=Surroundings(seen.before)
    )
    return Begun(results, seen)


def _look(subject: Subject, shown: Bar | Lines) -> Seen:
    """At the machine, before anything is measured; what may spoil the figures is said."""
    shown.running("preparing", "what else runs here", 0)
    host, default = subject.facts.host, subject.default
    before = conditions.take(host)
    found = warnings_before(before, host, subject.facts.model.size)
    warnings = tuple(warning.text for warning in found)
    for warning in warnings:
        shown.note(f"warning: {warning}")
    return Seen(before, warnings, measure_bandwidth(default.threads, host, default.cpus))


def _document(subject: Subject, asked: Assignment, space: Space) -> Results:
    facts, bench = subject.facts, subject.runner.bench
    read = finish.read_per_token(facts.model.path)
    created = stamp(now())
    return Results(
        created=created,
        updated=created,
        state=RUNNING,
        program=subjects.program(),
        options=asked,
        host=host_facts(facts.host),
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
        warm(subject.runner, subject.default)
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


def _lasting(host: HostFacts) -> HostFacts:
    return host._replace(memory_available=None, memory_total=None, governor=None)
