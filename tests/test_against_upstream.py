"""The benchmark against upstream's launcher: rows, quotas, ratios, chart, and runs on a fake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import against_upstream as benchmark
from benchmarks import quota
from benchmarks.against_upstream import (
    Case,
    busy_cpus,
    expected_seconds,
    is_clear,
    joined,
    measure,
    possible,
    read_options,
    start_of,
    write_bare,
)
from benchmarks.chart import Bar, Group, chart
from benchmarks.quota import inside, quota_group
from benchmarks.upstream_rows import (
    DEFAULT,
    ONE,
    ONE_BOUND,
    OURS,
    ROWS,
    UPSTREAM,
    VARIANT,
    Row,
)
from benchmarks.upstream_tables import builds, compare, mean, picture, table
from benchmarks.weather import BOUND, Sample, load_samples, prepare
from bitnet_tuning import demo
from bitnet_tuning.launch.background import capture
from bitnet_tuning.machine.process import Family
from bitnet_tuning.machine.root import Root
from bitnet_tuning.plan.profile import Estimate
from tests.engines import FakeEngine
from tests.gguf_files import write_bitnet
from tests.processes import SECONDS

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "against_upstream.py"


def row(name: str) -> Row:
    return next(each for each in ROWS if each.name == name)


def samples(name: str, **speeds: Sequence[float]) -> list[Sample]:
    return [
        Sample(name, number, side, speed, 100 / speed, 1)
        for side, found in speeds.items()
        for number, speed in enumerate(found, 1)
    ]


def case(tmp_path: Path) -> Case:
    engine = FakeEngine(tmp_path / "checkout")
    subject = prepare(str(engine.checkout), demo.I2_S, 8, str(tmp_path / "state"))
    return Case(subject, "bare.py", 8, "slim.gguf")


def value(argv: Sequence[str], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_sides_of_the_rows() -> None:
    assert row("idle").sides() == (OURS, UPSTREAM, VARIANT)
    assert row("quota 1.5").sides() == (OURS, UPSTREAM)
    assert row("quota 1.5").sides(more=True) == (OURS, UPSTREAM, VARIANT, ONE)
    assert row("32 prompts").sides(more=True) == (OURS, UPSTREAM, VARIANT)
    assert row("two at once").sides() == (OURS, UPSTREAM, ONE_BOUND)
    assert row("two containers").sides() == (OURS, UPSTREAM, ONE, ONE_BOUND)


def test_rows_that_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert [each.name for each in read_options([]).rows] == list(DEFAULT)
    assert read_options(["--rows", "all"]).rows == ROWS
    assert [each.name for each in read_options(["--rows", "spin-1, idle"]).rows] == [
        "spin-1",
        "idle",
    ]
    with pytest.raises(SystemExit):
        read_options(["--rows", "idle,rain"])
    assert "no such row: rain" in capsys.readouterr().err


def test_upstream_starts_two_threads_without_variables(tmp_path: Path) -> None:
    start = start_of(UPSTREAM, row("idle"), case(tmp_path))
    assert start.argv[:4] == (sys.executable, "bare.py", "-t", "2")
    assert value(start.argv, "-n") == "8"
    assert "--ignore-eos" in start.argv
    assert "-b" not in start.argv
    assert start.variables == {}
    variant = start_of(VARIANT, row("idle"), case(tmp_path / "another"))
    assert variant.argv[2:4] == ("-t", "2")
    assert value(variant.argv, "-b") == "1"


def test_the_engine_gets_what_upstream_gives_it(tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path / "checkout")
    subject = prepare(str(engine.checkout), demo.I2_S, 8, str(tmp_path / "state"))
    whole = Case(subject, write_bare(subject, str(tmp_path)), 8)
    assert capture(start_of(UPSTREAM, row("idle"), whole, "Hi").argv, seconds=SECONDS).code == 0
    argv = engine.prompts()[-1]["argv"]
    # The flags of run_inference.py in microsoft/BitNet of 21 July 2026, in its order.
    flags = ["-m", "-n", "-t", "-p", "-ngl", "-c", "--temp"]
    assert argv[1:15:2] == flags
    assert [value(argv, each) for each in flags[1:]] == ["8", "2", "Hi", "0", "2048", "0.0"]


def test_this_launcher_starts_as_installed(tmp_path: Path) -> None:
    whole = case(tmp_path)
    start = start_of(OURS, row("idle"), whole)
    assert start.argv[1].endswith("run_inference.py")
    assert "-t" not in start.argv
    assert set(start.variables) == {"BITNET_TUNING_HOME"}
    assert value(start_of(OURS, row("two at once"), whole).argv, "-t") == "1"


def test_only_this_launcher_gets_the_slim_file(tmp_path: Path) -> None:
    whole = case(tmp_path)
    ours, upstream = (start_of(side, row("slim file"), whole).argv for side in (OURS, UPSTREAM))
    assert value(ours[::-1], "slim.gguf") == "-m"
    assert ours.index("slim.gguf") > ours.index(demo.I2_S)  # the last one counts
    assert "slim.gguf" not in upstream
    assert "slim.gguf" not in start_of(OURS, row("idle"), whole).argv


def test_single_threads_may_be_bound(tmp_path: Path) -> None:
    whole = case(tmp_path)
    for side, variables in ((ONE, {}), (ONE_BOUND, BOUND)):
        start = start_of(side, row("two containers"), whole)
        assert value(start.argv, "-t") == "1"
        assert start.variables == variables
    assert start_of(UPSTREAM, row("two at once"), whole).argv[3] == "1"


def pairs(ratios: Sequence[float]) -> list[Sample]:
    return samples("idle", ours=[10 * each for each in ratios], upstream=[10.0] * len(ratios))


def test_clear_rows_are_those_that_a_strict_look_decides() -> None:
    assert not is_clear([])
    assert not is_clear(pairs([1.5] * 10))
    assert is_clear(pairs([1.5] * 11))
    assert is_clear(pairs([1.0] * 11))  # equal
    assert not is_clear(pairs([1.5, 0.7] * 6))


@contextmanager
def no_neighbours(_: object) -> Iterator[list[int]]:
    yield []


def measured(
    monkeypatch: pytest.MonkeyPatch, whole: Case, ratio: float, *flags: str, seconds: float = 0
) -> list[Sample]:
    """Return what a row measures if a run takes this time and has this ratio to upstream's."""
    now = [0.0]

    def sample(name: str, number: int, side: str, *_: object, **__: object) -> Sample:
        now[0] += seconds
        speed = None if not ratio else 10 * ratio if side == OURS else 10
        return Sample(name, number, side, speed, 1.0, 2, problem=None if speed else "it died")

    monkeypatch.setattr(benchmark, "sample", sample)
    monkeypatch.setattr(benchmark, "neighbours", no_neighbours)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    options = read_options(flags)
    return [each for found in measure(row("spin-1"), whole, options) for each in found]


def test_rows_end_when_they_are_clear_or_take_too_long(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = case(tmp_path)

    def rounds(ratio: float, *flags: str, seconds: float = 0) -> int:
        runs = measured(monkeypatch, whole, ratio, *flags, seconds=seconds)
        assert {each.setting for each in runs} == {OURS, UPSTREAM}
        return runs[-1].round

    assert rounds(1.5) == 6
    assert rounds(1.5, "--rounds", "20") == 11
    assert rounds(1.5, "--row-seconds", "50", seconds=5) == 5
    assert rounds(1.5, "--row-seconds", "50", seconds=40) == 2
    assert rounds(1.5, "--rounds", "1", seconds=40) == 1
    assert rounds(0) == 2  # failed twice


def test_sides_take_turns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs = measured(monkeypatch, case(tmp_path), 1.5, "--rounds", "2")
    assert [each.setting for each in runs] == [OURS, UPSTREAM, UPSTREAM, OURS]


def test_expected_time_counts_sides_rounds_and_shares() -> None:
    options = read_options(["--rounds", "6", "--row-seconds", "60"])

    def expected(name: str, run: float = 2.0) -> float:
        return expected_seconds(row(name), run, options, 2)

    assert expected("idle") == 6 * 3 * 2
    assert expected("one CPU") == expected("quota 1") == 6 * 2 * 4
    assert expected("idle", 20.0) == 2 * 3 * 20  # at least two rounds
    assert expected("idle") < expected("spin-1") < expected("spin-2") <= 65
    assert expected("32 prompts") == pytest.approx(2 * 2 * 2 * 32 * 0.7)


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
    assert (first.row.name, second.row.name) == ("idle", "quota 1")
    assert first.speed is not None
    assert first.speed.median == pytest.approx(1.1)
    assert first.time is not None
    assert first.time.median == pytest.approx(1.1)  # twice as fast takes half the time
    assert first.speeds[OURS] == [11, 22]
    assert mean([first, second]) == pytest.approx((1.1 * 0.9) ** 0.5)
    assert mean([first, second], ["idle"]) == pytest.approx(1.1)
    assert mean([]) is None
    assert compare(measured, VARIANT) == []


def saved(*runs: Sample, name: str = "fake", openmp: str = "libomp") -> dict[str, Any]:
    """Return a report with one engine."""
    found = [each._asdict() for each in runs]
    engine = {"name": name, "openmp": openmp, "model": "m.gguf", "samples": found}
    facts = {"processor": "EPYC", "cpus": 2, "busy": 0.01}
    return {"machine": facts, "tokens": 8, "date": "2026-11-28", "engines": [engine]}


def shown(tmp_path: Path, report: object, *flags: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report))
    command = [sys.executable, str(SCRIPT), "--show", str(file), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)


def test_tables_of_a_report(tmp_path: Path) -> None:
    idle = samples("idle", ours=[11, 22], upstream=[10, 20])
    idle += [each._replace(setting=VARIANT, speed=5) for each in idle[:1]]
    quotas = samples("quota 1", ours=[9, 18], upstream=[10, 20])
    quotas += [each._replace(setting=ONE, speed=40) for each in quotas[:2]]
    pair = samples("two at once", upstream=[6])[0]._replace(parts=(4, 2), crowded=0.5)
    done = shown(tmp_path, saved(*idle, *quotas, pair))
    assert done.returncode == 0, done.stderr
    words = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert words[:2] == [
        "EPYC, 2 CPUs, 2026-11-28",
        "m.gguf, 8 tokens a run, 0.01 CPUs busy before",
    ]
    assert (
        "| libomp | idle | 15.0 (10.0–20.0) | 16.5 (11.0–22.0) (1) | ×1.10 (1.10–1.10) "
        "| ×1.10 (1.10–1.10) | 2 |"
    ) in words
    assert (
        "libomp: geometric mean of idle, quota of 1 CPU: 0.995; of all rows: 0.995; "
        "below 0.97: quota of 1 CPU"
    ) in words
    assert any("| 5.00 | 16.5 (11.0–22.0) (1) | ×2.20 (1 round)" in line for line in words)
    assert "| two runs at once | upstream | 2.0 + 4.0 | 1 | 50% |" in words
    assert any(line.startswith("| quota of 1 CPU | 40.0, 15.0: ×0.35") for line in words)


def test_builds_are_named_for_their_openmp() -> None:
    engines = [
        {"name": name, "openmp": openmp}
        for name, openmp in (("a", "libomp"), ("b", "none"), ("c", "libomp"))
    ]
    assert builds(engines) == ["libomp, a", "no OpenMP", "libomp, c"]


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    reports: list[object] = [[], {"engines": [{"name": "x"}]}, {"engines": [{"samples": [{}]}]}]
    for report in reports:
        done = shown(tmp_path, report)
        assert done.returncode == 1
        assert "is no report of this benchmark" in done.stderr
        assert "Traceback" not in done.stderr


def test_reports_are_shown_as_one(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps(saved(*pairs([1.5]), openmp="none")))
    done = shown(tmp_path, saved(*pairs([1.1])), str(other))
    lines = [line for line in done.stdout.splitlines() if "1 round" in line]
    assert [line.split()[1] for line in lines] == ["libomp", "no"]


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "missing" / "file")
    drawn = shown(tmp_path, saved(*pairs([1.1])), "--svg", nowhere)
    command = [sys.executable, str(SCRIPT), "--json", nowhere]
    kept = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    for done in (drawn, kept):
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(f"cannot write {nowhere}: ")
        assert "Traceback" not in done.stderr


def test_failures_are_told_and_not_drawn(tmp_path: Path) -> None:
    died = samples("spin-2", ours=[1])[0]._replace(speed=None, problem="it died")
    report = saved(
        *samples("idle", ours=[11], upstream=[10]), died, *samples("spin-2", upstream=[1])
    )
    assert "libomp: failed 1 times: spin-2, ours: it died" in shown(tmp_path, report).stdout
    assert "| two busy programs |" in table(report["engines"]).replace("  ", "")
    assert "two busy programs" not in picture(report)


SVG = "{http://www.w3.org/2000/svg}"


def test_the_chart_has_a_bar_for_every_row(tmp_path: Path) -> None:
    runs = samples("idle", ours=[11] * 6, upstream=[10] * 6)
    runs += samples("one CPU", ours=[90] * 2, upstream=[2] * 2)
    runs += samples("quota 1", ours=[9, 9], upstream=[10, 10])
    runs += samples("quota 1.5", ours=[12], upstream=[10])
    report = saved(*runs)
    report["engines"] += saved(*runs, openmp="none")["engines"]
    file = tmp_path / "chart.svg"
    assert shown(tmp_path, report, "--svg", str(file)).returncode == 0
    assert file.read_text() == picture(report)
    drawn = ElementTree.fromstring(file.read_text())
    texts = ["".join(each.itertext()) for each in drawn.iter(f"{SVG}text")]
    for build in ("libomp", "no OpenMP"):
        at = texts.index(build)
        assert texts[at + 1 : at + 9] == [
            *("idle", "×1.10 (1.10–1.10)"),
            *("pinned to one CPU", "×45.0 (45.0–45.0)"),
            *("quota of 1 CPU", "×0.90 (0.90–0.90)"),
            *("quota of 1.5 CPUs", "×1.20 (1 round)"),
        ]
    kinds = [
        each.get("class") for each in drawn.iter() if each.get("class") in ("more", "less", "same")
    ]
    assert kinds == ["more", "more", "less", "same"] * 2
    assert "EPYC, 2 CPUs, 2026-11-28" in texts


def test_a_chart_is_escaped_and_keeps_bars_inside() -> None:
    ratios = [Estimate(0.1, 0.05, 0.2, 6), Estimate(1.0, 0.9, 1.1, 6), Estimate(3.9, 2.0, 99, 6)]
    text = chart("<&>", [Group("g", [Bar(f'a"{each}', each) for each in ratios])], ["x" * 200])
    drawn = ElementTree.fromstring(text)
    assert drawn.findtext(f"{SVG}title") == "<&>"
    bars = [each for each in drawn.iter(f"{SVG}rect") if each.get("class") != "page"]
    ends = [float(each.get("x", "")) + float(each.get("width", "")) for each in bars]
    assert all(float(each.get("x", "")) >= 148 for each in bars)
    assert all(end <= 300 for end in ends)
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


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
    monkeypatch.setattr(quota, "cpu_groups", lambda: iter(()))
    names = [each.name for each in possible(ROWS)]
    assert names == [
        *("idle", "one CPU", "spin-1", "spin-2", "slim file", "32 prompts", "two at once")
    ]
    assert "left out: quota 0.5, " in capsys.readouterr().err


def benchmarked(tmp_path: Path, *flags: str) -> tuple[Any, subprocess.CompletedProcess[str]]:
    """Run the benchmark and return the samples of each engine and the finished process."""
    file = tmp_path / "out.json"
    command = [sys.executable, str(SCRIPT), "--json", str(file), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    found = [
        {(each.weather, each.setting): each for each in load_samples(engine)}
        for engine in json.loads(file.read_text())["engines"]
    ]
    assert not any(each.problem for runs in found for each in runs.values())
    return found, done


def test_both_launchers_run_whole_programs(tmp_path: Path) -> None:
    engines = [FakeEngine(tmp_path / name) for name in ("first", "second")]
    named = []
    for engine in engines:
        engine.curve(threads={"1": 20, "2": 10})
        named += ["--engine", str(engine.checkout)]
    svg = tmp_path / "out.svg"
    flags = ("-m", demo.I2_S, "--rounds", "1", "--rows", "one CPU,spin-1,two at once")
    found, done = benchmarked(tmp_path, *named, *flags, "--svg", str(svg))
    assert len(found) == 2
    runs = found[0]
    assert len(runs) == 2 + 2 + 3
    assert runs["spin-1", UPSTREAM].speed == pytest.approx(10)
    assert runs["one CPU", OURS].speed == pytest.approx(20)
    assert runs["two at once", ONE_BOUND].parts == pytest.approx((20, 20))
    assert "3 rows of 2 builds: about " in done.stderr
    again = shown(tmp_path, json.loads((tmp_path / "out.json").read_text()))
    assert again.stdout == done.stdout
    assert svg.read_text().startswith("<svg")


def test_slim_file_and_many_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(tmp_path / "checkout", server=True, quantize=True)
    model = write_bitnet(tmp_path / "m.gguf")
    monkeypatch.setenv("FAKE_COPY", str(write_bitnet(tmp_path / "q6.gguf", embedding="q6_k")))
    flags = ("--rows", "slim file,32 prompts", "--rounds", "1", "--prompts", "3", "--tokens", "4")
    (runs,), _ = benchmarked(tmp_path, "--engine", str(engine.checkout), "-m", str(model), *flags)
    assert set(runs) == {
        (name, side) for name in ("slim file", "32 prompts") for side in (OURS, UPSTREAM)
    }
    argvs = [run["argv"] for run in engine.prompts()]
    texts = [value(argv, "-p") for argv in argvs if "threads 1?" in value(argv, "-p")]
    assert len(texts) == 1
    assert len(engine.asked()) == 3
    assert len(engine.quantized()) == 1
    used = {value(argv, "-m") for argv in argvs}
    (copy,) = (path for path in used if path.endswith("slim.gguf"))
    assert not os.path.exists(copy)
    many = runs["32 prompts", UPSTREAM]
    assert many.speed == pytest.approx(3 * 41 / many.seconds)  # the fake says 40 runs each


def test_a_slim_file_that_cannot_be_written_is_left_out(tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path / "checkout")
    named = ("--engine", str(engine.checkout), "-m", str(write_bitnet(tmp_path / "m.gguf")))
    (runs,), done = benchmarked(tmp_path, *named, "--rows", "slim file,one CPU", "--rounds", "1")
    assert {name for name, _ in runs} == {"one CPU"}
    assert "left out: slim file: " in done.stderr
    assert "llama-quantize" in done.stderr


def test_a_slim_file_may_be_named(tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path / "checkout")
    slim = write_bitnet(tmp_path / "q6.gguf", embedding="q6_k")
    named = ("--engine", str(engine.checkout), "-m", str(write_bitnet(tmp_path / "m.gguf")))
    benchmarked(tmp_path, *named, "--rows", "slim file", "--rounds", "1", "--slim", str(slim))
    assert str(slim) in {value(run["argv"], "-m") for run in engine.prompts()}
    assert slim.exists()
