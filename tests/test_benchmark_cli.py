"""benchmark_optimized.py as a user runs it: whole tunings of fake engines, in real processes."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bitnet_tuning import demo
from bitnet_tuning.bench.results import load, save
from bitnet_tuning.engine.find import has_embedded
from tests.bench_samples import sample_results
from tests.engines import FakeEngine

REPO = Path(__file__).resolve().parents[1]
SCRIPT = REPO / "benchmark_optimized.py"
SCHEMA = json.loads((REPO / "docs" / "results.schema.json").read_text())

QUIET = {"threads": {"1": 10, "2": 14}, "pp": 4.0, "noise": 0.01}
"""A machine without much noise."""


@pytest.fixture
def engine(tmp_path: Path) -> FakeEngine:
    return FakeEngine(tmp_path / "checkout", bench=True).curve(**QUIET)


def command(*flags: object) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, flags)]


def subject(engine: FakeEngine) -> list[object]:
    """The fake knows nothing of the demo model's words."""
    return ["--engine", engine.cli, "-m", demo.I2_S, "--no-selftest"]


def benchmark(*flags: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*flags),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "COLUMNS": "80", **variables},
    )


def tuned(
    engine: FakeEngine, output: Path, *flags: object, budget: int = 30
) -> subprocess.CompletedProcess[str]:
    return benchmark(*subject(engine), "--budget", budget, "--output", output, *flags)


def document(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(path.read_text())
    jsonschema.Draft202012Validator(SCHEMA).validate(facts)
    return facts


def plan(engine: FakeEngine) -> dict[str, Any]:
    done = subprocess.run(
        [
            *(sys.executable, str(REPO / "run_inference.py"), "--engine", str(engine.cli)),
            *("-m", demo.I2_S, "-p", "x", "--dry-run", "--json"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def test_the_winner_is_found_shown_remembered_and_used(engine: FakeEngine, tmp_path: Path) -> None:
    engine.curve(**QUIET, factors={"mmap=0": 1.3})
    output = tmp_path / "results.json"
    assert "--no-mmap" not in plan(engine)["command"]
    done = tuned(engine, output)
    assert done.returncode == 0, done.stderr
    assert "no mmap *" in done.stdout
    assert "The guide claims 2.0 to 3.5 times the speed of 2 threads" in done.stdout
    facts = document(output)
    assert facts["state"] == "finished"
    assert facts["decision"]["winner"] == "no mmap"
    assert facts["decision"]["estimate"]["low"] > facts["decision"]["floor"]
    assert facts["profile"]["stored"]
    assert facts["roof"]["facts"]["share"] > 0
    used = plan(engine)
    assert "--no-mmap" in used["command"]
    assert "measured on" in used["reasons"]["mmap"]
    assert "over the default" in used["reasons"]["mmap"]


def test_where_all_are_equal_the_default_stays(engine: FakeEngine, tmp_path: Path) -> None:
    engine.curve(threads={"1": 10}, pp=4.0, noise=0.1, outliers=0.02, seed=7)
    before = plan(engine)["command"]
    done = tuned(engine, tmp_path / "r.json", budget=12)
    assert done.returncode == 0, done.stderr
    facts = document(tmp_path / "r.json")
    assert facts["decision"]["winner"] == "default"
    assert facts["decision"]["verdict"] == "no difference shown"
    used = plan(engine)
    assert used["command"] == before
    assert "found nothing faster" in used["reasons"]["threads"]


def test_every_sample_is_kept_and_rounds_are_interleaved(
    engine: FakeEngine, tmp_path: Path
) -> None:
    output, table = tmp_path / "r.json", tmp_path / "r.csv"
    assert tuned(engine, output, "--csv", table, budget=8).returncode == 0
    facts = document(output)
    first = [run["setting"] for run in facts["rounds"][0]["runs"]]
    assert first.count("default") == 2
    assert {"upstream", "performance"} <= set(first)
    orders = {tuple(run["setting"] for run in each["runs"]) for each in facts["rounds"]}
    assert len(orders) > 1, "they take turns in who begins"
    samples = sum(
        len(speeds)
        for each in facts["rounds"]
        for run in each["runs"]
        for speeds in run["samples"].values()
    )
    with open(table, newline="") as file:
        assert len(list(csv.DictReader(file))) == samples


def test_a_crash_of_upstreams_default_is_a_reason_not_a_number(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.curve(**QUIET, crash={"threads=2,OMP_PROC_BIND=-": 11})
    done = tuned(engine, tmp_path / "r.json", budget=15)
    assert done.returncode == 0, done.stderr
    assert "failed" in done.stdout
    assert "SIGSEGV" in done.stdout.replace("\n", " ")
    runs = [
        run
        for each in document(tmp_path / "r.json")["rounds"]
        for run in each["runs"]
        if run["setting"] == "upstream"
    ]
    assert len(runs) == 2, "it is not tried for ever"
    assert all("SIGSEGV" in run["problem"] and not run["samples"] for run in runs)
    assert "2 threads could not be compared" in done.stdout


def test_an_engine_that_always_crashes_is_an_error_with_its_reason(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.curve(**QUIET, crash={"mmap=-": 4})
    done = tuned(engine, tmp_path / "r.json")
    assert done.returncode == 4
    assert "SIGILL" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize("how", ["json", "nan"])
def test_a_broken_answer_never_wins(engine: FakeEngine, tmp_path: Path, how: str) -> None:
    engine.curve(**QUIET, factors={"mmap=0": 3.0}, broken={"mmap=0": how})
    done = tuned(engine, tmp_path / "r.json", "--quick", budget=10)
    assert done.returncode == 0, done.stderr
    facts = document(tmp_path / "r.json")
    assert facts["decision"]["winner"] == "default"
    runs = [r for each in facts["rounds"] for r in each["runs"] if r["setting"] == "no mmap"]
    assert runs
    assert all(run["problem"] and not run["samples"] for run in runs)


def test_a_setting_that_changes_the_words_is_out(engine: FakeEngine, tmp_path: Path) -> None:
    engine.curve(**QUIET, factors={"flash=1": 2.0}, text={"flash=1": " other words"})
    done = tuned(engine, tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    facts = document(tmp_path / "r.json")
    assert facts["decision"]["winner"] == "default"
    assert [
        (check["setting"], "other words" in check["problem"])
        for check in facts["checks"]
        if check["problem"]
    ] == [("flash attention", True)]
    assert "wrong output" in done.stdout


def test_a_tuning_without_a_round_offers_no_resume(engine: FakeEngine, tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    engine.curve(**QUIET, seconds=1.5)
    running = subprocess.Popen(
        command(*subject(engine), "--output", output), stderr=subprocess.PIPE, text=True
    )
    _wait_for_rounds(output, 0)
    running.send_signal(signal.SIGINT)
    _, log = running.communicate(timeout=20)
    assert (running.returncode, document(output)["rounds"]) == (130, [])
    assert "interrupted before anything was measured" in log
    assert "--resume" not in log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_tuning_keeps_its_rounds_and_goes_on(
    engine: FakeEngine, tmp_path: Path, number: int
) -> None:
    output = tmp_path / "r.json"
    engine.curve(**QUIET, seconds=0.05, factors={"mmap=0": 1.3})
    running = subprocess.Popen(
        command(*subject(engine), "--budget", 60, "--output", output),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _wait_for_rounds(output, 3)
    running.send_signal(number)
    _, log = running.communicate(timeout=20)
    assert running.returncode == 128 + number
    assert f"--resume {output}" in log
    facts = document(output)
    assert facts["state"] == "interrupted"
    assert facts["profile"] is None
    done = benchmark("--resume", output, "--no-selftest")
    assert done.returncode == 0, done.stderr
    after = document(output)
    assert after["state"] == "finished"
    assert after["decision"]["winner"] == "no mmap"
    assert after["rounds"][: len(facts["rounds"])] == facts["rounds"]


def test_after_a_kill_at_most_the_round_under_way_is_lost(
    engine: FakeEngine, tmp_path: Path
) -> None:
    output = tmp_path / "r.json"
    engine.curve(**QUIET, seconds=0.05)
    running = subprocess.Popen(
        command(*subject(engine), "--budget", 60, "--output", output),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _wait_for_rounds(output, 2)
    running.kill()
    running.wait()
    facts = document(output)
    assert facts["state"] == "running"
    measured = len(engine.benches()) - 2  # without the two that found the sizes
    kept = sum(len(each["runs"]) for each in facts["rounds"])
    assert measured - kept <= len(facts["rounds"][0]["runs"])
    done = benchmark("--resume", output, "--no-selftest")
    assert done.returncode == 0, done.stderr
    assert document(output)["rounds"][: len(facts["rounds"])] == facts["rounds"]


def _wait_for_rounds(path: Path, count: int) -> None:
    for _ in range(600):
        if path.exists() and len(json.loads(path.read_text())["rounds"]) >= count:
            return
        time.sleep(0.05)
    pytest.fail(f"no {count} rounds within 30 s")


def test_another_engine_is_not_resumed(engine: FakeEngine, tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    assert tuned(engine, output, "--quick", budget=6).returncode == 0
    results = load(str(output))
    save(str(output), results._replace(decision=None, profile=None, state="interrupted"))
    os.utime(engine.cli, (1, 1))
    done = benchmark("--resume", output)
    assert done.returncode == 2
    assert "another engine" in done.stderr


def test_a_finished_tuning_is_not_resumed(engine: FakeEngine, tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    assert tuned(engine, output, "--quick", budget=6).returncode == 0
    done = benchmark("--resume", output)
    assert (done.returncode, "nothing is left to do" in done.stderr) == (2, True)


def test_modes_and_threads_restrict_what_is_measured(engine: FakeEngine, tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    assert tuned(engine, output, "--modes", "default", budget=8).returncode == 0
    assert set(document(output)["settings"]) == {"default", "upstream"}
    flags = ("--modes", "optimized", "--threads", "1,5", "--quick")
    assert tuned(engine, output, *flags, budget=8).returncode == 0
    names = set(document(output)["settings"])
    assert {"default", "1 thread", "5 threads"} <= names
    assert "upstream" not in names


def test_nothing_is_remembered_where_that_is_asked_for(engine: FakeEngine, tmp_path: Path) -> None:
    engine.curve(**QUIET, factors={"mmap=0": 1.3})
    before = plan(engine)["command"]
    output = tmp_path / "r.json"
    assert tuned(engine, output, "--no-remember").returncode == 0
    assert plan(engine)["command"] == before
    results = load(str(output))
    save(str(output), results._replace(decision=None, state="interrupted"))
    done = benchmark("--resume", output)
    assert (done.returncode, document(output)["profile"]) == (0, None), done.stderr
    assert plan(engine)["command"] == before


def test_what_the_users_own_variables_made_is_not_remembered(
    engine: FakeEngine, tmp_path: Path
) -> None:
    flags = (*subject(engine), "--quick", "--budget", 20, "--output", tmp_path / "r.json")
    done = benchmark(*flags, OMP_PLACES="threads")
    assert done.returncode == 0, done.stderr
    assert "Not saved: your OMP_PLACES took part in it" in done.stdout


def test_without_a_terminal_there_are_plain_lines(engine: FakeEngine, tmp_path: Path) -> None:
    done = tuned(engine, tmp_path / "r.json", "--quick", budget=6)
    assert "\x1b" not in done.stdout + done.stderr
    assert "round 1 (threads)" in done.stderr
    assert max(map(len, done.stdout.split("Keep")[0].splitlines())) <= 80


def test_json_goes_to_standard_output(engine: FakeEngine, tmp_path: Path) -> None:
    done = tuned(engine, tmp_path / "r.json", "--quick", "--json", budget=6)
    assert json.loads(done.stdout) == document(tmp_path / "r.json")


def test_by_default_results_go_into_a_dated_file(engine: FakeEngine, own_state: Path) -> None:
    done = benchmark(*subject(engine), "--quick", "--budget", 6)
    assert done.returncode == 0, done.stderr
    (path,) = own_state.glob("results-*.json")
    assert f"Results: {path}" in done.stdout


def test_a_report_is_written(engine: FakeEngine, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "report.html"
    done = tuned(engine, tmp_path / "r.json", "--quick", "--report", page, budget=6)
    assert done.returncode == 0, done.stderr
    assert "<svg" in page.read_text()


def test_two_results_are_compared(tmp_path: Path) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for seed, path in enumerate(paths):
        save(str(path), sample_results(seed))
    done = benchmark("--compare", *paths)
    assert done.returncode == 0, done.stderr
    assert "not significantly different" in done.stdout
    found = json.loads(benchmark("--compare", *paths, "--json").stdout)
    assert {each["phase"] for each in found["settings"]} == {"pp", "tg"}


def test_a_short_look_does_not_replace_what_a_long_one_found(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.curve(**QUIET, factors={"mmap=0": 1.3})
    assert tuned(engine, tmp_path / "r.json", budget=40).returncode == 0
    assert "--no-mmap" in plan(engine)["command"]
    engine.curve(**QUIET)
    done = tuned(engine, tmp_path / "r.json", "--quick", budget=20)
    assert "Not saved: the saved profile was measured on" in done.stdout
    assert "--no-mmap" in plan(engine)["command"]


def test_two_at_once_are_warned_and_none_takes_up_the_others_file(
    engine: FakeEngine, tmp_path: Path
) -> None:
    output = tmp_path / "r.json"
    engine.curve(**QUIET, seconds=0.1)
    running = subprocess.Popen(
        command(*subject(engine), "--budget", 60, "--output", output),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for_rounds(output, 1)
        other = benchmark("--resume", output)
        assert (other.returncode, "another benchmark is running" in other.stderr) == (2, True)
        third = tuned(engine, tmp_path / "s.json", "--quick", budget=6)
        assert "each disturbs the other" in third.stderr
        assert "another benchmark is running" in document(tmp_path / "s.json")["warnings"][0]
    finally:
        running.kill()
        running.wait()


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--quick", "--full"], 2, "not together"),
        (["--budget", "1"], 2, "--budget"),
        (["--threads", "1,x"], 2, "--threads"),
        (["--threads", "0"], 2, "--threads"),
        (["--modes", "fast"], 2, "'fast'"),
        (["--objective", "all"], 2, "--objective"),
        (["--compare", "no-such-file", "no-other"], 2, "no-such-file"),
        (["--resume", "no-such-file"], 2, "no-such-file"),
        (["--resume", "x", "--budget", "60"], 2, "--budget"),
        (["--output", "/no/such/folder/x.json"], 2, "/no/such/folder"),
        (["--report", "/"], 2, "folder"),
        (["--engine", "/no/such/engine"], 3, "/no/such/engine"),
        (["--engine", "ENGINE", "-m", "/no/such/model"], 3, "/no/such/model"),
    ],
)
def test_mistakes_are_told_in_a_line(
    engine: FakeEngine, flags: list[str], code: int, said: str
) -> None:
    done = benchmark(*(str(engine.cli) if flag == "ENGINE" else flag for flag in flags))
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_engine_that_writes_wrong_words_is_refused(engine: FakeEngine) -> None:
    done = benchmark("--engine", engine.cli, "-m", demo.I2_S, "--budget", 6)
    assert done.returncode == 4
    assert "writes wrong words" in done.stderr


@pytest.mark.skipif(not has_embedded(), reason="the embedded engine is not installed")
def test_a_whole_tuning_of_the_embedded_engine(tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    started = time.monotonic()
    done = benchmark("--engine", "embedded", "--budget", 40, "--output", output)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 60
    facts = document(output)
    assert facts["state"] == "finished"
    assert len(facts["rounds"]) >= 3
    assert facts["decision"]["winner"] in facts["settings"]


def test_a_part_of_the_settings_never_replaces_what_a_whole_tuning_found(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.curve(**QUIET, factors={"mmap=0": 1.3})
    assert tuned(engine, tmp_path / "whole.json").returncode == 0
    for flags in (("--modes", "default"), ("--threads", "2"), ("--quick", "--threads", "1")):
        done = tuned(engine, tmp_path / "part.json", *flags, "--no-selftest", budget=5)
        assert document(tmp_path / "part.json")["decision"]["winner"] == "default"
        assert "Not saved" in done.stdout
        assert "--no-mmap" in plan(engine)["command"]


def test_leaving_out_performance_mode_leaves_nothing_of_the_search_out(
    engine: FakeEngine, tmp_path: Path
) -> None:
    flags = ("--quick", "--modes", "default,optimized")
    done = tuned(engine, tmp_path / "r.json", *flags, budget=20)
    assert done.returncode == 0, done.stderr
    assert document(tmp_path / "r.json")["profile"]["stored"], done.stdout


def test_a_signal_after_the_decision_does_not_lose_it(engine: FakeEngine, tmp_path: Path) -> None:
    engine.curve(**QUIET, factors={"mmap=0": 1.3})
    output = tmp_path / "r.json"
    flags = (*subject(engine), "--budget", 20, "--output", output)
    running = subprocess.Popen(
        command(*flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not output.exists() or json.loads(output.read_text())["decision"] is None:
        time.sleep(0.005)
        assert running.poll() is None
    running.terminate()
    said, _ = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM
    assert "Saved: " in said
    assert "--no-mmap" in plan(engine)["command"]


def test_a_build_that_changes_meanwhile_is_not_remembered(
    engine: FakeEngine, tmp_path: Path
) -> None:
    output = tmp_path / "r.json"
    engine.curve(**QUIET, factors={"mmap=0": 1.3})
    flags = (*subject(engine), "--budget", 20, "--output", output)
    running = subprocess.Popen(
        command(*flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    _wait_for_rounds(output, 1)
    os.utime(engine.cli, (1, 1))
    said, log = running.communicate(timeout=60)
    assert running.returncode == 0, log
    assert f"Not saved: {engine.cli} is another build" in said
    assert "Saved: " not in said


@pytest.mark.parametrize("other", ["--csv", "--report"])
def test_two_kinds_of_output_never_share_a_file(
    engine: FakeEngine, tmp_path: Path, other: str
) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "x"
    os.symlink(path, tmp_path / "y")
    done = benchmark("--engine", engine.cli, "--output", path, other, tmp_path / "y")
    assert done.returncode == 2
    assert "the same file" in done.stderr


@pytest.mark.parametrize("flag", ["--output", "--csv"])
def test_the_model_is_never_written_over(engine: FakeEngine, tmp_path: Path, flag: str) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(Path(demo.I2_S).read_bytes())
    done = benchmark("--engine", engine.cli, "-m", model, "--no-selftest", flag, model)
    assert (done.returncode, model.stat().st_size) == (2, os.path.getsize(demo.I2_S))
