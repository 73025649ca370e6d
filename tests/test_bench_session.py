"""The loop between search and engine: what it measures, saves and resumes."""

from __future__ import annotations

import itertools
import os
import random
import signal
from collections.abc import Callable

import pytest

from bitnet_tuning.bench.comparison import Run, phases_of
from bitnet_tuning.bench.knobs import Knob, Space
from bitnet_tuning.bench.results import Results
from bitnet_tuning.bench.search import Check, Decision
from bitnet_tuning.bench.stages import Measure
from bitnet_tuning.bench.tune import Session, Tools
from bitnet_tuning.console import Progress
from bitnet_tuning.launch.signals import Stop, Stopped
from bitnet_tuning.plan.profile import PP, TG, Objective
from bitnet_tuning.plan.setting import UPSTREAM, Change, Setting
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


class FakeRunner:
    """A runner whose runs take a second and have noise of 2 %."""

    def __init__(self, speed: Callable[[Setting], float] = truth) -> None:
        self.speed = speed
        self.random = random.Random(5)
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        self.stop_at: int | None = None

    def measure(self, name: str, setting: Setting, phases: tuple[str, ...]) -> Run:
        self.asked.append((name, phases))
        if len(self.asked) == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        speed = self.speed(setting) * self.random.lognormvariate(0, 0.02)
        return Run(name, dict.fromkeys(phases, (speed,)), 1.0)


def session(
    runner: FakeRunner,
    earlier: Results | None = None,
    check: Callable[[Setting], str | None] = lambda setting: None,
    kept: list[Results] | None = None,
) -> Session:
    results = earlier or sample_results()._replace(
        space=SPACE, settings={"default": SPACE.default}, rounds=(), checks=(), decision=None
    )
    spent = results.rounds[-1].elapsed if results.rounds else 0.0
    clock = itertools.count()
    keep = (kept if kept is not None else []).append
    progress = Progress(300.0, str, quiet=True)
    tools = Tools(runner.measure, check, keep, progress, lambda: spent + next(clock))
    return Session(results, 300.0, tools)


def test_the_best_setting_is_found_and_every_round_saved() -> None:
    runner, kept = FakeRunner(), list[Results]()
    tuning = session(runner, kept=kept)
    with Stop() as stop:
        done = tuning.run(stop)
    assert (done.winner, done.verdict) == ("no mmap", "faster")
    assert [len(results.rounds) for results in kept if not results.checks] == list(
        range(1, 1 + sum(1 for results in kept if not results.checks))
    )
    assert kept[-1] == tuning.results
    assert {run.setting for each in tuning.results.rounds for run in each.runs} <= set(
        tuning.results.settings
    )


def test_every_third_round_measures_both_phases() -> None:
    assert [phases_of(number, Objective(TG)) for number in (1, 2, 3, 4)] == [
        (PP, TG),
        (TG,),
        (TG,),
        (PP, TG),
    ]
    assert phases_of(2, Objective("request")) == (PP, TG)
    assert phases_of(2, Objective(PP)) == (PP,)


def test_a_setting_with_wrong_output_is_out_however_fast() -> None:
    def check(setting: Setting) -> str | None:
        return "gives other words" if setting.mmap is False else None

    tuning = session(FakeRunner(), check=check)
    with Stop() as stop:
        done = tuning.run(stop)
    assert done.winner == "default"
    assert [(each.setting, each.problem) for each in tuning.results.checks] == [
        ("no mmap", "gives other words")
    ]


@pytest.mark.parametrize("at", [3, 9, 17, 30])
def test_an_interrupted_session_goes_on_where_it_stopped(at: int) -> None:
    runner = FakeRunner()
    runner.stop_at = at
    first = session(runner)
    with Stop() as stop, pytest.raises(Stopped):
        first.run(stop)
    runs = sum(len(each.runs) for each in first.results.rounds)
    assert runs == at - 1, "all finished runs are saved"

    second = session(FakeRunner(), first.results)
    assert second.search.ask() == first.search.ask()
    assert second.search.settings == first.search.settings
    with Stop() as stop:
        done = second.run(stop)
    assert (done.winner, done.verdict) == ("no mmap", "faster")
    assert second.results.rounds[: len(first.results.rounds)] == first.results.rounds


def test_a_check_is_not_repeated() -> None:
    checked: list[Setting] = []

    def check(setting: Setting) -> str | None:
        checked.append(setting)
        return None

    first = session(FakeRunner(), check=check)
    with Stop() as stop:
        first.run(stop)
    assert len(checked) == 1
    second = session(FakeRunner(), first.results, check=check)
    assert isinstance(second.search.ask(), Decision)
    assert len(checked) == 1


def test_a_lost_round_is_asked_for_again() -> None:
    tuning = session(FakeRunner())
    step = tuning.search.ask()
    assert isinstance(step, Measure)
    again = session(FakeRunner())
    assert again.search.ask() == step
    assert not isinstance(step, Check)
