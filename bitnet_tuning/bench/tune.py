"""A tuning from its first round to its decision: ask the search, measure, tell, keep."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from bitnet_tuning.bench import finish
from bitnet_tuning.bench.begin import BUDGETS, Begun, Subject, begin, find_subject, now, resume
from bitnet_tuning.bench.display import Bar, Lines, show, watcher
from bitnet_tuning.bench.ledger import Check, Done, Limits, Measure
from bitnet_tuning.bench.results import (
    FINISHED,
    INTERRUPTED,
    CheckFacts,
    Results,
    load,
    new_path,
    save,
    stamp,
    to_document,
    write,
)
from bitnet_tuning.bench.samples import Round, Run
from bitnet_tuning.bench.search import Search
from bitnet_tuning.bench.summary import to_csv
from bitnet_tuning.bench.words import Checker
from bitnet_tuning.console import say
from bitnet_tuning.errors import UnsupportedError, UsageError
from bitnet_tuning.launch.stop import Stop, Stopped
from bitnet_tuning.plan.profile import PP, TG, Objective
from bitnet_tuning.plan.setting import Setting
from bitnet_tuning.store.state import State, alone, default_folder

BOTH_EVERY = 3
"""Every so many rounds the phase that is not to be tuned is measured as well: it is shown
with an interval, at little cost."""


class Runner(Protocol):
    """What measures one setting in one process."""

    def measure(self, name: str, setting: Setting, phases: tuple[str, ...]) -> Run: ...


class Watcher(Protocol):
    """What shows how far a tuning is."""

    def running(self, stage: str, name: str, elapsed: float) -> None:
        """A run begins."""

    def measured(self, search: Search, done: Round) -> None:
        """A round has ended."""

    def note(self, text: str) -> None:
        """Something to be read."""


class Tools(NamedTuple):
    """What a session works with."""

    runner: Runner
    check: Callable[[Setting], str | None]
    """What is wrong with a setting's output, if anything."""
    keep: Callable[[Results], None]
    watcher: Watcher
    clock: Callable[[], float]
    """Seconds of the budget that are spent."""


class Session:
    """One tuning. ``results`` is whole after every step and kept each time."""

    def __init__(self, results: Results, search: Search, tools: Tools) -> None:
        self.results = results
        self.search = search
        self.tools = tools

    def replay(self) -> None:
        """Tells the search what an earlier session has kept, in its order."""
        checks = list(self.results.checks)
        for done in self.results.rounds:
            self._replay_checks(checks, done.number)
            self.search.ask()
            self.search.tell(done)
        self._replay_checks(checks, None)

    def _replay_checks(self, checks: list[CheckFacts], before: int | None) -> None:
        while checks and (before is None or checks[0].after_round < before):
            step = self.search.ask()
            kept = checks.pop(0)
            if isinstance(step, Check) and step.name == kept.setting:
                self.search.tell_check(kept.setting, kept.problem)

    def run(self, stop: Stop) -> Done:
        """Goes on to the decision. Raises Stopped, with all but the run under way kept."""
        while True:
            step = self.search.ask()
            if isinstance(step, Done):
                return step
            if isinstance(step, Check):
                self._look_at(step.name, stop)
            else:
                self._measure(step, stop)

    def _measure(self, step: Measure, stop: Stop) -> None:
        number = len(self.results.rounds) + 1
        phases = phases_of(number, self.results.options.objective)
        runs: list[Run] = []
        stopped: Stopped | None = None
        for name in step.order:
            self.tools.watcher.running(step.stage, name, self.tools.clock())
            try:
                with stop.interruptible():
                    runs.append(self.tools.runner.measure(name, self.search.settings[name], phases))
            except Stopped as end:
                stopped = end
                break
        if runs:
            self._tell(Round(number, step.stage, tuple(runs), self.tools.clock()))
        if stopped:
            raise stopped

    def _tell(self, done: Round) -> None:
        self.search.tell(done)
        self.results = self.results._replace(
            rounds=(*self.results.rounds, done), settings=dict(self.search.settings)
        )
        self.tools.keep(self.results)
        self.tools.watcher.measured(self.search, done)

    def _look_at(self, name: str, stop: Stop) -> None:
        self.tools.watcher.running("output", name, self.tools.clock())
        with stop.interruptible():
            problem = self.tools.check(self.search.settings[name])
        self.search.tell_check(name, problem)
        kept = CheckFacts(name, problem, len(self.results.rounds))
        self.results = self.results._replace(checks=(*self.results.checks, kept))
        self.tools.keep(self.results)
        if problem:
            self.tools.watcher.note(f"{name} is out: {problem}")


def phases_of(number: int, objective: Objective) -> tuple[str, ...]:
    """What the runs of a round measure."""
    return (PP, TG) if number % BOTH_EVERY == 1 else objective.phases


LOCK = "benchmark.lock"

TAIL_SECONDS = 3.0
"""Kept of the budget for what comes after the search: the machine's state and bandwidth."""
TAIL_SHARE = 0.15
"""At most this part of the budget."""


def tune(options: argparse.Namespace) -> int:
    """Measures, searches, remembers, shows; answers the exit code. Raises TuningError."""
    state = State(default_folder(os.environ))
    earlier = load(options.resume) if options.resume else None
    with contextlib.suppress(OSError):
        os.makedirs(state.folder, exist_ok=True)
    with alone(os.path.join(state.folder, LOCK)) as is_alone:
        if not is_alone:
            _crowded(earlier)
        work, code = _tune(options, earlier, state)
    if work is not None:
        _write(work.results, options, work.path)
    if state.warning:
        say(f"warning: {state.warning}")
    return code


def _crowded(earlier: Results | None) -> None:
    """Raises UsageError where the other benchmark may be writing the very results."""
    if earlier is not None:
        raise UsageError("another benchmark is running", "wait for its end, or end it")
    say("warning: another benchmark is running: each disturbs the other's figures")


def _tune(
    options: argparse.Namespace, earlier: Results | None, state: State
) -> tuple[_Work | None, int]:
    """What was measured, and the exit code."""
    started = time.monotonic()
    subject = find_subject(options, earlier, state)
    budget = earlier.options.budget if earlier else options.budget or BUDGETS[options.effort]
    with Stop() as stop, watcher(budget) as shown:
        try:
            begun = (
                resume(subject, earlier, stop, shown)
                if earlier
                else begin(subject, options, stop, shown)
            )
        except Stopped as end:
            say("interrupted before anything was measured")
            return None, 128 + end.number
        path = options.output or options.resume or new_path(state.folder, now())
        spent = earlier.rounds[-1].elapsed if earlier and earlier.rounds else 0.0
        work = _Work(subject, begun, path, lambda: spent + time.monotonic() - started)
        return work, work.run(stop, shown, not options.no_remember)


class _Work:
    """The part that leaves results behind, however it ends."""

    def __init__(
        self, subject: Subject, begun: Begun, path: str, clock: Callable[[], float]
    ) -> None:
        self.subject = subject
        self.begun = begun
        self.path = path
        self.clock = clock
        self.results = begun.results

    def keep(self, results: Results) -> None:
        self.results = results._replace(updated=stamp(now()))
        save(self.path, self.results)

    def run(self, stop: Stop, shown: Bar | Lines, remember: bool) -> int:
        """The exit code."""
        self.keep(self.results)
        try:
            done = self._search(stop, shown)
            self._decide(done)
            if remember:
                self._remember(done)
            with stop.interruptible():
                shown.running("finishing", "memory and energy", self.clock())
                self._measure_limits()
        except Stopped as end:
            self._interrupted()
            return 128 + end.number
        return 0

    def _search(self, stop: Stop, shown: Bar | Lines) -> Done:
        options, place = self.results.options, self.subject.runner.place
        checker = Checker(place, self.subject.default)
        limits = Limits(_for_search(options.budget), options.objective)
        session = Session(
            self.results,
            Search(self.results.space, limits),
            Tools(self.subject.runner, checker.problem, self.keep, shown, self.clock),
        )
        session.replay()
        try:
            return session.run(stop)
        finally:
            notes = dict.fromkeys((*session.results.notes, *checker.notes))
            settings = dict(session.search.settings)
            self.results = session.results._replace(notes=tuple(notes), settings=settings)

    def _decide(self, done: Done) -> None:
        if done.problem is not None:
            self.keep(self.results._replace(state=INTERRUPTED))
            raise UnsupportedError(
                f"the default setting cannot be measured: {done.problem}",
                f"what was measured is in {self.path}",
            )
        self.keep(self.results._replace(state=FINISHED, decision=finish.decided(done)))

    def _remember(self, done: Done) -> None:
        """Before anything else: from here on, the decision cannot be interrupted away."""
        if done.short:
            self.keep(finish.not_remembered(self.results, "too little was tried"))
            return
        facts, engine, state = self.subject.facts, self.subject.engine, self.subject.state
        self.keep(finish.remembered(self.results, facts, engine, state, self.path))

    def _measure_limits(self) -> None:
        host = self.subject.facts.host
        results = finish.after(self.results, self.begun.seen.before, host)
        results = finish.near_the_limit(results, host, self.begun.seen.bandwidth)
        self.keep(finish.with_energy(results, self.subject.runner))

    def _interrupted(self) -> None:
        if self.results.decision is None:
            self.keep(self.results._replace(state=INTERRUPTED))
            count = len(self.results.rounds)
            say(f"interrupted: {count} rounds are kept; go on with --resume {self.path}")


def _for_search(budget: float) -> float:
    return budget - min(TAIL_SECONDS, TAIL_SHARE * budget)


def _write(results: Results, options: argparse.Namespace, path: str) -> None:
    """Everything that was asked for; raises UsageError where it cannot be written."""
    if options.csv:
        write(options.csv, to_csv(results), "the samples", "--csv")
    if options.report:
        from bitnet_tuning.bench.report import write_report  # noqa: PLC0415

        write_report(results, options.report)
    if options.json:
        print(json.dumps(to_document(results), indent=2))
    else:
        show(results)
        print(f"Results: {path}")
