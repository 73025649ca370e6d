"""Runs of ``--prompts`` that end early: no program stays behind, and ``--resume`` completes the
answers without losing or repeating one."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitnet_tuning import demo
from tests.engines import FakeEngine
from tests.processes import alive, until
from tests.prompt_runs import REPO, SECONDS, FakePrompts, Prompts, checked

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")

MANY = [f"prompt {number}" for number in range(12)]
ENDS = {
    signal.SIGKILL: -signal.SIGKILL,
    signal.SIGTERM: 128 + signal.SIGTERM,
    signal.SIGINT: 130,
    signal.SIGHUP: 128 + signal.SIGHUP,
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> FakeEngine:
    return FakeEngine(tmp_path_factory.mktemp("engine") / "checkout", server=True)


@pytest.fixture
def home(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which what is known about the engine is kept from test to test."""
    folder = engine.checkout / "home"
    monkeypatch.setenv("BITNET_TUNING_HOME", str(folder))
    return folder


@pytest.fixture
def prompts(
    engine: FakeEngine, home: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> Iterator[FakePrompts]:
    found = FakePrompts(tmp_path, engine, capfdbinary)
    yield found
    found.end()


def answered(path: Path) -> list[str]:
    return [json.loads(line)["prompt"] for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize("number", ENDS)
def test_a_launcher_ended_by_a_signal_leaves_no_program_and_can_be_resumed(
    prompts: FakePrompts, home: Path, number: signal.Signals
) -> None:
    prompts.write(MANY)
    flags = ("--slots", "3", "-o", str(prompts.out))
    process = prompts.begin(*flags, out=subprocess.DEVNULL, hangs=6, leaves=1)
    until(lambda: prompts.out.exists() and prompts.out.read_bytes().count(b"\n") >= 3)
    process.send_signal(number)
    done = checked(0, b"", process.communicate(timeout=SECONDS)[1])
    assert process.returncode == ENDS[number]
    if number != signal.SIGKILL:
        assert f"interrupted ({number.name}): answered " in done.err
        assert done.err.endswith(" of 12 prompts; to go on, add --resume to the same command\n")
    (server,) = prompts.fake.servers()
    child = json.loads((prompts.fake.bin / "children.jsonl").read_text())["pid"]
    until(lambda: not alive(server["pid"]) and not alive(child))
    kept = prompts.out.read_bytes()
    before = set(answered(prompts.out))
    assert 3 <= len(before) < len(MANY)
    done = prompts.to_file("--slots", "3", "--resume")
    assert done.code == 0
    assert f"{len(before)} of 12 prompts have been answered by earlier runs" in done.err
    assert done.out.startswith(kept)
    assert sorted(answered(prompts.out)) == sorted(MANY)
    last = prompts.fake.servers()[-1]["pid"]
    again = {each["prompt"] for each in prompts.fake.asked() if each["pid"] == last}
    assert again == set(MANY) - before
    assert not list(home.glob("prompts*")) and not list(home.glob("*.lock"))


def patched(prompts: FakePrompts, code: str) -> subprocess.CompletedProcess[bytes]:
    """Run with one slot, with ``os.write`` and ``os.fsync`` as ``code`` defines them."""
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(REPO)!r})
from bitnet_tuning.cli.run import main

whole, fsync, count = os.write, os.fsync, 0
write, flush = whole, fsync
{code}
os.write, os.fsync = write, flush
sys.exit(main(sys.argv[1:]))
"""
    flags = [*prompts.command("--slots", "1")[2:], "-o", str(prompts.out)]
    command = [sys.executable, "-c", program, *flags]
    return subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)


@pytest.mark.parametrize("after", range(4))
def test_kill_9_between_any_two_steps_of_a_write_loses_only_what_is_in_flight(
    prompts: FakePrompts, after: int
) -> None:
    """Kill before the third answer, or after its first byte, its last byte, or its flush."""
    prompts.write(MANY)
    done = patched(
        prompts,
        f"""
def die():
    os.kill(os.getpid(), signal.SIGKILL)

def write(handle, data):
    global count
    count += bytes(data[:6]) == b'{{"id":'
    if count == 3 and {after} == 0:
        die()
    if count == 3 and {after} == 1:
        data = data[:1]
    written = whole(handle, data)
    if count == 3 and {after} in (1, 2):
        die()
    return written

def flush(handle):
    fsync(handle)
    if count == 3:
        die()
""",
    )
    assert done.returncode == -signal.SIGKILL
    whole = prompts.out.read_bytes().count(b"\n")
    assert whole == (2 if after < 2 else 3)
    resumed = prompts.to_file("--slots", "1", "--resume")
    assert (resumed.code, answered(prompts.out)) == (0, MANY)
    assert ("removed the last line" in resumed.err) == (after == 1)
    assert sum(each["prompt"] == MANY[0] for each in prompts.fake.asked()) == 1


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, 137), (signal.SIGSEGV, 139), (signal.SIGTERM, 143)]
)
def test_the_death_of_the_server_is_explained_and_resume_starts_another(
    prompts: FakePrompts, number: signal.Signals, code: int
) -> None:
    prompts.write(MANY)
    done = prompts.to_file("--slots", "2", dies=f"6 {int(number)}", seconds=0.01)
    assert done.code == code
    assert "--resume" in done.err
    assert 3 <= len(done.answers) <= 5
    assert prompts.to_file("--slots", "2", "--resume").code == 0
    assert sorted(answered(prompts.out)) == sorted(MANY)
    asked = Counter(each["prompt"] for each in prompts.fake.asked())
    assert max(asked.values()) <= 2


@pytest.mark.parametrize("torn", [b'{"id', b'{"id": 5, "prompt": "prompt 5", "te', b"\0\0\0"])
def test_an_incomplete_answer_is_removed_and_asked_again(prompts: FakePrompts, torn: bytes) -> None:
    prompts.write(MANY)
    whole = prompts.to_file("--slots", "1", dies="6 9").out
    prompts.out.write_bytes(whole + torn)
    done = prompts.to_file("--slots", "1", "--resume")
    assert "removed the last line" in done.err
    assert done.out.startswith(whole)
    assert (done.code, answered(prompts.out)) == (0, MANY)


def test_an_answer_that_lacks_only_its_newline_is_kept(prompts: FakePrompts) -> None:
    prompts.write(MANY)
    whole = prompts.to_file("--slots", "1", dies="6 9").out
    prompts.out.write_bytes(whole[:-1])
    done = prompts.to_file("--slots", "1", "--resume")
    assert done.out.startswith(whole)
    assert (done.code, answered(prompts.out)) == (0, MANY)


def test_a_complete_file_needs_no_server(prompts: FakePrompts) -> None:
    prompts.write(["a", "too long"])
    before = prompts.to_file("--slots", "1", refuses="long")
    done = prompts.to_file("--slots", "1", "--resume")
    assert (before.code, done.code, done.out) == (1, 1, before.out)
    assert '1 failed, id 1: see their "error" in' in done.err
    assert len(prompts.fake.servers()) == 1


def test_resume_without_a_file_answers_all(prompts: FakePrompts) -> None:
    prompts.write(MANY)
    assert prompts.to_file("--slots", "1", "--resume").code == 0
    assert answered(prompts.out) == MANY


def test_resume_asks_only_the_prompts_that_were_added(prompts: FakePrompts) -> None:
    prompts.write(MANY[:3])
    prompts.to_file("--slots", "1")
    prompts.write(MANY)
    assert prompts.to_file("--slots", "1", "--resume").code == 0
    assert answered(prompts.out) == MANY
    assert len(prompts.fake.asked()) == len(MANY)


def test_a_file_that_is_not_empty_is_not_overwritten(prompts: FakePrompts) -> None:
    prompts.write(MANY)
    prompts.out.write_bytes(b"")
    before = prompts.to_file("--slots", "1", dies="6 9").out
    done = prompts.to_file("--slots", "1")
    assert (done.code, done.out) == (2, before)
    assert "is not empty\n  add --resume to continue it, or name another file" in done.err
    assert len(prompts.fake.servers()) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"notes\n",
        b"notes",
        b'"text"\n',
        b'{"id": 0, "prompt": "prompt 0", "text": "x"}\n',
        b'{"id": 0, "prompt": "prompt 0", "text": "whole, but without its newline"}',
        b'{"id": 7, "prompt": "a file of prompts, named by mistake"}',
        b"\0\n",
    ],
)
def test_a_file_of_something_else_is_not_changed(prompts: FakePrompts, content: bytes) -> None:
    prompts.write(MANY)
    prompts.out.write_bytes(content)
    done = prompts.to_file("--resume")
    assert (done.code, done.out) == (2, content)
    assert "line 1 is not an answer to these prompts" in done.err
    assert prompts.fake.servers() == []


@pytest.mark.parametrize(
    "change", [("-n", "9"), ("-temp", "0.1"), ("-c", "512"), ("--seed", "3"), ("--", "--extra")]
)
def test_answers_of_other_settings_are_not_mixed(
    prompts: FakePrompts, change: tuple[str, ...]
) -> None:
    prompts.write(MANY)
    before = prompts.to_file("--slots", "1", dies="6 9").out
    done = prompts.to_file("--slots", "1", "--resume", *change)
    assert (done.code, done.out) == (2, before)
    assert "with this model and these flags" in done.err


def test_two_runs_at_once_are_refused(prompts: FakePrompts) -> None:
    prompts.write(MANY)
    flags = ("--slots", "1", "-o", str(prompts.out))
    prompts.begin(*flags, out=subprocess.DEVNULL, hangs=1)
    until(prompts.fake.asked)
    second = prompts.run("--resume", "-o", str(prompts.out))
    assert second.code == 1
    assert "another run is writing answers to" in second.err
    assert len(prompts.fake.servers()) == 1


def test_a_full_disk_is_reported_and_no_complete_answer_is_lost(prompts: FakePrompts) -> None:
    prompts.write(MANY)
    done = patched(
        prompts,
        """
def write(handle, data):
    if b"prompt 3" in bytes(data):
        whole(handle, data[:5])
        raise OSError(28, "No space left on device")
    return whole(handle, data)
""",
    )
    assert done.returncode == 1
    assert b"cannot write to" in done.stderr and b"No space left on device" in done.stderr
    assert b"answered 3 of 12 prompts; to go on, add --resume to the same command" in done.stderr
    assert prompts.to_file("--slots", "1", "--resume").code == 0
    assert answered(prompts.out) == MANY


# The embedded engine: a real server with a real model

has_embedded = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed"
)
QUESTIONS = ["How many threads", "What is SMT?", "What is a CPU quota?", "Why"] * 6


@pytest.fixture
def embedded(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Iterator[Prompts]:
    prompts = Prompts(tmp_path, "embedded", demo.TQ2_0, capfdbinary)
    yield prompts
    prompts.end()


def single(embedded: Prompts, prompt: str, tokens: int) -> str:
    """Return the answer of a run of its own, without the prompt and the end-of-text mark."""
    command = embedded.command()[:-2]
    flags = ["-p", prompt, "-n", str(tokens), "-temp", "0", "--quiet"]
    done = subprocess.run([*command, *flags], capture_output=True, check=True, timeout=SECONDS)
    text = done.stdout.decode().removeprefix(prompt).removesuffix("\n")
    return text.removesuffix(" [end of text]")


@has_embedded
def test_greedy_answers_are_those_of_single_runs(embedded: Prompts) -> None:
    questions = QUESTIONS[:3] * 2
    embedded.write(questions)
    done = embedded.run("-temp", "0", "-n", "24", "--slots", "3")
    assert done.code == 0, done.err
    wanted = single(embedded, questions[1], 24)
    assert [answer["text"] for answer in done.answers[1::3]] == [wanted, wanted]
    assert {answer["stop"] for answer in done.answers} <= {"end", "length"}


@has_embedded
def test_a_prompt_beyond_the_context_is_refused_alone(embedded: Prompts) -> None:
    embedded.write(["Why", "Why " * 600, "Why"])
    done = embedded.run("-temp", "0", "-n", "8", "-c", "128", "--slots", "3")
    assert done.code == 1
    assert "context size" in done.answers[1]["error"]
    assert done.answers[0]["text"] == done.answers[2]["text"] != ""


def children(parent: int) -> list[dict[str, Any]]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                words = (folder / "stat").read_text().rpartition(")")[2].split()
                argv = (folder / "cmdline").read_bytes().decode().split("\0")
                environ = (folder / "environ").read_bytes().decode().split("\0")
            except OSError:
                continue
            if int(words[1]) == parent:
                found.append({"pid": int(folder.name), "argv": argv, "environ": environ})
    return found


@has_embedded
@pytest.mark.slow
@pytest.mark.parametrize("victim", ["launcher", "server"])
def test_kill_9_in_the_middle_loses_and_doubles_nothing(embedded: Prompts, victim: str) -> None:
    embedded.write([{"prompt": prompt, "id": n} for n, prompt in enumerate(QUESTIONS)])
    flags = ("-temp", "0", "-n", "400", "--slots", "2", "--", "-ngl", "0")
    whole = embedded.to_file(*flags).out.splitlines()
    embedded.out.unlink()
    process = embedded.begin("-o", str(embedded.out), *flags, out=subprocess.DEVNULL)
    until(lambda: embedded.out.exists() and embedded.out.read_bytes().count(b"\n") >= 2)
    (server,) = children(process.pid)
    assert "server" in server["argv"]
    (key,) = (each for each in server["environ"] if each.startswith("LLAMA_API_KEY="))
    assert not any(key.partition("=")[2] in word for word in server["argv"])
    os.kill(process.pid if victim == "launcher" else server["pid"], signal.SIGKILL)
    process.communicate(timeout=SECONDS)
    assert process.returncode == (-9 if victim == "launcher" else 137)
    until(lambda: not alive(server["pid"]))
    assert len(embedded.out.read_bytes().splitlines()) < len(whole)
    resumed = embedded.to_file("--resume", *flags)
    assert resumed.code == 0, resumed.err
    assert sorted(resumed.out.splitlines()) == sorted(whole)


def test_a_pause_also_stops_the_server(prompts: FakePrompts) -> None:
    prompts.write(MANY[:3])
    flags = ("--slots", "1", "-o", str(prompts.out))
    process = prompts.begin(*flags, out=subprocess.DEVNULL, seconds=1)
    until(prompts.fake.asked)
    (server,) = prompts.fake.servers()
    process.send_signal(signal.SIGTSTP)
    until(lambda: state(process.pid) == state(server["pid"]) == "T")
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert answered(prompts.out) == MANY[:3]


def state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
