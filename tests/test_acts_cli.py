"""test_optimizations.py on fake engines: one that does everything right, and each thing wrong."""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bitnet_tuning import demo
from bitnet_tuning.bench import comparison
from bitnet_tuning.bench.comparison import SLIM_FILE, Rounds, compare
from bitnet_tuning.bench.knobs import UNLOCKED
from bitnet_tuning.bench.statistics import VERDICT_ROUNDS
from bitnet_tuning.cli import test_optimizations
from bitnet_tuning.engine.builds import OPEN, verdict_words
from bitnet_tuning.engine.find import embedded_library, locate_all
from bitnet_tuning.engine.known import know
from bitnet_tuning.launch.background import capture
from bitnet_tuning.machine.detect import read_host, read_privileges
from bitnet_tuning.machine.root import Root
from bitnet_tuning.model.find import slim_path
from bitnet_tuning.model.gguf import read_model
from bitnet_tuning.plan.facts import Plan, Request
from bitnet_tuning.plan.openmp import THREAD_COUNTS
from bitnet_tuning.plan.profile import store
from bitnet_tuning.plan.setting import Setting
from bitnet_tuning.plan.threads import choose_threads
from bitnet_tuning.store.state import State
from bitnet_tuning.verify import running
from bitnet_tuning.verify.running import TOO_SOON, watch
from bitnet_tuning.verify.selftest import load_cases
from tests.conftest import REPOSITORY
from tests.engines import FakeEngine
from tests.gguf_files import write_bitnet
from tests.processes import alive, run_at_terminal, until
from tests.profile_samples import profile

SCRIPT = REPOSITORY / "test_optimizations.py"
RIGHT = {case.prompt: case.text for case in load_cases()}
QUIET: dict[str, object] = {"threads": {"1": 100_000}, "noise": 0.01, "texts": RIGHT}

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="fake engines are scripts, observed in /proc"
)


class Outcome(NamedTuple):
    """What a run of the program printed."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self.out)
        return facts

    @property
    def lines(self) -> dict[str, dict[str, Any]]:
        return {line["name"]: line for line in self.document["lines"]}

    @property
    def failed(self) -> list[str]:
        return [name for name, line in self.lines.items() if line["state"] == "FAIL"]

    def state(self, name: str) -> str | None:
        return self.lines[name]["state"] if name in self.lines else None

    def reason(self, name: str) -> str:
        return str(self.lines[name]["reason"])


Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The program's main function, with an engine, flags and environment variables."""
    # As many rounds as a verdict takes, however long they take on a busy machine.
    monkeypatch.setattr(test_optimizations, "MOST_SPEED_ROUNDS", VERDICT_ROUNDS)

    def call(cli: Path | str, *flags: str, model: str = demo.I2_S, **variables: str) -> Outcome:
        with monkeypatch.context() as patch:
            for name, text in variables.items():
                patch.setenv(name, text)
            code = test_optimizations.main(["--engine", str(cli), "-m", model, *flags])
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture
def engine(tmp_path: Path) -> FakeEngine:
    """An engine that does everything right."""
    return FakeEngine(tmp_path / "checkout", bench=True).curve(**QUIET)


def planned() -> int:
    """Return the number of threads that is computed for this machine."""
    return choose_threads(Request(), read_host(), {}).setting.threads


def working(engine: FakeEngine, **behaviour: object) -> dict[str, str]:
    """Return variables for an engine that works with as many threads as planned."""
    return engine.environment(**{"work": f"{planned()} 0.3", "says": planned(), **behaviour})


def wrapped(folder: Path, engine: FakeEngine, script: str) -> Path:
    """Return a llama-cli that is a shell script around the engine."""
    folder.mkdir()
    path = folder / "llama-cli"
    path.write_text(f"#!/bin/sh\n{script.format(cli=engine.cli)}\n")
    path.chmod(0o755)
    return path


def test_everything_takes_effect(engine: FakeEngine, run: Run) -> None:
    engine.curve(**QUIET, factors={"OMP_PROC_BIND=true": 1.5})
    done = run(engine.cli, "--seconds", "600", **working(engine))
    assert done.code == 0, done.out
    assert "FAIL" not in done.out
    assert "SKIP" not in done.out
    assert "tokens/s            faster: " in done.out
    assert "OMP_PLACES=cores OMP_PROC_BIND=true" in done.out
    assert "the engine's process " in done.out
    assert done.out.splitlines()[-1].startswith("PASS  8 passed, 0 failed, 0 skipped, in ")
    assert "this takes up to 600 s" in done.err


def with_slim(folder: Path, slim: str = "q6_k") -> tuple[str, str]:
    """Write a model with a wide embedding and a slim copy of it, and return their paths."""
    original = write_bitnet(folder / "m.gguf")
    return str(original), str(write_bitnet(slim_path(str(original), slim), embedding=slim))


@pytest.mark.parametrize("faster", [1.5, 1.0])
def test_the_slim_file_is_compared_with_the_original(
    engine: FakeEngine, run: Run, tmp_path: Path, faster: float
) -> None:
    original, slim = with_slim(tmp_path)
    engine.curve(**QUIET, factors={"model=m-embd-q6_k.gguf": faster})
    flags = ("--json", "--seconds", "600")
    done = run(engine.cli, *flags, model=original, **working(engine))
    line = done.lines["embedding"]
    assert (done.code, line["state"]) == (0, "HINT" if faster > 1 else "PASS")
    if faster > 1:
        assert line["reason"].startswith("faster: 1")
        assert " with the original file: ×1.5" in line["reason"]
        assert line["reason"].endswith(f"; to run the slim file, whose words may differ: -m {slim}")
        assert line["facts"]["ratio"]["low"] > 1.4
        assert line["facts"]["slim"] > line["facts"]["original"]
    assert done.lines["tokens/s"]["facts"]["planned"] > 0
    turned = run(engine.cli, *flags, model=slim, **working(engine))
    assert turned.state("embedding") == "PASS"
    verdicts = ("faster",) if faster > 1 else ("equal", verdict_words(OPEN))
    assert turned.reason("embedding").startswith(verdicts)


def test_a_slim_file_that_is_slower_than_the_original_fails(
    engine: FakeEngine, run: Run, tmp_path: Path
) -> None:
    original, slim = with_slim(tmp_path)
    engine.curve(**QUIET, factors={"model=m-embd-q6_k.gguf": 0.7})
    done = run(engine.cli, "--json", "--seconds", "600", model=slim, **working(engine))
    assert done.failed == ["embedding"]
    assert done.reason("embedding").endswith(f"whose words may differ: -m {original}")


def test_a_file_that_cannot_be_measured_is_no_failure_and_spares_the_plan(
    engine: FakeEngine, run: Run, tmp_path: Path
) -> None:
    original, _ = with_slim(tmp_path)
    engine.curve(**QUIET, crash={"model=m-embd-q6_k.gguf": "exit 3"})
    done = run(engine.cli, "--json", "--seconds", "600", model=original, **working(engine))
    assert (done.failed, done.state("embedding"), done.state("tokens/s")) == ([], "SKIP", "PASS")
    assert "the slim file cannot be measured: " in done.reason("embedding")


def test_where_time_is_short_one_comparison_may_still_be_decided(
    engine: FakeEngine, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(names: Sequence[str], *rest: Any, most: int) -> Rounds:
        return compare(names, *rest, most=1 if names[0] == SLIM_FILE else most)

    monkeypatch.setattr(comparison, "compare", short)
    original, _ = with_slim(tmp_path)
    done = run(engine.cli, "--json", "--seconds", "600", model=original, **working(engine))
    assert (done.state("tokens/s"), done.state("embedding")) == ("PASS", "SKIP")
    assert done.reason("embedding").startswith("not decided, since the machine is busy ")


def test_without_a_slim_copy_the_line_says_what_it_would_gain(
    engine: FakeEngine, run: Run, tmp_path: Path
) -> None:
    wide = str(write_bitnet(tmp_path / "my model.gguf"))
    done = run(engine.cli, "--json", "--no-speed", model=wide, **working(engine))
    assert (done.failed, done.state("embedding")) == ([], "HINT")
    assert "the f16 embedding; " in done.reason("embedding")
    assert done.reason("embedding").endswith(f"python3 -m bitnet_tuning model slim '{wide}'")
    small = str(write_bitnet(tmp_path / "small.gguf", embedding="q6_k"))
    done = run(engine.cli, "--json", "--no-speed", model=small, **working(engine))
    assert done.state("embedding") == "PASS"
    original, _ = with_slim(tmp_path)
    done = run(engine.cli, "--json", "--no-speed", model=original, **working(engine))
    assert done.reason("embedding") == "not measured: --no-speed"


def test_a_slower_plan_fails(engine: FakeEngine, run: Run) -> None:
    engine.curve(**QUIET, factors={"OMP_PROC_BIND=true": 0.5})
    done = run(engine.cli, "--json", "--seconds", "600", **working(engine))
    assert done.code == 1
    assert done.failed == ["tokens/s"]
    assert done.reason("tokens/s").startswith("slower: ")
    assert done.lines["tokens/s"]["facts"]["ratio"]["high"] < 0.6
    names = [each["env"].get("OMP_PROC_BIND") for each in engine.benches()]
    turns = {tuple(names[place : place + 2]) for place in range(3, 15, 2)}
    assert turns == {(None, "true"), ("true", None)}, "they take turns, in an order at random"


def test_a_script_that_drops_a_variable_fails(engine: FakeEngine, run: Run, tmp_path: Path) -> None:
    script = 'unset OMP_PLACES\n{cli} "$@"\nexit $?'
    cli = wrapped(tmp_path / "script", engine, script)
    done = run(cli, "--no-speed", "--json", **working(engine, says=99))
    assert done.code == 1
    assert done.failed == ["environment", "engine's n_threads"]
    assert "OMP_PLACES is missing" in done.reason("environment")
    assert str(cli) in done.reason("environment")
    assert "99" in done.reason("engine's n_threads")


def test_the_program_itself_sees_through_a_script_around_the_engine(
    engine: FakeEngine, tmp_path: Path
) -> None:
    cli = wrapped(tmp_path / "script", engine, '{cli} "$@"\nexit $?')
    command = [sys.executable, str(SCRIPT), "--engine", str(cli), "-m", demo.I2_S]
    ended = subprocess.run(
        [*command, "--no-speed", "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **working(engine)},
    )
    done = Outcome(ended.returncode, ended.stdout, ended.stderr)
    facts, lines = done.document, done.lines
    assert (done.code, facts["passed"]) == (0, True)
    assert facts["engine"] == str(cli)
    assert facts["setting"]["env"]["OMP_PROC_BIND"] == "true"
    assert facts["seconds"] > 0
    assert lines.pop("tokens/s")["state"] == "SKIP"
    assert {line["state"] for line in lines.values()} == {"PASS"}


def test_fewer_threads_wrong_words_and_another_model_fail(engine: FakeEngine, run: Run) -> None:
    engine.curve(**{**QUIET, "texts": {}})
    # A real engine under OMP_THREAD_LIMIT says 2 all the same.
    variables = working(engine, work="1 0.3", says=2)
    limits = {"OMP_THREAD_LIMIT": "1", "BITNET_THREADS": "2"}
    done = run(engine.cli, "--no-speed", "--json", model=demo.TQ2_0, **variables, **limits)
    assert done.code == 1
    assert {"working threads", "correct output", "i2_s model"} <= set(done.failed)
    assert "OMP_THREAD_LIMIT=1 allows no more" in done.reason("working threads")
    assert done.state("engine's n_threads") == "PASS"


@pytest.mark.skipif(planned() < 2, reason="there is one core only")
def test_threads_that_share_a_core_fail(engine: FakeEngine, run: Run) -> None:
    one = min(os.sched_getaffinity(0))
    done = run(engine.cli, "--no-speed", "--json", **working(engine, work_cpus=one))
    assert done.failed == ["threads' CPUs"]
    assert "must share a core with others" in done.reason("threads' CPUs")


def test_a_saved_setting_is_checked_unless_profiles_are_ignored(
    engine: FakeEngine, run: Run, own_state: Path
) -> None:
    count, variables = planned(), working(engine)
    state, host = State(str(own_state)), read_host()
    known = know(locate_all(str(engine.cli), {}, ())[0], state)
    setting = Setting(count, count, mmap=False)
    assert store(state, profile(host, known, setting, read_model(demo.I2_S)))
    engine.curve(**QUIET, text={"mmap=0": " other words"})
    done = run(engine.cli, "--no-speed", "--json", **variables)
    assert done.document["setting"]["mmap"] is False
    assert done.failed == ["correct output"]
    assert "with the planned setting" in done.reason("correct output")
    plain = run(engine.cli, "--no-speed", "--no-profile", "--json", **variables)
    assert plain.document["setting"]["mmap"] is None
    assert plain.failed == []


def test_an_engine_that_fails(engine: FakeEngine, run: Run) -> None:
    engine.curve(**QUIET, crash={f"threads={planned()}": "exit 3"})
    done = run(engine.cli, "--json")
    assert done.code == 1
    assert {"working threads", "correct output"} <= set(done.failed)
    assert done.state("environment") == "SKIP"
    assert "told to" in done.reason("working threads")
    assert done.reason("tokens/s") == "not measured: the texts are wrong"
    assert not engine.benches()[2:]


def test_a_plan_that_llama_bench_cannot_run_fails(engine: FakeEngine, run: Run) -> None:
    bench = engine.bin / "llama-bench"
    text = bench.read_text().replace("    record()\n", '    record()\n    sys.exit("told to")\n', 1)
    assert text != bench.read_text()
    bench.write_text(text)
    done = run(engine.cli, "--json", **working(engine))
    assert done.failed == ["tokens/s"]
    assert "the plan cannot be measured" in done.reason("tokens/s")
    assert "told to" in done.reason("tokens/s")


def test_an_engine_that_ends_too_soon_is_skipped(
    engine: FakeEngine, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine even the start of a fake engine takes long enough to be observed.
    monkeypatch.setattr(running, "LEAST_SECONDS", float("inf"))
    done = run(engine.cli, "--no-speed", "--json", **engine.environment(says=planned()))
    assert done.failed == [] and done.code == 0
    for name in ("environment", "working threads", "threads' CPUs"):
        assert (done.state(name), done.reason(name)) == ("SKIP", TOO_SOON)


def test_a_plan_that_is_the_upstream_default_is_not_compared(engine: FakeEngine, run: Run) -> None:
    own = dict.fromkeys(THREAD_COUNTS, "2") | {"OMP_PROC_BIND": "false"}
    done = run(engine.cli, "--json", **own)
    assert done.document["setting"]["env"] == {}
    assert "the plan is bitnet.cpp's own default" in done.reason("tokens/s")


def test_performance_mode_is_checked_as_far_as_this_machine_permits_it(
    engine: FakeEngine, run: Run
) -> None:
    privileges = read_privileges()
    flags = ("--performance-mode", "--json", "--seconds", "1")
    done = run(engine.cli, *flags, **working(engine))
    may_lock = privileges.lockable is None or privileges.lockable > os.path.getsize(demo.I2_S)
    assert done.failed == ["locked memory"] * may_lock  # the fake engine locks nothing
    assert done.state("priority") == ("PASS" if privileges.lowest_nice <= -5 else None)
    assert done.state("threads' CPUs") == "PASS"
    assert done.document["setting"]["cpus"]
    if may_lock:
        assert "0 KiB of the model's 1.1 MiB are locked" in done.reason("locked memory")
        assert UNLOCKED in done.err
    if privileges.lowest_nice > -5:
        assert "priority is not raised" in done.err


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--engine", "/nowhere"], 3),
        (["-m", "/nowhere.gguf"], 3),
        (["--seconds", "-1"], 2),
        (["--fast"], 2),
    ],
)
def test_errors_have_their_exit_code(
    engine: FakeEngine, run: Run, flags: list[str], code: int
) -> None:
    done = run(engine.cli, *flags)
    assert done.code == code
    assert done.err.startswith("bitnet-tuning: error: ")


def test_ctrl_c_exits_with_130_and_leaves_no_engine(engine: FakeEngine) -> None:
    flags = ("--engine", str(engine.cli), "-m", demo.I2_S)
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **engine.environment(sleep=600)},
        text=True,
    )
    until(engine.prompts)
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in process.communicate(timeout=300)[1]
    assert process.returncode == 130
    until(lambda: not any(alive(each["pid"]) for each in engine.prompts()))


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_terminal_gets_colours_and_folded_texts(engine: FakeEngine, term: str) -> None:
    command = ("sh", "-c", 'exec "$0" "$@" >&2', sys.executable, str(SCRIPT), "--no-speed")
    flags = ("--engine", str(engine.cli), "-m", demo.I2_S)
    variables = {"TERM": term, "COLUMNS": "60", **working(engine)}
    code, _, seen = run_at_terminal(*command, *flags, **variables)
    assert (code, "\x1b[32mPASS\x1b[0m  environment: " in seen) == (0, term == "xterm")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", seen).split("\n")
    states = [line for line in plain if line.startswith(("PASS", "SKIP"))]
    assert len(states) == 9 and max(map(len, states)) <= 60
    assert any(line.startswith("      ") for line in plain), "a hanging indent"


def test_pytest_finds_no_test_in_the_program() -> None:
    names = runpy.run_path(str(SCRIPT), run_name="collected")
    assert "main" in names
    assert not [name for name in names if name.lower().startswith("test")]


# The parts below it


def test_where_no_program_can_be_seen_the_reason_says_so(tmp_path: Path) -> None:
    plan = Plan(Setting(1, 1), {}, command=("sleep", "0.1"))
    watched = watch(plan, Root(str(tmp_path)), huge=False, nodes=False)
    assert watched.process is None
    assert watched.problem == "only Linux shows the threads of a running engine"


def test_a_captured_program_is_watched_while_it_runs(tmp_path: Path) -> None:
    seen: list[int] = []
    enough = tmp_path / "enough"

    def look(process: int) -> None:
        seen.append(process)
        if len(seen) == 5:
            enough.touch()

    script = 'echo $$; while [ ! -e "$0" ]; do sleep 0.01; done; echo end'
    done = capture(("sh", "-c", script, str(enough)), seconds=60, watch=look)
    assert (done.code, done.stdout) == (0, f"{seen[0]}\nend\n")
    assert len(seen) >= 5
    assert set(seen) == {seen[0]}


def test_a_watched_program_still_runs_out_of_time() -> None:
    done = capture(("sh", "-c", "echo begun; sleep 60"), seconds=1, watch=lambda _: None)
    assert (done.code, done.stdout) == (None, "begun\n")


def test_nothing_is_left_of_a_program_whose_watcher_fails() -> None:
    seen: list[int] = []

    def stumble(process: int) -> None:
        seen.append(process)
        raise ValueError("stumbled")

    with pytest.raises(ValueError, match="stumbled"):
        capture(("sleep", "60"), watch=stumble)
    assert not alive(seen[0])


@pytest.mark.slow
@pytest.mark.skipif(not embedded_library(), reason="xllamacpp is not installed")
def test_the_threads_of_the_embedded_engine_are_observed(run: Run) -> None:
    done = run("embedded", "--no-speed", "--json", model=demo.TQ2_0)
    assert done.code == 0, done.out
    assert done.state("working threads") == "PASS"
    assert "the embedded engine has no i2_s" in done.reason("i2_s model")


FOLDERS = [name for name in os.environ.get("BITNET_TEST_ENGINES", "").split(os.pathsep) if name]


@pytest.mark.slow
@pytest.mark.skipif(not FOLDERS, reason="BITNET_TEST_ENGINES names no engine")
@pytest.mark.parametrize("folder", FOLDERS or [""])
def test_a_real_engine_under_a_thread_limit_fails(folder: str, run: Run) -> None:
    flags, limit = ("--no-speed", "--json"), {"OMP_THREAD_LIMIT": "1"}
    done = run(folder, *flags, **limit)
    if done.code == 4:  # mainline has no i2_s
        done = run(folder, *flags, model=demo.TQ2_0, **limit)
    if done.document["setting"]["threads"] < 2 or not done.document["setting"]["env"]:
        pytest.skip("there is one core only, or the build has no OpenMP")
    assert "OMP_THREAD_LIMIT=1" in done.reason("working threads")
    assert done.state("engine's n_threads") == "PASS"  # its log says 2 all the same
