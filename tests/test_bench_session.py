"""The loop between search and engine: what it measures, saves and resumes."""

from __future__ import annotations

import itertools
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from bitnet_tuning.bench.comparison import BOTH_EVERY, Run, Sizes, phases_of
from bitnet_tuning.bench.knobs import Knob, Space
from bitnet_tuning.bench.results import Results, load
from bitnet_tuning.bench.runner import Runner
from bitnet_tuning.bench.search import Decision, Measure
from bitnet_tuning.bench.tune import Tuning
from bitnet_tuning.bench.words import Checker
from bitnet_tuning.console import Progress
from bitnet_tuning.launch.signals import Stop, Stopped
from bitnet_tuning.plan.profile import PP, TG, Objective
from bitnet_tuning.plan.setting import UPSTREAM, Change, Setting
from tests.bench_lab import Lab
from tests.bench_samples import sample_results, with_threads

SPACE = Space(
    Setting(4, 4),
    (("upstream", UPSTREAM),),
    (with_threads(2), with_threads(8)),
    (Knob("mmap", (Change("no mmap", (("mmap", False),)),)),),
)


def truth(setting: Setting) -> float:
    """Return the true tokens/s: without mmap it is a quarter faster."""
    return 20.0 * {2: 0.7, 4: 1.0, 8: 0.9}[setting.threads] * (1.25 if setting.mmap is False else 1)


class FakeRunner(Runner):
    """A runner whose runs take a second and have noise of 2 %."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Lab(folder).facts, None, Sizes(32, 8, 1))
        self.random = random.Random(5)
        self.asked = 0
        self.stop_at: int | None = None

    def measure(self, name: str, setting: Setting, phases: tuple[str, ...] = (PP, TG)) -> Run:
        self.asked += 1
        if self.asked == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        speed = truth(setting) * self.random.lognormvariate(0, 0.02)
        return Run(name, dict.fromkeys(phases, (speed,)), 1.0)

    def contradiction(self, name: str, setting: Setting, phases: tuple[str, ...]) -> str | None:
        return None


class FakeChecker(Checker):
    """A checker that finds what it is told."""

    def __init__(self, runner: Runner, problem: str | None) -> None:
        super().__init__(runner.facts, SPACE.default)
        self.found = problem
        self.checked: list[Setting] = []

    def problem(self, setting: Setting) -> str | None:
        self.checked.append(setting)
        return self.found


def begun(folder: Path, earlier: Results | None = None, problem: str | None = None) -> Tuning:
    """Return a tuning whose results are in ``folder``."""
    results = earlier or sample_results()._replace(
        space=SPACE, settings={"default": SPACE.default}, rounds=(), checks=(), decision=None
    )
    runner = FakeRunner(folder)
    spent = results.rounds[-1].elapsed if results.rounds else 0.0
    clock, progress = itertools.count(), Progress(300.0, str, quiet=True)
    runner.default = SPACE.default
    path = str(folder / "results.json")
    tuning = Tuning(runner, results, path, progress, lambda: spent + next(clock))
    tuning.checker = FakeChecker(runner, problem)
    return tuning


def decided(tuning: Tuning) -> Decision:
    """Run the search of a tuning to its end and return the decision."""
    with Stop() as stop:
        tuning.decide(stop)
    assert tuning.results.decision is not None
    return tuning.results.decision


def test_the_best_setting_is_found_and_every_round_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Results] = []
    monkeypatch.setattr("bitnet_tuning.bench.tune.save", lambda _, results: kept.append(results))
    monkeypatch.setattr("bitnet_tuning.bench.tune.SAVE_SECONDS", 0)
    tuning = begun(tmp_path)
    done = decided(tuning)
    assert (done.winner, done.verdict) == ("no mmap", "faster")
    counts = [len(results.rounds) for results in kept if not results.checks]
    assert counts == list(range(1, 1 + len(counts)))
    assert kept[-1] == tuning.results
    assert {run.setting for each in tuning.results.rounds for run in each.runs} <= set(
        tuning.results.settings
    )


def test_saving_takes_a_small_share_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, saves = [0.0], [0]

    def save(*_: object) -> None:
        now[0] += 0.05
        saves[0] += 1

    monkeypatch.setattr("bitnet_tuning.bench.tune.save", save)
    tuning = begun(tmp_path)
    measure = tuning.runner.measure

    def measured(*arguments: Any) -> Run:
        now[0] += 0.5
        return measure(*arguments)

    monkeypatch.setattr(tuning.runner, "measure", measured)
    monkeypatch.setattr(tuning, "clock", lambda: now[0])
    decided(tuning)
    checks = len(tuning.results.checks) + 1
    assert saves[0] - checks <= now[0] / 5 + 1
    assert len(tuning.results.rounds) > saves[0]


def test_only_some_rounds_measure_both_phases() -> None:
    both = [n for n in range(1, 20) if phases_of(n, Objective(TG)) == (PP, TG)]
    assert both == [1, 1 + BOTH_EVERY, 1 + 2 * BOTH_EVERY]
    assert phases_of(2, Objective(TG)) == (TG,)
    assert phases_of(2, Objective("request")) == (PP, TG)
    assert phases_of(2, Objective(PP)) == (PP,)


def test_a_setting_with_wrong_output_is_out_however_fast(tmp_path: Path) -> None:
    tuning = begun(tmp_path, problem="gives other words")
    assert decided(tuning).winner == "default"
    found = dict.fromkeys((each.setting, each.problem) for each in tuning.results.checks)
    assert ("no mmap", "gives other words") in found


@pytest.mark.parametrize("at", [3, 9, 17, 30])
def test_an_interrupted_tuning_goes_on_where_it_stopped(tmp_path: Path, at: int) -> None:
    first = begun(tmp_path)
    assert isinstance(first.runner, FakeRunner)
    first.runner.stop_at = at
    with Stop() as stop, pytest.raises(Stopped):
        first.decide(stop)
    runs = sum(len(each.runs) for each in first.results.rounds)
    assert runs == at - 1, "all finished runs are saved"

    second = begun(tmp_path, load(first.path))
    assert second.search.ask() == first.search.ask()
    assert second.search.settings == first.search.settings
    done = decided(second)
    assert (done.winner, done.verdict) == ("no mmap", "faster")
    assert second.results.rounds[: len(first.results.rounds)] == first.results.rounds


def test_a_check_is_not_repeated(tmp_path: Path) -> None:
    first = begun(tmp_path)
    decided(first)
    assert isinstance(first.checker, FakeChecker)
    assert len(first.checker.checked) == 1
    second = begun(tmp_path, first.results)
    assert isinstance(second.search.ask(), Decision)


def test_a_lost_round_is_asked_for_again(tmp_path: Path) -> None:
    step = begun(tmp_path).search.ask()
    assert isinstance(step, Measure)
    assert begun(tmp_path).search.ask() == step
