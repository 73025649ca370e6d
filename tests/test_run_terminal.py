"""What a run prints around the answer: on a terminal, and with ``--stats``."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bitnet_tuning import demo
from bitnet_tuning.cli import run
from bitnet_tuning.launch.failure import excerpt
from tests.engines import FakeEngine
from tests.machines import Machine, x86_entries
from tests.processes import run_at_terminal

REPO = Path(__file__).resolve().parents[1]
SCRIPTS = [str(REPO / "run_inference.py"), str(REPO / "run_inference_optimized.py")]
PLAIN, OPTIMIZED = SCRIPTS
ERASED = "\r\x1b[K"

pytest.importorskip("resource", reason="fake engines are scripts: POSIX")


class Terminal:
    """Runs of a fake engine and a model in which stderr is a terminal."""

    def __init__(self, folder: Path, generation: str = "bitnet") -> None:
        self.fake = FakeEngine(folder / "checkout", generation)
        self.model = folder / "models" / "Tiny" / "ggml-model-i2_s.gguf"
        self.model.parent.mkdir(parents=True)
        shutil.copy(demo.I2_S if generation == "bitnet" else demo.TQ2_0, self.model)
        self.home = folder / "home"

    def flags(self, *flags: str) -> list[str]:
        named = ["-m", str(self.model), "-t", "1"]
        return ["--engine", str(self.fake.cli), *named, *(flags or ("-p", "hello"))]

    def run(self, *flags: str, script: str = PLAIN, **variables: str) -> tuple[int, bytes, str]:
        variables = {"TERM": "dumb", "COLUMNS": "1000", **variables}
        variables["BITNET_TUNING_HOME"] = str(self.home)
        command = (sys.executable, script, *self.flags(*flags))
        code, out, seen = run_at_terminal(*command, **variables)
        # The first of all runs ends with a hint about the model's embedding.
        hints = re.compile("smaller copy|asking the engine")
        lines = (line for line in seen.splitlines(keepends=True) if not hints.search(line))
        return code, out, "".join(lines)


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    return Terminal(tmp_path_factory.mktemp("terminal"))


def test_a_run_on_a_terminal_is_the_answer_between_two_lines(terminal: Terminal) -> None:
    code, out, seen = terminal.run()
    before, after = seen.splitlines()
    assert (code, out) == (0, b"hello and more text\n")
    start = "bitnet-tuning: 1 thread (set by -t) on "
    assert before.startswith(start) and before.endswith(", Tiny i2_s (--dry-run explains)")
    assert after.startswith("bitnet-tuning: 20.0 tokens/s, prompt 100 tokens/s, first token after ")
    assert after.endswith(" s, 41 tokens")


@pytest.mark.parametrize("flag", ["-v", "--verbose"])
def test_verbose_shows_the_log(terminal: Terminal, flag: str) -> None:
    code, out, seen = terminal.run(flag, "-p", "hello")
    assert (code, out) == (0, b"hello and more text\n")
    assert seen.index("--dry-run") < seen.index("system_info") < seen.index("20.0 tokens/s")


def test_quiet_shows_the_answer_alone(terminal: Terminal) -> None:
    for script in SCRIPTS:
        assert terminal.run("--quiet", "-p", "a", script=script) == (0, b"a and more text\n", "")
    _, _, seen = terminal.run("--quiet", "-p", "a", "--stats")
    assert seen.startswith("bitnet-tuning: 20.0 tokens/s") and seen.count("\n") == 1
    assert terminal.run("--quiet", "-v", "-p", "a")[0] == 2


def test_the_optimized_script_adds_the_governor(terminal: Terminal) -> None:
    _, _, seen = terminal.run(script=OPTIMIZED)
    assert ["threads" in line[:30] for line in seen.splitlines()] == [False] * 3
    assert seen.splitlines()[1].startswith("bitnet-tuning: governor ")


def test_a_failing_run_shows_a_few_lines_of_the_log(terminal: Terminal) -> None:
    code, _, seen = terminal.run(FAKE_EXIT="7")
    assert code == 7 and "system_info" in seen and "20.0 tokens/s," not in seen
    assert len(seen.splitlines()) <= 14
    assert seen.endswith("the engine failed with exit code 7; -v shows its whole log\n")
    _, _, seen = terminal.run(FAKE_KILL="4")
    assert "SIGILL" in seen.splitlines()[-1]
    for quiet in ([], ["--quiet"]):
        code, _, seen = terminal.run(*quiet, "-p", "a", FAKE_KILL="15")
        assert code == 143 and "system_info" not in seen and "failed" not in seen


def test_the_lines_of_a_log_that_matter() -> None:
    log = [f"llama_model_loader: kv {n}" for n in range(300)]
    assert excerpt("\n".join(log)).splitlines() == log[-12:]
    cause = "0.00.011.800 E gguf_init_from_reader: tensor of type 36 has 512 elements per row"
    failed = "E llama_model_load_from_file_impl: failed to load model"
    twice = [f"0.00.0{n} {failed}" for n in range(10, 90)]
    lines = excerpt("\n".join([*log, cause, "", *twice, *log[:20]])).splitlines()
    assert lines[0] == cause and lines[1].endswith(failed) and lines[2:] == log[17:20]
    trace = ["30\tin ../sysdeps/wait4.c: No such file", "get_batch: failed\tto add", *log[:9]]
    assert excerpt("\n".join(trace)).splitlines() == ["get_batch: failed to add", *log[6:9]]
    errors = [f"error {n}: {'x' * 200}" for n in range(40)]
    lines = excerpt("\n".join([*errors, "y" * 500])).splitlines()
    assert lines[:8] == errors[:8] and len(lines) <= 12 and len(lines[-1]) == 80
    assert len(excerpt(f"error {'x' * 900_000}")) == 400


def test_a_prompt_that_the_engine_finds_too_long_gets_a_remedy(terminal: Terminal) -> None:
    (terminal.fake.bin / "curve.json").write_text("{}")
    message = "main: prompt is too long (150 tokens, max 60)"
    _, _, seen = terminal.run(FAKE_SAYS=message, FAKE_EXIT="1")
    assert message in seen and "-c N makes room" in seen
    (terminal.fake.bin / "curve.json").unlink()


# While the model loads


def test_a_sign_of_life_until_the_output_begins(terminal: Terminal) -> None:
    code, out, seen = terminal.run("-p", "a", TERM="xterm", FAKE_LOADS="2")
    assert (code, out) == (0, b"a and more text\n")
    start, after = seen.split(ERASED)
    assert "\rloading the model, 1 s" in start and "loading" not in after
    for flags, term in ((["-p", "a"], "dumb"), (["-p", "a", "-v"], "xterm")):
        _, _, seen = terminal.run(*flags, TERM=term, FAKE_LOADS="2")
        assert "\r" not in seen


# Chats


def test_a_chat_begins_with_how_to_end_it(terminal: Terminal, tmp_path: Path) -> None:
    hint = "Ctrl-C stops an answer; at an empty prompt it ends the chat, as Ctrl-D does"
    code, out, seen = terminal.run("-cnv")
    assert code == 0 and b"\n> " in out and "system_info" not in seen
    assert seen.splitlines()[1].endswith(hint)
    mainline = Terminal(tmp_path, "mainline")
    code, out, seen = mainline.run("-cnv")
    assert code == 0 and b"\n> " in out and hint not in seen and "system_info" not in seen


# Where the threads run


class _Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def regular(machine: Machine) -> None:
    machine.regular(4, threads=2).cpuinfo(x86_entries(8))


def allowed(machine: Machine) -> None:
    regular(machine)
    machine.affinity("0-1")


def under_quota(machine: Machine) -> None:
    regular(machine)
    machine.cgroup2("/", {"cpu.max": "150000 100000"})


def of_two_kinds(machine: Machine) -> None:
    machine.hybrid(6, 8).cpuinfo(x86_entries(20))


def of_two_nodes(machine: Machine) -> None:
    machine.regular(8).node(0, range(4)).node(1, range(4, 8)).cpuinfo(x86_entries(8))
    machine.meminfo(8 << 30, 8 << 30)


@pytest.mark.parametrize(
    ("make", "flags", "words"),
    [
        (regular, [], "4 threads on the 4 cores, "),
        (regular, ["--max-threads", "3"], "3 threads on 3 of the 4 cores, "),
        (regular, ["-t", "9"], "9 threads (set by -t) on the 4 cores, "),
        (allowed, [], "2 threads on the 2 cores that this process may use, "),
        (under_quota, [], "2 threads within the quota of 1.5 CPUs, "),
        (of_two_kinds, [], "6 threads on the 6 performance cores, "),
        (of_two_kinds, ["--max-threads", "2"], "2 threads on 2 of the 6 performance cores, "),
        (of_two_nodes, [], "4 threads on the 4 cores of NUMA node "),
    ],
)
def test_the_line_says_where_the_threads_run(
    terminal: Terminal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Machine], None],
    flags: list[str],
    words: str,
) -> None:
    machine, screen = Machine(tmp_path), _Screen()
    make(machine)
    monkeypatch.setattr("sys.stderr", screen)
    for name, value in {"TERM": "dumb", "COLUMNS": "1000"}.items():
        monkeypatch.setenv(name, value)
    named = ["--engine", str(terminal.fake.cli), "-m", str(terminal.model), "-p", "a"]
    assert run.main([*named, *flags], str(machine.path)) == 0
    (line,) = (line for line in screen.getvalue().splitlines() if "(--dry-run explains)" in line)
    assert words in line


def test_the_demo_model_says_what_it_is(terminal: Terminal) -> None:
    _, _, seen = terminal.run("-p", "a", "-m", demo.I2_S)
    assert "the demo model knows one text, a guide to running BitNet on a CPU; `" in seen
    assert seen.count("model get` fetches a real one") == 1


def test_warnings_stand_again_after_a_long_text(terminal: Terminal) -> None:
    warning = "-t asks for 512 threads"
    _, _, seen = terminal.run("-p", "a", "-t", "512")
    assert seen.count(warning) == 1
    _, _, seen = terminal.run("-p", "a", "-t", "512", "-v", COLUMNS="60")
    assert seen.count(warning) == 2
    again = seen.partition("as before: ")[2]
    assert again.startswith(warning) and "generation slows down" in " ".join(again.split())
    assert max(map(len, again.splitlines())) <= 60


# Figures


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("flags", ["-p hello --stats json", "--stats=json -p hello"])
def test_stats_as_json_are_one_line(terminal: Terminal, script: str, flags: str) -> None:
    code, out, seen = terminal.run(*flags.split(), script=script, FAKE_EXIT="7")
    (line,) = (line for line in seen.splitlines() if line.startswith("{"))
    found = json.loads(line)
    assert (code, out) == (7, b"hello and more text\n")
    assert found.pop("first_token_seconds") > 0
    assert found == {
        "prompt_tokens": 5,
        "prompt_tokens_per_second": 100.0,
        "tokens": 41,
        "tokens_per_second": 20.0,
        "threads": 1,
        "engine": str(terminal.fake.cli),
        "model": str(terminal.model),
        "exit_code": 7,
    }


def test_stats_take_no_other_word(terminal: Terminal) -> None:
    for flags in (["--stats", "-p", "json"], ["-p", "a", "--stats"]):
        code, _, seen = terminal.run(*flags)
        assert code == 0 and "20.0 tokens/s, " in seen
    assert terminal.run("-p", "a", "--stats", "text")[0] == 2
    code, _, seen = terminal.run("--prompts", "file", "--stats", "json")
    assert code == 2 and "--stats json: not allowed with --prompts" in seen
