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
from bitnet_tuning.bench import comparison
from bitnet_tuning.bench.builds import judge
from bitnet_tuning.bench.comparison import Rounds, Run, phases_of
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


Speed = Callable[[int], "float | None"]


def wobbling(rate: float) -> Speed:
    return lambda run: rate * (1 + 0.01 * (run * 7 % 5 - 2))


def in_rounds(seconds: float = 10_000, **speeds: Speed) -> tuple[Rounds, list[str]]:
    """Rounds of runs that take a second each, and who ran."""
    order: list[str] = []

    def measure(name: str, number: int) -> Run:
        order.append(name)
        rate = speeds[name](order.count(name))
        if rate is None:
            return Run(name, {}, 1.0, "killed by SIGSEGV")
        return Run(name, dict.fromkeys(phases_of(number, SPEED), (rate,)), 1.0)

    names = tuple(speeds)
    return comparison.compare(names, measure, SPEED, seconds, lambda: float(len(order))), order


def verdicts(rounds: Rounds, *names: str) -> list[str]:
    engines = dict.fromkeys(names)
    return [each.verdict for each in judge(rounds, engines).builds]  # type: ignore[arg-type]


def test_the_first_build_frames_every_second_round_and_the_others_take_turns() -> None:
    rounds, order = in_rounds(a=wobbling(10), b=wobbling(10), c=wobbling(10))
    assert order[:11] == ["a", "c", "b", "a", "a", "b", "c", "a", "c", "b", "a"]
    assert [run.setting for run in list(rounds)[3].runs] == ["b", "c", "a"]
    assert len(rounds) == comparison.MOST_ROUNDS


def test_every_third_round_measures_both_phases() -> None:
    rounds, _ = in_rounds(a=wobbling(10), b=wobbling(10))
    phases = [set(each.runs[0].samples) for each in rounds][:4]
    assert phases == [{PP, TG}, {TG}, {TG}, {PP, TG}]


@pytest.mark.parametrize(
    ("rate", "verdict"), [(12.0, FASTER), (10.0, OPEN), (10.15, OPEN), (8.0, SLOWER)]
)
def test_only_what_goes_beyond_the_noise_is_another_speed(rate: float, verdict: str) -> None:
    rounds, _ = in_rounds(22, a=wobbling(10), b=wobbling(rate))
    assert verdicts(rounds, "a", "b") == [OPEN, verdict]
    ratio = rounds.judge("b").ratio
    assert ratio is not None and ratio.count == 8


def test_few_rounds_show_nothing_however_clear() -> None:
    rounds, _ = in_rounds(14, a=wobbling(10), b=wobbling(30))
    assert verdicts(rounds, "a", "b")[1] == OPEN


def test_a_noisy_reference_hides_a_small_gain() -> None:
    def noisy(run: int) -> float:
        return 10 * (1.3 if run % 2 else 1.0)

    rounds, _ = in_rounds(a=noisy, b=wobbling(12.5))
    assert verdicts(rounds, "a", "b")[1] == OPEN


def test_a_build_that_fails_twice_is_out_and_not_run_again() -> None:
    rounds, order = in_rounds(a=wobbling(10), b=lambda _: None, c=wobbling(10))
    assert order.count("b") == 2
    assert verdicts(rounds, "a", "b", "c") == [OPEN, f"{OUT}: killed by SIGSEGV", OPEN]


@pytest.mark.parametrize(
    ("seconds", "count"), [(0, 1), (-5, 1), (14, 1), (15, 6), (17, 6), (18, 7), (1e4, 30)]
)
def test_rounds_are_as_many_as_fit_and_one_where_too_few_do(seconds: float, count: int) -> None:
    rounds, order = in_rounds(seconds, a=wobbling(10), b=wobbling(10))
    assert len(rounds) == count
    assert len(order) <= max(seconds, 3)


# Whole comparisons of fake engines


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """For comparisons of few rounds."""
    monkeypatch.setattr(comparison, "MOST_ROUNDS", 8)
    return tmp_path / "checkout"


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
    assert "measured, not significantly different" in found["reason"]


def test_each_is_measured_with_its_own_plan(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes = [fake(checkout, name) for name in ("build", "build-b")]
    as_json(checkout, capsys, "--no-selftest")
    one, two = ([run["argv"][1:] for run in each.benches()] for each in fakes)
    assert one[-1] == two[-1], "the same work"
    assert len(one) == 2 + 8 + 4 and len(two) == 8


def test_a_table_without_json(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake(checkout, "build")
    fake(checkout, "build-slow", threads={"1": 7, "2": 9})
    assert compare(checkout, "--no-selftest") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "build",
        "pp",
        "tokens/s",
        "tg",
        "tokens/s",
        "over",
        "build",
        "verdict",
    ]
    assert lines[2].startswith("build-slow") and lines[2].endswith(SLOWER)
    assert "8 rounds; noise: repeated runs varied by up to ×1." in lines[3]
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
    assert len(fakes[1].prompts()) == 8


def test_too_few_rounds_are_not_remembered(
    checkout: Path,
    own_state: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(comparison, "MOST_ROUNDS", 5)
    fake(checkout, "build")
    fake(checkout, "build-fast", threads={"1": 30, "2": 40})
    _, said = as_json(checkout, capsys, "--no-selftest")
    assert "too few rounds" in said
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
    assert "not allowed with --builds" in capsys.readouterr().err


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
    assert "nothing was saved" in said
    assert list(own_state.glob("builds-*")) == []
