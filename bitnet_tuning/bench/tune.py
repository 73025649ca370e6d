"""Run a tuning from its first round to its decision, and remember what it found."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import NamedTuple

from bitnet_tuning.bench import bandwidth, limits
from bitnet_tuning.bench.bandwidth import Absent, Bandwidth, measure_bandwidth
from bitnet_tuning.bench.begin import (
    BUDGETS,
    Begun,
    Subject,
    begin,
    find_subject,
    now,
    progress_of,
    resume,
)
from bitnet_tuning.bench.comparison import DEFAULT, UPSTREAM, Round, Rounds, Run, phases_of
from bitnet_tuning.bench.results import (
    FINISHED,
    INTERRUPTED,
    Kept,
    Part,
    Results,
    Surroundings,
    load,
    new_path,
    save,
    stamp,
    to_document,
    write,
)
from bitnet_tuning.bench.search import Check, Decision, Search
from bitnet_tuning.bench.stages import Measure
from bitnet_tuning.bench.statistics import VERDICT_ROUNDS
from bitnet_tuning.bench.summary import HEADINGS, Summary, cells, to_csv
from bitnet_tuning.bench.words import Checker
from bitnet_tuning.console import Progress, aligned, counted, print_table, say, text_width, times
from bitnet_tuning.errors import UnsupportedError, UsageError
from bitnet_tuning.launch.signals import Stop, Stopped
from bitnet_tuning.machine import conditions
from bitnet_tuning.machine.conditions import between
from bitnet_tuning.machine.warnings import warnings_after
from bitnet_tuning.plan.openmp import BINDING_BY_USER, TUNABLE, user_set
from bitnet_tuning.plan.profile import (
    PP,
    TG,
    EngineKey,
    Evidence,
    Profile,
    claim,
    engine_changes,
)
from bitnet_tuning.plan.profile import load as load_profile
from bitnet_tuning.plan.profiles import engine_key, new_profile, store
from bitnet_tuning.plan.setting import Setting
from bitnet_tuning.store.codec import to_json
from bitnet_tuning.store.state import State, alone, default_folder

LOCK = "benchmark.lock"
NOTHING = "interrupted before anything was measured"
NOT_ALONE = "another benchmark is running: each disturbs the other's figures"

TAIL_SECONDS = 3.0
"""Kept of the budget for what comes after the search: the machine's state and bandwidth."""
TAIL_SHARE = 0.15
"""At most this part of the budget."""


class Tools(NamedTuple):
    """What a session works with."""

    measure: Callable[[str, Setting, tuple[str, ...]], Run]
    check: Callable[[Setting], str | None]
    """What is wrong with a setting's output, if anything."""
    keep: Callable[[Results], None]
    progress: Progress
    clock: Callable[[], float]
    """Seconds of the budget that are spent."""


class Session:
    """One tuning. ``results`` is whole after every step and kept each time."""

    def __init__(self, results: Results, budget: float, tools: Tools) -> None:
        """Go on from the rounds in ``results``; the search may spend ``budget`` seconds."""
        self.results = results
        self.tools = tools
        rounds = Rounds(results.options.objective, budget=budget)
        self.search = Search(results.space, rounds)
        self.search.replay(results.rounds, results.checks)

    def run(self, stop: Stop) -> Decision:
        """Go on to the decision. Raises Stopped, with all but the run under way kept."""
        while True:
            step = self.search.ask()
            if isinstance(step, Decision):
                return step
            if isinstance(step, Check):
                self._look_at(step.name, stop)
            else:
                self._measure(step, stop)

    def _measure(self, step: Measure, stop: Stop) -> None:
        number = len(self.search.rounds) + 1
        phases = phases_of(number, self.search.rounds.objective)
        runs: list[Run] = []
        try:
            for name in step.order:
                self.tools.progress.running(f"{step.stage}: {name}", self.tools.clock())
                with stop.interruptible():
                    runs.append(self.tools.measure(name, self.search.settings[name], phases))
        finally:
            if runs:
                done = Round(number, step.stage, tuple(runs), self.tools.clock())
                self.search.tell(done)
                self._keep()
                self._tell(done)

    def _tell(self, done: Round) -> None:
        """Show who is ahead, and how sure that is."""
        best = self.search.best()
        found = self.search.rounds.shown(best).ratio
        leads = f"{best} leads, {times(*found)}" if found else "the default leads"
        budget = self.results.options.budget
        self.tools.progress.tell(
            f"{done.elapsed:.0f} of {budget:.0f} s, round {done.number} ({done.stage}): {leads}",
            news=(done.stage, best),
            aside=leads,
        )

    def _look_at(self, name: str, stop: Stop) -> None:
        self.tools.progress.running(f"output: {name}", self.tools.clock())
        with stop.interruptible():
            problem = self.tools.check(self.search.settings[name])
        self.search.tell_check(name, problem)
        self._keep()
        if problem:
            say(f"{name} is out: {problem}")

    def _keep(self) -> None:
        self.results = self.results._replace(
            rounds=tuple(self.search.rounds),
            checks=tuple(self.search.rounds.checks),
            settings=dict(self.search.settings),
        )
        self.tools.keep(self.results)


def tune(options: argparse.Namespace) -> int:
    """Measure, search, remember and show; return the exit code. Raises TuningError."""
    state = State(default_folder(os.environ))
    earlier = load(options.resume) if options.resume else None
    if earlier and options.no_remember:
        earlier = earlier._replace(options=earlier.options._replace(remember=False))
    with alone_in(state, earlier is not None) as warnings:
        work, code = _tune(options, earlier, state, warnings)
    if work is not None:
        _write(work.results, options, work.path)
    if state.warning:
        say(f"warning: {state.warning}")
    return code


@contextlib.contextmanager
def alone_in(state: State, resumes: bool = False) -> Iterator[tuple[str, ...]]:
    """Warn where another benchmark runs, and yield the warning. Raises UsageError where it may
    be writing the very results that this one resumes."""
    with contextlib.suppress(OSError):
        os.makedirs(state.folder, exist_ok=True)
    with alone(os.path.join(state.folder, LOCK)) as is_alone:
        if not is_alone and resumes:
            raise UsageError("another benchmark is running", "wait for its end, or end it")
        if not is_alone:
            say(f"warning: {NOT_ALONE}")
        yield () if is_alone else (NOT_ALONE,)


def _tune(
    options: argparse.Namespace, earlier: Results | None, state: State, warnings: tuple[str, ...]
) -> tuple[_Work | None, int]:
    """Return what was measured, and the exit code. ``warnings`` are kept with the results."""
    started = time.monotonic()
    subject = find_subject(options, earlier, state)
    key = engine_key(subject.facts.engine)
    budget = earlier.options.budget if earlier else options.budget or BUDGETS[options.effort]
    with Stop() as stop, progress_of(budget) as shown:
        try:
            if earlier:
                begun = resume(subject, earlier, stop, shown)
            else:
                begun = begin(subject, options, stop, shown)
        except Stopped as end:
            say(NOTHING)
            return None, 128 + end.number
        path = options.output or options.resume or new_path(state.folder, now())
        spent = earlier.rounds[-1].elapsed if earlier and earlier.rounds else 0.0
        work = _Work(subject, begun, path, lambda: spent + time.monotonic() - started)
        work.results = begun.results._replace(warnings=(*warnings, *begun.results.warnings))
        return work, work.run(stop, shown, key, state)


class _Work:
    """The part of a tuning that leaves results behind, however it ends."""

    def __init__(
        self, subject: Subject, begun: Begun, path: str, clock: Callable[[], float]
    ) -> None:
        self.subject, self.begun, self.path, self.clock = subject, begun, path, clock
        self.results = begun.results

    def keep(self, results: Results) -> None:
        self.results = results._replace(updated=stamp(now()))
        save(self.path, self.results)

    def run(self, stop: Stop, shown: Progress, engine: EngineKey, state: State) -> int:
        """Return the exit code. The winner is stored in ``state``, for ``engine``."""
        self.keep(self.results)
        try:
            short = self._search(stop, shown)
            # Before anything else: from here on, the decision cannot be interrupted away.
            if self.results.options.remember and short:
                self.keep(_not_remembered(self.results, "too little was tried"))
            elif self.results.options.remember:
                self.keep(remembered(self.results, self.subject, engine, state, self.path))
            with stop.interruptible():
                shown.running("finishing: memory and energy", self.clock())
                self._finish()
        except Stopped as end:
            if self.results.decision is None:
                self.keep(self.results._replace(state=INTERRUPTED))
                kept = counted(len(self.results.rounds), "round")
                how = f"{kept} measured; go on with --resume {self.path}"
                say(f"interrupted: {how}" if self.results.rounds else NOTHING)
            return 128 + end.number
        return 0

    def _search(self, stop: Stop, shown: Progress) -> bool:
        """Search to the decision; return whether it was short of time. Raises UnsupportedError
        where the default cannot be measured."""
        runner, budget = self.subject.runner, self.results.options.budget
        checker = Checker(runner.facts, self.subject.default)
        tools = Tools(runner.measure, checker.problem, self.keep, shown, self.clock)
        session = Session(self.results, budget - min(TAIL_SECONDS, TAIL_SHARE * budget), tools)
        try:
            decision = session.run(stop)
        finally:
            notes = dict.fromkeys((*session.results.notes, *checker.notes))
            settings = dict(session.search.settings)
            self.results = session.results._replace(notes=tuple(notes), settings=settings)
        problem = session.search.rounds.problem(DEFAULT)
        if problem is not None:
            self.keep(self.results._replace(state=INTERRUPTED))
            raise UnsupportedError(
                f"the default setting cannot be measured: {problem}",
                f"what was measured is in {self.path}",
            )
        self.keep(self.results._replace(state=FINISHED, decision=decision))
        return session.search.short

    def _finish(self) -> None:
        """Add what the machine did meanwhile, and how near the limit the winner is."""
        host = self.subject.facts.host
        after = conditions.take(host)
        seen = (warning.text for warning in warnings_after(self.begun.before, after))
        meanwhile = between(self.begun.before, after)
        results = self.results._replace(
            warnings=tuple(dict.fromkeys((*self.results.warnings, *seen))),
            conditions=Surroundings(self.results.conditions.before, after, meanwhile),
        )
        name = results.decision.winner if results.decision else DEFAULT
        setting = results.settings[name]
        found = measure_bandwidth(setting.threads, host, setting.cpus)
        earlier = self.begun.bandwidth
        if isinstance(found, Absent):
            part = Part(None, found.reason)
            results = results._replace(bandwidth=part, roof=part)
        else:
            if isinstance(earlier, Bandwidth) and earlier.threads == found.threads:
                found = bandwidth.pooled(earlier, found)
            part = Part(to_json(found))
            results = results._replace(bandwidth=part, roof=_roof(results, name, found))
        self.keep(results._replace(energy=self._energy(name, setting)))

    def _energy(self, name: str, setting: Setting) -> Part:
        """Return the tokens per joule of the setting, where the machine counts joules."""
        runner, sizes = self.subject.runner, self.subject.runner.sizes

        def run(tokens: int) -> None:
            runner.sizes = sizes._replace(n_gen=tokens, repetitions=1)
            try:
                done = runner.measure(name, setting, (TG,))
            finally:
                runner.sizes = sizes
            if done.problem is not None:
                raise UnsupportedError(done.problem)

        found = limits.tokens_per_joule(run)
        if isinstance(found, Absent):
            return Part(None, found.reason)
        low, high = f"{found.low:.3g}", f"{found.high:.3g}"
        text = f"{found.median:.3g} tokens per joule ({low}–{high}); {limits.NOTE}"
        return Part({**to_json(found), "words": text})


def _roof(results: Results, name: str, found: Bandwidth) -> Part:
    read, speeds = results.model.bytes_per_token, results.measured.speeds(name)[TG]
    if read is None or not speeds:
        return Part(None, "how much a token reads is not known" if speeds else "tg not measured")
    limit = limits.Roof(found.median, read, median(speeds))
    return Part({**limits.as_json(limit), "words": limits.words(limit, found.reader_limits)})


def remembered(
    results: Results, subject: Subject, engine: EngineKey, state: State, path: str
) -> Results:
    """Return the results with the winner stored for later runs, or the reason why it is not.
    ``engine`` as it was when the tuning began; ``path`` holds the results."""
    facts = subject.facts
    against = _against_it(results, facts.environ)
    if against is not None:
        return _not_remembered(results, against)
    assert results.decision is not None
    name = results.decision.winner
    setting: Setting | None = None if name == DEFAULT else results.settings[name]
    profile = new_profile(facts.host, engine, facts.model, setting, evidence(results, path))
    changes = engine_changes(profile)
    if changes:
        return _not_remembered(results, f"{changes[0]} since the tuning began")
    before = load_profile(state, facts.host, facts.engine, facts.model)
    if setting is None and before is not None and _outweighs(before, profile):
        longer = f"{claim(before)}, in a longer tuning ({before.id})"
        return _not_remembered(results, f"the saved profile was {longer}")
    mark = store(state, profile)
    if mark is None:
        return _not_remembered(results, str(state.warning))
    what = "no setting beat the default" if setting is None else name
    said = f"Saved: {what}. run_inference.py uses profile {mark} automatically."
    return results._replace(profile=Kept(True, mark, said))


def _outweighs(before: Profile, now: Profile) -> bool:
    """Return whether a setting that was shown to be faster must not give way to a search that
    had less time and saw no difference."""
    then, since = before.evidence, now.evidence
    longer = (then.budget or 0.0) > (since.budget or 0.0)
    return before.setting is not None and longer and then.objective == since.objective


def _not_remembered(results: Results, why: str) -> Results:
    return results._replace(profile=Kept(False, None, f"Not saved: {why}."))


def _against_it(results: Results, environ: Mapping[str, str]) -> str | None:
    """Return what speaks against remembering the decision."""
    if results.decision is None:
        return "there is no decision yet"
    theirs = taking_part(environ)
    if theirs:
        return f"your {theirs} took part in it"
    if results.decision.winner != DEFAULT:
        return None
    if results.measured.count(DEFAULT) < VERDICT_ROUNDS:
        return "the rounds were too few"
    # A part of the space that holds nothing better is no reason to forget a setting that
    # a whole tuning found.
    asked = results.options
    is_part = asked.threads is not None or "optimized" not in (asked.modes or ("optimized",))
    return "only a part of the settings was searched" if is_part else None


def taking_part(environ: Mapping[str, str]) -> str:
    """Return the user's variables that were in force while it was measured: without them, what
    was found may not hold, and with them no profile is used."""
    found = [name for name in sorted({*TUNABLE, *BINDING_BY_USER}) if user_set(environ, name)]
    if environ.get("BITNET_THREADS", "").strip("0 "):
        found.append("BITNET_THREADS")
    return ", ".join(found)


def evidence(results: Results, path: str) -> Evidence:
    """Return what speaks for the decision."""
    decision, measured = results.decision, results.measured
    assert decision is not None
    speeds = measured.speeds(decision.winner)
    return Evidence(
        objective=results.options.objective,
        verdict=decision.verdict,
        ratio=decision.estimate,
        floor=decision.floor,
        against_upstream=measured.shown(decision.winner, UPSTREAM).ratio,
        speeds={phase: median(speeds[phase]) if speeds[phase] else None for phase in (PP, TG)},
        results=os.path.abspath(path),
        budget=results.options.budget,
    )


def _write(results: Results, options: argparse.Namespace, path: str) -> None:
    """Write everything that was asked for; raise UsageError where it cannot be written."""
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


def show(results: Results) -> None:
    """Print the table and what it means to stdout."""
    summary = Summary(results)
    styles = ["bold" if row.winner else "" for row in summary.rows]
    print_table([cells(row) for row in summary.rows], HEADINGS, styles)
    # Elsewhere than on a terminal, a sentence stays in one line.
    width = text_width() if sys.stdout is not None and sys.stdout.isatty() else None
    print(aligned([[line] for line in summary.sentences()], width))
