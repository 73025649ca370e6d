"""Run a tuning from its first round to the decision, save the results and print them."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from bitnet_tuning.bench import limits
from bitnet_tuning.bench.bandwidth import AbsentError
from bitnet_tuning.bench.begin import begin, extended, find_runner, progress_of, resume, to_see
from bitnet_tuning.bench.comparison import DEFAULT, DUEL, Round, Run
from bitnet_tuning.bench.remember import remembered
from bitnet_tuning.bench.report import page
from bitnet_tuning.bench.results import (
    Part,
    Results,
    Surroundings,
    load,
    new_path,
    save,
    to_text,
    write,
)
from bitnet_tuning.bench.runner import Runner
from bitnet_tuning.bench.search import Check, Decision, Measure, Search
from bitnet_tuning.bench.summary import Summary, cells, to_csv
from bitnet_tuning.bench.words import Checker
from bitnet_tuning.console import Progress, command, counted, fitted, say, table, text_width, times
from bitnet_tuning.errors import TuningError, UnsupportedError, UsageError
from bitnet_tuning.launch.signals import Stop, Stopped
from bitnet_tuning.machine import conditions
from bitnet_tuning.machine.conditions import between
from bitnet_tuning.machine.warnings import warnings_after
from bitnet_tuning.plan.profile import TG, EngineKey, engine_key
from bitnet_tuning.store.codec import to_json
from bitnet_tuning.store.state import State, alone, is_special, moment

LOCK = "benchmark.lock"
NOTHING = "interrupted before anything was measured"
SHOWN = {"knobs": "other settings", DUEL: "confirming the best", "fixed": "for comparison"}
"""What users read of a stage."""
NOT_ALONE = "another benchmark is running: each disturbs the other's measurements"

SAVE_SHARE, SAVE_SECONDS = 0.01, 10.0
"""Largest share of the time for saving rounds, and most seconds from one save to the next. Results
of 500 rounds take 0.03 s, of 2,000 rounds 0.11 s."""

TAIL_SECONDS, TAIL_SHARE = 1.0, 0.15
"""Seconds of the budget, and its largest share, that are kept for what follows the search."""


def tune(
    options: argparse.Namespace,
    find: Callable[[argparse.Namespace, Results | None, State], Runner] = find_runner,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Run a tuning, save the results and the profile, and print them. Return the exit code. Raise
    TuningError if nothing can be measured or a file cannot be written. ``find`` returns what
    measures the engine and the model to tune, ``clock`` a time in seconds."""
    started = clock()
    state = State()
    earlier = load(options.resume) if options.resume else None
    earlier = earlier and extended(earlier, options.more, options.resume)
    if earlier and options.no_remember:
        earlier = earlier._replace(options=earlier.options._replace(remember=False))
    with alone_in(state, earlier is not None) as warnings:
        runner = find(options, earlier, state)
        engine = engine_key(runner.facts.engine)
        budget = earlier.options.budget if earlier else options.budget
        spent = earlier.measured.spent if earlier else 0.0
        with Stop() as stop, progress_of(budget) as shown, contextlib.closing(runner):
            try:
                if earlier:
                    results = resume(runner, earlier, stop, shown)
                else:
                    results = begin(runner, options, stop, shown)
            except Stopped as end:
                say(f"interrupted: {options.resume} is unchanged" if earlier else NOTHING)
                return 128 + end.number
            results = results._replace(warnings=(*warnings, *results.warnings))
            path = options.output or options.resume or new_path(state.folder)
            tuning = Tuning(runner, results, path, shown, lambda: spent + clock() - started)
            try:
                code = tuning.run(stop, engine, state)
            finally:
                with contextlib.suppress(OSError):
                    if tuning.unsaved and not options.output and not os.path.getsize(path):
                        os.remove(path)  # what was created to be filled
    if is_special(path):
        tuning.save()
    publish(tuning.results, options, path, tuning.unsaved)
    say(state.warning and f"warning: {state.warning}")
    return code or int(tuning.unsaved is not None and bool(options.output or options.resume))


@contextlib.contextmanager
def alone_in(state: State, resumes: bool = False) -> Iterator[tuple[str, ...]]:
    """Warn if another benchmark is running, and yield the warning for the results. Raise
    UsageError if this one ``resumes`` results, which the other may be writing."""
    with contextlib.suppress(OSError):
        os.makedirs(state.folder, exist_ok=True)
    with alone(os.path.join(state.folder, LOCK)) as is_alone:
        if not is_alone and resumes:
            raise UsageError("another benchmark is running", "wait until it ends, or stop it")
        if not is_alone:
            say(f"warning: {NOT_ALONE}")
        yield () if is_alone else (NOT_ALONE,)


class Tuning:
    """A tuning that is ready to search. At its end, or if a signal ends it, ``results`` is complete
    and saved; meanwhile it may lack the last seconds."""

    def __init__(
        self,
        runner: Runner,
        results: Results,
        path: str,
        shown: Progress,
        clock: Callable[[], float],
    ) -> None:
        """Go on from the rounds in ``results``, if any. ``path`` is the file of results;
        ``clock`` tells how many seconds of the budget are spent."""
        self.runner, self.results, self.path = runner, results, path
        self.shown, self.clock = shown, clock
        asked, rounds = results.options, results._replace(rounds=(), checks=()).measured
        budgets = [*(each for _, each in asked.extended), asked.budget]
        rounds.budget, *later = (each - min(TAIL_SECONDS, TAIL_SHARE * each) for each in budgets)
        self.search = Search(results.space, rounds)
        more = [(spent, each) for (spent, _), each in zip(asked.extended, later, strict=True)]
        self.search.replay(results.rounds, results.checks, more)
        self.checker = Checker(runner.facts, runner.default, residents=runner.residents)
        self.unsaved: str | None = None
        """Why the latest results could not be saved."""
        self._due = 0.0
        """Seconds of the budget from which on a finished round is saved at once."""

    def keep(self, **changes: Any) -> None:
        """Save the results with what the search knows and with ``changes``."""
        rounds, began = self.search.rounds, self.clock()
        self.results = self.results._replace(
            updated=moment(),
            rounds=tuple(rounds),
            checks=tuple(rounds.checks),
            settings=dict(self.search.settings),
            notes=tuple(dict.fromkeys((*self.checker.notes.values(), *self.results.notes))),
        )._replace(**changes)
        if not is_special(self.path):  # the reader of a pipe gets them once, at the end
            self.save()
        now = self.clock()
        self._due = now + min(SAVE_SECONDS, (now - began) / SAVE_SHARE)

    def save(self) -> None:
        """Write the results, or warn and note in ``unsaved`` why that failed."""
        try:
            save(self.path, self.results)
            self.unsaved = None
        except UsageError as error:
            say(None if self.unsaved else f"warning: {error.cause}; {error.remedy}, or make room")
            self.unsaved = error.cause

    def run(self, stop: Stop, engine: EngineKey, state: State) -> int:
        """Search, save the profile in ``state`` for ``engine``, and return the exit code. Raise
        UnsupportedError if the default cannot be measured."""
        self.keep()
        try:
            self.decide(stop)
            self._look_back()
            # The profile comes first, so that a signal from here on cannot lose the decision.
            if self.results.options.remember:
                kept = remembered(self.results, self.runner.facts, engine, state, self.path)
                self.keep(profile=kept)
            with stop.interruptible():
                self.shown.running("finishing: energy", self.clock())
                self._finish()
        except Stopped as end:
            if self.results.decision is None:
                self.keep(state="interrupted")
                rounds = counted(len(self.results.rounds), "round")
                how = f"{command('bench')} --resume {shlex.quote(self.path)}"
                found = f"interrupted after {rounds}; to go on: {how}"
                say(found if self.results.rounds else NOTHING)
            return 128 + end.number
        return 0

    def decide(self, stop: Stop) -> None:
        """Search until there is a decision. Raise UnsupportedError if the default cannot be
        measured, ShortageError if nothing can, and Stopped if a signal interrupts it; every
        finished run is saved then."""
        try:
            while not isinstance(step := self.search.ask(), Decision):
                if isinstance(step, Check):
                    self._check(step.name, stop)
                else:
                    self._measure(step, stop)
        except (Stopped, TuningError):
            self.keep(state="interrupted")
            raise
        if (problem := self.search.rounds.problem(DEFAULT)) is not None:
            self.keep(state="interrupted")
            raise UnsupportedError(
                f"the default setting cannot be measured: {problem}",
                f"the rounds so far are in {self.path}; to see the engine's whole log: "
                + to_see(self.runner),
            )
        self.keep(state="finished", decision=step)

    def _measure(self, step: Measure, stop: Stop) -> None:
        number = len(self.search.rounds) + 1
        runs: list[Run] = []
        try:
            for name in step.order:
                self.shown.running(f"{SHOWN.get(step.stage, step.stage)}: {name}", self.clock())
                setting, phases = self.search.settings[name], self.search.rounds.phases(name)
                with stop.interruptible():
                    runs.append(self.runner.measure(name, setting, phases))
        finally:
            if runs:
                done = Round(number, step.stage, tuple(runs), self.clock())
                self.search.tell(done)
                if self.clock() >= self._due:
                    self.keep()
                self._tell(done)

    def _tell(self, done: Round) -> None:
        best = self.search.best
        found = self.search.rounds.shown(best).ratio
        leads, aside = "no setting beats the default so far", "the default leads"
        if best != DEFAULT and found and not self.search.rounds.doubts(best):
            leads = f"best so far: {best}, {times(*found)} over the default"
            aside = f"best: {best} ×{found.median:.2f}"
        budget = self.results.options.budget
        spent = f"{min(done.elapsed, budget):.0f} of {budget:.0f} s"
        text = f"{spent}, round {done.number} ({SHOWN.get(done.stage, done.stage)}): {leads}"
        self.shown.tell(text, (done.stage, best), aside)

    def _check(self, name: str, stop: Stop) -> None:
        self.shown.running(f"checking the output: {name}", self.clock())
        with stop.interruptible():
            setting, phases = self.search.settings[name], self.search.rounds.objective.phases
            problem = self.checker.problem(setting)
            problem = problem or self.runner.contradiction(name, setting, phases)
        self.search.tell_check(name, problem, self.clock())
        self.keep()
        if problem:
            say(f"{name} is rejected: {problem}")

    def _look_back(self) -> None:
        """Add the machine's state since the beginning."""
        # The CPU time of servers counts as this process's own when they have ended.
        self.runner.close()
        before, after = self.results.conditions.before, conditions.take(self.runner.facts.host)
        if before is not None:
            seen = (warning.text for warning in warnings_after(before, after))
            warnings = tuple(dict.fromkeys((*self.results.warnings, *seen)))
            self.keep(
                warnings=warnings, conditions=Surroundings(before, after, between(before, after))
            )

    def _finish(self) -> None:
        """Add memory bandwidth and energy."""
        name = self.results.decision.winner if self.results.decision else DEFAULT
        setting, runner, ceiling = self.results.settings[name], self.runner, self.runner.ceiling
        read, speeds = self.results.model.bytes_per_token, self.results.measured.speeds(name, TG)
        bandwidth = roof = Part(None, ceiling.reason)
        if found := ceiling.found:
            bandwidth = Part(to_json(found))
            roof = _part(lambda: limits.roof(found, read, speeds))

        def run(tokens: int) -> None:
            sizes = runner.sizes._replace(n_gen=tokens, repetitions=1)
            runner.measure_alone(name, setting, TG, sizes)

        energy = _part(lambda: limits.tokens_per_joule(run))
        self.keep(bandwidth=bandwidth, roof=roof, energy=energy)


def _part(find: Callable[[], NamedTuple]) -> Part:
    """Return the facts that ``find`` returns, or the reason why they are absent."""
    try:
        return Part(to_json(find()))
    except AbsentError as why:
        return Part(None, str(why))


def publish(
    results: Results, options: argparse.Namespace, path: str, unsaved: str | None = None
) -> None:
    """Print the results, from the file ``path`` unless they are ``unsaved`` for a reason, and write
    the files that the user asked for. Raise UsageError if a file cannot be written."""
    if options.json:
        print(to_text(results), end="")
    else:
        summary = Summary(results)
        star = "*: the setting to use. " * any(row.winner for row in summary.rows)
        legend = fitted(star + summary.legend)
        print(fitted("\n".join(summary.headings)), table(cells(summary), text_width()), sep="\n\n")
        print("", legend, "", fitted("\n".join(summary.sentences())), sep="\n")
    (say if options.json else print)(f"Results: {unsaved or path}")
    export(options, lambda: to_csv(results), lambda: page(results))


def export(options: argparse.Namespace, csv: Callable[[], str], html: Callable[[], str]) -> None:
    """Write the files asked for and print their paths, beside JSON to stderr. Raise UsageError."""
    for what, path, text in (("CSV", options.csv, csv), ("Report", options.report, html)):
        if path:
            write(path, text(), f"the {what.lower()} file", f"--{what.lower()}")
            (say if options.json else print)(f"{what}: {path}")
