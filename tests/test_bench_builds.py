"""benchmark_optimized.py --builds: builds side by side, and what is made of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitnet_tuning import demo
from bitnet_tuning.bench import builds
from bitnet_tuning.bench.builds import Contender, judge, measure_rounds, rounds_in
from bitnet_tuning.bench.samples import Round, Run
from bitnet_tuning.cli.benchmark import main
from bitnet_tuning.engine.builds import FASTER, OPEN, OUT, SLOWER
from bitnet_tuning.errors import UnsupportedError
from bitnet_tuning.plan.profile import PP, TG, Objective
from bitnet_tuning.prepare import find_pair
from bitnet_tuning.store.state import State
from tests.engines import FakeEngine
from tests.test_bench_check import KNOWN

pytestmark = pytest.mark.skipif(os.name == "nt", reason="fake engines are scripts")

REPO = Path(__file__).resolve().parents[1]
SPEED = Objective(TG)
QUIET: dict[str, Any] = {"threads": {"1": 10, "2": 14}, "noise": 0.01, "texts": KNOWN}

# In rounds, without processes


class Measured:
    """Stands for a runner, and writes down who ran."""

    def __init__(self, name: str, journal: list[str], speed: Callable[[int], float | None]) -> None:
        self.name, self.journal, self.speed = name, journal, speed
        self.phases: list[tuple[str, ...]] = []

    def measure(self, name: str, _setting: object, phases: tuple[str, ...]) -> Run:
        self.journal.append(self.name)
        self.phases.append(phases)
        rate = self.speed(len(self.phases))
        if rate is None:
            return Run(name, {}, 1.0, "killed by SIGSEGV")
        return Run(name, dict.fromkeys(phases, (rate,)), 1.0)


def contenders(
    journal: list[str], **speeds: Callable[[int], float | None]
) -> tuple[Contender, ...]:
    return tuple(
        Contender(name, Measured(name, journal, speed), None)  # type: ignore[arg-type]
        for name, speed in speeds.items()
    )


def wobbling(rate: float) -> Callable[[int], float]:
    return lambda run: rate * (1 + 0.01 * (run * 7 % 5 - 2))


def silent(*_: object) -> None:
    """Nobody watches."""


def in_rounds(count: int, **speeds: Callable[[int], float | None]) -> tuple[Round, ...]:
    return measure_rounds(contenders([], **speeds), SPEED, count, silent, lambda: False)


def test_the_first_build_frames_a_round_and_the_others_take_turns() -> None:
    journal: list[str] = []
    every = contenders(journal, a=wobbling(10), b=wobbling(10), c=wobbling(10))
    rounds = measure_rounds(every, SPEED, 2, silent, lambda: False)
    assert journal == ["a", "c", "b", "a", "a", "b", "c", "a"]
    assert [[run.setting for run in each.runs] for each in rounds] == [journal[:4], journal[4:]]


def test_every_third_round_measures_both_phases() -> None:
    every = contenders([], a=wobbling(10), b=wobbling(10))
    measure_rounds(every, SPEED, 4, silent, lambda: False)
    assert every[1].runner.phases == [(PP, TG), (TG,), (TG,), (PP, TG)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("rate", "verdict"), [(12.0, FASTER), (10.0, OPEN), (10.15, OPEN), (8.0, SLOWER)]
)
def test_only_what_goes_beyond_the_noise_is_another_speed(rate: float, verdict: str) -> None:
    rounds = in_rounds(8, a=wobbling(10), b=wobbling(rate))
    first, other = judge(rounds, ["a", "b"], SPEED)
    assert (first.verdict, first.ratio) == (OPEN, None)
    assert other.verdict == verdict
    assert other.ratio is not None and other.ratio.count == 8


def test_few_rounds_show_nothing_however_clear() -> None:
    rounds = in_rounds(5, a=wobbling(10), b=wobbling(30))
    assert judge(rounds, ["a", "b"], SPEED)[1].verdict == OPEN
    assert builds.is_short(5) and not builds.is_short(6)


def test_a_noisy_reference_hides_a_small_gain() -> None:
    def noisy(run: int) -> float:
        return 10 * (1.3 if run % 2 else 1.0)

    rounds = in_rounds(8, a=noisy, b=wobbling(12.5))
    assert judge(rounds, ["a", "b"], SPEED)[1].verdict == OPEN


def test_a_build_that_fails_twice_is_out_and_not_run_again() -> None:
    journal: list[str] = []
    every = contenders(journal, a=wobbling(10), b=lambda _: None, c=wobbling(10))
    rounds = measure_rounds(every, SPEED, 6, silent, lambda: False)
    assert journal.count("b") == 2
    verdicts = [each.verdict for each in judge(rounds, ["a", "b", "c"], SPEED)]
    assert verdicts == [OPEN, f"{OUT}: killed by SIGSEGV", OPEN]


def test_rounds_are_as_many_as_fit_and_end_when_it_is_late() -> None:
    every = contenders([], a=wobbling(10), b=wobbling(10))
    # Each run counts a second: two to see how long they take, three for a round.
    assert rounds_in(20, every) == 6
    assert rounds_in(0, every) == 1
    assert rounds_in(10_000, every) == builds.MOST_ROUNDS
    assert len(measure_rounds(every, SPEED, 6, silent, lambda: True)) == 1


# Whole comparisons of fake engines


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return tmp_path / "checkout"


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "MOST_ROUNDS", 8)


def fake(checkout: Path, build: str, bench: bool = True, **curve: object) -> FakeEngine:
    return FakeEngine(checkout, bench=bench, build=build).curve(**{**QUIET, **curve})


def compare(checkout: Path, *flags: str) -> int:
    named = ["--builds", "--engine", str(checkout), "-m", demo.I2_S, "--budget", "300"]
    return main([*named, *flags])


def as_json(
    checkout: Path, capsys: pytest.CaptureFixture[str], *flags: str
) -> tuple[dict[str, Any], str]:
    assert compare(checkout, "--json", *flags) == 0
    seen = capsys.readouterr()
    found: dict[str, Any] = json.loads(seen.out)
    return found, seen.err


def taken(checkout: Path, own_state: Path) -> str:
    """The engine that a run takes now."""
    return find_pair(str(checkout), demo.I2_S, State(str(own_state)))[0].path


def test_the_fastest_is_shown_remembered_and_taken(
    checkout: Path, own_state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = fake(checkout, "build")
    fast = fake(checkout, "build-fast", threads={"1": 13, "2": 18})
    assert taken(checkout, own_state) == str(first.cli)
    found, _ = as_json(checkout, capsys)
    assert (found["chosen"], found["rounds"]) == (str(fast.cli), 8)
    names = [(each["name"], each["verdict"]) for each in found["builds"]]
    assert names == [("build", OPEN), ("build-fast", FASTER)]
    ratio = found["builds"][1]["ratio"]
    assert found["floor"] < ratio["low"] <= ratio["median"] <= ratio["high"]
    assert "measured fastest" in found["reason"]
    assert taken(checkout, own_state) == str(fast.cli)
    os.utime(fast.cli, ns=(1, fast.cli.stat().st_mtime_ns + 1_000_000))  # built anew
    assert taken(checkout, own_state) == str(first.cli)


def test_equal_builds_are_left_to_their_instructions(
    checkout: Path, own_state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = fake(checkout, "build")
    fake(checkout, "build-b", seed=2)
    found, _ = as_json(checkout, capsys)
    assert [each["verdict"] for each in found["builds"]] == [OPEN, OPEN]
    assert found["chosen"] == taken(checkout, own_state) == str(first.cli)
    assert "measured, no difference shown" in found["reason"]


def test_each_is_measured_with_its_own_plan(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes = [fake(checkout, name) for name in ("build", "build-b")]
    as_json(checkout, capsys, "--no-selftest")
    one, two = ([run["argv"][1:] for run in each.benches()] for each in fakes)
    assert one[-1] == two[-1], "the same work"
    assert len(one) == 2 + 1 + 2 * 8 and len(two) == 1 + 8


def test_a_table_without_json(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake(checkout, "build")
    fake(checkout, "build-slow", threads={"1": 7, "2": 9})
    assert compare(checkout, "--no-selftest") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["build", "pp/s", "tg/s", "to", "build", "verdict"]
    assert lines[2].startswith("build-slow") and lines[2].endswith(SLOWER)
    assert "8 rounds; noise floor ×1." in lines[3]
    assert "build-slow: slower when measured" in lines[4]


def test_what_writes_wrong_words_is_out_and_stays_out(
    checkout: Path, own_state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Although it is the fastest, and the one that fits best."""
    fake(checkout, "build", texts={})
    fine = fake(checkout, "build-b")
    fake(checkout, "build-c")
    found, said = as_json(checkout, capsys)
    assert "build is left out" in said and "writes wrong words" in said
    verdicts = {each["name"]: each["verdict"] for each in found["builds"]}
    assert verdicts == {"build-b": OPEN, "build-c": OPEN, "build": f"{OUT}: wrong words"}
    assert found["chosen"] == taken(checkout, own_state) == str(fine.cli)


def test_what_dies_here_is_not_measured(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake(checkout, "build")
    fake(checkout, "build-b")
    dead = fake(checkout, "build-new").isa("AVX2", dies="model")
    found, said = as_json(checkout, capsys, "--no-selftest")
    assert "build-new is left out" in said
    assert len(found["builds"]) == 2
    assert dead.benches() == []


def test_without_a_bench_in_each_all_are_measured_by_their_cli(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes = [fake(checkout, "build"), fake(checkout, "build-b", bench=False)]
    found, _ = as_json(checkout, capsys, "--no-selftest")
    assert len(found["builds"]) == 2
    assert fakes[0].benches() == []
    assert len(fakes[1].prompts()) == 1 + 8


def test_too_few_rounds_are_not_remembered(
    checkout: Path,
    own_state: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(builds, "MOST_ROUNDS", 5)
    fake(checkout, "build")
    fake(checkout, "build-fast", threads={"1": 30, "2": 40})
    _, said = as_json(checkout, capsys, "--no-selftest")
    assert "too little was measured" in said
    assert list(own_state.glob("builds-*")) == []


def test_nothing_is_remembered_where_that_is_asked_for(
    checkout: Path, own_state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(checkout, "build")
    fake(checkout, "build-b")
    as_json(checkout, capsys, "--no-selftest", "--no-remember")
    assert list(own_state.glob("builds-*")) == []


def test_one_build_is_nothing_to_compare(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(checkout, "build")
    assert compare(checkout) == 3
    assert "only one build" in capsys.readouterr().err
    fake(checkout, "build-new").isa("AVX2", dies="start")
    assert compare(checkout) == UnsupportedError.exit_code
    assert "nothing to compare" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--threads=2", "--csv=x", "--output=x", "--modes=default"])
def test_flags_of_a_tuning_do_not_go_with_it(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--builds", flag]) == 2
    assert "not together with --builds" in capsys.readouterr().err


def test_an_interrupt_ends_it_with_nothing_remembered(checkout: Path, own_state: Path) -> None:
    fake(checkout, "build")
    slow = fake(checkout, "build-b", seconds=30)
    flags = ["--builds", "--engine", str(checkout), "-m", demo.I2_S, "--no-selftest"]
    process = subprocess.Popen(
        [sys.executable, str(REPO / "benchmark_optimized.py"), *flags],
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(6000):
        if slow.benches() or process.poll() is not None:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "nothing is remembered" in said
    assert list(own_state.glob("builds-*")) == []
