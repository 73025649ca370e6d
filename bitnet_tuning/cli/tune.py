"""A tuning as benchmark_optimized.py runs it: prepare, search, finish, show."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from collections.abc import Callable

from bitnet_tuning.bench import finish
from bitnet_tuning.bench.asks import Done, Limits
from bitnet_tuning.bench.check import Checker
from bitnet_tuning.bench.export import to_csv
from bitnet_tuning.bench.results import (
    FINISHED,
    INTERRUPTED,
    Results,
    load,
    new_path,
    save,
    stamp,
    to_json,
    write,
)
from bitnet_tuning.bench.search import Search
from bitnet_tuning.bench.session import Session, Tools
from bitnet_tuning.bench.stop import Stop, Stopped
from bitnet_tuning.bench.tuning import BUDGETS
from bitnet_tuning.cli import say
from bitnet_tuning.cli.bench_progress import Bar, Lines, watcher
from bitnet_tuning.cli.bench_table import show
from bitnet_tuning.cli.tune_start import Begun, Subject, begin, find_subject, now, resume
from bitnet_tuning.errors import UnsupportedError, UsageError
from bitnet_tuning.lock import alone
from bitnet_tuning.state import State, default_folder

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
        print(json.dumps(to_json(results), indent=2))
    else:
        show(results)
        print(f"Results: {path}")
