"""The benchmarks of a busy machine: neighbours, samples, ratios, and whole programs on a fake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import neighbours as benchmark
from benchmarks.neighbours import DEFAULT, judge, judge_all, sensible_counts, settings
from benchmarks.weather import (
    Report,
    Sample,
    Weather,
    explained,
    load_samples,
    markdown,
    neighbours,
    paired,
    parse_weather,
    read_sample,
    thread_counts,
)
from bitnet_tuning import demo
from bitnet_tuning.errors import MissingError
from bitnet_tuning.launch.background import Captured
from tests.engines import FakeEngine
from tests.processes import SECONDS, alive, programs, until

SCRIPTS = Path(__file__).resolve().parents[1] / "benchmarks"

LOG = """\
system_info: n_threads = 2 (n_threads_batch = 2) / 2 | AVX = 1 |
llama_perf_context_print: prompt eval time =      50.00 ms /     5 tokens
llama_perf_context_print:        eval time =    1000.00 ms /    40 runs
"""


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)


def samples(weather: str, **speeds: list[float]) -> list[Sample]:
    """Return one sample a round for each setting; ``one`` stands for "1, as is"."""
    return [
        Sample(weather, number, name, speed, 1.0, 1)
        for name, found in speeds.items()
        for number, speed in enumerate(found, 1)
    ]


def members(group: int) -> list[int]:
    """Return the running processes of a process group."""
    found = programs(lambda _: True)
    return [each.pid for each in found if alive(each.pid) and os.getpgid(each.pid) == group]


def test_names_of_weathers() -> None:
    assert parse_weather("idle") == Weather("idle")
    assert parse_weather("spin-2") == Weather("spin-2", "spin", 2)
    assert parse_weather("nice-4") == Weather("nice-4", "spin", 4, 19)
    assert parse_weather("session-1") == Weather("session-1", "spin", 1, 19, session=True)
    assert parse_weather("blink") == Weather("blink", "blink", 1)
    for wrong in ("rain-2", "spin-0", "spin-x", ""):
        with pytest.raises(ValueError):
            parse_weather(wrong)


@pytest.mark.parametrize("name", ["spin-2", "nice-1", "session-1", "burst-1", "memory-1", "blink"])
def test_neighbours_run_in_the_block_only(name: str) -> None:
    weather = parse_weather(name)
    with neighbours(weather, 0) as started:
        assert len(started) == weather.programs
        assert all(map(alive, started))
        assert all(os.getpriority(os.PRIO_PROCESS, each) >= weather.nice for each in started)
    until(lambda: not any(map(alive, started)))


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="no autogroups")
@pytest.mark.parametrize(("name", "nice"), [("spin-1", 0), ("nice-1", 19), ("session-1", 0)])
def test_niceness_of_a_session(name: str, nice: int) -> None:
    with neighbours(parse_weather(name), 0) as started:
        text = Path(f"/proc/{started[0]}/autogroup").read_text()
    assert text.split()[-1] == str(nice)


def test_programs_of_a_chain_end_with_it() -> None:
    with pytest.raises(KeyboardInterrupt), neighbours(parse_weather("compile"), 0) as started:
        group = os.getpgid(started[0])
        until(lambda: len(members(group)) == 2)  # the chain, and the program that it started
        raise KeyboardInterrupt
    until(lambda: not members(group))


def test_a_neighbour_that_ends_is_an_error() -> None:
    with (
        pytest.raises(RuntimeError, match="spin-1 ended too early"),
        neighbours(parse_weather("spin-1")) as started,
    ):
        os.kill(started[0], signal.SIGKILL)
        until(lambda: not alive(started[0]))


def test_a_neighbour_ends_with_the_program_that_started_it() -> None:
    command = [sys.executable, "-IS", str(SCRIPTS / "neighbour.py"), "spin"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdin is not None
        assert first.stdout is not None
        started = int(first.stdout.readline())
        assert alive(started)
        first.stdin.close()
        until(lambda: not alive(started))


def test_a_neighbour_is_no_child_of_the_benchmark() -> None:
    with neighbours(parse_weather("spin-1"), 0) as started:
        parent = int(Path(f"/proc/{started[0]}/stat").read_text().rpartition(")")[2].split()[1])
        assert parent != os.getpid()


def test_a_sample_is_read_from_the_log() -> None:
    read = read_sample("idle", 1, DEFAULT, Captured(0, "", LOG), 2.5)
    assert read == Sample("idle", 1, DEFAULT, 40.0, 2.5, 2, 100.0)


@pytest.mark.parametrize(
    ("done", "problem"),
    [
        (Captured(0, "", "no figures"), "no timing"),
        (Captured(3, "", LOG), "exit code 3"),
        (Captured(None, "", LOG), "180 seconds"),
    ],
)
def test_a_failed_run_has_no_speed(done: Captured, problem: str) -> None:
    read = read_sample("idle", 1, DEFAULT, done, 2.5)
    assert read.speed is None
    assert problem in (read.problem or "")


def test_ratios_are_taken_within_rounds() -> None:
    measured = samples("idle", a=[10, 20, 40], b=[5, 10])
    assert paired(measured, "a", "b") == [2, 2]
    measured.append(Sample("idle", 3, "b", None, 1.0, problem="it failed"))
    assert paired(measured, "a", "b") == [2, 2]


def test_the_best_setting_is_the_one_with_the_highest_median() -> None:
    row = judge("spin-1", samples("spin-1", default=[9, 18, 9], x=[10, 20, 10], y=[99, 1, 1]))
    assert row is not None
    assert row.best == "x"
    assert row.ratio is not None
    assert row.ratio.median == pytest.approx(0.9)
    assert row.missed
    assert row.aim == 0.95


def test_luck_does_not_count_against_the_best_of_the_other_rounds() -> None:
    row = judge("idle", samples("idle", default=[10, 10], x=[12, 8], y=[8, 9]))
    assert row is not None
    assert row.best == "x"
    assert row.ratio is not None
    assert row.fair is not None
    assert row.ratio.median == pytest.approx((10 / 12 * 10 / 8) ** 0.5)
    assert row.fair.median == pytest.approx(10 / 8)  # each round alone would choose the other
    assert row.aim == 0.99


def test_a_default_that_always_fails_misses_the_goal(capsys: pytest.CaptureFixture[str]) -> None:
    failed = Sample("spin-2", 1, DEFAULT, None, 1.0, problem="it hung")
    runs = [failed, *samples("spin-2", x=[1]), *samples("idle", default=[1], x=[1])]
    facts = {"name": "fake", "openmp": "none", "model": "m.gguf"}
    benchmark.show({**facts, "samples": [each._asdict() for each in runs]})
    out = capsys.readouterr().out
    assert "failed 1 times: spin-2, default: it hung" in out
    assert out.rstrip().endswith("below it: spin-2")


def test_without_a_default_or_another_setting_there_is_no_row() -> None:
    assert judge("idle", samples("idle", default=[1])) is None
    assert judge("idle", samples("idle", x=[1])) is None


def test_rows_are_in_the_order_of_the_weathers() -> None:
    names = ("compile", "nice-2", "spin-4", "spin-2", "idle")
    measured = [each for name in names for each in samples(name, default=[1], x=[1])]
    rows = [row.weather for row in judge_all(measured)]
    assert rows == ["idle", "spin-2", "spin-4", "nice-2", "compile"]


def test_settings_of_each_kind_of_build() -> None:
    assert list(settings("none", (1, 2))) == ["1, as is", "2, as is"]
    libomp = settings("libomp", (1, 2))
    assert list(libomp) == ["1, as is", "2, as is", "2, bound", "2, passive"]
    assert libomp["2, passive"] == (2, {"KMP_BLOCKTIME": "0"})
    assert settings("libgomp", (2,))["2, passive"] == (2, {"OMP_WAIT_POLICY": "passive"})


def test_counts_and_weathers_of_larger_machines() -> None:
    assert sensible_counts(2) == (1, 2)
    assert sensible_counts(12) == (1, 2, 4, 8, 11, 12)
    assert sensible_counts(8) == (1, 2, 4, 7, 8)
    assert benchmark.usual_weathers(2)[:4] == ("idle", "spin-1", "spin-2", "spin-4")
    assert benchmark.usual_weathers(8)[1:5] == ("spin-1", "spin-4", "spin-8", "spin-16")
    assert "session-1" not in benchmark.usual_weathers(2)
    assert "session-1" in benchmark.usual_weathers(2, autogroups=True)


def test_thread_counts_in_words() -> None:
    measured = [Sample("idle", at, DEFAULT, 1.0, 1.0, 2) for at in range(3)]
    assert thread_counts(measured, DEFAULT) == "2"
    assert thread_counts([*measured, measured[0]._replace(threads=1)], DEFAULT) == "1×1, 2×3"
    assert thread_counts([], DEFAULT) == "–"


def test_a_table_is_aligned() -> None:
    assert markdown(("a", "b"), [("long", "1")]).splitlines() == [
        "| a    | b |",
        "| ---- | - |",
        "| long | 1 |",
    ]


def test_a_report_keeps_samples(tmp_path: Path) -> None:
    report = Report(str(tmp_path / "report.json"), tokens=3)
    measured = samples("idle", default=[1.5])
    report.engines.append({"samples": [each._asdict() for each in measured]})
    report.save()
    read = json.loads((tmp_path / "report.json").read_text())
    assert read["tokens"] == 3
    assert load_samples(read["engines"][0]) == measured
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def measured(
    tmp_path: Path, *flags: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run neighbours.py on a fake engine whose second thread slows it down."""
    engine = FakeEngine(tmp_path / "checkout").curve(threads={"1": 20, "2": 10})
    file = tmp_path / "out.json"
    named = ("--engine", str(engine.checkout), "-m", demo.I2_S, "--json", str(file))
    done = run("neighbours.py", *named, "--threads", "1,2", "--settle", "0", *flags)
    return done, json.loads(file.read_text())


def test_neighbours_measures_default_and_settings_by_turns(tmp_path: Path) -> None:
    done, report = measured(tmp_path, "--weathers", "idle,spin-1", "--rounds", "2")
    assert done.returncode == 0, done.stderr
    (engine,) = report["engines"]
    runs = load_samples(engine)
    assert len(runs) == 2 * 2 * 3
    assert {each.weather for each in runs} == {"idle", "spin-1"}
    speeds = {each.setting: each.speed for each in runs}
    assert speeds["1, as is"] == pytest.approx(20)
    assert speeds["2, as is"] == pytest.approx(10)
    assert "| spin-1 " in done.stdout
    assert "2 rounds" in done.stdout
    again = run("neighbours.py", "--show", str(tmp_path / "out.json"))
    assert again.stdout == done.stdout


def test_neighbours_counts_starts() -> None:
    flags = ("--starts", "2", "--weathers", "idle", "-m", demo.I2_S)
    done = run("neighbours.py", *flags)
    assert done.returncode == 0, done.stderr
    assert "2 starts in each weather" in done.stdout
    assert "| idle    |" in done.stdout


def test_share_of_starts_that_lost_a_thread(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.lost_share([2, 2, 1, 2], 2) == 0.25
    assert benchmark.lost_share([2, 2], 2) == 0
    runs = [benchmark.Started("blink", n, 10 * n, f"{n} why") for n in (2, 2, 1, 2)]
    benchmark.show_starts(runs, 2)
    out = capsys.readouterr().out
    assert "| blink   | 1: 1, 2: 3      | 25.0%        | 20             |" in out
    assert "blink: 3 times: 2 why" in out


def test_ctrl_c_keeps_what_was_measured_and_ends_neighbours(tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path / "checkout").curve(threads={"1": 20, "2": 10})
    file = tmp_path / "out.json"
    named = ("--engine", str(engine.checkout), "-m", demo.I2_S, "--json", str(file))
    command = [sys.executable, str(SCRIPTS / "neighbours.py"), *named]
    more = ("--rounds", "1000", "--weathers", "spin-2", "--threads", "1", "--settle", "0")
    with subprocess.Popen(
        [*command, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        until(file.exists)
        process.send_signal(signal.SIGTERM)
        out, log = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, log
    assert "stopped" in log
    assert "Traceback" not in log
    assert "| spin-2 " in out  # conftest.py fails if a neighbour is left


def test_without_an_engine_it_says_what_to_name() -> None:
    done = run("neighbours.py", "--rounds", "1")
    assert done.returncode == 1
    assert "--engine FOLDER" in done.stderr


def test_a_benchmark_says_what_it_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    def lacking() -> int:
        raise MissingError("no engine", "name one with --engine")

    assert explained(lacking) == 3
    assert capsys.readouterr().err == "bitnet-tuning: error: no engine\n  name one with --engine\n"


@pytest.mark.parametrize(
    ("program", "module", "extra"),
    [
        ("benchmarks.tuner_trials", "optuna", "test"),
        ("tools.train_demo_model", "torch", "train"),
        ("tools.embedding_loss", "torch", "train"),
    ],
)
def test_programs_name_the_extra_that_is_missing(program: str, module: str, extra: str) -> None:
    hidden = f"import runpy, sys; sys.modules[{module!r}] = None; sys.path.insert(0, '.')"
    code = f"{hidden}; runpy.run_module({program!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=SCRIPTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert f"the extra {extra}" in done.stderr
