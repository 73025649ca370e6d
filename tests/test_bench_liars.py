"""Engines that lie in whole benchmarks, measured in each way: they never win, with a reason."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bitnet_tuning.bench.bandwidth import Bandwidth
from bitnet_tuning.bench.comparison import Sizes
from bitnet_tuning.bench.limits import Ceiling
from bitnet_tuning.bench.resident import find_residents
from bitnet_tuning.bench.runner import FIRST, Runner, find_bench
from bitnet_tuning.bench.tune import tune
from bitnet_tuning.cli.benchmark import main, read_options
from bitnet_tuning.demo import I2_S
from bitnet_tuning.machine.memory import Memory
from bitnet_tuning.model.types import Part
from bitnet_tuning.plan.profile import PP, TG
from bitnet_tuning.plan.setting import Setting
from tests.bench_engines import facts_of
from tests.engines import FakeEngine

pytestmark = pytest.mark.skipif(os.name == "nt", reason="fake engines are scripts")

WAYS = ("server", "bench", "cli")
SEARCH = ("--quick", "--no-selftest", "--modes", "optimized", "--threads", "4", "--budget", "600")
LENGTHS = ("--n-prompt", "16", "--n-gen", "32")
LIARS: dict[str, tuple[dict[str, object], str]] = {
    "prints 10 times its speed": (
        {"threads": {"1": 150}, "lies": {"mmap=0": 10}, "broken": {"mmap=0": "lie"}},
        "took",
    ),
    "computes nothing": (
        {"threads": {"1": 1000}, "lies": {}, "factors": {"mmap=0": 100}},
        "but this memory delivers 1e+04 GB/s at most",
    ),
    "writes other words": (
        {
            "threads": {"1": 1000},
            "lies": {},
            "factors": {"mmap=0": 2},
            "text": {"mmap=0": " other words"},
        },
        "writes other words than the default",
    ),
}
"""The curve of each, and a part of the reason."""


def runner_of(folder: Path, way: str, **curve: object) -> Runner:
    """Return a fake engine, measured in that way, with a model that reads 5 GB for each token."""
    fake = FakeEngine(folder / "checkout", bench=way == "bench", server=way == "server")
    facts = facts_of(str(fake.curve(**curve).cli), folder)
    parts = (Part("ternary", "i2_s", 10**10, 5 * 10**9, 5 * 10**9),)
    facts = facts._replace(
        host=facts.host._replace(memory=Memory(8 << 30, 6 << 30)),
        model=facts.model._replace(parts=parts, context_length=4096),
    )
    residents = find_residents(facts) if way == "server" else None
    assert (residents is not None) == (way == "server")
    return Runner(facts, find_bench(facts.engine), FIRST, residents=residents)


@pytest.fixture(autouse=True)
def bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory that delivers 10 TB/s, which the engines' true speeds do not need."""

    def look(ceiling: Ceiling) -> None:
        ceiling.found = Bandwidth(1e13, 4, (1e13,), False)

    monkeypatch.setattr(Ceiling, "look", look)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("liar", LIARS)
def test_a_liar_never_wins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], way: str, liar: str
) -> None:
    curve, why = LIARS[liar]
    runner = runner_of(tmp_path, way, **curve)
    output = tmp_path / "results.json"
    options = read_options([*SEARCH, *LENGTHS, "--output", str(output)])
    assert tune(options, lambda *_: runner) == 0
    facts = json.loads(output.read_text())
    assert facts["decision"]["winner"] == "default"
    assert (facts["engine"]["server"] is not None) == (way == "server")
    said = capsys.readouterr().out
    assert any(why in line for line in said.splitlines() if line.startswith("no mmap: ")), said


def test_an_engine_that_always_lies_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeEngine(tmp_path / "checkout", bench=True)
    fake.curve(threads={"1": 300}, lies={f"threads={count}": 10 for count in range(1, 999)})
    assert main(["--engine", str(fake.cli), "-m", I2_S, *SEARCH, "--n-gen", "32"]) == 4
    assert "cannot be measured with its default setting" in capsys.readouterr().err


@pytest.mark.parametrize("bench", [True, False])
def test_a_run_that_claims_more_time_than_it_took_fails(tmp_path: Path, bench: bool) -> None:
    fake = FakeEngine(tmp_path / "checkout", bench=bench).curve(threads={"1": 1})
    facts = facts_of(str(fake.cli), tmp_path)
    runner = Runner(facts, find_bench(facts.engine), Sizes(32, 64, 1))
    run = runner.measure("x", Setting(1, 1), (TG,))
    assert str(run.problem).startswith("64 s by its own speeds, but it ran for ")


@pytest.mark.parametrize(
    ("bench", "phase", "rate"),
    [(True, PP, 200), (True, TG, 200), (True, PP, 3000), (True, TG, 3000), (False, TG, 200)],
)
def test_the_clock_is_checked_in_each_phase(
    tmp_path: Path, bench: bool, phase: str, rate: float
) -> None:
    fake = FakeEngine(tmp_path / "checkout", bench=bench)
    fake.curve(threads={"1": rate}, pp=1, lies={"mmap=0": 8})
    facts = facts_of(str(fake.cli), tmp_path)
    facts = facts._replace(model=facts.model._replace(context_length=4096))
    runner = Runner(facts, find_bench(facts.engine), sizes := Sizes(128, 64, 1))
    assert runner.measure("default", Setting(1, 1)).problem is None
    assert runner.contradiction("default", Setting(1, 1), (phase,)) is None
    problem = runner.contradiction("x", Setting(1, 1, mmap=False), (phase,))
    assert f"s more of {phase} by its own speed took" in str(problem)
    assert runner.sizes == sizes
