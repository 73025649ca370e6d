"""Whole tunings on a simulated machine: what is measured, decided, saved and printed."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bitnet_tuning import demo
from bitnet_tuning.bench import results
from bitnet_tuning.bench.results import load
from bitnet_tuning.bench.tune import LOCK
from bitnet_tuning.errors import ShortageError, UnsupportedError, UsageError
from bitnet_tuning.machine import conditions
from bitnet_tuning.machine.cgroups import Throttling
from bitnet_tuning.plan.setting import Setting
from bitnet_tuning.store.state import alone
from tests.bench_lab import Lab
from tests.bench_samples import SNAPSHOT
from tests.conftest import REPOSITORY

SCHEMA = json.loads((REPOSITORY / "docs" / "results.schema.json").read_text())


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A machine on which a model that is not mapped is 30 % faster."""
    monkeypatch.setattr(conditions, "take", lambda host: SNAPSHOT)
    made = Lab(tmp_path)
    made.mmap = 1.3
    return made


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """The file of results."""
    return tmp_path / "results.json"


def document(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(path.read_text())
    jsonschema.Draft202012Validator(SCHEMA).validate(facts)
    return facts


def runs_of(path: Path, name: str) -> list[dict[str, Any]]:
    rounds = document(path)["rounds"]
    return [run for each in rounds for run in each["runs"] if run["setting"] == name]


# Decisions


def test_the_winner_is_shown_and_saved(
    lab: Lab, output: Path, own_state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lab.tune("--output", output) == 0
    facts = document(output)
    assert (facts["state"], facts["decision"]["winner"]) == ("finished", "no mmap")
    assert facts["decision"]["estimate"]["low"] > 1.2
    assert facts["decision"]["resolution"] == facts["options"]["resolution"] == 0.02
    assert facts["profile"]["stored"]
    runs = f"Saved: python3 run_inference.py -m {lab.facts.model.path} now runs with no mmap"
    said = facts["profile"]["reason"]
    assert said.startswith(runs), "no run has it that names no model"
    assert re.search(r"; it copies the model for answers of about \d+ tokens or more, in ", said)
    saved = lab.saved(own_state)
    assert isinstance(saved, Setting) and saved.mmap is False
    out = capsys.readouterr().out
    assert "no mmap *" in out
    assert re.search(r"Against bitnet.cpp's own 2 threads: ×1\.\d\d \(.*\), faster\.", out)
    assert f"Results: {output}" in out


def test_the_default_stays_where_all_are_equal(lab: Lab, output: Path, own_state: Path) -> None:
    lab.mmap, lab.threads = 1.0, dict.fromkeys((1, 2, 3, 4), 1.0)
    assert lab.tune("--output", output) == 0
    decision = document(output)["decision"]
    assert (decision["winner"], decision["verdict"]) == ("default", "equal")
    assert lab.saved(own_state) == "default"


def test_a_setting_whose_runs_fail_never_wins(
    lab: Lab, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.mmap, lab.problems = 3.0, {"no mmap": "llama-bench printed broken JSON"}
    assert lab.tune("--output", output) == 0
    assert document(output)["decision"]["winner"] == "default"
    runs = runs_of(output, "no mmap")
    assert len(runs) == 2, "it is not tried again and again"
    assert all(run["problem"] and not run["samples"] for run in runs)
    assert "no mmap: failed: llama-bench printed broken JSON" in capsys.readouterr().out


def test_a_crash_of_upstreams_setting_is_a_reason_and_no_number(
    lab: Lab, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.problems = {"upstream": "the engine was killed by SIGSEGV"}
    assert lab.tune("--output", output) == 0
    assert [run["samples"] for run in runs_of(output, "upstream")] == [{}, {}]
    out = capsys.readouterr().out
    assert "upstream: failed: the engine was killed by SIGSEGV" in out
    assert "Against bitnet.cpp's own 2 threads: not compared." in out


def test_an_engine_that_always_crashes_is_an_error_with_its_reason(lab: Lab, output: Path) -> None:
    lab.problems = {"default": "the engine was killed by SIGILL"}
    lab.facts = lab.facts._replace(model=lab.facts.model._replace(path="/models/m.gguf"))
    with pytest.raises(UnsupportedError, match="SIGILL") as caught:
        lab.tune("--output", output)
    assert "run_inference.py" in caught.value.remedy
    assert not output.exists()


def test_a_model_path_that_llama_bench_cuts_is_named(lab: Lab, output: Path) -> None:
    lab.problems = {"default": "exit code 1: failed to load model"}
    lab.facts = lab.facts._replace(model=lab.facts.model._replace(path="/my models/m.gguf"))
    with pytest.raises(UnsupportedError) as caught:
        lab.tune("--output", output)
    assert "/my models/m.gguf has a space or a comma" in caught.value.remedy


def test_a_default_that_begins_to_fail_ends_the_tuning_and_keeps_the_rounds(
    lab: Lab, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = lab.measure

    def fails_later(name: str, setting: Setting, *phases: Any) -> Any:
        lab.problems = {"default": "exit code 1"} if len(lab.runs) > 20 else {}
        return measure(name, setting, *phases)

    monkeypatch.setattr(lab, "measure", fails_later)
    with pytest.raises(UnsupportedError, match="cannot be measured") as caught:
        lab.tune("--output", output)
    assert str(output) in caught.value.remedy
    facts = document(output)
    assert facts["state"] == "interrupted"
    assert len(facts["rounds"]) >= 2


# What is measured


def test_every_sample_is_kept_in_rounds_whose_order_changes(lab: Lab, output: Path) -> None:
    table, page = output.with_suffix(".csv"), output.with_suffix(".html")
    assert lab.tune("--output", output, "--csv", table, "--report", page) == 0
    rounds = document(output)["rounds"]
    second = [run["setting"] for run in rounds[1]["runs"]]
    assert {"upstream", "performance"} <= set(second)
    assert len({tuple(run["setting"] for run in each["runs"]) for each in rounds}) > 1
    runs = [run for each in rounds for run in each["runs"]]
    samples = sum(len(speeds) for run in runs for speeds in run["samples"].values())
    with open(table, newline="") as file:
        assert len(list(csv.DictReader(file))) == samples
    assert "<svg" in page.read_text()


@pytest.mark.parametrize(
    ("flags", "budget", "knobs"),
    [
        (("--quick",), 60, {"mmap"}),
        ((), 300, {"mmap", "binding", "waiting", "flash attention"}),
        (("--full",), 1200, {"mmap", "binding", "waiting", "flash attention"}),
        (("--budget", 40), 40, {"mmap", "binding", "waiting", "flash attention"}),
    ],
)
def test_effort_and_budget_bound_the_tuning(
    lab: Lab, output: Path, flags: tuple[object, ...], budget: int, knobs: set[str]
) -> None:
    assert lab.tune("--output", output, *flags) == 0
    facts = document(output)
    assert (facts["options"]["budget"], set(facts["space"]["knobs"])) == (budget, knobs)
    assert facts["rounds"][-1]["elapsed"] <= budget


def test_modes_and_threads_restrict_what_is_measured(lab: Lab, output: Path) -> None:
    for name in ("upstream", "default"):  # the latter is its name in older versions
        assert lab.tune("--output", output, "--modes", name) == 0
        facts = document(output)
        assert set(facts["settings"]) == {"default", "upstream"}
        assert facts["options"]["modes"] == ["upstream"]
    assert lab.tune("--output", output, "--modes", "optimized", "--threads", "1,5", "--quick") == 0
    settings = document(output)["settings"]
    assert {setting["threads"] for setting in settings.values()} == {4, 1, 5}
    assert not {"upstream", "performance"} & set(settings)


# Another file of the model


@pytest.mark.parametrize("flags", [("--quick",), ()])
def test_a_faster_slim_file_is_recommended_and_not_saved(
    lab: Lab, output: Path, own_state: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str]
) -> None:
    lab.add_slim()
    lab.slim = 1.4
    table = output.with_suffix(".csv")
    assert lab.tune("--output", output, "--csv", table, *flags) == 0
    facts = document(output)
    assert facts["decision"]["winner"] == "no mmap"
    assert isinstance(saved := lab.saved(own_state), Setting) and saved.embedding is None
    assert facts["settings"]["slim file"]["words"].endswith(", q6_k embedding")
    assert (facts["model"]["embedding"], facts["beside"]["embedding"]) == ("f16", "q6_k")
    assert facts["beside"]["bytes_per_token"] < facts["model"]["bytes_per_token"]
    assert not [check for check in facts["checks"] if check["setting"] == "slim file"]
    out = capsys.readouterr().out
    said = (
        r"The slim file is ×1\.\d\d \(1\.\d\d–1\.\d\d\) as fast as the default, but its words may "
    )
    assert re.search(said + r"differ; to run it: -m /models/demo-embd-q6_k\.gguf\n", out)
    assert "model slim" not in out
    assert "slim file" in table.read_text()


@pytest.mark.parametrize("slim", [1.0, 0.8])
def test_a_slim_file_that_is_not_faster_is_only_shown(
    lab: Lab, output: Path, capsys: pytest.CaptureFixture[str], slim: float
) -> None:
    lab.add_slim()
    lab.slim = slim
    assert lab.tune("--output", output) == 0
    out = capsys.readouterr().out
    assert "slim file" in out
    assert "words may differ" not in out


def test_a_slim_file_whose_runs_fail_has_a_reason(
    lab: Lab, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.add_slim()
    lab.problems = {"slim file": "exit code 1: failed to load model"}
    assert lab.tune("--output", output) == 0
    assert "slim file: failed: exit code 1: failed to load model" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("after", "code"), [("the same", 0), ("changed", 2), ("gone", 2), ("another model", 2)]
)
def test_a_tuning_is_resumed_with_the_same_files_only(
    lab: Lab, output: Path, after: str, code: int
) -> None:
    lab.add_slim()
    lab.signals = {30: signal.SIGTERM}
    assert lab.tune("--output", output) == 128 + signal.SIGTERM
    if after == "the same":  # whether it runs where no model is named does not matter
        facts = document(output)
        facts["beside"]["unnamed"] = not facts["beside"]["unnamed"]
        output.write_text(json.dumps(facts))
    elif after == "changed":
        lab.add_slim(size=1 << 18)
    elif after == "gone":
        lab.facts = lab.facts._replace(beside=None)
    elif after == "another model":
        lab.facts = lab.facts._replace(model=lab.facts.model._replace(size=1))
    if code == 0:
        assert lab.tune("--resume", output) == 0
    else:
        name = "model" if after == "another model" else "other file of the model"
        with pytest.raises(UsageError, match=f"cannot be resumed: the {name} has changed"):
            lab.tune("--resume", output)


def test_older_results_are_resumed_although_there_is_a_slim_copy_now(
    lab: Lab, output: Path
) -> None:
    lab.signals = {40: signal.SIGTERM}
    assert lab.tune("--output", output) == 128 + signal.SIGTERM
    facts = document(output)
    del facts["beside"], facts["model"]["embedding"], facts["model"]["unnamed"]
    for setting in (*facts["settings"].values(), facts["space"]["default"]):
        del setting["embedding"]
    output.write_text(json.dumps(facts))
    lab.add_slim()
    assert lab.tune("--resume", output) == 0
    after = document(output)
    assert (after["state"], after["beside"]) == ("finished", None)
    assert "slim file" not in after["settings"]


def test_a_wide_embedding_without_a_slim_copy_ends_the_summary_with_the_command(
    lab: Lab, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.facts = lab.facts._replace(model=lab.facts.model._replace(path="/my models/m.gguf"))
    assert lab.tune("--output", output, "--quick") == 0
    said = capsys.readouterr()
    *_, last, where = said.out.splitlines()
    assert "embedding" not in said.err, "it is said once, at the end"
    assert last.startswith("Note: 45 % of the 1.1 MiB that each token reads is the f16 embedding; ")
    assert last.endswith("python3 -m bitnet_tuning model slim '/my models/m.gguf'")
    assert where.startswith("Results: ")
    lab.facts = lab.facts._replace(model=lab.facts.model._replace(path=demo.I2_S))
    assert lab.tune("--output", output, "--quick") == 0
    assert "model slim" not in capsys.readouterr().out


# What is saved as a profile


def test_no_remember_saves_no_profile(lab: Lab, output: Path, own_state: Path) -> None:
    lab.signals = {40: signal.SIGTERM}
    assert lab.tune("--output", output) == 128 + signal.SIGTERM
    assert lab.tune("--resume", output, "--no-remember") == 0
    assert (document(output)["profile"], lab.saved(own_state)) == (None, "nothing")
    assert lab.tune("--output", output, "--no-remember") == 0
    assert (document(output)["profile"], lab.saved(own_state)) == (None, "nothing")


def test_a_result_that_the_users_variables_affected_is_not_saved(
    lab: Lab, output: Path, own_state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.facts = lab.facts._replace(environ={"OMP_PLACES": "threads"})
    assert lab.tune("--output", output) == 0
    assert "Not saved: your OMP_PLACES affected it" in capsys.readouterr().out
    assert lab.saved(own_state) == "nothing"


def test_a_short_tuning_without_a_winner_keeps_the_winner_of_a_longer_one(
    lab: Lab, output: Path, own_state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lab.tune("--output", output) == 0
    winner = lab.saved(own_state)
    lab.mmap = 1.0
    assert lab.tune("--output", output, "--quick") == 0
    assert re.search(r"Not saved: .* longer tuning: measured on", capsys.readouterr().out)
    assert lab.saved(own_state) == winner != "default"


@pytest.mark.parametrize(
    "flags", [("--modes", "default"), ("--threads", "2"), ("--quick", "--threads", "1")]
)
def test_a_part_of_the_search_never_replaces_what_a_whole_tuning_found(
    lab: Lab, output: Path, own_state: Path, flags: tuple[str, ...]
) -> None:
    assert lab.tune("--output", output) == 0
    winner = lab.saved(own_state)
    lab.mmap = 1.0
    assert lab.tune("--output", output, "--budget", 900, *flags) == 0
    facts = document(output)
    assert (facts["decision"]["winner"], facts["profile"]["stored"]) == ("default", False)
    assert lab.saved(own_state) == winner != "default"


def test_without_performance_mode_a_search_is_still_whole(
    lab: Lab, output: Path, own_state: Path
) -> None:
    lab.mmap = 1.0
    assert lab.tune("--output", output, "--modes", "default,optimized") == 0
    assert lab.saved(own_state) == "default"


def test_a_tuning_that_was_too_short_saves_no_default(
    lab: Lab, output: Path, own_state: Path
) -> None:
    assert lab.tune("--output", output, "--budget", 20) == 0
    facts = document(output)
    assert facts["decision"]["winner"] == "default"
    assert "nothing was decided" in facts["profile"]["reason"]
    assert lab.saved(own_state) == "nothing"


def test_an_engine_that_changes_during_the_tuning_is_not_saved(
    lab: Lab, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = lab.measure

    def rebuilt(name: str, setting: Setting, *phases: Any) -> Any:
        os.utime(lab.facts.engine.path, (1, 1))
        return measure(name, setting, *phases)

    monkeypatch.setattr(lab, "measure", rebuilt)
    assert lab.tune("--output", output) == 0
    profile = document(output)["profile"]
    assert not profile["stored"]
    assert "the engine changed during the tuning" in profile["reason"]
    assert lab.facts.engine.path in profile["reason"]


def beside(monkeypatch: pytest.MonkeyPatch, cpus: float, throttled: int = 0) -> None:
    """Let other programs take so many CPUs from the first snapshot to the last, and a quota pause
    the engine in so many of 100 periods."""
    before = SNAPSHOT._replace(busy_cpu_seconds=0.0, own_cpu_seconds=0.0)
    quota = (Throttling("sys/fs/cgroup", 110, 2 + throttled, 0.5),)
    after = before._replace(
        time=before.time + 100, busy_cpu_seconds=100 * cpus, quota_throttling=quota
    )
    snapshots = iter([before, after])
    monkeypatch.setattr(conditions, "take", lambda host: next(snapshots))


@pytest.mark.parametrize(("cpus", "throttled"), [(0.2, 5), (0.3, 0), (0.0, 6)])
def test_beside_others_it_is_not_saved_that_the_default_stays(
    lab: Lab,
    output: Path,
    own_state: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    cpus: float,
    throttled: int,
) -> None:
    beside(monkeypatch, cpus, throttled)
    lab.mmap, lab.threads = 1.0, dict.fromkeys((1, 2, 3, 4), 1.0)
    assert lab.tune("--output", output) == 0
    assert document(output)["decision"]["verdict"] == "equal"
    out = capsys.readouterr().out
    if cpus == 0.2:
        assert lab.saved(own_state) == "default"
        return
    assert lab.saved(own_state) == "nothing"
    if cpus:
        cause = "other programs took 0.3 CPUs on average meanwhile"
        said = f"Not saved: {cause}, and another setting may be best without that; close them"
        assert f"{said} and tune again." in out
    else:
        cause = "the CPU quota paused the engine in 6 of 100 periods"
        assert f"Not saved: {cause}, and another setting" in out
    assert out.count(cause) == 1, "every fact once"


def test_beside_others_a_faster_setting_is_saved_unless_it_has_other_threads(
    lab: Lab,
    output: Path,
    own_state: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    beside(monkeypatch, 1.0)
    lab.mmap, lab.threads = 1.0, {1: 0.4, 2: 1.3, 3: 1.1, 4: 1.0}
    assert lab.tune("--output", output) == 0
    assert document(output)["decision"]["winner"] == "2 threads"
    assert lab.saved(own_state) == "nothing"
    assert (
        "Not saved: other programs took 1 CPU on average meanwhile, and 2 threads may be best "
        "only because of that; close them and tune again."
    ) in capsys.readouterr().out
    beside(monkeypatch, 1.0)
    lab.mmap, lab.threads = 1.3, {1: 0.4, 2: 0.7, 3: 0.9, 4: 1.0}
    assert lab.tune("--output", output) == 0
    saved = lab.saved(own_state)
    assert isinstance(saved, Setting) and saved.mmap is False


# Interruptions


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_tuning_keeps_its_rounds_and_is_resumed(
    lab: Lab, output: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    lab.signals = {30: number}
    assert lab.tune("--output", output) == 128 + number
    facts = document(output)
    assert (facts["state"], facts["profile"]) == ("interrupted", None)
    assert len(facts["rounds"]) >= 3
    assert f"benchmark_optimized.py --resume {output}" in capsys.readouterr().err
    assert lab.tune("--resume", output) == 0
    after = document(output)
    assert (after["state"], after["decision"]["winner"]) == ("finished", "no mmap")
    assert after["rounds"][: len(facts["rounds"])] == facts["rounds"]


@pytest.mark.parametrize("run", [1, 3])
def test_a_tuning_that_is_interrupted_before_its_first_round_offers_no_resume(
    lab: Lab, output: Path, capsys: pytest.CaptureFixture[str], run: int
) -> None:
    lab.signals = {run: signal.SIGINT}
    assert lab.tune("--output", output) == 128 + signal.SIGINT
    assert not output.exists() or document(output)["rounds"] == []
    log = capsys.readouterr().err
    assert "interrupted before anything was measured" in log
    assert "--resume" not in log


def test_a_resumed_tuning_that_is_interrupted_at_once_keeps_its_file(
    lab: Lab, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.signals = {30: signal.SIGTERM, 31: signal.SIGTERM}
    assert lab.tune("--output", output) == 128 + signal.SIGTERM
    before = output.read_bytes()
    assert lab.tune("--resume", output) == 128 + signal.SIGTERM
    assert output.read_bytes() == before
    assert f"{output} is unchanged" in capsys.readouterr().err


def test_a_signal_after_the_decision_does_not_lose_it(
    lab: Lab, output: Path, own_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(_: object) -> conditions.Conditions:
        if output.exists():
            os.kill(os.getpid(), signal.SIGTERM)
        return SNAPSHOT

    monkeypatch.setattr(conditions, "take", take)
    assert lab.tune("--output", output) == 128 + signal.SIGTERM
    assert document(output)["decision"]["winner"] == "no mmap"
    assert isinstance(lab.saved(own_state), Setting)


def test_a_finished_tuning_is_not_resumed(lab: Lab, output: Path) -> None:
    assert lab.tune("--output", output) == 0
    with pytest.raises(UsageError, match="that tuning is finished") as caught:
        lab.tune("--resume", output)
    assert f"--resume {output} --budget 300" in caught.value.remedy


@pytest.mark.parametrize("more", [("--budget", 100), ("--quick",), ("--full",)])
def test_a_finished_tuning_can_be_given_more_time(
    lab: Lab, output: Path, more: tuple[object, ...]
) -> None:
    assert lab.tune("--output", output, "--budget", 20) == 0
    before = document(output)
    assert before["decision"]["verdict"] == "not decided"
    assert lab.tune("--resume", output, *more) == 0
    after = document(output)
    assert after["rounds"][: len(before["rounds"])] == before["rounds"]
    assert len(after["rounds"]) > len(before["rounds"])
    assert after["options"]["budget"] == 20 + {"--budget": 100, "--quick": 60}.get(
        str(more[0]), 1200
    )
    assert after["options"]["extended"] == [[before["rounds"][-1]["elapsed"], 20.0]]
    if more != ("--quick",):
        assert after["decision"]["winner"] == "no mmap"
    lab.signals = {len(lab.runs) + 20: signal.SIGTERM}
    again = lab.tune("--resume", output, "--budget", 300)
    assert again in (0, 128 + signal.SIGTERM)
    assert lab.tune("--resume", output, "--budget", 300) == 0
    assert document(output)["decision"]["winner"] == "no mmap"


def test_a_full_disk_does_not_end_a_tuning(
    lab: Lab, output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(results, "write_atomically", full)
    monkeypatch.setattr("bitnet_tuning.bench.tune.SAVE_SECONDS", 0)
    output.write_text("an older file")
    assert lab.tune("--output", output) == 1, "the user named the file"
    assert output.read_text() == "an older file"
    assert lab.tune() == 0
    found = capsys.readouterr()
    assert "Fastest: no mmap" in found.out
    assert f"Results: cannot write results to {output}: No space left" in found.out
    assert found.err.count("No space left on device") == 2, "once for each tuning"


def test_a_new_file_that_could_not_be_filled_is_removed(
    lab: Lab, own_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(results, "write_atomically", full)
    assert lab.tune("--budget", 20) == 0
    assert not list(own_state.glob("results-*"))


@pytest.mark.skipif(os.name == "nt", reason="no named pipes")
def test_a_pipe_gets_the_results_once_and_stays(lab: Lab, tmp_path: Path) -> None:
    pipe, link, csv_file = tmp_path / "pipe", tmp_path / "link", tmp_path / "file"
    os.mkfifo(pipe)
    csv_file.write_text("older")
    link.symlink_to(csv_file)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    assert lab.tune("--output", pipe, "--csv", link) == 0
    reader.join(60)
    assert json.loads(got[0])["state"] == "finished"
    assert pipe.is_fifo() and link.is_symlink()
    assert csv_file.read_text().startswith("round,")


def test_what_was_named_and_cannot_be_written_stays(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a device that is full and as large as an empty file."""
    output = tmp_path / "device"
    output.write_bytes(b"")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(results, "write_atomically", full)
    assert lab.tune("--output", output, "--budget", 20) == 1
    assert output.exists()


def test_what_this_process_lacks_ends_the_tuning_and_keeps_the_rounds(
    lab: Lab, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = lab.measure

    def lacks(name: str, setting: Setting, *phases: Any) -> Any:
        if len(lab.runs) > 20:
            raise ShortageError("cannot start llama-bench: Too many open files", "ulimit -n 4096")
        return measure(name, setting, *phases)

    monkeypatch.setattr(lab, "measure", lacks)
    with pytest.raises(ShortageError):
        lab.tune("--output", output)
    facts = document(output)
    assert (facts["state"], facts["decision"]) == ("interrupted", None)
    assert sum(len(each["runs"]) for each in facts["rounds"]) == 19, "all but two of preparing"
    assert not any(run["problem"] for each in facts["rounds"] for run in each["runs"])


def test_a_tuning_is_not_resumed_with_another_engine(lab: Lab, output: Path) -> None:
    lab.signals = {40: signal.SIGTERM}
    assert lab.tune("--output", output) == 128 + signal.SIGTERM
    os.utime(lab.facts.engine.path, (1, 1))
    with pytest.raises(UsageError, match="cannot be resumed: the engine has changed"):
        lab.tune("--resume", output)
    assert document(output)["state"] == "interrupted"


def test_a_second_benchmark_is_warned_and_does_not_resume_the_firsts_results(
    lab: Lab, output: Path, own_state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.signals = {40: signal.SIGTERM}
    lab.tune("--output", output)
    with alone(str(own_state / LOCK)):
        with pytest.raises(UsageError, match="another benchmark is running"):
            lab.tune("--resume", output)
        assert lab.tune("--output", output, "--quick") == 0
    assert "each disturbs the other" in capsys.readouterr().err
    assert "another benchmark is running" in document(output)["warnings"][0]


# What is printed


def test_without_a_terminal_there_are_plain_lines(
    lab: Lab, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lab.tune("--output", output, "--quick") == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert "round 1 (threads)" in said.err
    _, table, legend, *_ = said.out.split("\n\n")
    assert legend.startswith("*: the setting to use.") and "Fastest: " in said.out
    assert "tokens/s" in table
    assert max(map(len, table.splitlines())) <= 80


def test_json_goes_to_standard_output(
    lab: Lab, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lab.tune("--output", output, "--quick", "--json") == 0
    assert json.loads(capsys.readouterr().out) == document(output)


def test_results_go_into_a_dated_file_by_default(
    lab: Lab, own_state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lab.tune("--quick") == 0
    (path,) = own_state.glob("results-*.json")
    assert f"Results: {path}" in capsys.readouterr().out
    assert load(str(path)).state == "finished"
