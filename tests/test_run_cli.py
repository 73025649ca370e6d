"""The programs as a user starts them, with fake engines."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bitnet_tuning import demo
from tests.engines import FakeEngine
from tests.machines import Machine

REPO = Path(__file__).resolve().parents[1]
PLAIN = str(REPO / "run_inference.py")
OPTIMIZED = str(REPO / "run_inference_optimized.py")
SECONDS = 60

resource = pytest.importorskip("resource", reason="fake engines are scripts: POSIX")

Word = str | bytes


class Done(NamedTuple):
    code: int
    out: bytes
    err: str

    @property
    def ours(self) -> list[str]:
        """What the launcher itself said."""
        prefix = "bitnet-tuning: "
        lines = self.err.splitlines()
        return [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]


def start(*command: Word, **options: Any) -> Done:
    """Runs Python with these arguments to its end; no traceback may reach a user."""
    process = subprocess.run(
        [sys.executable, *command],
        stdin=options.pop("stdin", subprocess.DEVNULL),
        capture_output=True,
        timeout=SECONDS,
        check=False,
        **options,
    )
    err = process.stderr.decode("utf-8", "replace")
    if "BITNET_TUNING_DEBUG" not in options.get("env", {}):
        assert "Traceback" not in err
        assert "this is a bug in" not in err
    return Done(process.returncode, process.stdout, err)


class Bench:
    """A fake engine with its records, shared by the tests of this module."""

    def __init__(self, folder: Path, generation: str) -> None:
        self.fake = FakeEngine(folder / "checkout", generation)
        self.home = folder / "home"

    def environment(self, **variables: str) -> dict[str, str]:
        return {**os.environ, "BITNET_TUNING_HOME": str(self.home), **variables}

    def start(self, script: str, *flags: Word, **variables: str) -> Done:
        named = ("--engine", str(self.fake.cli), "-m", demo.I2_S)
        return start(script, *named, *flags, env=self.environment(**variables))

    def last(self) -> dict[str, Any]:
        return self.fake.prompts()[-1]

    def got(self, flag: str) -> bytes:
        """What the engine got behind a flag, in its last run."""
        raw = [bytes.fromhex(word) for word in self.last()["raw"]]
        return raw[raw.index(flag.encode()) + 1]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bitnet"), "bitnet")


@pytest.fixture(scope="module")
def mainline(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("mainline"), "mainline")


# What arrives at the engine

PROMPTS: list[bytes] = [
    b'it\'s "quoted" `and` $(more) \\n %s',
    b"two\nlines\r\n\ttab ",
    b"--",
    b"-x",
    b"--dry-run",
    b"-p",
    "emoji 🐍 und Umlaute".encode(),
    b"not UTF-8: \xff\xfe\x80",
    b" ",
    b"=",
    b"long " * 20_000,
]


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: repr(prompt[:12]))
def test_a_prompt_of_any_bytes_arrives_and_comes_back_unchanged(
    bench: Bench, prompt: bytes
) -> None:
    done = bench.start(PLAIN, "-p", prompt, FAKE_OUTPUT=" ü\t… \x1b[0m ")
    assert done.code == 0
    assert bench.got("-p") == prompt
    assert done.out == prompt + " ü\t… \x1b[0m \n".encode()


@pytest.mark.parametrize(
    "locale", [{"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONUTF8": "1"}]
)
def test_prompts_do_not_depend_on_the_locale(bench: Bench, locale: dict[str, str]) -> None:
    prompt = "🐍 ".encode() + b"\xff"
    done = bench.start(PLAIN, "-p", prompt, **locale)
    assert (done.code, done.out) == (0, prompt + b" and more text\n")
    assert bench.got("-p") == prompt


def test_a_prompt_tied_to_its_flag_may_be_two_dashes(bench: Bench) -> None:
    assert bench.start(PLAIN, "--prompt=--", "--", "extra").code == 0
    assert bench.got("-p") == b"--"
    assert bench.last()["argv"][-1] == "extra"


def test_a_prompt_passes_through_where_the_streams_are_watched(bench: Bench) -> None:
    prompt = b"\n two\r\nlines \xff"
    done = bench.start(OPTIMIZED, "-p", prompt, "--stats", "--quiet", FAKE_OUTPUT="\r")
    assert (done.code, done.out) == (0, prompt + b"\r\n")


def test_a_prompt_file_is_named_to_the_engine(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "two words.txt"
    for content in (b"x" * 100_000, b"\n\nafter two lines", b"\xff"):
        file.write_bytes(content)
        assert bench.start(OPTIMIZED, "-f", str(file)).code == 0
        assert bench.got("-f") == os.fsencode(file)
    assert "-p" not in bench.last()["argv"]


def test_a_pipe_is_left_for_the_engine_to_read(bench: Bench, tmp_path: Path) -> None:
    """As in ``-f <(command)``. Nobody writes into this one: to open it would hang."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert bench.start(OPTIMIZED, "-f", str(pipe), "--stats").code == 0
    assert bench.got("-f") == os.fsencode(pipe)


def test_a_prompt_on_standard_input_reaches_the_engine(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "prompt"
    file.write_text("hello")
    flags = ("--engine", str(bench.fake.cli), "-m", demo.I2_S, "-f", "/dev/stdin")
    with file.open() as stdin:
        assert start(OPTIMIZED, *flags, env=bench.environment(), stdin=stdin).code == 0
    assert bench.last()["stdin"] == str(file)


@pytest.mark.parametrize("script", [PLAIN, OPTIMIZED])
def test_what_follows_the_dashes_goes_to_the_engine_untouched(bench: Bench, script: str) -> None:
    extra = ["--top-k", "7", "-p", "", "--json", "two words", "--", "-t", "-3"]
    assert bench.start(script, "-p", "hello", "--", *extra).code == 0
    assert bench.last()["argv"][-len(extra) :] == extra


@pytest.mark.parametrize(
    "flags",
    [
        "-n 5 -p hello -t 2 -c 64 -temp 0.5",
        "--n-predict 5 --prompt hello --threads 2 --ctx-size 64 --temperature 0.5",
        "--n-predict=5 --prompt=hello --threads=2 --ctx-size=64 --temperature=0.5",
        "-n5 -phello -t2 -c64 --temp 0.5",
    ],
)
@pytest.mark.parametrize("script", [PLAIN, OPTIMIZED])
def test_upstreams_flags_in_every_spelling(bench: Bench, script: str, flags: str) -> None:
    assert bench.start(script, *flags.split()).code == 0
    values = {"-n": "5", "-p": "hello", "-t": "2", "-c": "64", "--temp": "0.5", "-m": demo.I2_S}
    assert {flag: bench.got(flag).decode() for flag in values} == values


@pytest.mark.parametrize("flag", ["-cnv", "--conversation"])
def test_a_chat_in_both_spellings(bench: Bench, flag: str) -> None:
    assert bench.start(PLAIN, "-p", "be kind", flag).code == 0
    assert "-cnv" in bench.last()["argv"]
    assert bench.got("-p") == b"be kind"


def test_what_is_not_said_is_upstreams_default(bench: Bench) -> None:
    assert bench.start(PLAIN, "-p", "hello").code == 0
    values = {"-n": "128", "-c": "2048", "--temp": "0.8", "-ngl": "0"}
    assert {flag: bench.got(flag).decode() for flag in values} == values


def test_flags_of_the_optimized_program(bench: Bench) -> None:
    flags = (
        "-p hello --top-k 5 --top-p 0.5 --min-p 0.25 --repeat-penalty 1.5 --seed 7 "
        "--threads-batch 1 --batch-size 64 --ubatch-size 32"
    )
    assert bench.start(OPTIMIZED, *flags.split()).code == 0
    values = "--top-k 5 --top-p 0.5 --min-p 0.25 --repeat-penalty 1.5 -s 7 -tb 1 -b 64 -ub 32"
    pairs = dict(zip(values.split()[::2], values.split()[1::2], strict=True))
    assert {flag: bench.got(flag).decode() for flag in pairs} == pairs


def test_one_shot_prompts_and_chats_go_to_their_own_program(mainline: Bench) -> None:
    assert mainline.start(PLAIN, "-p", "hello", "-m", demo.TQ2_0).code == 0
    assert mainline.last()["program"] == "llama-completion"
    assert "-no-cnv" in mainline.last()["argv"]
    assert mainline.start(PLAIN, "-p", "hello", "-m", demo.TQ2_0, "-cnv").code == 0
    assert mainline.last()["program"] == "llama-cli"


# Showing instead of running


def planned(bench: Bench, *flags: Word, **variables: str) -> dict[str, Any]:
    done = bench.start(PLAIN, "--dry-run", "--json", *flags, **variables)
    assert done.code == 0, done.err
    plan = json.loads(done.out)
    assert isinstance(plan, dict)
    return plan


def test_a_plan_as_json_has_the_contracts_fields_and_starts_nothing(bench: Bench) -> None:
    bench.start(PLAIN, "--dry-run", "-p", "hello")  # may ask the engine what it can do
    before = len(bench.fake.runs())
    plan = planned(bench, "-p", "hello", "-t", "1")
    assert len(bench.fake.runs()) == before
    fields = "command env cpus threads threads_batch batch ubatch engine model reasons"
    assert list(plan) == fields.split()
    assert (plan["engine"], plan["model"]) == (str(bench.fake.cli), demo.I2_S)
    assert (plan["threads"], plan["env"]["OMP_NUM_THREADS"]) == (1, "1")
    assert set(plan["reasons"]) == (set(plan) - {"reasons"}) | {"isa", "numa", "memory"}


@pytest.mark.parametrize("prompt", PROMPTS[:-1], ids=lambda prompt: repr(prompt[:12]))
def test_a_plans_line_does_in_a_shell_what_the_program_does(bench: Bench, prompt: bytes) -> None:
    strict = {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:strict"}
    done = bench.start(PLAIN, "--dry-run", "-t", "1", "-p", prompt, "--", "a b", **strict)
    assert done.code == 0, done.err
    assert subprocess.run(["sh", "-c", done.out], capture_output=True, check=False).returncode == 0
    pasted = bench.last()
    plan = planned(bench, "-t", "1", "-p", prompt, "--", "a b")
    assert [os.fsencode(word).hex() for word in plan["command"]] == pasted["raw"]
    assert {name: pasted["env"].get(name) for name in plan["env"]} == plan["env"]
    assert bench.start(PLAIN, "-t", "1", "-p", prompt, "--", "a b").code == 0
    assert bench.last()["raw"] == pasted["raw"]


def test_a_plan_gives_a_reason_for_every_field_on_stderr(bench: Bench) -> None:
    done = bench.start(PLAIN, "--dry-run", "-p", "hello")
    assert done.out.count(b"\n") == 1
    fields = (line for line in done.err.splitlines() if line[:2] == "  " and line[2:3] != " ")
    shown = {line.split()[0] for line in fields}
    assert shown == set(planned(bench, "-p", "hello")["reasons"])


def test_a_chat_cannot_read_its_prompt_from_its_own_input(bench: Bench) -> None:
    flags = ("--engine", str(bench.fake.cli), "-m", demo.I2_S, "-f", "/dev/stdin", "-cnv")
    done = subprocess.run(
        [sys.executable, str(REPO / "run_inference_optimized.py"), *flags],
        input="a question\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "--file" in done.stderr


@pytest.mark.parametrize(
    ("redirection", "code"),
    [(">&-", 0), ("2>&-", 0), ("2>/dev/full", 0), (">/dev/full", 1), (">&- 2>&-", 0)],
)
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux")
def test_a_plan_for_streams_that_take_nothing(bench: Bench, redirection: str, code: int) -> None:
    script = f"{sys.executable} {REPO / 'run_inference.py'} -m {demo.I2_S}"
    done = subprocess.run(
        ["sh", "-c", f"{script} --engine {bench.fake.cli} -p a --dry-run {redirection}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code
    assert "fault of bitnet-tuning" not in done.stderr


def test_help_can_be_shown_in_any_encoding(bench: Bench) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for script in ("run_inference.py", "run_inference_optimized.py"):
        done = subprocess.run(
            [sys.executable, str(REPO / script), "--help"],
            env={**os.environ, **plain},
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0
        assert done.stdout.isascii()


@pytest.mark.parametrize("taken", ["OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES"])
def test_what_the_user_set_arrives_as_it_was(bench: Bench, taken: str) -> None:
    value = {"OMP_NUM_THREADS": "1", "OMP_PROC_BIND": "spread", "OMP_PLACES": "sockets"}[taken]
    assert taken not in planned(bench, "-p", "a", **{taken: value})["env"]
    assert bench.start(PLAIN, "-p", "a", **{taken: value}).code == 0
    assert bench.last()["env"][taken] == value


def module(bench: Bench, *arguments: Word) -> Done:
    return start("-m", "bitnet_tuning", *arguments, env=bench.environment(), cwd=REPO)


def test_the_plan_command_needs_no_prompt(bench: Bench) -> None:
    named = ("plan", "--engine", str(bench.fake.cli), "-m", demo.I2_S, "--json")
    for flags in ((), ("--", "-p", "x"), ("-p", "own"), ("-cnv",), ("-n", "5")):
        done = module(bench, *named, *flags)
        assert done.code == 0, done.err
        command = json.loads(done.out)["command"]
        assert ("PROMPT" in command) == (not {"own", "-cnv"} & set(flags))


NONSENSE = "sys/devices/system/cpu"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "not known"),
        ({f"{NONSENSE}/online": "garbage"}, "not known"),
        ({f"{NONSENSE}/online": "0-99999999999"}, "not known"),
        (
            {
                f"{NONSENSE}/online": "0-3",
                f"{NONSENSE}/cpu0/topology/thread_siblings_list": "\xff\xfe",
                f"{NONSENSE}/cpu1/topology/thread_siblings_list": "-5",
                "proc/meminfo": "MemTotal: much",
                "proc/self/cgroup": "::::",
                "proc/self/mountinfo": "- cgroup2",
                "proc/self/status": "Cpus_allowed_list:\tx",
            },
            "not known",
        ),
    ],
)
def test_nonsense_about_the_machine_is_a_plan_with_a_reason(
    bench: Bench, tmp_path: Path, files: dict[str, str], words: str
) -> None:
    machine = Machine(tmp_path / "root")
    for name, content in files.items():
        machine.write(name, content)
    named = ("--engine", str(bench.fake.cli), "-m", demo.I2_S, "--json")
    done = module(bench, "plan", "--root", str(machine.path), *named)
    assert done.code == 0, done.err
    plan = json.loads(done.out)
    assert plan["threads"] >= 1
    assert words in plan["reasons"]["threads"]


def test_a_plan_for_another_machine(bench: Bench, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "root").regular(8, threads=2)
    machine.cgroup2("/", {"cpu.max": "250000 100000"})
    named = ("--engine", str(bench.fake.cli), "-m", demo.I2_S, "--json")
    plan = json.loads(module(bench, "plan", "--root", str(machine.path), *named).out)
    assert (plan["threads"], plan["threads_batch"]) == (2, 2)
    assert "2.5" in plan["reasons"]["threads"]


# Bad input


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["-p", "a", "-t", "-3"], "-t/--threads"),
        (["-p", "a", "-t", "abc"], "-t/--threads"),
        (["-p", "a", "-t", "513"], "-t/--threads"),
        (["-p", "a", "-t", "1.5"], "-t/--threads"),
        (["-p", "a", "-n", "-3"], "-n/--n-predict"),
        (["-p", "a", "-n", str(1 << 31)], "-n/--n-predict"),
        (["-p", "a", "-c", "-1"], "-c/--ctx-size"),
        (["-p", "a", "-c", "99999999999"], "-c/--ctx-size"),
        (["-p", "a", "-temp", "-1"], "-temp/--temperature"),
        (["-p", "a", "-temp", "nan"], "-temp/--temperature"),
        (["-p", "a", "-temp", "inf"], "-temp/--temperature"),
        (["-p", ""], "-p/--prompt"),
        (["--prompt="], "-p/--prompt"),
        (["-p"], "-p/--prompt"),
        ([], "-p/--prompt"),
        (["-p", "a", "--json"], "--dry-run"),
        (["-p", "a", "--unheard-of"], "--unheard-of"),
        (["-p", "a", "stray"], "stray"),
    ],
)
def test_a_senseless_flag_is_named(bench: Bench, flags: list[str], named: str) -> None:
    before = len(bench.fake.runs())
    done = bench.start(PLAIN, *flags)
    assert (done.code, done.out) == (2, b"")
    assert named in done.err
    assert len(bench.fake.runs()) == before


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["-p", "a", "-f", "b"], "-f/--file"),
        ([], "-p/--prompt"),
        (["-p", "a", "--top-p", "1.5"], "--top-p"),
        (["-p", "a", "--min-p", "-0.1"], "--min-p"),
        (["-p", "a", "--top-k", "-1"], "--top-k"),
        (["-p", "a", "--seed", "-2"], "--seed"),
        (["-p", "a", "-tb", "0"], "--threads-batch"),
        (["-p", "a", "--max-threads", "0"], "--max-threads"),
        (["-p", "a", "-b", "0"], "--batch-size"),
        (["-p", "a", "-ub", "x"], "--ubatch-size"),
    ],
)
def test_a_senseless_flag_of_the_optimized_program_is_named(
    bench: Bench, flags: list[str], named: str
) -> None:
    done = bench.start(OPTIMIZED, *flags)
    assert (done.code, done.out) == (2, b"")
    assert named in done.err


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [(b"", 2, "empty"), (b"\n", 2, "empty"), (None, 3, "No such file")],
)
def test_a_prompt_file_that_holds_nothing(
    bench: Bench, tmp_path: Path, content: bytes | None, code: int, words: str
) -> None:
    file = tmp_path / "prompt.txt"
    if content is not None:
        file.write_bytes(content)
    done = bench.start(OPTIMIZED, "-f", str(file))
    assert done.code == code
    assert words in done.err and str(file) in done.err
    assert bench.start(OPTIMIZED, "-f", str(tmp_path)).code == 3


def header(tensors: int, pairs: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs) + rest


STRINGS = struct.pack("<Q1sIIQ", 1, b"k", 9, 8, 1 << 60)
"""A metadata entry: an array of 2^60 strings."""


def shortened(path: Path) -> None:
    path.write_bytes(Path(demo.I2_S).read_bytes()[:-1000])


def written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no such model file"),
        (lambda path: path.mkdir(), "folder"),
        (written(b""), "empty"),
        (written(b"PK\3\4" + bytes(100)), "is not a GGUF file"),
        (shortened, "truncated"),
        (written(header(1 << 60, 1, bytes(100))), str(1 << 60)),
        (written(header(1, 1 << 60, bytes(100))), str(1 << 60)),
        (written(header(1, 1, STRINGS + bytes(100))), str(1 << 60)),
        (os.mkfifo, "not a regular file"),
    ],
)
def test_a_model_that_cannot_be_used_is_told_in_which_way(
    bench: Bench, tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    """At once, and in little memory."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))

    path = tmp_path / "model.gguf"
    make(path)
    command = (PLAIN, "--engine", str(bench.fake.cli), "-m", str(path), "-p", "a")
    began = time.monotonic()
    done = start(*command, env=bench.environment(), preexec_fn=limited)
    assert time.monotonic() - began < 10
    assert (done.code, done.out) == (3, b"")
    assert words in done.err and str(path) in done.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_an_unreadable_model_is_told(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(Path(demo.I2_S).read_bytes())
    path.chmod(0)
    done = bench.start(PLAIN, "-p", "a", "-m", str(path))
    assert done.code == 3 and "Permission denied" in done.err


@pytest.mark.parametrize("variable", [{}, {"BITNET_ENGINE": "/nowhere/bin"}])
def test_a_named_engine_that_is_missing(bench: Bench, variable: dict[str, str]) -> None:
    flags = () if variable else ("--engine", "/nowhere/llama-cli")
    done = start(PLAIN, *flags, "-m", demo.I2_S, "-p", "a", env=bench.environment(**variable))
    assert done.code == 3
    assert "/nowhere/" in done.err
    assert ("BITNET_ENGINE" if variable else "--engine") in done.err


def test_an_engine_that_cannot_be_started(bench: Bench, tmp_path: Path) -> None:
    plain = tmp_path / "llama-cli"
    plain.write_text("no program")
    done = bench.start(PLAIN, "-p", "a", "--engine", str(plain))
    assert done.code == 4
    assert "chmod +x" in done.err


class DropIn(NamedTuple):
    """The scripts in a folder of their own, on a machine where nothing else is."""

    folder: Path
    environment: dict[str, str]

    def start(self, *arguments: Word, **options: Any) -> Done:
        return start(*arguments, env=self.environment, cwd=self.folder, **options)


@pytest.fixture
def drop_in(tmp_path: Path) -> DropIn:
    folder, empty = tmp_path / "here", tmp_path / "empty"
    folder.mkdir()
    empty.mkdir()
    shutil.copy(PLAIN, folder)
    (folder / "bitnet_tuning").symlink_to(REPO / "bitnet_tuning")
    environment = {**os.environ, "PATH": str(empty), "BITNET_TUNING_HOME": str(tmp_path / "home")}
    environment.pop("PYTHONPATH", None)
    return DropIn(folder, environment)


def test_without_any_engine_both_ways_out_are_told(drop_in: DropIn) -> None:
    """-S leaves site-packages out, and with them an xllamacpp that may be installed."""
    done = drop_in.start("-S", "run_inference.py", "-m", demo.TQ2_0, "-p", "a")
    assert (done.code, done.out) == (3, b"")
    for looked_for in ("build/bin/llama-cli", str(drop_in.folder), "PATH", "embedded engine"):
        assert looked_for in done.err
    for way_out in ("--engine", "BITNET_ENGINE", "pip install xllamacpp"):
        assert way_out in done.err


def test_in_a_checkout_the_scripts_find_its_engine_and_model(drop_in: DropIn) -> None:
    fake = FakeEngine(drop_in.folder)
    model = drop_in.folder / "models" / "BitNet-b1.58-2B-4T" / "ggml-model-i2_s.gguf"
    model.parent.mkdir(parents=True)
    model.symlink_to(demo.I2_S)
    done = drop_in.start("-S", "run_inference.py", "-p", "hello")
    assert (done.code, done.out, done.ours) == (0, b"hello and more text\n", [])
    (run,) = fake.prompts()
    assert run["argv"][:3] == [str(fake.cli), "-m", str(model)]


def test_without_a_model_it_is_told_where_one_was_looked_for(drop_in: DropIn) -> None:
    FakeEngine(drop_in.folder)
    done = drop_in.start("-S", "run_inference.py", "-p", "hello")
    assert done.code == 3
    for part in ("models/BitNet-b1.58-2B-4T", str(drop_in.folder), "-m", "BITNET_MODEL"):
        assert part in done.err


def test_falling_back_to_the_embedded_engine_and_the_demo_model_is_said(drop_in: DropIn) -> None:
    pytest.importorskip("xllamacpp")
    done = drop_in.start("run_inference.py", "-p", "The ", "-n", "4", "-temp", "0", "-t", "1")
    assert done.code == 0, done.err
    assert done.out.strip().startswith(b"The ")
    assert [line for line in done.ours if "embedded" in line]
    assert [line for line in done.ours if "demo model" in line]


@pytest.mark.parametrize(
    ("flags", "code"), [(["-t", "-3", "-p", "a"], 2), (["-m", "/nowhere.gguf", "-p", "a"], 3)]
)
def test_a_traceback_is_shown_to_those_who_ask(bench: Bench, flags: list[str], code: int) -> None:
    done = bench.start(PLAIN, *flags, BITNET_TUNING_DEBUG="1")
    assert done.code == code
    assert "Traceback" in done.err
    assert len(done.ours) == 1


def test_commands_of_the_package(bench: Bench) -> None:
    helped = module(bench, "--help")
    assert helped.code == 0
    assert [name for name in ("host", "plan", "selftest") if name.encode() not in helped.out] == []
    assert module(bench).code == 2
    unknown = module(bench, "unheard-of")
    assert unknown.code == 2 and "unheard-of" in unknown.err
    assert module(bench, "plan", "--root", "/nowhere").code == 3


# What is said around a run


def test_a_plain_run_adds_nothing_to_what_the_engine_says(bench: Bench) -> None:
    done = bench.start(PLAIN, "-p", "hello", "-t", "1")
    assert (done.code, done.out, done.ours) == (0, b"hello and more text\n", [])
    assert "llama_perf_context_print:        eval time" in done.err


def test_the_optimized_program_tells_threads_and_governor_first(bench: Bench) -> None:
    done = bench.start(OPTIMIZED, "-p", "hello", "-t", "1")
    threads, governor = done.ours
    assert threads == "threads 1, as -t says"
    assert governor.startswith("governor ")
    assert done.err.index("governor ") < done.err.index("system_info")


def test_figures_of_a_run(bench: Bench, tmp_path: Path) -> None:
    figures = "prompt 100.0 tokens/s (5 tokens); generation 20.0 tokens/s (40 tokens)"
    file = tmp_path / "prompt"
    file.write_text("hello\n")
    for flags in (["-p", "hello"], ["-p", "hello", "--quiet"], ["-f", str(file), "--quiet"]):
        output = "hello, and so on" if "-f" in flags else ", and so on"  # it reads no file
        done = bench.start(OPTIMIZED, *flags, "-t", "1", "--stats", FAKE_OUTPUT=output)
        assert done.ours[-1].startswith(f"{figures}; first token after ")
        assert done.err.endswith(done.ours[-1] + "\n")
    silent = bench.start(OPTIMIZED, "-p", "hello", "--stats", FAKE_OUTPUT="")
    assert silent.ours[-1] == f"{figures}; first token not seen"


def test_quiet_hides_the_log_unless_the_engine_fails(bench: Bench) -> None:
    fine = bench.start(OPTIMIZED, "-p", "hello", "-t", "1", "--quiet")
    assert (fine.code, fine.out, fine.err) == (0, b"hello and more text\n", "")
    failed = bench.start(OPTIMIZED, "-p", "hello", "-t", "1", "--quiet", FAKE_EXIT="7")
    assert failed.code == 7
    assert "system_info" in failed.err and "eval time" in failed.err
    killed = bench.start(OPTIMIZED, "-p", "hello", "-t", "1", "--quiet", FAKE_KILL="4")
    assert killed.code == 128 + 4
    assert "system_info" in killed.err and "SIGILL" in killed.ours[-1]


def test_oversubscription_is_one_line_of_warning(bench: Bench) -> None:
    done = bench.start(PLAIN, "-p", "hello", "-t", "512")
    assert done.code == 0
    (warning,) = done.ours
    assert "512 threads" in warning
    assert bench.got("-t") == b"512"
