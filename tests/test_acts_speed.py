"""The line of test_optimizations.py that compares the plan with the upstream default."""

from __future__ import annotations

import random

import pytest

from bitnet_tuning.bench.comparison import DEFAULT, UPSTREAM, Rounds, Run, compare
from bitnet_tuning.bench.statistics import VERDICT_ROUNDS
from bitnet_tuning.cli.test_optimizations import speed_line
from bitnet_tuning.engine.builds import EQUAL, OPEN, verdict_words
from bitnet_tuning.plan.profile import TG, Objective
from bitnet_tuning.verify.checks import FAIL, PASS, SKIP


class Engine:
    """A simulated engine with a clock of its own; ``gain`` is what the plan brings."""

    def __init__(
        self, gain: float, noise: float = 0.01, seconds: float = 1.0, breaks: str = ""
    ) -> None:
        self.gain, self.noise, self.seconds, self.breaks = gain, noise, seconds, breaks
        self.random = random.Random(3)
        self.now = 0.0

    def __call__(self, name: str, _number: int) -> Run:
        self.now += self.seconds
        if name == self.breaks:
            return Run(name, {}, self.seconds, "the engine ended with exit code 3")
        speed = 20.0 * (self.gain if name == DEFAULT else 1.0)
        speed *= self.random.lognormvariate(0, self.noise)
        return Run(name, {TG: (speed,)}, self.seconds)

    def compared(self, seconds: float) -> Rounds:
        return compare((UPSTREAM, DEFAULT), self, Objective(), seconds, lambda: self.now)


@pytest.mark.parametrize(
    ("gain", "verdict", "state"),
    [(1.5, "faster", PASS), (1.0, EQUAL, PASS), (0.7, "slower", FAIL)],
)
def test_verdicts(gain: float, verdict: str, state: str) -> None:
    line = speed_line(Engine(gain).compared(30), 30, 0)
    assert line.state == state
    assert line.reason.startswith(verdict_words(verdict))
    assert ("python3 benchmark_optimized.py" in line.reason) == (state == FAIL)
    assert line.facts is not None
    assert line.facts["verdict"] == verdict


def test_the_reason_has_the_figures() -> None:
    line = speed_line(Engine(1.5, noise=0.0).compared(15), 15, 0)
    assert line.reason == (
        "faster: 30.0 tokens/s, 20.0 with bitnet.cpp's own default (2 threads, no variables): "
        "×1.50 (1.50–1.50) in 7 rounds with llama-server"
    )
    assert line.facts is not None
    assert (line.facts["upstream"], line.facts["planned"]) == pytest.approx((20, 30))


def test_a_gain_within_the_noise_is_not_decided() -> None:
    line = speed_line(Engine(1.15, noise=0.4).compared(30), 30, 0)
    assert "not decided" in line.reason


def test_equal_settings_hardly_ever_get_a_verdict() -> None:
    engine = Engine(1.0, noise=0.15)
    verdicts = []
    for _ in range(60):
        engine.now = 0.0
        verdicts.append(engine.compared(40).judge(DEFAULT).verdict)
    assert verdicts.count(OPEN) >= 57


def test_too_little_time_is_no_verdict() -> None:
    rounds = Engine(2.0, seconds=5).compared(30)
    line = speed_line(rounds, 30, 42.5, again="python3 test.py -m a.gguf")
    assert line.state == SKIP
    assert len(rounds) == 1 < VERDICT_ROUNDS
    assert line.reason == (
        "not decided, since the machine is busy or slow: 6 rounds take about 72 s, and 30 s were "
        "left; allow more time: python3 test.py -m a.gguf --seconds 127"
    )


@pytest.mark.parametrize(
    ("breaks", "state", "who"),
    [(DEFAULT, FAIL, "the plan"), (UPSTREAM, SKIP, "bitnet.cpp's own default")],
)
def test_what_cannot_be_measured(breaks: str, state: str, who: str) -> None:
    line = speed_line(Engine(1.0, breaks=breaks).compared(30), 30, 0)
    assert line.state == state
    assert who in line.reason
    assert "exit code 3" in line.reason


@pytest.mark.parametrize("broken", [DEFAULT, UPSTREAM])
def test_a_comparison_ends_once_one_side_is_out(broken: str) -> None:
    assert len(Engine(1.0, breaks=broken).compared(1000)) <= 2


def test_nothing_is_compared_without_what_it_is_compared_with() -> None:
    engine = Engine(1.0, breaks=UPSTREAM)
    names = (UPSTREAM, DEFAULT, "another")
    rounds = compare(names, engine, Objective(), 1000, lambda: engine.now)
    assert len(rounds) <= 2


def test_the_time_of_a_comparison_begins_with_it() -> None:
    engine = Engine(1.5)
    engine.now = 5000.0
    rounds = engine.compared(30)
    assert len(rounds) == len(Engine(1.5).compared(30)) > 6
    assert rounds.spent <= 30
