"""A tuning from its first round to its decision: ask the search, measure, tell, keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from bitnet_tuning.bench.results import CheckFacts, Results
from bitnet_tuning.bench.rounds import PP, TG, Objective, Round, Run
from bitnet_tuning.bench.search import Check, Done, Measure, Search
from bitnet_tuning.bench.stop import Stop, Stopped
from bitnet_tuning.setting import Setting

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
