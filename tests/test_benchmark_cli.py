"""The command benchmark_optimized.py: whole tunings as programs, and mistakes in its options.

test_bench_tune.py tests all other rules of a tuning on a simulated machine.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bitnet_tuning import demo
from bitnet_tuning.bench.results import save
from bitnet_tuning.cli import run
from bitnet_tuning.cli.benchmark import main
from bitnet_tuning.engine.find import embedded_library
from bitnet_tuning.model.find import DEFAULT, slim_path
from tests.bench_samples import sample_results
from tests.conftest import REPOSITORY
from tests.engines import FakeEngine
from tests.gguf_files import write_bitnet
from tests.processes import until

pytestmark = pytest.mark.skipif(os.name == "nt", reason="fake engines are scripts")

SCHEMA = json.loads((REPOSITORY / "docs" / "results.schema.json").read_text())
SEARCH = ("--modes", "optimized", "--threads", "1", "--budget", "900")
"""A small search whose budget suffices on a busy machine: it ends when it has decided."""

NO_MMAP = "mmap=0,GLIBC_TUNABLES=-"
"""The fake engine's condition for --no-mmap without huge pages, which not every machine has."""

CURVE: dict[str, Any] = {"threads": {"1": 5_000, "2": 7_000}, "noise": 0.01, "lies": {}}
"""The speed of a fake engine on a machine without much noise."""

Start = Callable[..., "subprocess.Popen[str]"]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def engine(tmp_path: Path) -> FakeEngine:
    return FakeEngine(tmp_path / "checkout", bench=True)


def subject(engine: FakeEngine) -> list[str]:
    # The fake engine does not know the demo model's words.
    return ["--engine", str(engine.cli), "-m", demo.I2_S, "--no-selftest"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start benchmark_optimized.py; it is killed at the end of the test."""
    started: list[subprocess.Popen[str]] = []

    def start_it(*flags: object, folder: Path | None = None) -> subprocess.Popen[str]:
        command = [sys.executable, str(REPOSITORY / "benchmark_optimized.py"), *map(str, flags)]
        output = subprocess.PIPE
        process = subprocess.Popen(command, stdout=output, stderr=output, text=True, cwd=folder)
        started.append(process)
        return started[-1]

    yield start_it
    for process in started:
        process.kill()
        process.communicate()


def document(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(path.read_text())
    jsonschema.Draft202012Validator(SCHEMA).validate(facts)
    return facts


def wait_for_rounds(path: Path, count: int) -> None:
    until(lambda: path.exists() and len(json.loads(path.read_text())["rounds"]) >= count)


def plan(engine: FakeEngine, capsys: Capture) -> dict[str, Any]:
    """Return what run_inference.py would run."""
    capsys.readouterr()
    assert run.main([*subject(engine)[:4], "-p", "x", "--dry-run", "--json"]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


def test_a_tuning_finds_a_better_setting_and_the_next_run_uses_it(
    engine: FakeEngine, tmp_path: Path, start: Start, capsys: Capture
) -> None:
    """Flash attention is faster still, but changes the text."""
    faster = {NO_MMAP: 1.3, "flash=1": 2.0}
    engine.curve(**CURVE, factors=faster, text={"flash=1": " other words"})
    output = tmp_path / "results.json"
    assert "--no-mmap" not in plan(engine, capsys)["command"]
    tuning = start(*subject(engine), *SEARCH, "--output", output)
    said, log = tuning.communicate()
    assert tuning.returncode == 0, log
    facts = document(output)
    assert (facts["state"], facts["decision"]["winner"]) == ("finished", "no mmap"), said
    wrong = {check["setting"]: check["problem"] for check in facts["checks"] if check["problem"]}
    assert list(wrong) == ["flash attention"]
    assert "writes other words than the default" in wrong["flash attention"]
    bandwidth, roof = facts["bandwidth"]["facts"], facts["roof"]["facts"]
    assert bandwidth is None or roof["share"] > 0, "a machine may have too little free memory"
    used = plan(engine, capsys)
    assert "--no-mmap" in used["command"]
    assert "measured on" in used["reasons"]["mmap"]


def test_the_slim_copy_beside_the_model_is_found_and_recommended(
    engine: FakeEngine, tmp_path: Path, start: Start
) -> None:
    original = tmp_path / DEFAULT
    original.parent.mkdir(parents=True)
    write_bitnet(original)
    slim = slim_path(str(original), "q6_k")
    write_bitnet(slim, embedding="q6_k")
    engine.curve(**CURVE, factors={f"model={os.path.basename(slim)}": 1.4})
    output = tmp_path / "results.json"
    common = ("--engine", engine.cli, "--no-selftest", *SEARCH, "--output", output)
    tuning = start(*common, "-m", original, folder=tmp_path)
    said, log = tuning.communicate()
    assert tuning.returncode == 0, log
    facts = document(output)
    assert (facts["beside"]["path"], facts["beside"]["unnamed"]) == (slim, True)
    assert facts["decision"]["winner"] != "slim file"
    assert "as the default, but its words may differ; to run it, leave out -m" in said
    tuning = start(*common, folder=tmp_path)
    said, log = tuning.communicate()
    assert tuning.returncode == 0, log
    facts = document(output)
    assert (facts["model"]["path"], "original file" in facts["settings"]) == (slim, True)
    assert "words may differ" not in said


def test_a_tuning_that_is_killed_and_interrupted_goes_on_where_it_stopped(
    engine: FakeEngine, tmp_path: Path, start: Start
) -> None:
    output = tmp_path / "results.json"
    engine.curve(**CURVE, factors={NO_MMAP: 1.3}, seconds=0.1)
    first = start(*subject(engine), *SEARCH, "--output", output)
    wait_for_rounds(output, 2)
    first.kill()
    first.wait()
    killed = document(output)
    assert killed["state"] == "running"
    kept = sum(len(each["runs"]) for each in killed["rounds"])
    lost = len(engine.benches()) - 4 - kept  # two runs chose the sizes, two more checked the clock
    assert lost <= len(killed["rounds"][0]["runs"]), "only the round that was running is lost"

    second = start("--resume", output)
    wait_for_rounds(output, len(killed["rounds"]) + 1)
    second.send_signal(signal.SIGINT)
    _, log = second.communicate()
    assert second.returncode == 128 + signal.SIGINT
    assert f"--resume {output}" in log
    interrupted = document(output)
    assert interrupted["state"] == "interrupted"
    assert interrupted["rounds"][: len(killed["rounds"])] == killed["rounds"]

    engine.curve(**CURVE, factors={NO_MMAP: 1.3})
    assert main(["--resume", str(output)]) == 0
    finished = document(output)
    assert finished["state"] == "finished"
    assert finished["decision"]["winner"].startswith("no mmap")
    assert finished["rounds"][: len(interrupted["rounds"])] == interrupted["rounds"]


@pytest.mark.slow
@pytest.mark.skipif(not embedded_library(), reason="the embedded engine is not installed")
def test_a_whole_tuning_of_the_embedded_engine(tmp_path: Path, start: Start) -> None:
    output = tmp_path / "results.json"
    tuning = start("--engine", "embedded", "--budget", 40, "--output", output)
    _, log = tuning.communicate()
    assert tuning.returncode == 0, log
    facts = document(output)
    assert facts["state"] == "finished"
    assert facts["rounds"]
    assert facts["decision"]["winner"] in facts["settings"]


def test_an_engine_that_writes_wrong_words_is_refused(engine: FakeEngine, capsys: Capture) -> None:
    assert main(["--engine", str(engine.cli), "-m", demo.I2_S]) == 4
    said = capsys.readouterr().err
    assert "writes wrong words" in said
    assert "--no-selftest" in said


def test_two_results_are_compared(tmp_path: Path, capsys: Capture) -> None:
    paths = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    for seed, path in enumerate(paths):
        save(path, sample_results(seed))
    assert main(["--compare", *paths]) == 0
    assert "not decided" in capsys.readouterr().out
    assert main(["--compare", *paths, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {each["phase"] for each in found["settings"]} == {"pp", "tg"}
    save(str(tmp_path / "copy.json"), sample_results(0))
    assert main(["--compare", paths[0], str(tmp_path / "copy.json")]) == 2
    assert "are the same results" in capsys.readouterr().err


def test_saved_results_are_shown_and_written_in_other_formats(
    tmp_path: Path, capsys: Capture
) -> None:
    paths = [str(tmp_path / name) for name in ("a.json", "b.json", "x.csv", "x.html")]
    for seed, path in enumerate(paths[:2]):
        save(path, sample_results(seed))
    saved = (tmp_path / "a.json").read_bytes()
    files = ["--csv", paths[2], "--report", paths[3]]
    assert main(["--from", paths[0], *files]) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        "BitNet b1.58 2B 4T (i2_s) on Example Core i5-1235U\nengine build, version"
    )
    assert "\n\nsetting " in out and "Against bitnet.cpp's own 2 threads: " in out
    assert out.endswith(f"Results: {paths[0]}\nCSV: {paths[2]}\nReport: {paths[3]}\n")
    assert (tmp_path / "a.json").read_bytes() == saved
    assert (tmp_path / "x.csv").read_text().startswith("round,stage,")
    assert "<h1>BitNet" in (tmp_path / "x.html").read_text()
    assert main(["--compare", *paths[:2], *files, "--json"]) == 0
    done = capsys.readouterr()
    assert json.loads(done.out)["settings"]
    assert f"CSV: {paths[2]}" in done.err and f"Report: {paths[3]}" in done.err
    assert (tmp_path / "x.csv").read_text().startswith("setting,other,phase,ratio,")
    assert "<title>Comparison of two benchmarks" in (tmp_path / "x.html").read_text()


def test_a_results_file_of_an_older_search_is_shown(tmp_path: Path, capsys: Capture) -> None:
    """It has a noise floor and a verdict of its own, and lacks what was added later."""
    path = tmp_path / "old.json"
    save(str(path), sample_results(1))
    facts = json.loads(path.read_text())
    decision = {"winner": "default", "verdict": "no difference shown", "floor": 2.34}
    facts["decision"] |= {**decision, "reason": "The noise floor is ×2.34: the default stays."}
    del facts["decision"]["resolution"], facts["options"]["resolution"], facts["beside"]
    del facts["options"]["remember"], facts["engine"]["server"]
    for part in (facts["model"], *facts["settings"].values()):
        part.pop("embedding", None)
    for each in facts["rounds"]:
        each["stage"] = {"fixed": "again"}.get(each["stage"], each["stage"])
        for one in each["runs"]:
            del one["cpu"]
    path.write_text(json.dumps(facts))
    assert main(["--from", str(path)]) == 0
    out = capsys.readouterr().out
    assert "\nKeep the default.\n" in out
    assert "The noise floor is ×2.34: the default stays." in out
    path.write_text(json.dumps({**facts, "schema": 2}))
    assert main(["--from", str(path)]) == 2
    assert "written by a newer version" in capsys.readouterr().err
    path.write_text(json.dumps({**facts, "rounds": 5}))
    assert main(["--from", str(path)]) == 2
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--from", "x", "--resume", "y"], 2, "--resume: not allowed with --from"),
        (["--from", "x", "--builds"], 2, "--from: not allowed with --builds"),
        (["--from", "x", "--quick"], 2, "saved results are only shown, nothing is measured"),
        (["--from", "x", "--compare", "a", "b"], 2, "--compare: not allowed with --from"),
        (["--compare", "a", "b", "--output", "c"], 2, "--output: not allowed with --compare"),
        (["--from", "no-such-file"], 2, "no-such-file"),
        (["--from", "x", "--csv", "x"], 2, "--csv: the same file as --from"),
        (["--compare", "a", "b", "--csv", "./b"], 2, "--csv: the same file as --compare"),
        (["--from", "x", "--report", "/"], 2, "cannot write /"),
        (["--quick", "--full"], 2, "not allowed with argument --quick"),
        (["--budget", "1"], 2, "--budget"),
        (["--threads", "1,x"], 2, "--threads"),
        (["--threads", "0"], 2, "--threads"),
        (["--modes", "fast"], 2, "unknown mode fast"),
        (["--objective", "all"], 2, "--objective"),
        (["--compare", "no-such-file", "no-other"], 2, "no-such-file"),
        (["--resume", "no-such-file"], 2, "no-such-file"),
        (["--resume", "x", "--threads", "2"], 2, "--threads"),
        (["--output", "/no/such/folder/x.json"], 2, "/no/such/folder"),
        (["--report", "/"], 2, "folder"),
        (["--engine", "/no/such/engine"], 3, "/no/such/engine"),
        (["--engine", "ENGINE", "-m", "/no/such/model"], 3, "/no/such/model"),
    ],
)
def test_a_mistake_is_reported_without_a_traceback(
    engine: FakeEngine, capsys: Capture, flags: list[str], code: int, said: str
) -> None:
    assert main([str(engine.cli) if flag == "ENGINE" else flag for flag in flags]) == code
    done = capsys.readouterr()
    assert said in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


@pytest.mark.parametrize("other", ["--csv", "--report"])
def test_two_kinds_of_output_never_share_a_file(
    tmp_path: Path, capsys: Capture, other: str
) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "results")
    assert main(["--output", str(tmp_path / "results"), other, str(link)]) == 2
    assert "the same file" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--output", "--csv"])
def test_the_model_is_never_overwritten(tmp_path: Path, flag: str) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"a model")
    assert main(["-m", str(model), flag, str(model)]) == 2
    assert model.read_bytes() == b"a model"
