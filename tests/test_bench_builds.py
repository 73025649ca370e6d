"""benchmark_optimized.py --builds: comparing builds, and saving which one is fastest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bitnet_tuning import demo
from bitnet_tuning.bench import comparison
from bitnet_tuning.bench.builds import judge
from bitnet_tuning.bench.comparison import BOTH_EVERY, Rounds, Run, phases_of
from bitnet_tuning.cli.benchmark import main
from bitnet_tuning.engine.builds import EQUAL, FASTER, OPEN, OUT, SLOWER
from bitnet_tuning.errors import UnsupportedError
from bitnet_tuning.machine import conditions
from bitnet_tuning.plan.profile import PP, TG, Objective
from bitnet_tuning.prepare import find_pair
from bitnet_tuning.store.state import State
from tests.bench_samples import SNAPSHOT
from tests.conftest import REPOSITORY
from tests.engines import FakeEngine
from tests.processes import until
from tests.test_bench_check import KNOWN

pytestmark = pytest.mark.skipif(os.name == "nt", reason="fake engines are scripts")

SPEED = Objective(TG)
QUIET: dict[str, Any] = {
    "threads": {"1": 100_000, "2": 140_000},
    "noise": 0.01,
    "texts": KNOWN,
}

# Rounds without processes


Speed = Callable[[int], "float | None"]
"""Returns the tokens/s of a run by its number, None for a failure."""

Capture = pytest.CaptureFixture[str]


def wobbling(rate: float) -> Speed:
    return lambda run: rate * (1 + 0.01 * (run * 7 % 5 - 2))


def in_rounds(seconds: float = 10_000, **speeds: Speed) -> tuple[Rounds, list[str]]:
    """Measure rounds of runs that take a second each; return them and the order of all runs."""
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
    engine: Any = SimpleNamespace(path="/x/build/bin/llama-cli", isa=frozenset())
    return [each.verdict for each in judge(rounds, dict.fromkeys(names, engine)).builds]


def test_builds_take_turns() -> None:
    rounds, order = in_rounds(a=wobbling(10), b=wobbling(10), c=wobbling(10))
    turns = [tuple(order[place : place + 3]) for place in range(0, len(order), 3)]
    assert all({*each} == {"a", "b", "c"} for each in turns)
    assert len({*turns}) > 2
    assert len(rounds) == len(turns)


def test_only_some_rounds_measure_both_phases() -> None:
    rounds, _ = in_rounds(a=wobbling(10), b=wobbling(10))
    both = [each.number for each in rounds if PP in each.runs[0].samples]
    assert both[:2] == [1, 1 + BOTH_EVERY]


@pytest.mark.parametrize(
    ("rate", "verdict"), [(12.0, FASTER), (10.0, EQUAL), (10.1, EQUAL), (8.0, SLOWER)]
)
def test_only_a_difference_beyond_the_noise_counts(rate: float, verdict: str) -> None:
    rounds, _ = in_rounds(16, a=wobbling(10), b=wobbling(rate))
    assert verdicts(rounds, "a", "b") == [EQUAL, verdict]
    ratio = rounds.judge("b").ratio
    assert ratio is not None and ratio.count == 8


def test_few_rounds_give_no_verdict_however_clear() -> None:
    rounds, _ = in_rounds(11, a=wobbling(10), b=wobbling(30))
    assert verdicts(rounds, "a", "b")[1] == OPEN


def test_a_noisy_reference_hides_a_small_gain() -> None:
    def noisy(run: int) -> float:
        return 10 * (1.3 if run % 2 else 0.8)

    rounds, _ = in_rounds(30, a=noisy, b=wobbling(10.5))
    assert verdicts(rounds, "a", "b")[1] == OPEN


def test_a_build_that_fails_twice_is_out_and_not_run_again() -> None:
    rounds, order = in_rounds(a=wobbling(10), b=lambda _: None, c=wobbling(10))
    assert order.count("b") == 2
    assert verdicts(rounds, "a", "b", "c") == [EQUAL, f"{OUT}: killed by SIGSEGV", EQUAL]


@pytest.mark.parametrize(
    ("seconds", "count"), [(0, 1), (-5, 1), (11, 1), (12, 6), (13, 6), (14, 7), (1e4, 200)]
)
def test_there_are_as_many_rounds_as_fit_or_one_if_too_few_fit(seconds: float, count: int) -> None:
    rounds, order = in_rounds(
        seconds, a=lambda run: 10 + run * 7 % 5, b=lambda run: 9 + run * 5 % 7
    )
    assert len(rounds) == count
    assert len(order) <= max(seconds, 3)


# Whole comparisons of fake engines


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder for builds, which are compared in six rounds on a quiet machine."""
    monkeypatch.setattr(conditions, "take", lambda host: SNAPSHOT)
    monkeypatch.setattr(comparison, "MOST_ROUNDS", 6)
    return tmp_path / "checkout"


def fake(
    checkout: Path, build: str, bench: bool = True, server: bool = False, **curve: object
) -> FakeEngine:
    made = FakeEngine(checkout, bench=bench, build=build, server=server)
    return made.curve(**{**QUIET, **curve})


def flags(checkout: Path, *more: str) -> list[str]:
    return ["--builds", "--engine", str(checkout), "-m", demo.I2_S, "--budget", "900", *more]


def compare(checkout: Path, capsys: Capture, *more: str) -> tuple[dict[str, Any], str]:
    """Compare the builds; return the result and what stderr shows."""
    assert main(flags(checkout, "--json", *more)) == 0
    seen = capsys.readouterr()
    found: dict[str, Any] = json.loads(seen.out)
    return found, seen.err


def taken(checkout: Path, own_state: Path) -> str:
    """Return the engine that a run takes now."""
    return find_pair(str(checkout), demo.I2_S, State(str(own_state)))[0].path


def test_the_fastest_build_is_shown_saved_and_used(
    checkout: Path, own_state: Path, capsys: Capture
) -> None:
    first = fake(checkout, "build")
    fast = fake(checkout, "build-fast", threads={"1": 130_000, "2": 180_000})
    assert taken(checkout, own_state) == str(first.cli)
    found, _ = compare(checkout, capsys, "--no-selftest")
    assert (found["chosen"], found["rounds"]) == (str(fast.cli), 6)
    names = [(each["name"], each["verdict"]) for each in found["builds"]]
    assert names == [("build", EQUAL), ("build-fast", FASTER)]
    ratio = found["builds"][1]["ratio"]
    assert 1 < ratio["low"] <= ratio["median"] <= ratio["high"]
    assert "measured fastest" in found["reason"]
    assert taken(checkout, own_state) == str(fast.cli)
    os.utime(fast.cli, ns=(1, fast.cli.stat().st_mtime_ns + 1_000_000))  # built again
    assert taken(checkout, own_state) == str(first.cli)


def test_of_equal_builds_the_instruction_sets_decide(
    checkout: Path, own_state: Path, capsys: Capture
) -> None:
    fakes = [fake(checkout, "build"), fake(checkout, "build-b", seed=2)]
    found, _ = compare(checkout, capsys, "--no-selftest")
    verdict = found["builds"][1]["verdict"]
    assert verdict in (OPEN, EQUAL)
    assert found["chosen"] == taken(checkout, own_state) == str(fakes[0].cli)
    assert ("none was measured to be faster" in found["reason"]) == (verdict == EQUAL)
    one, two = ([run["argv"][1:] for run in each.benches()] for each in fakes)
    assert one[-1] == two[-1], "both do the same work"
    # Two runs choose the sizes, and two check the clock, again if something disturbed them.
    assert len(one) >= 4 + 6 and len(two) == 6


def test_a_table_is_printed_and_nothing_saved_with_no_remember(
    checkout: Path, own_state: Path, capsys: Capture
) -> None:
    fake(checkout, "build")
    fake(checkout, "build-slow", threads={"1": 70_000, "2": 90_000})
    assert main(flags(checkout, "--no-selftest", "--no-remember")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("bitnet-tuning-demo (i2_s) on ")
    assert lines[2].split() == ["build", "pp", "tg", "over", "verdict"]
    assert lines[6].startswith("build-slow") and lines[6].endswith(SLOWER)
    assert lines[9] == "6 rounds with llama-bench"
    assert lines[10].startswith("Runs use ") and lines[11] == "Not saved: --no-remember."
    assert list(own_state.glob("builds-*")) == []


@pytest.mark.parametrize(("rate", "verdict"), [(2.0, FASTER), (0.5, OPEN)])
def test_under_load_only_a_faster_build_is_saved(
    checkout: Path,
    own_state: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    rate: float,
    verdict: str,
) -> None:
    before = SNAPSHOT._replace(busy_cpu_seconds=0.0, own_cpu_seconds=0.0)
    after = before._replace(time=before.time + 100, busy_cpu_seconds=150.0)
    snapshots = iter([before, after])
    monkeypatch.setattr(conditions, "take", lambda host: next(snapshots))
    fake(checkout, "build")
    threads = {"1": rate * 100_000, "2": rate * 140_000}
    fake(checkout, "build-b", threads=threads)
    fake(checkout, "build-c", threads={"1": 50_000, "2": 70_000})
    assert main(flags(checkout, "--no-selftest")) == 0
    out = capsys.readouterr().out
    saved = list(own_state.glob("builds-*"))
    if verdict == OPEN:
        assert saved == []
        cause = "other programs took 1.5 CPUs on average meanwhile"
        said = f"Not saved: {cause}, and another build may be best without that; close them"
        assert f"{said} and compare again." in out
        return
    assert out.endswith(f"Results: {saved[0]}\n")
    kept = json.loads(saved[0].read_text())["builds"]
    found = {Path(path).parts[-3]: each["verdict"] for path, each in kept.items()}
    assert found == {"build": EQUAL, "build-b": FASTER, "build-c": OPEN}


def test_a_build_that_writes_wrong_words_is_out_and_stays_out(
    checkout: Path, own_state: Path, capsys: Capture
) -> None:
    """It would be taken otherwise."""
    fake(checkout, "build", texts={})
    fine = fake(checkout, "build-b")
    fake(checkout, "build-c")
    found, said = compare(checkout, capsys)
    assert "build is left out" in said and "writes wrong words" in said
    verdicts = {each["name"]: each["verdict"] for each in found["builds"]}
    assert verdicts["build"] == f"{OUT}: wrong words" and verdicts["build-b"] == EQUAL
    assert found["chosen"] == taken(checkout, own_state) == str(fine.cli)


def test_a_build_for_another_cpu_is_not_measured(checkout: Path, capsys: Capture) -> None:
    fake(checkout, "build")
    fake(checkout, "build-b")
    dead = fake(checkout, "build-new").isa("AVX2", dies="model")
    found, said = compare(checkout, capsys, "--no-selftest")
    assert "build-new is left out" in said
    assert len(found["builds"]) == 2
    assert dead.benches() == []


def test_all_builds_are_measured_by_their_cli_if_one_has_no_llama_bench(
    checkout: Path, capsys: Capture
) -> None:
    fakes = [fake(checkout, "build"), fake(checkout, "build-b", bench=False)]
    found, _ = compare(checkout, capsys, "--no-selftest")
    assert len(found["builds"]) == 2
    assert fakes[0].benches() == []
    assert len(fakes[1].prompts()) == 6


def servers(*fakes: FakeEngine) -> list[int]:
    return [len(each.servers()) for each in fakes]


def test_builds_that_all_have_servers_are_measured_by_them(checkout: Path, capsys: Capture) -> None:
    quick: dict[str, Any] = {"threads": {"1": 1000, "2": 1400}, "lies": {}}
    fakes = [fake(checkout, build, server=True, **quick) for build in ("build", "build-b")]
    found, _ = compare(checkout, capsys, "--no-selftest")
    assert (found["program"], found["rounds"]) == ("llama-server", 6)
    assert servers(*fakes) == [1, 1]
    assert [each.benches() for each in fakes] == [[], []]


def test_if_one_server_fails_all_builds_are_measured_by_llama_bench(
    checkout: Path, capsys: Capture
) -> None:
    quick: dict[str, Any] = {"threads": {"1": 1000, "2": 1400}, "lies": {}}
    every = {f"threads={count}": "exit 3" for count in range(1, 300)}
    fake(checkout, "build", server=True, **quick)
    fake(checkout, "build-b", server=True, start=every, **quick)
    found, said = compare(checkout, capsys, "--no-selftest")
    assert found["program"] == "llama-bench"
    assert "build-b: llama-server cannot measure, so llama-bench does: " in said
    assert [each["verdict"] for each in found["builds"]] == [EQUAL, EQUAL]


def test_builds_without_a_server_among_them_are_measured_by_llama_bench(
    checkout: Path, capsys: Capture
) -> None:
    fakes = [fake(checkout, "build", server=True), fake(checkout, "build-b")]
    found, _ = compare(checkout, capsys, "--no-selftest")
    assert found["program"] == "llama-bench"
    assert servers(*fakes) == [0, 0]


def test_too_few_rounds_are_not_saved(
    checkout: Path, own_state: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "MOST_ROUNDS", 2)
    fake(checkout, "build")
    fake(checkout, "build-fast", threads={"1": 300_000, "2": 400_000})
    _, said = compare(checkout, capsys, "--no-selftest")
    assert "Not saved: too few rounds" in said
    assert list(own_state.glob("builds-*")) == []


def test_one_build_is_nothing_to_compare(checkout: Path, capsys: Capture) -> None:
    fake(checkout, "build")
    assert main(flags(checkout)) == 3
    assert "only one build" in capsys.readouterr().err
    fake(checkout, "build-new").isa("AVX2", dies="start")
    assert main(flags(checkout)) == UnsupportedError.exit_code
    assert "nothing to compare" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--threads=2", "--csv=x", "--output=x", "--modes=default"])
def test_options_of_a_search_are_refused(flag: str, capsys: Capture) -> None:
    assert main(["--builds", flag]) == 2
    assert "not allowed with --builds" in capsys.readouterr().err


def test_an_interrupted_comparison_saves_nothing(checkout: Path, own_state: Path) -> None:
    fake(checkout, "build")
    slow = fake(checkout, "build-b", seconds=300)
    program = str(REPOSITORY / "benchmark_optimized.py")
    command = [sys.executable, program, *flags(checkout, "--no-selftest")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        until(slow.benches)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "nothing was saved" in said
    assert list(own_state.glob("builds-*")) == []
