"""``python3 -m bitnet_tuning profile``, and runs that use profiles."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bitnet_tuning import demo
from bitnet_tuning.__main__ import main
from bitnet_tuning.cli import run
from bitnet_tuning.engine.find import Engine
from bitnet_tuning.machine.detect import read_host
from bitnet_tuning.machine.host import Host
from bitnet_tuning.model.find import Choice
from bitnet_tuning.plan.profile import Profile, engine_key, store, stored_profiles
from bitnet_tuning.prepare import find_pair
from bitnet_tuning.store.state import State
from tests import profile_samples as samples
from tests.engines import FakeEngine
from tests.machines import Machine
from tests.profile_samples import CLAIM, EVIDENCE, SETTING

REPO = Path(__file__).resolve().parents[1]

pytest.importorskip("resource", reason="fake engines are scripts: POSIX")


class Bench:
    """A fake engine, a fake machine, and profiles for both."""

    def __init__(self, folder: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.machine = samples.machine(folder / "root")
        self.fake = FakeEngine(folder / "checkout")
        self.home = home
        self.capsys = capsys

    @property
    def state(self) -> State:
        return State(str(self.home))

    def pair(self) -> tuple[Engine, Choice]:
        return find_pair(str(self.fake.cli), demo.I2_S, self.state)

    def remember(self, host: Host | None = None, **changes: Any) -> Profile:
        """Save a profile with these fields for this engine and the demo model."""
        engine, choice = self.pair()
        made = samples.profile(
            host or self.machine.host(), engine_key(engine), model=choice.model
        )._replace(**changes)
        assert store(self.state, made)
        return made

    def call(self, *words: str) -> int:
        """Call a command and return its exit code; if it looks at a machine, at the fake one."""
        root = ("--root", str(self.machine.path)) if words[0] in ("list", "show", "import") else ()
        return main(["profile", *words, *root])

    def out(self) -> str:
        return self.capsys.readouterr().out

    def err(self) -> str:
        return self.capsys.readouterr().err


@pytest.fixture
def bench(tmp_path: Path, own_state: Path, capsys: pytest.CaptureFixture[str]) -> Bench:
    return Bench(tmp_path, own_state, capsys)


# Listing and showing


def test_an_empty_list_says_how_to_get_a_profile(bench: Bench) -> None:
    assert bench.call("list") == 0
    assert "benchmark_optimized.py" in bench.err()
    assert bench.call("list", "--json") == 0
    assert json.loads(bench.out()) == []


def test_without_a_command_it_is_the_list(bench: Bench) -> None:
    made = bench.remember()
    assert main(["profile"]) == 0
    assert bench.out().startswith(made.id)
    assert main(["profile", "--json"]) == 0
    assert json.loads(bench.out())[0]["id"] == made.id


def test_the_list_shows_every_profile_in_100_columns(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    made = bench.remember()
    other = bench.remember(bench.machine.affinity("0-3").host(), setting=None)
    assert bench.call("list") == 0
    text = bench.out()
    lines = [line for line in text.splitlines() if str(bench.fake.cli) not in line]
    assert max(map(len, lines)) <= 100
    shown = {block.split()[0]: block for block in text.split("\n\n")}
    assert set(shown) == {made.id, other.id}
    assert f"{made.id}  measured on 2026-11-23\n" in shown[made.id]
    for words in ("3 threads, 4 for prompts, no mmap", str(bench.fake.cli), "×1.21 (1.15–1.27)"):
        assert words in shown[made.id]
    assert "out of date: allowed CPUs 0-7, now 0-3" in shown[made.id]
    assert "valid" in shown[other.id] and "no setting beat it" in shown[other.id]


def test_the_list_says_what_changed(bench: Bench) -> None:
    bench.remember()
    bench.machine.affinity("0-3")
    with bench.fake.cli.open("a") as file:
        file.write("# another build\n")
    assert bench.call("list") == 0
    text = " ".join(bench.out().split())
    assert "out of date: allowed CPUs 0-7, now 0-3; " in text
    assert "was replaced" in text
    assert bench.call("list", "--json") == 0
    (facts,) = json.loads(bench.out())
    assert facts["valid"] is False
    assert len(facts["changed"]) == 2


def test_the_list_as_json_contains_everything(bench: Bench) -> None:
    made = bench.remember(setting=None)
    assert bench.call("list", "--json") == 0
    (facts,) = json.loads(bench.out())
    assert (facts["id"], facts["valid"], facts["changed"]) == (made.id, True, [])
    assert facts["setting"] is None
    assert facts["evidence"]["ratio"] == {"median": 1.21, "low": 1.15, "high": 1.27, "rounds": 14}
    assert (facts["schema"], facts["version"]) == (1, 1)


@pytest.mark.parametrize("length", [16, 6])
def test_a_profile_is_shown_by_its_id_or_the_beginning_of_it(bench: Bench, length: int) -> None:
    made = bench.remember()
    assert bench.call("show", made.id[:length]) == 0
    shown = dict(line.split("  ", 1) for line in bench.out().splitlines())
    facts = {name: text.strip() for name, text in shown.items()}
    assert facts["id"] == made.id
    assert facts["over upstream"].endswith("14 rounds")
    assert facts["speeds"] == "tg 24.7 tokens/s"
    assert facts["samples"] == "/home/x/results.json"
    assert facts["host brand"] == "Some CPU"


@pytest.mark.parametrize("command", ["show", "remove", "export"])
def test_the_error_for_an_unknown_id_lists_the_ids(bench: Bench, command: str) -> None:
    assert bench.call(command, "beef") == 3
    assert "benchmark_optimized.py" in bench.err()
    made = bench.remember()
    assert bench.call(command, "xyz") == 3
    assert f"the ids are: {made.id}" in bench.err()


def test_the_beginning_of_several_ids_is_an_error(bench: Bench) -> None:
    host = bench.machine.host()
    quotas = [number / 4 for number in range(1, 18)]  # one more than there are digits
    firsts = [bench.remember(host._replace(quota=quota)).id[0] for quota in quotas]
    shared = next(digit for digit in firsts if firsts.count(digit) > 1)
    assert bench.call("show", shared) == 2
    assert "several ids begin with" in bench.err()


def test_a_damaged_profile_is_one_line_of_warning(bench: Bench) -> None:
    made = bench.remember()
    Path(bench.state.path("profile", made.id)).write_text("{")
    assert bench.call("list") == 0
    assert bench.err().count("; renamed to ") == 1


# Removing


def test_a_profile_is_removed_and_named(bench: Bench) -> None:
    made = bench.remember()
    other = bench.remember(bench.machine.affinity("0-3").host())
    last = bench.remember(bench.machine.affinity("0-5").host())
    assert bench.call("remove", made.id[:8], other.id) == 0
    assert bench.out().startswith(f"removed {made.id}, measured on 2026-11-23: 3 threads")
    assert stored_profiles(bench.state) == [last]


@pytest.mark.parametrize("words", [("remove",), ("forget",)])
def test_wrong_arguments_are_an_error(bench: Bench, words: tuple[str, ...]) -> None:
    assert main(["profile", *words]) == 2
    assert bench.err().startswith("bitnet-tuning: error: ")


# Several machines of a kind


class Fleet:
    """Two machines of a kind. The second has the engine in another folder, with another time."""

    def __init__(self, bench: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bench = bench
        self.made = bench.remember()
        self.file = folder / "profile.json"
        bench.out()
        assert bench.call("export", self.made.id) == 0
        self.file.write_text(bench.out())
        self.cli = folder / "elsewhere" / "build" / "bin" / "llama-cli"
        shutil.copytree(bench.fake.checkout, folder / "elsewhere")
        os.utime(self.cli, (1, 1))
        monkeypatch.setenv("BITNET_TUNING_HOME", str(folder / "second home"))
        self.state = State(str(folder / "second home"))

    def adopt(self) -> int:
        return self.bench.call("import", str(self.file), "--engine", str(self.cli))


@pytest.fixture
def fleet(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    return Fleet(bench, tmp_path, monkeypatch)


def test_a_profile_is_used_on_another_machine_of_the_kind(fleet: Fleet) -> None:
    assert fleet.adopt() == 0
    (stored,) = stored_profiles(fleet.state)
    assert fleet.bench.out().startswith(f"imported {stored.id}, measured on ")
    assert stored.id != fleet.made.id
    assert stored._replace(engine=fleet.made.engine) == fleet.made
    assert stored.engine.path == str(fleet.cli)


def test_another_kind_of_machine_is_refused(fleet: Fleet) -> None:
    fleet.bench.machine.affinity("0-3")
    assert fleet.adopt() == 4
    assert "allowed CPUs 0-7, now 0-3" in fleet.bench.err()
    assert stored_profiles(fleet.state) == []


def test_another_engine_is_refused(fleet: Fleet) -> None:
    with fleet.cli.open("a") as file:
        file.write("#")
    assert fleet.adopt() == 4
    assert "llama-cli is not the same here" in fleet.bench.err()
    record = json.loads(fleet.file.read_text())
    record["engine"]["version"] = "1 (other)"
    fleet.file.write_text(json.dumps(record))
    assert fleet.adopt() == 4
    assert "engine version 1 (other), here 3957 (5eb47b72)" in fleet.bench.err()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "schema: must be 1"),
        (b'{"schema": 1, "version": 2}', "version: must be 1"),
        (b'{"schema": 1, "version": 1}', "created: missing"),
        (b'{"schema": 1, "version": 1, "created": "\\u001b[2J"}', "engine: missing"),
    ],
)
def test_the_error_for_a_file_without_a_profile_is_one_line(
    fleet: Fleet, content: bytes, said: str
) -> None:
    fleet.file.write_bytes(content)
    fleet.bench.err()
    assert fleet.adopt() == 4
    cause, remedy = fleet.bench.err().splitlines()
    assert said in cause
    assert cause.isprintable()
    assert "export" in remedy
    assert stored_profiles(fleet.state) == []


def test_a_dangerous_variable_is_refused(fleet: Fleet) -> None:
    record = json.loads(fleet.file.read_text())
    record["setting"]["env"]["LD_PRELOAD"] = "/tmp/x.so"
    fleet.file.write_text(json.dumps(record))
    assert fleet.adopt() == 4
    assert '"LD_PRELOAD"' in fleet.bench.err()


def test_a_missing_file_is_an_error(fleet: Fleet) -> None:
    fleet.file.unlink()
    assert fleet.adopt() == 3
    assert "No such file" in fleet.bench.err()


def test_a_folder_that_cannot_be_written_is_an_error(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BITNET_TUNING_HOME", str(tmp_path / "file" / "state"))
    assert fleet.adopt() == 1
    assert "cannot" in fleet.bench.err()


# Runs


def dry_run(bench: Bench, *flags: str) -> dict[str, Any]:
    named = ("--engine", str(bench.fake.cli), "-m", demo.I2_S, "-p", "hello")
    bench.out()
    assert run.main([*named, "--dry-run", "--json", *flags]) == 0
    plan: dict[str, Any] = json.loads(bench.out())
    return plan


def test_a_run_uses_the_profile_of_this_machine(bench: Bench) -> None:
    free = SETTING._replace(threads=1, threads_batch=1, env=(("OMP_NUM_THREADS", "1"),))
    bench.remember(read_host(), setting=free)
    plan = dry_run(bench)
    assert (plan["threads"], plan["threads_batch"]) == (1, 1)
    assert plan["env"] == {"OMP_NUM_THREADS": "1"}
    assert plan["reasons"]["threads"] == f"1: the saved setting (1 thread, no mmap) was {CLAIM}"
    named = ["--engine", str(bench.fake.cli), "-m", demo.I2_S, "-p", "hello"]
    script = [sys.executable, str(REPO / "run_inference.py"), *named]
    done = subprocess.run(script, capture_output=True, timeout=60, check=True)
    assert (done.stdout, b"profile" in done.stderr) == (b"hello and more text\n", False)
    last = bench.fake.prompts()[-1]
    assert last["argv"][last["argv"].index("-t") + 1] == "1"
    assert last["env"]["OMP_NUM_THREADS"] == "1"
    assert "OMP_PROC_BIND" not in last["env"]


def test_a_run_can_leave_the_profile_out(bench: Bench) -> None:
    bench.remember(read_host())
    assert "measured" not in dry_run(bench, "--no-profile")["reasons"]["threads"]
    assert "is not used" in dry_run(bench, "-t", "1")["reasons"]["threads"]


def test_a_run_after_a_rebuild_computes(bench: Bench) -> None:
    bench.remember(read_host())
    with bench.fake.cli.open("a") as file:
        file.write("# another build\n")
    assert "measured" not in dry_run(bench)["reasons"]["threads"]


def test_the_plan_command_uses_profiles_too(bench: Bench) -> None:
    bench.remember(evidence=EVIDENCE._replace(ratio=None))
    words = ["plan", "--root", str(bench.machine.path), "--json"]
    named = ["--engine", str(bench.fake.cli), "-m", demo.I2_S]
    assert main([*words, *named]) == 0
    saved = "the saved setting (3 threads, 4 for prompts, no mmap) was measured on 2026-11-23"
    assert json.loads(bench.out())["reasons"]["threads"] == f"3: {saved}"


def test_what_the_machine_has_is_not_what_a_profile_for_another_says(bench: Bench) -> None:
    bench.remember(Machine(bench.home / "other root").regular(64).host())
    assert "measured" not in dry_run(bench)["reasons"]["threads"]


def test_a_slim_copy_puts_the_profile_of_the_model_out_of_date(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BITNET_MODEL", demo.I2_S)
    bench.remember()
    assert bench.call("list") == 0 and "valid" in bench.out()
    larger = tmp_path / "larger.gguf"
    larger.write_bytes(Path(demo.I2_S).read_bytes() + bytes(1 << 20))
    monkeypatch.setenv("BITNET_MODEL", str(larger))
    assert bench.call("list") == 0
    assert "out of date: model size " in " ".join(bench.out().split())
    monkeypatch.setenv("BITNET_MODEL", "/no/such.gguf")
    assert bench.call("list") == 0 and "valid" in bench.out()
