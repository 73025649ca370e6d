"""``--prompts`` with a fake server: what it receives, what is printed, what is refused."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitnet_tuning import demo
from tests.engines import FakeEngine
from tests.processes import alive, until
from tests.prompt_runs import REPO, SECONDS, Prompts, with_fake

pytestmark = pytest.mark.skipif(os.name == "nt", reason="fake engines are scripts: POSIX")


@pytest.fixture
def prompts(tmp_path: Path) -> Prompts:
    return with_fake(tmp_path)


def test_answers_come_in_the_order_of_the_prompts(prompts: Prompts) -> None:
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
    assert "3 prompts, 21 tokens generated" in done.err


def test_each_prompt_is_asked_with_its_own_numbers(prompts: Prompts) -> None:
    prompts.write(["plain", {"prompt": "own", "n_predict": -2, "seed": -1, "temperature": 0}])
    prompts.run("-n", "5", "-temp", "0.5", "--top-k", "3", "--seed", "4", "--slots", "1")
    plain, own = prompts.fake.asked()
    common = {"top_k": 3, "cache_prompt": False}
    sent = {"prompt": "plain", "n_predict": 5, "temperature": 0.5, "seed": 4, **common}
    assert {name: plain[name] for name in plain if name not in ("pid", "number")} == sent
    assert (own["n_predict"], own["seed"], own["temperature"]) == (-1, 2**32 - 1, 0)
    assert "repeat_penalty" not in own


def test_the_server_gets_slots_address_threads_and_a_key_in_its_environment(
    prompts: Prompts,
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


def test_every_run_has_another_key_and_no_request_goes_without(prompts: Prompts) -> None:
    prompts.write(["a"])
    prompts.run()
    prompts.run()
    first, second = prompts.fake.servers()
    assert first["env"]["LLAMA_API_KEY"] != second["env"]["LLAMA_API_KEY"]
    assert len(prompts.fake.asked()) == 2
    assert not (prompts.fake.bin / "unauthorized.jsonl").exists()


def test_variables_that_would_make_it_another_server_do_not_reach_it(
    prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_ARG_API_PREFIX", "/x")
    monkeypatch.setenv("LLAMA_API_KEY", "mine")
    prompts.write(["a"])
    assert prompts.run().code == 0
    (run,) = prompts.fake.servers()
    assert "LLAMA_ARG_API_PREFIX" not in run["env"]
    assert run["env"]["LLAMA_API_KEY"] != "mine"


def test_a_server_without_keys_gets_none(prompts: Prompts) -> None:
    prompts.write(["a"])
    assert prompts.run(no_key=1).code == 0
    assert "LLAMA_API_KEY" not in prompts.fake.servers()[0]["env"]


def test_what_the_engine_refuses_is_told_and_the_others_go_on(prompts: Prompts) -> None:
    prompts.write(["one", "too long", "three"])
    done = prompts.run(refuses="long")
    assert done.code == 1
    assert done.answers[1] == {"id": 1, "prompt": "too long", "error": "it is 400"}
    assert [answer["id"] for answer in done.answers] == [0, 1, 2]
    assert "refused 1 of 3" in done.err


def test_a_prompt_at_which_it_fails_is_asked_once_more(prompts: Prompts) -> None:
    prompts.write(["one", "bad", "three"])
    done = prompts.run("--slots", "1", fails="bad")
    assert (done.code, done.answers[1]["error"]) == (1, "it is 500")
    assert [each["prompt"] for each in prompts.fake.asked()] == ["one", "bad", "bad", "three"]


def test_no_token_is_no_text(prompts: Prompts) -> None:
    prompts.write([{"prompt": "a", "n_predict": 0}])
    (answer,) = prompts.run().answers
    assert (answer["text"], answer["tokens"]) == ("", 0)


def test_prompts_come_from_standard_input(prompts: Prompts) -> None:
    prompts.file = Path("-")
    done = prompts.run(stdin=b'"a"\r\n\n"b"')
    assert (done.code, [answer["prompt"] for answer in done.answers]) == (0, ["a", "b"])


def test_a_port_that_is_taken_is_not_the_end(prompts: Prompts) -> None:
    prompts.write(["a"])
    assert prompts.run(taken=2).code == 0
    ports = [run["argv"][run["argv"].index("--port") + 1] for run in prompts.fake.servers()]
    assert len(ports) == len(set(ports)) == 3


def test_ports_that_are_always_taken_are_told(prompts: Prompts) -> None:
    prompts.write(["a"])
    done = prompts.run(taken=99)
    assert done.code == 1
    assert "couldn't bind" in done.err


def test_a_server_that_does_not_load_is_shown_with_its_last_lines(prompts: Prompts) -> None:
    prompts.write(["a"])
    done = prompts.run(unfit=1)
    assert (done.code, done.out) == (1, b"")
    assert "it is unfit" in done.err
    assert "--resume" in done.err


@pytest.mark.parametrize("count", [1, 8])
def test_quiet_says_nothing(prompts: Prompts, count: int) -> None:
    prompts.write([f"p{number}" for number in range(count)])
    assert prompts.run("--quiet").err == ""


def test_stats_are_the_servers_own(prompts: Prompts) -> None:
    prompts.write(["a", "b"])
    done = prompts.run("--quiet", "--stats")
    assert "prompt 100.0 tokens/s (10 tokens), generation 20.0 tokens/s (20 tokens)" in done.err


def test_a_dry_run_shows_the_servers_command_and_starts_nothing(prompts: Prompts) -> None:
    prompts.write(["a", "b"])
    done = prompts.run("--dry-run", "--json", "--slots", "2")
    facts = json.loads(done.out)
    assert facts["command"][0].endswith("llama-server")
    assert facts["command"][facts["command"].index("-np") + 1] == "2"
    assert facts["reasons"]["slots"] == "2 slots, as --slots says"
    assert facts["reasons"]["prompts"] == f"2 in {prompts.file}"
    assert prompts.fake.servers() == []


def test_without_a_server_beside_the_engine_the_remedy_is_named(tmp_path: Path) -> None:
    fake = FakeEngine(tmp_path / "checkout")
    prompts = Prompts(tmp_path, str(fake.cli), demo.I2_S, fake)
    prompts.write(["a"])
    done = prompts.run()
    assert done.code == 3
    assert "cmake --build build --target llama-server" in done.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("-p", "x"), "-p/--prompt: not together with --prompts"),
        (("-f", "x"), "-f/--file: not together with --prompts"),
        (("-cnv",), "-cnv/--conversation: not together with --prompts"),
        (("--slots", "0"), "--slots"),
        (("--resume",), "--resume: needs -o FILE"),
        (("-o", "/nowhere/out"), "-o/--output: /nowhere/out: No such file"),
        (("-o", "/dev/null"), "-o/--output: /dev/null is not a regular file"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    prompts: Prompts, flags: tuple[str, ...], words: str
) -> None:
    prompts.write(["a"])
    done = prompts.run(*flags)
    assert done.code == 2
    assert words in done.err


@pytest.mark.parametrize("flags", [("--resume",), ("--slots", "2"), ("-o", "x")])
def test_its_flags_need_prompts(prompts: Prompts, flags: tuple[str, ...]) -> None:
    command = [*prompts.command()[:-2], "-p", "x", *flags]
    done = subprocess.run(command, capture_output=True, check=False, timeout=SECONDS)
    assert done.returncode == 2
    assert b"only together with --prompts" in done.stderr


def test_a_bad_line_is_told_before_anything_is_started(prompts: Prompts) -> None:
    prompts.file.write_text('"good"\n{"prompt": 3}\n')
    done = prompts.run()
    assert done.code == 2
    assert "line 2: its prompt is not a string" in done.err
    assert prompts.fake.runs() == []


def test_prompts_that_cannot_be_read_are_missing(prompts: Prompts) -> None:
    assert prompts.run().code == 3


def test_a_closed_reader_ends_the_run_and_nothing_stays(prompts: Prompts) -> None:
    prompts.write([f"p{number}" for number in range(50)])
    process = prompts.begin("--slots", "1", out=subprocess.PIPE, seconds=0.01)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(SECONDS) in (141, -13)
    (server,) = prompts.fake.servers()
    until(lambda: not alive(server["pid"]))


@pytest.mark.parametrize(
    ("count", "flags", "slots", "why"),
    [
        (6, (), 4, "the default"),
        (3, (), 3, "there are no more prompts"),
        (6, ("-temp", "0"), 1, "answers must be reproducible"),
        (6, ("--seed", "1"), 1, "answers must be reproducible"),
        (6, ("--seed", "-1"), 4, "the default"),
        (6, ("-temp", "0", "--slots", "2"), 2, "as --slots says"),
    ],
)
def test_the_default_number_of_slots(
    prompts: Prompts, count: int, flags: tuple[str, ...], slots: int, why: str
) -> None:
    prompts.write([f"p{number}" for number in range(count)])
    done = prompts.run(*flags)
    (run,) = prompts.fake.servers()
    assert run["argv"][run["argv"].index("-np") + 1] == str(slots)
    assert done.err.count(why) == 1


def test_one_line_that_must_be_reproducible_is_enough_for_one_slot(prompts: Prompts) -> None:
    prompts.write(["a", {"prompt": "b", "seed": 3}, "c"])
    prompts.run()
    (run,) = prompts.fake.servers()
    assert run["argv"][run["argv"].index("-np") + 1] == "1"


def test_the_plan_command_shows_the_same(prompts: Prompts) -> None:
    prompts.write(["a"])
    named = ["--engine", prompts.engine, "-m", prompts.model, "--prompts", str(prompts.file)]
    command = [sys.executable, "-m", "bitnet_tuning", "plan", *named, "--json"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=SECONDS, cwd=REPO)
    assert json.loads(done.stdout)["command"][0].endswith("llama-server")
    assert prompts.fake.servers() == []


def test_a_closed_standard_output_is_told(prompts: Prompts) -> None:
    prompts.write(["a"])
    shell = ["sh", "-c", 'exec "$@" >&-', "sh", *prompts.command()]
    done = subprocess.run(shell, capture_output=True, check=False, timeout=SECONDS)
    assert done.returncode == 2
    assert b"standard output is closed" in done.stderr


def test_on_a_terminal_a_bar_shows_how_far_it_is(prompts: Prompts) -> None:
    """Of a terminal's own, which only rich's bar writes to with escapes."""
    pytest.importorskip("rich")
    pty = pytest.importorskip("pty")
    prompts.write([f"p{number}" for number in range(6)])
    near, far = pty.openpty()
    process = subprocess.Popen(
        prompts.command("--slots", "1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=far,
        env={**prompts.environment(seconds=0.1), "TERM": "xterm"},
    )
    os.close(far)
    seen = b""
    with contextlib.suppress(OSError):  # so Linux tells that nobody writes any more
        while data := os.read(near, 1 << 16):
            seen += data
    os.close(near)
    out = process.communicate(timeout=SECONDS)[0]
    assert (process.returncode, out.count(b"\n")) == (0, 6)
    assert b"3/6" in seen and b"tokens/s" in seen


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="affinity")
def test_performance_mode_reaches_the_server_too(prompts: Prompts) -> None:
    prompts.write(["a", "b"])
    done = prompts.run("--performance-mode", "-t", "1")
    assert done.code == 0, done.err
    (server,) = prompts.fake.servers()
    assert len(server["cpus"]) == 1
    assert server["env"]["OMP_NUM_THREADS"] == "1"
