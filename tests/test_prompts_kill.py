"""Ends in the middle of ``--prompts``: nothing stays, and ``--resume`` completes the answers
without losing or repeating one."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.processes import alive, until
from tests.prompt_runs import (
    SECONDS,
    Prompts,
    checked,
    journals,
    kept,
    with_embedded,
    with_fake,
)

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="looks at /proc and appends to files"
)

MANY = [f"prompt {number}" for number in range(12)]
ENDS = {
    signal.SIGKILL: -signal.SIGKILL,
    signal.SIGTERM: 128 + signal.SIGTERM,
    signal.SIGINT: 130,
    signal.SIGHUP: 128 + signal.SIGHUP,
}


@pytest.fixture
def prompts(tmp_path: Path) -> Prompts:
    return with_fake(tmp_path)


def answered(path: Path) -> list[str]:
    return [json.loads(line)["prompt"] for line in path.read_bytes().splitlines()]


def ended_early(prompts: Prompts, number: signal.Signals, **behaviour: object) -> int:
    """Signals a launcher that has printed some answers; answers its exit code."""
    with prompts.out.open("wb") as out:
        process = prompts.begin("--slots", "3", out=out, seconds=0.05, **behaviour)
    until(lambda: prompts.out.read_bytes().count(b"\n") >= 3)
    process.send_signal(number)
    error = process.communicate(timeout=SECONDS)[1]
    checked(process.returncode, b"", error)
    return process.returncode


@pytest.mark.parametrize("mode", ["wb", "ab"])
@pytest.mark.parametrize("number", ENDS)
def test_a_launcher_that_is_ended_leaves_nothing_and_goes_on(
    prompts: Prompts, own_state: Path, number: signal.Signals, mode: str
) -> None:
    prompts.write(MANY)
    assert ended_early(prompts, number, leaves=1) == ENDS[number]
    (server,) = prompts.fake.servers()
    child = json.loads((prompts.fake.bin / "children.jsonl").read_text())["pid"]
    until(lambda: not alive(server["pid"]) and not alive(child))
    before = set(kept(own_state))
    assert 3 <= len(before) < len(MANY)
    assert prompts.to_file(mode, "--slots", "3", "--resume").code == 0
    assert answered(prompts.out) == MANY
    last = prompts.fake.servers()[-1]["pid"]
    again = {each["prompt"] for each in prompts.fake.asked() if each["pid"] == last}
    assert again == {MANY[place] for place in set(range(len(MANY))) - before}
    assert journals(own_state) == []


@pytest.mark.parametrize("mode", ["wb", "ab"])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, 137), (signal.SIGSEGV, 139), (signal.SIGTERM, 143)]
)
def test_a_server_that_dies_is_explained_and_replaced_by_resume(
    prompts: Prompts, own_state: Path, number: signal.Signals, code: int, mode: str
) -> None:
    prompts.write(MANY)
    done = prompts.to_file("wb", "--slots", "2", dies=f"6 {int(number)}", seconds=0.01)
    assert done.code == code
    assert "--resume" in done.err
    assert 3 <= len(kept(own_state)) <= 5
    assert prompts.to_file(mode, "--slots", "2", "--resume").code == 0
    assert answered(prompts.out) == MANY
    asked = Counter(each["prompt"] for each in prompts.fake.asked())
    assert max(asked.values()) <= 2


def test_a_server_that_never_answers_can_be_left(prompts: Prompts) -> None:
    prompts.write(MANY)
    assert ended_early(prompts, signal.SIGINT, hangs=5) == 130
    (server,) = prompts.fake.servers()
    until(lambda: not alive(server["pid"]))
    assert prompts.to_file("ab", "--slots", "2", "--resume").code == 0
    assert answered(prompts.out) == MANY


def test_an_answer_that_was_torn_is_mended(prompts: Prompts, own_state: Path) -> None:
    """The end of the file and of the journal, as a full disk may leave them."""
    prompts.write(MANY)
    prompts.to_file("wb", "--slots", "1", dies="6 9")
    prompts.out.write_bytes(prompts.out.read_bytes()[:-4])
    (journal,) = journals(own_state)
    with journal.open("ab") as file:
        file.write(b'{"place": 5, "ans')
    assert prompts.to_file("ab", "--slots", "2", "--resume").code == 0
    assert answered(prompts.out) == MANY


def test_what_else_a_file_holds_stays(prompts: Prompts) -> None:
    prompts.write(MANY)
    prompts.out.write_bytes(b"a heading without an end")
    prompts.to_file("ab", "--slots", "1", dies="6 9")
    assert prompts.to_file("ab", "--slots", "2", "--resume").code == 0
    heading, *rest = prompts.out.read_bytes().split(b"\n")
    assert heading == b"a heading without an end"
    assert [json.loads(line)["prompt"] for line in rest[:-1]] == MANY


def test_a_run_killed_at_its_very_end_has_nothing_left_to_say(
    prompts: Prompts, own_state: Path
) -> None:
    """The journal is gone, but the file holds it all."""
    prompts.write(MANY)
    prompts.to_file("wb", "--slots", "1")
    before = prompts.out.read_bytes()
    done = prompts.to_file("ab", "--slots", "1", "--resume")
    assert (done.code, done.out) == (0, before)
    assert len(prompts.fake.servers()) == 1


def test_resume_without_anything_to_resume_answers_all(prompts: Prompts) -> None:
    prompts.write(MANY)
    done = prompts.run("--slots", "1", "--resume")
    assert done.code == 0
    assert [answer["prompt"] for answer in done.answers] == MANY


def test_without_resume_the_unfinished_run_is_set_aside(prompts: Prompts, own_state: Path) -> None:
    prompts.write(MANY)
    prompts.to_file("wb", "--slots", "1", dies="6 9")
    done = prompts.to_file("wb", "--slots", "1")
    assert done.code == 0
    assert "--resume would have gone on" in done.err
    assert answered(prompts.out) == MANY
    assert len(list(own_state.glob("prompts-*.jsonl.*-*"))) == 1
    assert len({each["pid"] for each in prompts.fake.asked()}) == 2
    last = prompts.fake.servers()[-1]["pid"]
    assert sum(each["pid"] == last for each in prompts.fake.asked()) == len(MANY)


def test_a_damaged_journal_is_set_aside_and_what_is_good_is_used(
    prompts: Prompts, own_state: Path
) -> None:
    prompts.write(MANY)
    prompts.to_file("wb", "--slots", "1", dies="6 9")
    (journal,) = journals(own_state)
    lines = journal.read_bytes().split(b"\n")
    journal.write_bytes(b"\n".join([*lines[:3], b"\0\0", *lines[4:]]))
    done = prompts.to_file("ab", "--slots", "2", "--resume")
    assert done.code == 0
    assert "damaged" in done.err
    assert answered(prompts.out) == MANY


@pytest.mark.parametrize(
    "change", [("-n", "9"), ("-temp", "0.1"), ("-c", "512"), ("--seed", "3"), ("--", "--extra")]
)
def test_other_numbers_are_another_run(
    prompts: Prompts, own_state: Path, change: tuple[str, ...]
) -> None:
    prompts.write(MANY)
    prompts.to_file("wb", "--slots", "1", dies="6 9")
    done = prompts.to_file("wb", "--slots", "1", "--resume", *change)
    assert "0 of 12 prompts were answered before" in done.err
    assert len(journals(own_state)) == 1


def test_two_runs_at_once_are_refused(prompts: Prompts) -> None:
    prompts.write(MANY)
    process = prompts.begin("--slots", "1", out=subprocess.DEVNULL, seconds=0.1)
    try:
        until(prompts.fake.asked)
        second = prompts.run("--resume")
    finally:
        process.kill()
        process.communicate()
    assert second.code == 1
    assert "another run is answering these very prompts" in second.err
    assert len(prompts.fake.servers()) == 1


def test_a_journal_is_for_its_owner_only(prompts: Prompts, own_state: Path) -> None:
    prompts.write(MANY)
    prompts.to_file("wb", "--slots", "1", dies="3 9")
    (journal,) = journals(own_state)
    assert journal.stat().st_mode & 0o077 == 0


def test_without_a_place_for_a_journal_answers_come_all_the_same(
    prompts: Prompts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BITNET_TUNING_HOME", str(tmp_path / "file" / "folder"))
    prompts.write(["a", "b"])
    done = prompts.run()
    assert (done.code, len(done.answers)) == (0, 2)
    assert "cannot be kept" in done.err


# The embedded engine: a real server with a real model

has_embedded = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed"
)
QUESTIONS = ["How many threads", "What is SMT?", "What is a CPU quota?", "Why"] * 6


def single(prompts: Prompts, prompt: str, tokens: int) -> str:
    """What a run of its own answers, without the echo and the mark of its end."""
    command = prompts.command()[:-2]
    flags = ["-p", prompt, "-n", str(tokens), "-temp", "0", "--quiet"]
    done = subprocess.run([*command, *flags], capture_output=True, check=True, timeout=SECONDS)
    text = done.stdout.decode().removeprefix(prompt).removesuffix("\n")
    return text.removesuffix(" [end of text]")


@has_embedded
def test_greedy_answers_are_those_of_single_runs(tmp_path: Path) -> None:
    prompts = with_embedded(tmp_path)
    prompts.write([{"prompt": prompt, "id": n} for n, prompt in enumerate(QUESTIONS)])
    done = prompts.run("-temp", "0", "-n", "64", "--slots", "4")
    assert done.code == 0, done.err
    wanted = {prompt: single(prompts, prompt, 64) for prompt in QUESTIONS[:4]}
    assert [answer["text"] for answer in done.answers] == [wanted[each] for each in QUESTIONS]
    assert {answer["stop"] for answer in done.answers} <= {"end", "length"}


@has_embedded
def test_a_prompt_beyond_the_context_is_refused_alone(tmp_path: Path) -> None:
    prompts = with_embedded(tmp_path)
    prompts.write(["Why", "Why " * 600, "Why"])
    done = prompts.run("-temp", "0", "-n", "8", "-c", "128", "--slots", "3")
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
@pytest.mark.parametrize("mode", ["wb", "ab"])
@pytest.mark.parametrize("victim", ["launcher", "server"])
def test_kill_9_in_the_middle_loses_and_doubles_nothing(
    tmp_path: Path, victim: str, mode: str
) -> None:
    prompts = with_embedded(tmp_path)
    prompts.write([{"prompt": prompt, "id": n} for n, prompt in enumerate(QUESTIONS)])
    flags = ("-temp", "0", "-n", "400", "--slots", "2", "--", "--poll", "0")
    prompts.to_file("wb", *flags)
    whole = prompts.out.read_bytes()
    with prompts.out.open("wb") as out:
        process = prompts.begin(*flags, out=out)
    until(lambda: prompts.out.read_bytes().count(b"\n") >= 2)
    (server,) = children(process.pid)
    assert "server" in server["argv"]
    (key,) = (each for each in server["environ"] if each.startswith("LLAMA_API_KEY="))
    assert not any(key.partition("=")[2] in word for word in server["argv"])
    os.kill(process.pid if victim == "launcher" else server["pid"], signal.SIGKILL)
    process.communicate(timeout=SECONDS)
    assert process.returncode == (-9 if victim == "launcher" else 137)
    until(lambda: not alive(server["pid"]))
    assert prompts.out.read_bytes() != whole
    resumed = prompts.to_file(mode, "--resume", *flags)
    assert resumed.code == 0, resumed.err
    assert prompts.out.read_bytes() == whole


def test_a_pause_holds_the_server_as_well(prompts: Prompts) -> None:
    prompts.write(MANY)
    with prompts.out.open("wb") as out:
        process = prompts.begin("--slots", "1", out=out, seconds=0.05)
    until(prompts.fake.asked)
    (server,) = prompts.fake.servers()
    process.send_signal(signal.SIGTSTP)
    until(lambda: state(process.pid) == state(server["pid"]) == "T")
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert answered(prompts.out) == MANY


def state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
