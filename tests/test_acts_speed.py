"""Upstream's default against the plan: how often, for how long, and what comes of it."""

from __future__ import annotations

import random

import pytest

from bitnet_tuning.bench.ledger import DEFAULT, UPSTREAM
from bitnet_tuning.bench.samples import Run
from bitnet_tuning.bench.upstream import (
    BLOCK,
    LEAST_BLOCKS,
    MOST_BLOCKS,
    Trial,
    compare,
    judge,
    left_out,
    nothing_to_compare,
    speed_line,
    trial_sizes,
)
from bitnet_tuning.plan.profile import TG
from bitnet_tuning.verify.checks import FAIL, PASS, SKIP


def run(name: str, speed: float, seconds: float = 1.0) -> Run:
    return Run(name, {TG: (speed,)}, seconds)


class Engine:
    """Measures in a time of its own."""

    def __init__(
        self, gain: float, noise: float = 0.01, seconds: float = 1.0, breaks: str = ""
    ) -> None:
        self.gain, self.noise, self.seconds, self.breaks = gain, noise, seconds, breaks
        self.random = random.Random(3)
        self.order: list[str] = []
        self.now = 0.0

    def __call__(self, name: str) -> Run:
        self.order.append(name)
        self.now += self.seconds
        if name == self.breaks:
            return Run(name, {}, self.seconds, "the engine ended with exit code 3")
        speed = 20.0 * (self.gain if name == DEFAULT else 1.0)
        return run(name, speed * self.random.lognormvariate(0, self.noise), self.seconds)

    def compared(self, seconds: float) -> Trial:
        return compare(self, seconds, lambda: self.now)


def test_runs_take_turns() -> None:
    engine = Engine(1.0)
    engine.compared(12)
    assert tuple(engine.order) == BLOCK * 3
    assert BLOCK[0] != BLOCK[1] != BLOCK[3] and BLOCK[1] == BLOCK[2]


@pytest.mark.parametrize(
    ("seconds", "blocks"),
    [(11.9, 1), (12, 3), (15.9, 3), (16, 4), (1000, MOST_BLOCKS), (0, 1), (-5, 1)],
)
def test_the_time_is_used_and_not_overdrawn(seconds: float, blocks: int) -> None:
    assert len(Engine(1.0).compared(seconds).blocks) == blocks


@pytest.mark.parametrize(
    ("gain", "verdict", "state"),
    [(1.5, "faster", PASS), (1.0, "no difference shown", PASS), (0.7, "slower", FAIL)],
)
def test_verdicts(gain: float, verdict: str, state: str) -> None:
    line = speed_line(Engine(gain).compared(30), 30)
    assert line.state == state
    assert line.reason.startswith(verdict)
    assert ("benchmark_optimized.py" in line.reason) == (state == FAIL)
    assert line.facts is not None
    assert line.facts["verdict"] == verdict


def test_figures_are_told() -> None:
    blocks = (tuple(run(name, 30 if name == DEFAULT else 20) for name in BLOCK),) * LEAST_BLOCKS
    line = speed_line(Trial(blocks), 30)
    assert line.reason == (
        "faster: 30.0 against 20.0 with upstream's 2 threads and no environment, "
        "ratio 1.50 (1.50 to 1.50; 6 pairs of runs, noise floor 1.01)"
    )
    found = judge(blocks)
    assert (found.upstream, found.planned, found.ratio.count) == (20, 30, 6)


def test_a_gain_within_the_noise_is_not_shown() -> None:
    line = speed_line(Engine(1.15, noise=0.4).compared(30), 30)
    assert "no difference shown" in line.reason


def test_equal_settings_are_hardly_ever_told_apart() -> None:
    engine = Engine(1.0, noise=0.15)
    verdicts = [judge(engine.compared(40).blocks).verdict for _ in range(200)]
    assert verdicts.count("no difference shown") >= 190


def test_too_little_time_is_no_verdict() -> None:
    line = speed_line(Engine(2.0, seconds=5).compared(30), 30)
    assert line.state == SKIP
    assert "here some 60 s, and 30 s were left" in line.reason
    assert "--seconds" in line.reason


@pytest.mark.parametrize(
    ("breaks", "state", "who"), [(DEFAULT, FAIL, "the plan"), (UPSTREAM, SKIP, "upstream")]
)
def test_what_cannot_be_measured(breaks: str, state: str, who: str) -> None:
    line = speed_line(Engine(1.0, breaks=breaks).compared(30), 30)
    assert line.state == state
    assert who in line.reason
    assert "exit code 3" in line.reason


def test_sizes_suit_both() -> None:
    def tokens(upstream: float, planned: float) -> int:
        sizes = trial_sizes(run(UPSTREAM, upstream), run(DEFAULT, planned))
        assert sizes.repetitions == 1
        return sizes.n_gen

    assert [tokens(50, 50), tokens(10, 1000), tokens(1, 1), tokens(9000, 9000)] == [20, 40, 8, 128]


def test_what_is_not_measured_says_why() -> None:
    without = left_out("--no-speed says so")
    assert without.state == nothing_to_compare().state == SKIP
    assert "--no-speed" in without.reason
    assert "upstream's own default" in nothing_to_compare().reason
