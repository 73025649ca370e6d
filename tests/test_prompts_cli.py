"""``--prompts`` with a fake server: what the server receives, what is printed, what is refused."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitnet_tuning import demo
from bitnet_tuning.__main__ import main
from tests.engines import FakeEngine
from tests.processes import alive, run_at_terminal, until
from tests.prompt_runs import SECONDS, FakePrompts, checked

pytestmark = pytest.mark.skipif(os.name == "nt", reason="fake engines are scripts: POSIX")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> FakeEngine:
    return FakeEngine(tmp_path_factory.mktemp("engine") / "checkout", server=True)


@pytest.fixture
def prompts(
    engine: FakeEngine,
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[FakePrompts]:
    # What is known about the engine is kept from test to test.
    monkeypatch.setenv("BITNET_TUNING_HOME", str(engine.checkout / "home"))
    found = FakePrompts(tmp_path, engine, capfdbinary)
    yield found
    found.end()


def test_answers_come_in_the_order_of_the_prompts(prompts: FakePrompts) -> None:
    prompts.write([{"id": "x", "prompt": "one two"}, "three", {"prompt": "ü\n", "id": 2.5}])
    done = prompts.run("-n", "7", "--slots", "2")
    assert done.code == 0
    assert [answer["id"] for answer in done.answers] == ["x", 1, 2.5]
    assert done.answers[0] == {
        "id": "x",
        "prompt": "one two",
        "text": " and its answer, 'one two'",
        "tokens": 7,
        "prompt_tokens": 2,
        "stop": "length",
    }
    assert "ü".encode() in done.out
    assert re.search(r"answered 3 of 3 prompts in \S+ s: 21 tokens, \S+ tokens/s\n", done.err)


def test_each_prompt_is_asked_with_its_own_parameters(prompts: FakePrompts) -> None:
    prompts.write(["plain", {"prompt": "own", "n_predict": -2, "seed": -1, "temperature": 0}])
    prompts.run("-n", "5", "-temp", "0.5", "--top-k", "3", "--seed", "4", "--slots", "1")
    plain, own = prompts.fake.asked()
    common = {"top_k": 3, "cache_prompt": False}
    sent = {"prompt": "plain", "n_predict": 5, "temperature": 0.5, "seed": 4, **common}
    assert {name: plain[name] for name in plain if name not in ("pid", "number")} == sent
    assert (own["n_predict"], own["seed"], own["temperature"]) == (-1, 2**32 - 1, 0)
    assert "repeat_penalty" not in own


def test_the_server_gets_slots_address_threads_and_a_key_in_its_environment(
    prompts: FakePrompts,
) -> None:
    cpu = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    prompts.write(["a", "b"])
    flags = ("-t", "1", "-tb", "1", "-c", "512", "-b", "64", "--slots", "3", "--", "--extra")
    command = prompts.command(*flags)
    prefix = ["taskset", "-c", str(cpu)] if cpu is not None and sys.platform == "linux" else []
    subprocess.run([*prefix, *command], check=True, timeout=SECONDS, capture_output=True)
    (run,) = prompts.fake.servers()
    argv = run["argv"]
    pairs = {flag: argv[argv.index(flag) + 1] for flag in ("-np", "-c", "-t", "-tb", "-b", "-m")}
    assert pairs == {"-np": "3", "-c": "1536", "-t": "1", "-tb": "1", "-b": "64", "-m": demo.I2_S}
    assert argv[argv.index("--host") + 1] == "127.0.0.1"
    assert int(argv[argv.index("--port") + 1]) > 1024
    assert argv[-1] == "--extra"
    assert {"-cb", "--no-context-shift"} <= set(argv)
    assert run["stdin"] == "/dev/null"
    assert run["pgid"] == run["pid"]
    if prefix:
        assert run["cpus"] == [cpu]
    key = run["env"]["LLAMA_API_KEY"]
    assert len(key) > 30
    assert not any(key in word for word in argv)


def test_every_run_has_another_key_and_every_request_has_it(prompts: FakePrompts) -> None:
    prompts.write(["a"])
    prompts.run()
    prompts.run()
    first, second = prompts.fake.servers()
    assert first["env"]["LLAMA_API_KEY"] != second["env"]["LLAMA_API_KEY"]
    assert len(prompts.fake.asked()) == 2
    assert not (prompts.fake.bin / "unauthorized.jsonl").exists()


def test_variables_that_would_change_the_server_do_not_reach_it(
    prompts: FakePrompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_ARG_API_PREFIX", "/x")
    monkeypatch.setenv("LLAMA_API_KEY", "mine")
    prompts.write(["a"])
    assert prompts.run().code == 0
    (run,) = prompts.fake.servers()
    assert "LLAMA_ARG_API_PREFIX" not in run["env"]
    assert run["env"]["LLAMA_API_KEY"] != "mine"


def test_a_server_that_knows_no_keys_gets_none(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    fake = FakeEngine(tmp_path / "checkout", server=True)
    prompts = FakePrompts(tmp_path, fake, capfdbinary)
    prompts.write(["a"])
    assert prompts.run(no_key=1).code == 0
    assert "LLAMA_API_KEY" not in fake.servers()[0]["env"]


def test_a_refused_prompt_is_an_error_of_its_own_and_the_others_are_answered(
    prompts: FakePrompts,
) -> None:
    prompts.write(["one", "too long", "three"])
    done = prompts.run(refuses="long")
    assert done.code == 1
    assert done.answers[1] == {"id": 1, "prompt": "too long", "error": "it is 400"}
    assert [answer["id"] for answer in done.answers] == [0, 1, 2]
    assert "answered 2 of 3 prompts in " in done.err
    assert '; 1 failed, id 1: see their "error"\n' in done.err


def test_a_prompt_at_which_the_server_fails_is_asked_once_more(prompts: FakePrompts) -> None:
    prompts.write(["one", "bad", "three"])
    done = prompts.run("--slots", "1", fails="bad")
    assert (done.code, done.answers[1]["error"]) == (1, "it is 500")
    assert [each["prompt"] for each in prompts.fake.asked()] == ["one", "bad", "bad", "three"]


def test_an_answer_of_no_tokens_has_no_text(prompts: FakePrompts) -> None:
    prompts.write([{"prompt": "a", "n_predict": 0}])
    (answer,) = prompts.run().answers
    assert (answer["text"], answer["tokens"]) == ("", 0)


def test_prompts_come_from_standard_input(prompts: FakePrompts) -> None:
    prompts.file = Path("-")
    done = subprocess.run(
        prompts.command(), input=b'"a"\r\n\n"b"', capture_output=True, check=False, timeout=SECONDS
    )
    answers = checked(done.returncode, done.stdout, done.stderr).answers
    assert (done.returncode, [answer["prompt"] for answer in answers]) == (0, ["a", "b"])


def test_if_a_port_is_taken_another_one_is_tried(prompts: FakePrompts) -> None:
    prompts.write(["a"])
    assert prompts.run(taken=2).code == 0
    ports = [run["argv"][run["argv"].index("--port") + 1] for run in prompts.fake.servers()]
    assert len(ports) == len(set(ports)) == 3


def test_after_several_taken_ports_the_run_fails(prompts: FakePrompts) -> None:
    prompts.write(["a"])
    done = prompts.run(taken=99)
    assert done.code == 1
    assert "couldn't bind" in done.err


def test_the_last_lines_of_a_server_that_does_not_start_are_shown(prompts: FakePrompts) -> None:
    prompts.write(["a"])
    done = prompts.run(unfit=1)
    assert (done.code, done.out) == (1, b"")
    assert "it is unfit" in done.err
    assert "answered 0 of 1 prompts" in done.err


def test_quiet_prints_nothing_but_the_answers(prompts: FakePrompts) -> None:
    prompts.write(["a", "b"])
    assert prompts.run("--quiet").err == ""


def test_stats_are_the_timings_of_the_server(prompts: FakePrompts) -> None:
    prompts.write(["a", "b"])
    done = prompts.run("--quiet", "--stats")
    assert "prompt 100.0 tokens/s (10 tokens), generation 20.0 tokens/s (20 tokens)" in done.err


def test_a_dry_run_shows_the_servers_command_and_starts_nothing(prompts: FakePrompts) -> None:
    prompts.write(["a", "b"])
    done = prompts.run("--dry-run", "--json", "--slots", "2")
    facts = json.loads(done.out)
    assert facts["command"][0].endswith("llama-server")
    assert facts["command"][facts["command"].index("-np") + 1] == "2"
    assert facts["reasons"]["slots"] == "2 slots: set by --slots"
    assert facts["reasons"]["prompts"] == f"2 in {prompts.file}"
    assert prompts.fake.servers() == []


def test_a_missing_server_is_an_error_that_names_the_command_to_build_it(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    prompts = FakePrompts(tmp_path, FakeEngine(tmp_path / "checkout"), capfdbinary)
    prompts.write(["a"])
    done = prompts.run()
    assert done.code == 3
    assert "cmake --build build --target llama-server" in done.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("-p", "x"), "-p/--prompt: not allowed with --prompts"),
        (("-f", "x"), "-f/--file: not allowed with --prompts"),
        (("-cnv",), "-cnv/--conversation: not allowed with --prompts"),
        (("--slots", "0"), "--slots"),
        (("--resume",), "--resume: needs -o FILE"),
        (("-o", "missing/out"), "-o/--output: missing/out: No such file"),
        (("-o", "/dev/null"), "-o/--output: /dev/null is not a regular file"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    prompts: FakePrompts, flags: tuple[str, ...], words: str
) -> None:
    prompts.write(["a"])
    done = prompts.run(*flags)
    assert done.code == 2
    assert words in done.err


@pytest.mark.parametrize("flags", [("--resume",), ("--slots", "2"), ("-o", "x")])
def test_flags_for_many_prompts_need_prompts(
    capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    assert main(["run", "-p", "x", *flags]) == 2
    assert "needs --prompts" in capsys.readouterr().err


def test_a_bad_line_is_reported_before_anything_is_started(prompts: FakePrompts) -> None:
    prompts.file.write_text('"good"\n{"prompt": 3}\n')
    done = prompts.run()
    assert done.code == 2
    assert "line 2: prompt: 3 is not a string" in done.err
    assert prompts.fake.runs() == []


def test_a_missing_file_of_prompts_is_an_error(prompts: FakePrompts) -> None:
    assert prompts.run().code == 3


def test_a_closed_reader_ends_the_run_and_the_server(prompts: FakePrompts) -> None:
    prompts.write([f"{number} " * 10_000 for number in range(9)])  # more than a pipe can hold
    process = prompts.begin("--slots", "1", out=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(SECONDS) in (141, -13)
    (server,) = prompts.fake.servers()
    until(lambda: not alive(server["pid"]))


@pytest.mark.parametrize(
    ("lines", "flags", "slots", "why"),
    [
        ("aaaaaa", (), 4, "the default"),
        ("aaa", (), 3, "one for each prompt"),
        ("aaaaaa", ("-temp", "0"), 1, "answers must be reproducible"),
        ("aaaaaa", ("--seed", "1"), 1, "answers must be reproducible"),
        ("aaaaaa", ("--seed", "-1"), 4, "the default"),
        ("aaaaaa", ("-temp", "0", "--slots", "2"), 2, "set by --slots"),
        ("asa", (), 1, "answers must be reproducible"),
    ],
)
def test_the_number_of_slots(
    prompts: FakePrompts, lines: str, flags: tuple[str, ...], slots: int, why: str
) -> None:
    """A plan, also that of the plan command, shows it; ``s`` is a line with a seed."""
    prompts.write(["a" if line == "a" else {"prompt": "a", "seed": 3} for line in lines])
    done = prompts.run("--dry-run", "--json", *flags)
    plan = json.loads(done.out)
    assert plan["command"][plan["command"].index("-np") + 1] == str(slots)
    assert why in plan["reasons"]["slots"]
    assert main(["plan", *prompts.arguments("--json", *flags)]) == 0
    same = json.loads(prompts.printed())
    assert (same["command"], same["reasons"]["slots"]) == (
        plan["command"],
        plan["reasons"]["slots"],
    )


def test_a_closed_standard_output_is_an_error(prompts: FakePrompts) -> None:
    prompts.write(["a"])
    shell = ["sh", "-c", 'exec "$@" >&-', "sh", *prompts.command()]
    done = subprocess.run(shell, capture_output=True, check=False, timeout=SECONDS)
    assert done.returncode == 2
    assert b"standard output is closed" in done.stderr


def test_on_a_terminal_a_bar_shows_the_progress(prompts: FakePrompts) -> None:
    pytest.importorskip("rich")
    prompts.write([f"p{number}" for number in range(6)])
    variables = {**prompts.variables(seconds=0.1), "TERM": "xterm"}
    code, out, seen = run_at_terminal(*prompts.command("--slots", "1"), **variables)
    assert (code, out.count(b"\n")) == (0, 6)
    assert re.search(r"[1-6]/6", seen) and "tokens/s" in seen
    assert re.search(r"bitnet-tuning: \d+ threads? .* \(--dry-run explains\)", seen)


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_an_answer_never_stands_in_the_line_of_the_progress(
    prompts: FakePrompts, term: str
) -> None:
    pytest.importorskip("rich")
    prompts.write([f"p{number}" for number in range(4)])
    variables = {**prompts.variables(seconds=0.1), "TERM": term, "COLUMNS": "60"}
    command = ("sh", "-c", 'exec "$0" "$@" >&2', *prompts.command("--slots", "1"))
    code, _, seen = run_at_terminal(*command, **variables)
    assert (code, "4/4" in seen) == (0, term == "xterm")
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", seen).split("\n")
    answers = [json.loads(line)["id"] for line in lines if '"id"' in line]
    assert answers == [0, 1, 2, 3]
    assert "answered 4 of 4 prompts in " in " ".join(" ".join(lines[-3:]).split())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="affinity")
def test_performance_mode_reaches_the_server_too(prompts: FakePrompts) -> None:
    prompts.write(["a", "b"])
    done = prompts.run("--performance-mode", "-t", "1")
    assert done.code == 0, done.err
    (server,) = prompts.fake.servers()
    assert len(server["cpus"]) == 1
    assert server["env"]["OMP_NUM_THREADS"] == "1"


def test_a_network_without_loopback_is_an_error(
    prompts: FakePrompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    prompts.write(["a"])
    done = prompts.run()
    assert done.code == 4
    assert "127.0.0.1 cannot be reached: Network is unreachable" in done.err
    assert "ip link set lo up" in done.err
