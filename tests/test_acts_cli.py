"""test_optimizations.py as a user runs it: fake engines that do well, and each thing wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bitnet_tuning import demo
from bitnet_tuning.engine.find import has_embedded, locate_all
from bitnet_tuning.engine.known import know
from bitnet_tuning.launch.background import capture
from bitnet_tuning.machine.detect import read_host, read_privileges
from bitnet_tuning.machine.root import Root
from bitnet_tuning.model.gguf import read_model
from bitnet_tuning.plan.facts import Plan, Request
from bitnet_tuning.plan.profiles import store
from bitnet_tuning.plan.setting import Setting
from bitnet_tuning.plan.threads import choose_threads
from bitnet_tuning.store.state import State
from bitnet_tuning.verify.running import watch
from bitnet_tuning.verify.selftest import load_cases
from tests.engines import FakeEngine
from tests.profile_samples import profile

REPO = Path(__file__).resolve().parents[1]
SCRIPT = REPO / "test_optimizations.py"
RIGHT = {case.prompt: case.text for case in load_cases()}
QUIET: dict[str, object] = {"threads": {"1": 20}, "noise": 0.01, "texts": RIGHT}

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="fake engines are scripts, looked at in /proc"
)


@pytest.fixture
def engine(tmp_path: Path) -> FakeEngine:
    """It gets everything right."""
    return FakeEngine(tmp_path / "checkout", bench=True).curve(**QUIET)


def ran(
    cli: Path, *flags: str, model: str = demo.I2_S, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--engine", str(cli), "-m", model, *flags],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **variables},
    )


def planned() -> int:
    """Threads that this machine leads to."""
    return choose_threads(Request(), read_host(), {}).setting.threads


def working(engine: FakeEngine, **behaviour: object) -> dict[str, str]:
    """Variables of an engine that works with as many threads as it should."""
    return engine.environment(**{"work": f"{planned()} 0.6", "says": planned(), **behaviour})


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def states(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return {line["name"]: line["state"] for line in document(done)["lines"]}


def reason(done: subprocess.CompletedProcess[str], name: str) -> str:
    return str(next(line["reason"] for line in document(done)["lines"] if line["name"] == name))


def failed(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [name for name, state in states(done).items() if state == "FAIL"]


def wrapped(folder: Path, engine: FakeEngine, script: str) -> Path:
    """A script of this name that starts the engine."""
    folder.mkdir()
    path = folder / "llama-cli"
    path.write_text(f"#!/bin/sh\n{script.format(cli=engine.cli)}\n")
    path.chmod(0o755)
    return path


def test_all_is_well(engine: FakeEngine) -> None:
    engine.curve(**QUIET, factors={"OMP_PROC_BIND=true": 1.5})
    done = ran(engine.cli, "--seconds", "30", **working(engine))
    assert done.returncode == 0, done.stdout
    assert "FAIL" not in done.stdout
    assert "SKIP" not in done.stdout
    assert "tokens/s            faster: " in done.stdout
    assert "OMP_PLACES=cores OMP_PROC_BIND=true" in done.stdout
    assert " in the engine's process" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("PASS: 8 passed, 0 failed, 0 skipped, in ")


def test_a_slower_plan_fails(engine: FakeEngine) -> None:
    engine.curve(**QUIET, factors={"OMP_PROC_BIND=true": 0.5})
    done = ran(engine.cli, "--json", "--seconds", "30", **working(engine))
    assert done.returncode == 1
    assert failed(done) == ["tokens/s"]
    assert reason(done, "tokens/s").startswith("slower: 10")
    (figures,) = [line["facts"] for line in document(done)["lines"] if line["name"] == "tokens/s"]
    assert figures["ratio"]["high"] < 0.6
    names = [run["env"].get("OMP_PROC_BIND") for run in engine.benches()]
    assert names[3:8] == [None, "true", None, None, "true"], "they take turns"


def test_an_environment_that_a_script_loses(engine: FakeEngine, tmp_path: Path) -> None:
    script = 'unset OMP_PLACES\n{cli} "$@"\nexit $?'
    cli = wrapped(tmp_path / "script", engine, script)
    done = ran(cli, "--no-speed", "--json", **working(engine, says=99))
    assert done.returncode == 1
    assert failed(done) == ["environment", "engine's n_threads"]
    assert "OMP_PLACES is missing" in reason(done, "environment")
    assert str(cli) in reason(done, "environment")
    assert "99" in reason(done, "engine's n_threads")


def test_a_script_that_loses_nothing(engine: FakeEngine, tmp_path: Path) -> None:
    cli = wrapped(tmp_path / "script", engine, '{cli} "$@"\nexit $?')
    done = ran(cli, "--no-speed", "--json", **working(engine))
    facts = document(done)
    assert (done.returncode, facts["passed"]) == (0, True)
    assert facts["engine"] == str(cli)
    assert facts["setting"]["env"]["OMP_PROC_BIND"] == "true"
    assert 0 < facts["seconds"] < 60
    lines = {line["name"]: line for line in facts["lines"]}
    assert lines["working threads"]["facts"]["working"] == facts["setting"]["threads"]
    assert lines.pop("tokens/s")["state"] == "SKIP"
    assert {line["state"] for line in lines.values()} == {"PASS"}


def test_fewer_threads_wrong_words_and_another_model(engine: FakeEngine) -> None:
    """The first as with OMP_THREAD_LIMIT in a real engine, which says 2 all the same."""
    engine.curve(**{**QUIET, "texts": {}})
    variables = working(engine, work="1 0.6", says=2)
    limits = {"OMP_THREAD_LIMIT": "1", "BITNET_THREADS": "2"}
    done = ran(engine.cli, "--no-speed", "--json", model=demo.TQ2_0, **variables, **limits)
    assert done.returncode == 1
    assert {"working threads", "correct output", "i2_s model"} <= set(failed(done))
    assert "OMP_THREAD_LIMIT=1 allows no more" in reason(done, "working threads")
    assert states(done)["engine's n_threads"] == "PASS"


def test_threads_on_the_wrong_cpus(engine: FakeEngine) -> None:
    if planned() < 2:
        pytest.skip("one core is all there is")
    one = min(os.sched_getaffinity(0))
    done = ran(engine.cli, "--no-speed", "--json", **working(engine, work_cpus=one))
    assert failed(done) == ["threads' CPUs"]
    assert "cannot have a core of its own" in reason(done, "threads' CPUs")


def test_a_remembered_setting_is_what_is_looked_at(engine: FakeEngine, own_state: Path) -> None:
    count = planned()
    variables = {"FAKE_WORK": f"{count} 0.6", "FAKE_SAYS": str(count)}
    state, host = State(str(own_state)), read_host()
    known = know(locate_all(str(engine.cli), {}, ())[0], state)
    setting = Setting(count, count, mmap=False)
    assert store(state, profile(host, known, setting, read_model(demo.I2_S)))
    engine.curve(**QUIET, text={"mmap=0": " other words"})
    done = ran(engine.cli, "--no-speed", "--json", **variables)
    assert document(done)["setting"]["mmap"] is False
    assert failed(done) == ["correct output"]
    assert "with the setting of the plan" in reason(done, "correct output")
    plain = ran(engine.cli, "--no-speed", "--no-profile", "--json", **variables)
    assert document(plain)["setting"]["mmap"] is None
    assert failed(plain) == []


def test_an_engine_that_fails(engine: FakeEngine) -> None:
    engine.curve(**QUIET, crash={f"threads={planned()}": "exit 3"})
    done = ran(engine.cli, "--json")
    assert done.returncode == 1
    assert {"working threads", "correct output"} <= set(failed(done))
    assert states(done)["environment"] == "SKIP"
    assert "told to" in reason(done, "working threads")
    assert reason(done, "tokens/s") == "not measured: the words are wrong"
    assert not engine.benches()[2:]


def test_a_plan_that_cannot_be_measured(engine: FakeEngine) -> None:
    """Only llama-bench fails."""
    bench = engine.bin / "llama-bench"
    text = bench.read_text().replace("    record()\n", '    record()\n    sys.exit("told to")\n', 1)
    assert text != bench.read_text()
    bench.write_text(text)
    done = ran(engine.cli, "--json", **working(engine))
    assert failed(done) == ["tokens/s"]
    assert "the plan cannot be measured" in reason(done, "tokens/s")
    assert "told to" in reason(done, "tokens/s")


def test_an_engine_that_is_too_quick_to_be_seen(engine: FakeEngine) -> None:
    done = ran(engine.cli, "--no-speed", "--json", **engine.environment(says=planned()))
    assert done.returncode == 0
    for name in ("environment", "working threads", "threads' CPUs"):
        assert states(done)[name] == "SKIP"
        assert "too soon" in reason(done, name)


def test_performance_mode_is_looked_at(engine: FakeEngine) -> None:
    """Everything that may be had here, but for the lock: the fake locks nothing."""
    privileges = read_privileges()
    variables = working(engine, work=f"{planned()} 0.6")
    done = ran(engine.cli, "--performance-mode", "--json", "--seconds", "8", **variables)
    may_lock = privileges.lockable is None or privileges.lockable > os.path.getsize(demo.I2_S)
    assert failed(done) == ["locked memory"] * may_lock
    assert states(done).get("priority") == ("PASS" if privileges.lowest_nice <= -5 else None)
    assert states(done)["threads' CPUs"] == "PASS"
    assert document(done)["setting"]["cpus"]
    if may_lock:
        assert "0 MiB of the model's 1 MiB" in reason(done, "locked memory")
        assert "measured without its lock" in done.stderr
        assert "the program has no flag" not in done.stdout
    if privileges.lowest_nice > -5:
        assert "priority is not raised" in done.stderr


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--engine", "/nowhere"], 3),
        (["-m", "/nowhere.gguf"], 3),
        (["--seconds", "-1"], 2),
        (["--fast"], 2),
    ],
)
def test_errors(engine: FakeEngine, flags: list[str], code: int) -> None:
    done = ran(engine.cli, *flags)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("bitnet-tuning: error: ")


def test_pytest_finds_no_test_in_the_program() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", str(SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO)
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, done.stdout


# The parts below it


def a_plan(*command: str) -> Plan:
    return Plan(Setting(1, 1), {}, command=command)


def test_where_no_program_can_be_seen_the_reason_says_so(tmp_path: Path) -> None:
    watched = watch(
        a_plan(sys.executable, "-c", "import time; time.sleep(0.1)"),
        Root(str(tmp_path)),
        huge=False,
        nodes=False,
    )
    assert watched.process is None
    assert watched.problem == "only Linux shows the threads of a running engine"


def test_a_captured_program_is_watched_while_it_runs() -> None:
    seen: list[tuple[int, float]] = []
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(0.3); print('end')"
    done = capture(
        (sys.executable, "-c", code), watch=lambda pid: seen.append((pid, time.monotonic()))
    )
    assert (done.code, done.stdout) == (0, f"{seen[0][0]}\nend\n")
    assert {pid for pid, _ in seen} == {int(done.stdout.split()[0])}
    assert len(seen) > 3
    assert os.getpgrp() != seen[0][0]


def test_a_watched_program_still_runs_out_of_time() -> None:
    code = "import time; print('begun', flush=True); time.sleep(60)"
    done = capture((sys.executable, "-c", code), seconds=0.5, watch=lambda _: None)
    assert (done.code, done.stdout) == (None, "begun\n")


def test_nothing_is_left_of_a_program_whose_watcher_fails() -> None:
    seen: list[int] = []

    def stumble(pid: int) -> None:
        seen.append(pid)
        raise ValueError("stumbled")

    with pytest.raises(ValueError, match="stumbled"):
        capture((sys.executable, "-c", "import time; time.sleep(60)"), watch=stumble)
    with pytest.raises(ProcessLookupError):
        os.kill(seen[0], 0)


@pytest.mark.skipif(not has_embedded(), reason="xllamacpp is not installed")
def test_the_embedded_engine_is_seen_through() -> None:
    done = ran(Path("embedded"), "--no-speed", "--json", model=demo.TQ2_0)
    assert done.returncode == 0, done.stdout
    assert states(done)["working threads"] == "PASS"
    assert "the embedded engine has no i2_s" in reason(done, "i2_s model")


FOLDERS = [name for name in os.environ.get("BITNET_TEST_ENGINES", "").split(os.pathsep) if name]


@pytest.mark.skipif(not FOLDERS, reason="BITNET_TEST_ENGINES names no engine")
@pytest.mark.parametrize("folder", FOLDERS or [""])
def test_a_limit_of_openmps_is_seen_in_a_real_engine(folder: str) -> None:
    """Its own log says 2 all the same."""
    done = ran(Path(folder), "--no-speed", "--json", OMP_THREAD_LIMIT="1")
    if done.returncode == 4:  # mainline has no i2_s
        flags = ("--no-speed", "--json")
        done = ran(Path(folder), *flags, model=demo.TQ2_0, OMP_THREAD_LIMIT="1")
    if document(done)["setting"]["threads"] < 2 or not document(done)["setting"]["env"]:
        pytest.skip("one core, or a build without OpenMP")
    assert "OMP_THREAD_LIMIT=1" in reason(done, "working threads")
    assert states(done)["engine's n_threads"] == "PASS"
