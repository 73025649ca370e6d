"""The benchmark against upstream's launcher: rows, quotas, ratios, and whole runs on a fake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import against_upstream as benchmark
from benchmarks.against_upstream import (
    ONE,
    ONE_BOUND,
    OURS,
    ROWS,
    UPSTREAM,
    Row,
    busy_cpus,
    compare,
    inside,
    joined,
    mean,
    possible,
    quota_group,
    start_of,
)
from benchmarks.weather import BOUND, Sample, Subject, load_samples, prepare
from bitnet_tuning import demo
from bitnet_tuning.launch.background import capture
from bitnet_tuning.machine.process import Family
from bitnet_tuning.machine.root import Root
from tests.engines import FakeEngine
from tests.processes import SECONDS

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "against_upstream.py"


def row(name: str) -> Row:
    return next(each for each in ROWS if each.name == name)


def samples(name: str, **speeds: list[float]) -> list[Sample]:
    return [
        Sample(name, number, side, speed, 100 / speed, 1)
        for side, found in speeds.items()
        for number, speed in enumerate(found, 1)
    ]


def subject(tmp_path: Path) -> Subject:
    engine = FakeEngine(tmp_path / "checkout")
    return prepare(str(engine.checkout), demo.I2_S, 8, str(tmp_path / "state"))


def test_sides_of_the_rows() -> None:
    assert row("idle").sides == (OURS, UPSTREAM)
    assert row("quota 1.5").sides == (OURS, UPSTREAM, ONE)
    assert row("two at once").sides == (OURS, UPSTREAM, ONE_BOUND)
    assert row("two containers").sides == (OURS, UPSTREAM, ONE, ONE_BOUND)


def test_upstream_starts_two_threads_without_variables(tmp_path: Path) -> None:
    start = start_of(UPSTREAM, row("idle"), subject(tmp_path), "bare.py")
    assert start.argv[:4] == (sys.executable, "bare.py", "-t", "2")
    assert start.argv[start.argv.index("-n") + 1] == "8"
    assert "--ignore-eos" in start.argv
    assert start.variables == {}


def test_this_launcher_starts_as_installed(tmp_path: Path) -> None:
    whole = subject(tmp_path)
    start = start_of(OURS, row("idle"), whole, "bare.py")
    assert start.argv[1].endswith("run_inference.py")
    assert "-t" not in start.argv
    assert set(start.variables) == {"BITNET_TUNING_HOME"}
    start = start_of(OURS, row("two at once"), whole, "bare.py")
    assert start.argv[start.argv.index("-t") + 1] == "1"


def test_single_threads_may_be_bound(tmp_path: Path) -> None:
    whole = subject(tmp_path)
    for side, variables in ((ONE, {}), (ONE_BOUND, BOUND)):
        start = start_of(side, row("two containers"), whole, "bare.py")
        assert start.argv[start.argv.index("-t") + 1] == "1"
        assert start.variables == variables
    assert start_of(UPSTREAM, row("two at once"), whole, "").argv[3] == "1"


def test_programs_at_once_are_added() -> None:
    first, second = samples("two at once", ours=[4, 6])
    both = joined([first, second._replace(round=1)], [True, False, False, False])
    assert both.speed == 10
    assert both.parts == (4, 6)
    assert both.crowded == 0.25
    assert both.round == 1
    failed = joined([first, second._replace(speed=None, problem="it died")], [])
    assert failed.speed is None
    assert failed.problem == "it died"
    assert failed.crowded is None


def test_cpus_of_running_threads() -> None:
    assert busy_cpus(Family(Root(), os.getpid())) <= os.sched_getaffinity(0)
    assert busy_cpus(Family(Root(), os.getpid()))  # the thread that looks


def test_rows_are_compared_within_rounds() -> None:
    measured = samples("idle", ours=[11, 22], upstream=[10, 20])
    measured += samples("quota 1", ours=[9, 18], upstream=[10, 20])
    first, second = compare(measured)
    assert (first.row, second.row) == ("idle", "quota 1")
    assert first.speed is not None
    assert first.speed.median == pytest.approx(1.1)
    assert first.time is not None
    assert first.time.median == pytest.approx(1.1)  # twice as fast takes half the time
    assert first.medians == {OURS: 16.5, UPSTREAM: 15}
    assert mean([first, second]) == pytest.approx((1.1 * 0.9) ** 0.5)
    assert mean([first, second], ["idle"]) == pytest.approx(1.1)
    assert mean([]) is None


def test_tables_of_a_report(tmp_path: Path) -> None:
    measured = samples("idle", ours=[11, 22], upstream=[10, 20])
    quota = samples("quota 1", ours=[9, 18], upstream=[10, 20])
    quota += [each._replace(setting=ONE, speed=40) for each in quota[:2]]
    pair = samples("two at once", upstream=[6])[0]._replace(parts=(4, 2), crowded=0.5)
    runs = [each._asdict() for each in (*measured, *quota, pair)]
    engine = {"name": "fake", "openmp": "libomp", "model": "m.gguf", "samples": runs}
    file = tmp_path / "report.json"
    file.write_text(json.dumps({"engines": [engine]}))
    command = [sys.executable, str(SCRIPT), "--show", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    words = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "| idle | 15.0 | 16.5 | 1 | ×1.10 (1.10–1.10) | ×1.10 (1.10–1.10) |" in words
    assert "geometric mean of idle, quota 1: 0.995; of all rows: 0.995" in words
    assert "below 0.97: quota 1" in words
    assert "| two at once | upstream | 2.0 + 4.0 | 1 | 50% |" in words
    assert any(line.startswith("| quota 1 | 40.0, 15.0: ×0.35") for line in words)


def test_a_program_in_a_group_has_its_quota() -> None:
    try:
        with quota_group(1.25, "bitnet-test") as group:
            argv = inside(group, (sys.executable, "-m", "bitnet_tuning", "host", "--json"))
            done = capture(argv, seconds=SECONDS)
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    assert json.loads(done.stdout)["cpu_quota"] == 1.25
    assert not group.exists()


def test_a_folder_that_takes_no_quota_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "version2").mkdir()
    (tmp_path / "version2" / "cgroup.controllers").write_text("memory\n")
    (tmp_path / "version1").mkdir()
    parents = [tmp_path / "version2", tmp_path / "version1", tmp_path / "none"]
    with pytest.raises(OSError), quota_group(1.0, "bitnet-test", parents):
        pass
    assert not list((tmp_path / "version1").iterdir())
    assert [path.name for path in parents[0].iterdir()] == ["cgroup.controllers"]


def test_rows_with_a_quota_are_left_out_where_none_can_be_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "cpu_groups", lambda: iter(()))
    names = [each.name for each in possible(ROWS)]
    assert names == ["idle", "one CPU", "spin-1", "spin-2", "two at once"]
    assert "left out: quota 0.5, " in capsys.readouterr().err


def test_both_launchers_run_whole_programs(tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path / "checkout").curve(threads={"1": 20, "2": 10})
    file = tmp_path / "out.json"
    named = ("--engine", str(engine.checkout), "-m", demo.I2_S, "--json", str(file))
    command = [sys.executable, str(SCRIPT), *named, "--rounds", "1"]
    command += ["--rows", "one CPU,spin-1,two at once"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(file.read_text())["engines"]
    runs = {(each.weather, each.setting): each for each in load_samples(found)}
    assert len(runs) == 2 + 2 + 3
    assert not any(each.problem for each in runs.values())
    assert runs["spin-1", UPSTREAM].speed == pytest.approx(10)
    assert runs["one CPU", OURS].speed == pytest.approx(20)
    assert runs["two at once", ONE_BOUND].parts == pytest.approx((20, 20))
    assert "| two at once |" in done.stdout
