"""The embedded engine's programs, from their flags to the text of the demo model."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bitnet_tuning import demo
from bitnet_tuning.embedded import bench, cli, engine, server
from bitnet_tuning.embedded.__main__ import main
from bitnet_tuning.embedded.engine import PhaseTimes
from bitnet_tuning.errors import TuningError
from bitnet_tuning.machine.detect import read_host

SCRIPT = Path(engine.__file__).with_name("__main__.py")
MODEL = Path(demo.TQ2_0)
PATIENCE = 60
"""Seconds that a program may take; it needs some tenths of a second unless it hangs."""
CALM = {"OMP_WAIT_POLICY": "passive"}
"""Threads that spin while they wait would make these tests slow on a busy machine."""


def run(*args: str | bytes, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run the engine by its path, as the launcher does."""
    return subprocess.run(
        [sys.executable, SCRIPT, *args],
        input=stdin,
        capture_output=True,
        timeout=PATIENCE,
        env={**os.environ, **CALM},
        check=False,
    )


# Flags and figures


def test_flags_take_the_next_argument_whatever_it_looks_like() -> None:
    parsed = cli.PROGRAM.parse(["-p", "-foo", "-n", "-1", "-t", "3", "--temp", "0"])
    assert parsed.prompt == b"-foo"
    assert (parsed.n_predict, parsed.threads, parsed.threads_batch) == (-1, 3, 3)
    assert parsed.temperature == 0.0
    assert cli.PROGRAM.parse(["-t", "1", "-tb", "4"]).threads_batch == 4
    assert cli.PROGRAM.parse(["--n_predict", "7"]).n_predict == 7


def test_threads_default_to_the_allowed_cpus() -> None:
    assert cli.PROGRAM.parse([]).threads == len(read_host().allowed)
    assert cli.PROGRAM.parse(["-t", "-1"]).threads == len(read_host().allowed)


def test_switches() -> None:
    parsed = cli.PROGRAM.parse(["-cnv", "-no-cnv", "--no-mmap", "-fa", "on", "-ngl", "99"])
    assert (parsed.chat, parsed.mmap, parsed.flash) == (False, False, True)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--foo"], "invalid argument: --foo"),
        (["stray"], "invalid argument: stray"),
        (["-p"], 'error while handling argument "-p": expected value for argument'),
        (["-n", "many"], "error while handling argument \"-n\": 'many' is not a whole number"),
        (["--numa", "x"], "'x' is not one of distribute, isolate, numactl"),
        (["-f", "/no/such"], "failed to open file '/no/such': No such file or directory"),
    ],
)
def test_a_usage_error_names_the_flag_and_the_value(argv: list[str], message: str) -> None:
    with pytest.raises(TuningError, match=re.escape(message)):
        cli.PROGRAM.parse(argv)


def test_a_prompt_is_taken_as_it_is(tmp_path: Path) -> None:
    assert cli.PROGRAM.parse(["-p", r"a\nb"]).prompt == rb"a\nb"
    file = tmp_path / "prompt"
    file.write_bytes(b"one\n\n")
    assert cli.PROGRAM.parse(["-f", str(file)]).prompt == b"one\n"


def test_bytes_of_a_prompt_that_are_not_utf_8_become_replacement_characters() -> None:
    raw = b"caf\xc3\xa9 \xff \xf0\x9f\x99\x82"
    assert cli.PROGRAM.parse(["-p", os.fsdecode(raw)]).prompt == raw
    assert cli.as_text(raw) == "café � 🙂"


def test_timings_count_steps_not_tokens() -> None:
    result = {"prompt_n": 5, "prompt_ms": 12.34, "predicted_n": 16, "predicted_ms": 150.0}
    assert engine.read_times(result) == PhaseTimes(5, 12.34, 15, 150.0)
    single = {**result, "predicted_n": 1, "predicted_ms": 0.001}
    assert engine.read_times(single).predicted_ms == 0


def test_perf_lines_are_llama_cpps() -> None:
    rows = [PhaseTimes(2, 2.34, 10, 100.0), PhaseTimes(3, 10.0, 5, 50.0)]
    lines = engine.perf_lines(123.45, 170.0, rows).splitlines()
    assert lines[1:] == [
        "llama_perf_context_print:        load time =     123.45 ms",
        "llama_perf_context_print: prompt eval time =      12.34 ms /     5 tokens "
        "(    2.47 ms per token,   405.19 tokens per second)",
        "llama_perf_context_print:        eval time =     150.00 ms /    15 runs   "
        "(   10.00 ms per token,   100.00 tokens per second)",
        "llama_perf_context_print:       total time =     170.00 ms /    20 tokens",
    ]


def test_perf_lines_without_any_tokens_show_zero() -> None:
    assert "0.00 tokens per second" in engine.perf_lines(1.0, 1.0, [])


def test_flash_attention_is_left_alone_unless_asked_for() -> None:
    for program in (bench.PROGRAM, cli.PROGRAM, server.PROGRAM):
        assert program.parse(["-m", "x"]).flash is None
        values = [program.parse(["-fa", word]).flash for word in ("0", "off", "1", "on", "auto")]
        assert values == [False, False, True, True, None]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-n", "-1"], 'error while handling argument "-n": must be at least 0'),
        (["-t", "1,2"], "'1,2' is not a whole number"),
        (["-r", "0"], "must be at least 1"),
        (["-fa", "2"], "'2' is not one of on, off, auto"),
        (["-o", "md"], "error while handling argument \"-o\": 'md' is not one of json"),
        (["-pg", "5,2"], "invalid argument: -pg"),
    ],
)
def test_bench_has_usage_errors_of_its_own(argv: list[str], message: str) -> None:
    with pytest.raises(TuningError, match=re.escape(message)):
        bench.PROGRAM.parse(argv)


def test_bench_record_computes_speeds() -> None:
    parsed = bench.PROGRAM.parse(["-m", "x", "-t", "2"])
    durations = [500_000_000, 1_000_000_000]
    row = bench.record(parsed, bench.PhaseTest(100, 0), 0.0, durations)
    assert row["samples_ts"] == [200.0, 100.0]
    assert (row["avg_ts"], row["avg_ns"]) == (150.0, 750_000_000)
    assert row["test_time"] == "1970-01-01T00:00:00Z"
    assert bench.record(parsed, bench.PhaseTest(100, 0), 0.0, durations[:1])["stddev_ts"] == 0.0


# Programs without xllamacpp


Program = Callable[..., tuple[int, str, str]]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    """Run a command line in this process, where xllamacpp cannot be imported.

    Return the exit code, standard output and standard error.
    """
    monkeypatch.setitem(sys.modules, "xllamacpp", None)

    def ran(*argv: str) -> tuple[int, str, str]:
        return (main(list(argv)), *capsys.readouterr())

    return ran


@pytest.mark.parametrize("argv", [["-h"], ["--help"], ["bench", "-h"], ["server", "--help"]])
def test_help_needs_no_xllamacpp(argv: list[str], program: Program) -> None:
    code, out, err = program(*argv)
    assert (code, err) == (0, "")
    assert "embedded" in out.splitlines()[0]
    for pattern in (r"-t, +--threads N +\S", r"-ub, +--ubatch-size N +\S"):
        assert re.search(rf"(?m)^{pattern}", out)
    flags = {"--parallel", "--port", "--api-key", "--mlock"}
    assert (flags <= set(out.split())) == (argv[0] == "server")


def test_a_missing_xllamacpp_is_one_error_with_its_remedy(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = program("-m", str(MODEL), "-p", "x")
    assert (code, out) == (3, "")
    assert "pip install xllamacpp" in err
    assert "Traceback" not in err
    monkeypatch.setenv("BITNET_TUNING_DEBUG", "1")
    assert "Traceback" in program("-m", str(MODEL), "-p", "x")[2]


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["--foo"], "invalid argument: --foo"),
        (["server", "--prompt", "x"], "invalid argument: --prompt"),
        (["-p", "x"], "no model given\n  name one with -m FNAME"),
        (
            ["-m", "/no/such.gguf"],
            "failed to open model '/no/such.gguf': No such file or directory",
        ),
        (
            ["server", "-m", "/no.gguf"],
            "failed to open model '/no.gguf': No such file or directory",
        ),
    ],
)
def test_wrong_flags_and_missing_models_are_one_error(
    program: Program, argv: list[str], error: str
) -> None:
    assert program(*argv) == (1, "", f"error: {error}\n")


def test_it_starts_by_its_path_and_as_a_module(tmp_path: Path, repository: Path) -> None:
    def shown(*argv: str | Path, cwd: Path) -> bytes:
        command = [sys.executable, *argv, "--help"]
        return subprocess.run(
            command, cwd=cwd, capture_output=True, timeout=PATIENCE, check=True
        ).stdout

    by_path = shown(SCRIPT, cwd=SCRIPT.parent)
    assert by_path == shown("-m", "bitnet_tuning.embedded", "cli", cwd=repository) != b""


# Programs with a fake xllamacpp whose answers never end

FAKE = """
import contextlib, json, os, sys, time, types

class Names:
    def __getattr__(self, name):
        return name

class CommonParams:
    def __init__(self):
        self.model = types.SimpleNamespace()
        self.cpuparams = types.SimpleNamespace()
        self.cpuparams_batch = types.SimpleNamespace()
        self.hostnames, self.n_threads_http, self.n_parallel, self.ui = [], -1, 4, True

llama_flash_attn_type = common_reasoning_format = Names()
ggml_sched_priority = int

def get_system_info():
    return "CPU : FAKE = 1 | "

class Server:
    def __init__(self, params):
        line = "PARAMS " + json.dumps(vars(params), default=vars) + "\\n"
        with contextlib.suppress(OSError):
            os.write(2, line.encode()) if sys.stderr else None

    def __del__(self):  # The real one joins threads, which may wait for the interpreter's lock.
        time.sleep(1000)

    def handle_completions(self, request, callback):
        timings = dict(prompt_n=3, prompt_ms=1.0, predicted_n=2, predicted_ms=1.0)
        if os.environ.get("PROMPT_TAKES_FOREVER"):
            time.sleep(1000)
        if os.environ.get("TEXT_ENDS"):
            return callback({"choices": [{"text": "\u00e9nd", "finish_reason": "stop"}]})
        while not callback({"choices": [{"text": "word "}], "timings": timings}):
            time.sleep(0.01)

    def handle_chat_completions(self, request, callback):
        while not callback({"choices": [{"delta": {"content": "word "}}]}):
            time.sleep(0.01)
"""


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start the engine with a fake xllamacpp."""
    (tmp_path / "xllamacpp.py").write_text(FAKE)
    (tmp_path / "model.gguf").write_bytes(b"")
    started = []

    def start(*args: str, **env: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, SCRIPT, "-m", tmp_path / "model.gguf", *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(tmp_path), **env},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def read(process: subprocess.Popen[bytes], count: int) -> bytes:
    assert process.stdout is not None
    return process.stdout.read(count)


@pytest.mark.parametrize("forever", [{}, {"PROMPT_TAKES_FOREVER": "1"}])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)]
)
def test_signals_end_a_completion(
    endless: Callable[..., subprocess.Popen[bytes]],
    number: signal.Signals,
    code: int,
    forever: dict[str, str],
) -> None:
    process = endless("-p", "prompt:", **forever)
    assert read(process, 7) == b"prompt:"
    if not forever:
        assert read(process, 10) == b"word word "
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert b"Traceback" not in errors
    if number == signal.SIGINT:
        assert b"llama_perf_context_print:        eval time" in errors


def test_sigint_ends_an_answer_but_not_the_chat(
    endless: Callable[..., subprocess.Popen[bytes]],
) -> None:
    process = endless("-cnv")
    assert process.stdin is not None
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    assert read(process, 8) == b"\n> word "
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert output.endswith(b"\n> \n")
    assert b"Traceback" not in errors


def test_a_closed_standard_output_ends_the_program(
    endless: Callable[..., subprocess.Popen[bytes]],
) -> None:
    process = endless("-p", "x")
    assert read(process, 6) == b"xword "
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=PATIENCE) == 141


def full(streams: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the engine in a shell that redirects ``streams`` to a full disk or closes them."""
    command = ["sh", "-c", f'exec "$0" "$@" {streams}', sys.executable, str(SCRIPT), *args]
    return subprocess.run(
        command,
        env=os.environ | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")


@needs_full
@pytest.mark.parametrize("streams", [">/dev/full", ">/dev/full 2>&1"])
@pytest.mark.parametrize("flags", [["-p", "x"], ["-p", ""], ["-cnv"]])
def test_a_full_disk_ends_the_program(
    endless: Callable[..., subprocess.Popen[bytes]],
    tmp_path: Path,
    flags: list[str],
    streams: str,
) -> None:
    """The interpreter's own end would wait for the engine, whose answer never ends."""
    model = str(tmp_path / "model.gguf")
    done = full(streams, "-m", model, *flags, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    if streams == ">/dev/full":
        assert done.stderr.splitlines()[-1] == "error: No space left on device"


@needs_full
@pytest.mark.parametrize("flags", [["--help"], ["--version"], ["bench", "--help"]])
def test_help_for_a_full_disk_is_an_error(flags: list[str]) -> None:
    done = full(">/dev/full", *flags)
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


@needs_full
@pytest.mark.parametrize("streams", ["2>/dev/full", "2>&-", ">&-"])
def test_an_answer_needs_no_log_and_a_log_no_reader(
    endless: Callable[..., subprocess.Popen[bytes]], tmp_path: Path, streams: str
) -> None:
    model = str(tmp_path / "model.gguf")
    variables = {"PYTHONPATH": str(tmp_path), "TEXT_ENDS": "1"}
    done = full(streams, "-m", model, "-p", "x", **variables)
    assert done.returncode == 0
    assert done.stdout == ("" if streams == ">&-" else "x\u00e9nd [end of text]\n")


def test_the_end_of_a_text_is_marked(
    endless: Callable[..., subprocess.Popen[bytes]],
) -> None:
    output, _ = endless("-p", "x ", TEXT_ENDS="1").communicate(timeout=PATIENCE)
    assert output == "x énd [end of text]\n".encode()


def test_the_server_within_the_process_is_small_and_demands_a_random_key(
    endless: Callable[..., subprocess.Popen[bytes]],
) -> None:
    process = endless("-p", "x", "-t", "3", "-tb", "5", "-b", "64", "-ub", "32", "-c", "100")
    assert read(process, 1) == b"x"
    assert process.stderr is not None
    set_to = json.loads(process.stderr.readline().removeprefix(b"PARAMS "))
    assert set_to["cpuparams"]["n_threads"] == 3
    assert set_to["cpuparams_batch"]["n_threads"] == 5
    assert (set_to["n_batch"], set_to["n_ubatch"], set_to["n_ctx"]) == (64, 32, 100)
    assert (set_to["n_threads_http"], set_to["n_parallel"], set_to["ui"]) == (1, 1, False)
    assert set_to["port"] == 0
    assert re.fullmatch(r"[0-9a-f]{64}", *set_to["api_keys"])
    assert set_to["hostnames"] == ["127.0.0.1"]


# Programs with the real xllamacpp and the demo model

real = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed"
)
GREEDY = ("-m", str(MODEL), "-t", "1", "-tb", "2", "-c", "512", "--temp", "0")
TALK = (*GREEDY, "-cnv", "-n", "4")
COMPLETE = (*GREEDY, "-n", "5", "--ignore-eos", "-p", 'Say "hi"\nto café 🙂')


@pytest.fixture(scope="module")
def completed() -> subprocess.CompletedProcess[bytes]:
    return run(*COMPLETE)


@real
def test_a_completion_is_the_prompt_and_the_text(
    completed: subprocess.CompletedProcess[bytes],
) -> None:
    prompt = COMPLETE[-1].encode()
    assert completed.returncode == 0
    assert completed.stdout.startswith(prompt) and completed.stdout.endswith(b"\n")
    assert len(completed.stdout) > len(prompt) + 1


@real
def test_threads_and_timings_are_on_standard_error(
    completed: subprocess.CompletedProcess[bytes],
) -> None:
    errors = completed.stderr.decode()
    assert re.search(r"system_info: n_threads = 1 \(n_threads_batch = 2\) / \d+ \| CPU", errors)
    assert re.search(r"prompt eval time = +[\d.]+ ms / +\d+ tokens \(", errors)
    assert re.search(r" +eval time = +[\d.]+ ms / +4 runs   \(", errors)


@real
def test_greedy_text_is_the_same_without_timings(
    completed: subprocess.CompletedProcess[bytes],
) -> None:
    again = run(*COMPLETE, "--log-disable")
    assert completed.stdout == again.stdout
    assert again.stdout.startswith(COMPLETE[-1].encode())
    assert b"llama_perf" not in again.stderr


@real
def test_the_bytes_of_the_prompt_are_printed_unchanged() -> None:
    result = run(*GREEDY, "-n", "0", "-p", b"a\xff\xf0\x9f\x99\x82b", "--log-disable")
    assert (result.stdout, result.stderr) == (b"a\xff\xf0\x9f\x99\x82b\n", b"")


@real
def test_a_prompt_longer_than_the_context_is_refused() -> None:
    result = run(*GREEDY, "-n", "1", "-p", "word " * 4000)
    assert result.returncode == 1
    assert b"error: prompt is too long" in result.stderr
    assert b"Traceback" not in result.stderr


@real
def test_a_damaged_model_is_one_error_with_the_reason(tmp_path: Path) -> None:
    model = tmp_path / "cut.gguf"
    model.write_bytes(MODEL.read_bytes()[:10_000])
    result = run("-m", str(model), "-p", "x")
    assert (result.returncode, result.stdout) == (1, b"")
    assert (
        f"error: failed to load model '{model}'\n  {model} is truncated".encode() in result.stderr
    )
    assert b"Traceback" not in result.stderr


@real
def test_a_chat_ends_with_its_input() -> None:
    result = run(*TALK, "-p", "Be brief.", stdin=b"hello\n\nand bye\n")
    assert result.returncode == 0
    assert result.stdout.startswith(b"\n> ")
    assert result.stdout.count(b"\n> ") == 4
    assert b"llama_perf_context_print:       total time" in result.stderr


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def listening(pid: int) -> list[tuple[str, int]]:
    """Return the address, in hexadecimal, and the port of a process's listening TCP sockets."""
    links = (os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir())
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    rows: list[list[str]] = []
    for table in (Path(f"/proc/{pid}/net/{name}") for name in ("tcp", "tcp6")):
        rows += [line.split() for line in table.read_text().splitlines()[1:]]
    mine = [row[1].split(":") for row in rows if row[9] in inodes and row[3] == "0A"]
    return [(address, int(port, 16)) for address, port in mine]


@pytest.fixture
def talking() -> Iterator[subprocess.Popen[bytes]]:
    """Start a chat and wait for its first question."""
    process = subprocess.Popen(
        [sys.executable, SCRIPT, *TALK],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **CALM},
    )
    try:
        assert read(process, 3) == b"\n> "
        yield process
    finally:
        process.kill()
        process.communicate()


@real
@linux
def test_a_waiting_chat_ends_with_sigint(talking: subprocess.Popen[bytes]) -> None:
    talking.send_signal(signal.SIGINT)
    _, errors = talking.communicate(timeout=PATIENCE)
    assert talking.returncode == 130
    assert b"Traceback" not in errors


@real
@linux
def test_the_port_of_a_chat_is_on_the_loopback_and_demands_a_key(
    talking: subprocess.Popen[bytes],
) -> None:
    ((address, port),) = listening(talking.pid)
    assert address == "0100007F"
    url = f"http://127.0.0.1:{port}/completion"
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(url, data=b'{"prompt": "x"}', timeout=PATIENCE)
    assert refusal.value.code == 401


BENCH_KEYS = (
    "model_filename model_type n_batch n_ubatch n_threads use_mmap flash_attn n_prompt n_gen "
    "test_time avg_ns stddev_ns avg_ts stddev_ts samples_ns samples_ts"
)
"""Keys of llama-bench's rows that tell how a speed was measured."""


def run_bench(words: str) -> subprocess.CompletedProcess[bytes]:
    return run("bench", "-m", str(MODEL), *words.split())


@real
def test_bench_prints_llama_benchs_json() -> None:
    result = run_bench("-p 16 -n 4 -r 2 -t 1 -o json")
    assert (result.returncode, result.stderr) == (0, b"")
    rows: list[dict[str, Any]] = json.loads(result.stdout)
    assert [(row["n_prompt"], row["n_gen"]) for row in rows] == [(16, 0), (0, 4)]
    for row in rows:
        assert set(BENCH_KEYS.split()) <= set(row)
        assert (row["n_threads"], len(row["samples_ts"])) == (1, 2)
        tokens = row["n_prompt"] + row["n_gen"]
        for nanoseconds, speed in zip(row["samples_ns"], row["samples_ts"], strict=True):
            assert speed == pytest.approx(1e9 * tokens / nanoseconds)


@real
def test_bench_refuses_a_test_that_exceeds_the_models_context() -> None:
    result = run_bench("-p 1000000 -n 0 -t 1 -r 1")
    assert (result.returncode, result.stdout) == (1, b"")
    assert b"error: pp1000000 needs a context of 1000001 tokens, the model has" in result.stderr


# The server


def ask_server(port: int, path: str, body: dict[str, Any] | None, key: str) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as refusal:
        return refusal.code, None


@pytest.fixture(scope="module")
def served() -> Iterator[int]:
    """Start a server with three slots and the key ``secret``; return its port."""
    flags = ["-m", str(MODEL), "-t", "2", "-np", "3", "-c", "384", "--port", "0"]
    with subprocess.Popen(
        [sys.executable, SCRIPT, "server", *flags],
        stderr=subprocess.PIPE,
        env={**os.environ, **CALM, "LLAMA_API_KEY": "secret"},
    ) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.search(rb"listening on \S+:(\d+) with 3 slots", line)
            assert found, line
            yield int(found[1])
        finally:
            process.kill()


@real
def test_the_server_answers_requests_with_its_key(served: int) -> None:
    body = {"prompt": "How many threads", "n_predict": 8, "temperature": 0}
    assert ask_server(served, "/health", None, "")[0] == 200
    assert ask_server(served, "/completion", body, "another")[0] == 401
    status, reply = ask_server(served, "/completion", body, "secret")
    assert (status, reply["content"]) == (200, " should I use?\nStart")


@real
def test_each_slot_of_the_server_has_its_share_of_the_context(served: int) -> None:
    short, long = {"prompt": "Why " * 60, "n_predict": 1}, {"prompt": "Why " * 140, "n_predict": 1}
    assert ask_server(served, "/completion", short, "secret")[0] == 200
    assert ask_server(served, "/completion", long, "secret")[0] == 400
