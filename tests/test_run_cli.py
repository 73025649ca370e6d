"""The programs as a user starts them, with fake engines."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bitnet_tuning import __main__, demo, prepare
from bitnet_tuning.cli import run
from bitnet_tuning.model.find import Reminder
from bitnet_tuning.store.state import State, moment
from tests.engines import FakeEngine
from tests.gguf_files import write_bitnet
from tests.machines import Machine, x86_entries
from tests.processes import run_at_terminal

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
        """The messages of the launcher itself, without those of the engine."""
        prefix = "bitnet-tuning: "
        lines = self.err.splitlines()
        return [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]


def start(*command: Word, **options: Any) -> Done:
    """Run Python with these arguments to the end; no traceback may reach a user."""
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
    """A fake engine with its log, shared by the tests of this module."""

    def __init__(self, folder: Path, generation: str) -> None:
        self.fake = FakeEngine(folder / "checkout", generation)
        self.home = folder / "home"

    def named(self, *flags: str) -> list[str]:
        """Return flags that name the engine and the model, and these."""
        return ["--engine", str(self.fake.cli), "-m", demo.I2_S, *flags]

    def environment(self, **variables: str) -> dict[str, str]:
        return {**os.environ, "BITNET_TUNING_HOME": str(self.home), **variables}

    def start(self, script: str, *flags: Word, **variables: str) -> Done:
        return start(script, *self.named(), *flags, env=self.environment(**variables))

    def last(self) -> dict[str, Any]:
        return self.fake.prompts()[-1]

    def got(self, flag: str) -> bytes:
        """Return the value of a flag in the last run of the engine."""
        raw = [bytes.fromhex(word) for word in self.last()["raw"]]
        return raw[raw.index(flag.encode()) + 1]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bitnet"), "bitnet")


@pytest.fixture(scope="module")
def mainline(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("mainline"), "mainline")


# What the engine receives

PROMPTS: list[bytes] = [
    b'it\'s "quoted" `and` $(more) \\n %s',
    b"two\nlines\r\n\ttab ",
    b"--",
    b"-x",
    b"--dry-run",
    b"-p",
    "emoji 🐍 und Umlaute".encode(),
    b" ",
    b"=",
    b"long " * 2_000,
    b"x" * 100_000,
]


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: repr(prompt[:12]))
def test_a_prompt_of_any_bytes_reaches_the_engine_unchanged(bench: Bench, prompt: bytes) -> None:
    done = bench.start(PLAIN, "-p", prompt, "-c", "100000", FAKE_OUTPUT=" ü\t… \x1b[0m ")
    assert done.code == 0
    assert bench.got("-p") == prompt
    assert done.out == prompt + " ü\t… \x1b[0m \n".encode()


@pytest.mark.parametrize(
    "locale", [{"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONUTF8": "1"}]
)
def test_prompts_do_not_depend_on_the_locale(bench: Bench, locale: dict[str, str]) -> None:
    prompt = "🐍 ".encode()
    done = bench.start(PLAIN, "-p", prompt, **locale)
    assert (done.code, done.out) == (0, prompt + b" and more text\n")
    assert bench.got("-p") == prompt


def test_a_prompt_joined_to_its_flag_may_be_two_dashes(bench: Bench) -> None:
    assert bench.start(PLAIN, "--prompt=--", "--", "extra").code == 0
    assert bench.got("-p") == b"--"
    assert bench.last()["argv"][-1] == "extra"


def test_the_output_is_unchanged_with_stats_and_quiet(bench: Bench) -> None:
    prompt = b"\n two\r\nlines "
    done = bench.start(OPTIMIZED, "-p", prompt, "--stats", "--quiet", FAKE_OUTPUT="\r")
    assert (done.code, done.out) == (0, prompt + b"\r\n")


def test_the_engine_reads_the_prompt_file_itself(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "two words.txt"
    for content in (b"x" * 100_000, b"\n\nafter two lines"):
        file.write_bytes(content)
        assert bench.start(OPTIMIZED, "-f", str(file), "-c", "100000").code == 0
        assert bench.got("-f") == os.fsencode(file)
    assert "-p" not in bench.last()["argv"]


def test_a_prompt_on_standard_input_reaches_the_engine(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "prompt"
    file.write_text("hello")
    flags = ("--engine", str(bench.fake.cli), "-m", demo.I2_S, "-f", "/dev/stdin")
    with file.open() as stdin:
        assert start(OPTIMIZED, *flags, env=bench.environment(), stdin=stdin).code == 0
    assert bench.last()["stdin"] == str(file)


@pytest.mark.parametrize("script", [PLAIN, OPTIMIZED])
def test_arguments_after_two_dashes_go_to_the_engine_unchanged(bench: Bench, script: str) -> None:
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
@pytest.mark.parametrize("report", [False, True])
def test_upstreams_flags_in_every_spelling(
    bench: Bench, capsys: pytest.CaptureFixture[str], report: bool, flags: str
) -> None:
    words = bench.named("--dry-run", "--json", *flags.split())
    assert run.main(words, report=report) == 0
    command = json.loads(capsys.readouterr().out)["command"]
    values = {"-n": "5", "-p": "hello", "-t": "2", "-c": "64", "--temp": "0.5", "-m": demo.I2_S}
    assert {flag: command[command.index(flag) + 1] for flag in values} == values


@pytest.mark.parametrize("flag", ["-cnv", "--conversation"])
def test_a_chat_in_both_spellings(bench: Bench, flag: str) -> None:
    assert bench.start(PLAIN, "-p", "be kind", flag).code == 0
    assert "-cnv" in bench.last()["argv"]
    assert bench.got("-p") == b"be kind"


def test_defaults_are_those_of_upstream(bench: Bench) -> None:
    assert bench.start(PLAIN, "-p", "hello").code == 0
    values = {"-n": "128", "-c": "2048", "--temp": "0.8", "-ngl": "0"}
    assert {flag: bench.got(flag).decode() for flag in values} == values


def test_flags_of_run_inference_optimized(bench: Bench) -> None:
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


# Plans that are printed


def planned(bench: Bench, *flags: Word, **variables: str) -> dict[str, Any]:
    done = bench.start(PLAIN, "--dry-run", "--json", *flags, **variables)
    assert done.code == 0, done.err
    plan = json.loads(done.out)
    assert isinstance(plan, dict)
    return plan


def test_a_plan_as_json_has_the_documented_fields_and_starts_nothing(bench: Bench) -> None:
    bench.start(PLAIN, "--dry-run", "-p", "hello")  # may ask the engine what it can do
    before = len(bench.fake.runs())
    plan = planned(bench, "-p", "hello", "-t", "1")
    assert len(bench.fake.runs()) == before
    fields = "command env cpus threads threads_batch batch ubatch engine model reasons"
    assert list(plan) == fields.split()
    assert (plan["engine"], plan["model"]) == (str(bench.fake.cli), demo.I2_S)
    assert (plan["threads"], plan["env"]["OMP_NUM_THREADS"]) == (1, "1")
    assert set(plan["reasons"]) == (set(plan) - {"reasons"}) | {"isa", "numa", "memory"}


@pytest.mark.parametrize("prompt", [*PROMPTS[:3], PROMPTS[7]], ids=lambda prompt: repr(prompt[:12]))
def test_the_printed_command_does_in_a_shell_what_the_program_does(
    bench: Bench, prompt: bytes
) -> None:
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


@pytest.mark.parametrize("width", ["60", "80"])
def test_the_reason_for_every_field_is_printed_on_stderr(bench: Bench, width: str) -> None:
    done = bench.start(PLAIN, "--dry-run", "-p", "hello", COLUMNS=width)
    assert done.out.count(b"\n") == 1
    lines = done.err.splitlines()
    starts = [line for line in lines if line[:2] == "  " and line[2:3] != " "]
    fields = [name for line in starts for name in line[2:].split("  ")[0].split(", ")]
    assert fields[:4] == ["threads", "cpus", "model", "engine"]
    reasons = planned(bench, "-p", "hello")["reasons"]
    assert reasons["numa"].startswith("nothing to choose")  # which is not printed
    assert sorted([*fields, "numa"]) == sorted(reasons)
    assert all(len(line) <= int(width) or "/" in line for line in lines)
    assert len({line[17:] for line in starts}) == len(starts)


def test_a_chat_cannot_read_its_prompt_from_its_own_input(bench: Bench) -> None:
    done = bench.start(OPTIMIZED, "-f", "/dev/stdin", "-cnv")
    assert done.code == 2
    assert "--file" in done.err


@pytest.mark.parametrize(
    ("redirection", "code"),
    [(">&-", 0), ("2>&-", 0), ("2>/dev/full", 0), (">/dev/full", 1), (">&- 2>&-", 0)],
)
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux")
def test_a_plan_is_printed_to_streams_that_are_closed_or_full(
    bench: Bench, redirection: str, code: int
) -> None:
    program = [sys.executable, str(REPO / "run_inference.py"), "-m", demo.I2_S]
    script = shlex.join([*program, "--engine", str(bench.fake.cli), "-p", "a", "--dry-run"])
    done = subprocess.run(
        ["sh", "-c", f"{script} {redirection}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code
    assert "fault of bitnet-tuning" not in done.stderr


@pytest.mark.parametrize("script", [PLAIN, OPTIMIZED])
def test_help_is_ascii_and_names_defaults(script: str) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = start(script, "--help", env={**os.environ, **plain})
    assert done.code == 0
    assert done.out.isascii()
    text = " ".join(done.out.decode().split())
    for default in ("128", "2048", "0.8", "found automatically"):
        assert f"(default: {default})" in text


@pytest.mark.parametrize("taken", ["OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES"])
def test_variables_that_the_user_set_are_not_changed(bench: Bench, taken: str) -> None:
    value = {"OMP_NUM_THREADS": "1", "OMP_PROC_BIND": "spread", "OMP_PLACES": "sockets"}[taken]
    assert taken not in planned(bench, "-p", "a", **{taken: value})["env"]
    assert bench.start(PLAIN, "-p", "a", **{taken: value}).code == 0
    assert bench.last()["env"][taken] == value


class Commands:
    """``python3 -m bitnet_tuning``, called in this process."""

    def __init__(self, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
        self.bench = bench
        self.capsys = capsys

    def call(self, *arguments: str) -> Done:
        code = __main__.main(arguments)
        printed = self.capsys.readouterr()
        return Done(code, printed.out.encode(), printed.err)

    def plan(self, *flags: str) -> Any:
        done = self.call("plan", *self.bench.named("--json", *flags))
        assert done.code == 0, done.err
        return json.loads(done.out)


@pytest.fixture
def commands(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Commands:
    monkeypatch.setenv("BITNET_TUNING_HOME", str(bench.home))
    return Commands(bench, capsys)


def test_the_plan_command_needs_no_prompt(commands: Commands) -> None:
    for flags in ((), ("--", "-p", "x"), ("-p", "own"), ("-cnv",), ("-n", "5")):
        command = commands.plan(*flags)["command"]
        assert ("PROMPT" in command) == (not {"own", "-cnv"} & set(flags))


NONSENSE = "sys/devices/system/cpu"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "is unknown"),
        ({f"{NONSENSE}/online": "garbage"}, "is unknown"),
        ({f"{NONSENSE}/online": "0-99999999999"}, "is unknown"),
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
            "is unknown",
        ),
    ],
)
def test_a_plan_for_a_machine_with_senseless_files_says_what_is_not_known(
    commands: Commands, tmp_path: Path, files: dict[str, str], words: str
) -> None:
    machine = Machine(tmp_path / "root")
    for name, content in files.items():
        machine.write(name, content)
    plan = commands.plan("--root", str(machine.path))
    assert plan["threads"] >= 1
    assert words in plan["reasons"]["threads"]


def test_a_plan_for_another_machine(commands: Commands, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "root").regular(8, threads=2)
    machine.cgroup2("/", {"cpu.max": "250000 100000"})
    plan = commands.plan("--root", str(machine.path))
    assert (plan["threads"], plan["threads_batch"]) == (3, 3)
    assert "2.5" in plan["reasons"]["threads"]


# Wrong input


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
def test_the_error_for_a_wrong_flag_names_it(
    bench: Bench, capsys: pytest.CaptureFixture[str], flags: list[str], named: str
) -> None:
    before = len(bench.fake.runs())
    assert run.main(bench.named(*flags)) == 2
    printed = capsys.readouterr()
    assert (printed.out, len(bench.fake.runs())) == ("", before)
    assert named in printed.err


def test_a_prompt_that_looks_like_a_flag_is_a_prompt(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(bench.named("-p", "--seed", "--unheard-of")) == 2
    assert "--seed" not in capsys.readouterr().err


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
def test_the_error_for_a_wrong_flag_of_run_inference_optimized_names_it(
    bench: Bench, capsys: pytest.CaptureFixture[str], flags: list[str], named: str
) -> None:
    assert run.main(bench.named(*flags), report=True) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert named in printed.err


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [(b"", 2, "empty"), (b"\n", 2, "empty"), (None, 3, "No such file")],
)
def test_an_empty_or_missing_prompt_file_is_an_error(
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
        (written(b"PK\3\4" + bytes(100)), "is not a model but a PyTorch checkpoint"),
        (shortened, "truncated"),
        (written(header(1 << 60, 1, bytes(100))), str(1 << 60)),
        (written(header(1, 1 << 60, bytes(100))), str(1 << 60)),
        (written(header(1, 1, STRINGS + bytes(100))), str(1 << 60)),
        (os.mkfifo, "not a regular file"),
    ],
)
def test_the_error_for_an_unusable_model_says_why_and_takes_little_memory(
    bench: Bench, tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))

    path = tmp_path / "model.gguf"
    make(path)
    command = (PLAIN, "--engine", str(bench.fake.cli), "-m", str(path), "-p", "a")
    done = start(*command, env=bench.environment(), preexec_fn=limited)
    assert (done.code, done.out) == (3, b"")
    assert words in done.err and str(path) in done.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_an_unreadable_model_is_an_error(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(Path(demo.I2_S).read_bytes())
    path.chmod(0)
    done = bench.start(PLAIN, "-p", "a", "-m", str(path))
    assert done.code == 3 and "Permission denied" in done.err


@pytest.mark.parametrize("variable", [{}, {"BITNET_ENGINE": "/nowhere/bin"}])
def test_a_named_engine_that_is_missing_is_an_error(bench: Bench, variable: dict[str, str]) -> None:
    flags = () if variable else ("--engine", "/nowhere/llama-cli")
    done = start(PLAIN, *flags, "-m", demo.I2_S, "-p", "a", env=bench.environment(**variable))
    assert done.code == 3
    assert "/nowhere/" in done.err
    assert ("BITNET_ENGINE" if variable else "--engine") in done.err


def test_an_engine_that_cannot_be_started_is_an_error(bench: Bench, tmp_path: Path) -> None:
    plain = tmp_path / "llama-cli"
    plain.write_text("no program")
    done = bench.start(PLAIN, "-p", "a", "--engine", str(plain))
    assert done.code == 4
    assert "chmod +x" in done.err


LD_SO = "error while loading shared libraries: libq.so.6: cannot open shared object file"


def no_library(path: Path) -> None:
    """Write a program that needs a library which does not exist."""
    program = Path("/bin/true").resolve().read_bytes()
    if b"libc.so.6\0" not in program:
        pytest.skip("/bin/true does not link glibc")
    path.write_bytes(program.replace(b"libc.so.6\0", b"libq.so.6\0"))
    path.chmod(0o755)


@pytest.fixture
def unloadable(tmp_path: Path) -> Path:
    """A llama-cli that the dynamic loader does not start, in a build that has the library."""
    cli, library = tmp_path / "moved/build/bin/llama-cli", tmp_path / "moved/build/src/libq.so.6"
    for path in (cli, library):
        path.parent.mkdir(parents=True)
    library.touch()
    no_library(cli)
    return cli


def test_an_engine_that_is_not_loaded_is_not_judged(unloadable: Path, bench: Bench) -> None:
    flags = ["--engine", str(unloadable)]
    package = ("-m", "bitnet_tuning")
    environment = bench.environment()
    for command in (
        (PLAIN, *flags, "-m", demo.I2_S, "-p", "a"),
        (OPTIMIZED, *flags, "-m", demo.TQ2_0, "-p", "a", "--dry-run"),
        (*package, "plan", *flags, "-m", demo.I2_S),
        (*package, "selftest", *flags),
        (str(REPO / "benchmark_optimized.py"), *flags, "-m", demo.I2_S, "--quick"),
    ):
        done = start(*command, env=environment)
        assert (done.code, done.out) == (4, b""), command
        assert f"cannot start {unloadable}: {LD_SO}" in done.err
        assert f"LD_LIBRARY_PATH={unloadable.parents[1] / 'src'}" in done.err
        assert "mainline" not in done.err and "kernels" not in done.err
    found = start(*package, "doctor", "--json", *flags, "-m", demo.I2_S, env=environment)
    findings = json.loads(found.out)["findings"]
    (engine,) = (each for each in findings if each["name"] == "engine")
    assert engine["state"] == "bad" and LD_SO in engine["text"]
    assert not [each for each in findings if each["name"] in ("self-test", "build for i2_s")]
    assert "mainline" not in found.out.decode()


def other_architecture(path: Path) -> None:
    program = bytearray(Path("/bin/true").resolve().read_bytes())
    program[18:20] = b"\xff\xff"  # e_machine of elf(5): no such architecture
    path.write_bytes(program)


def no_interpreter(path: Path) -> None:
    path.write_text("#!/nowhere/python\n")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the files are ELF")
@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        (other_architecture, ("Exec format error", "for this system")),
        (no_interpreter, ("the interpreter", "missing")),
        (no_library, ("libq.so.6: cannot open shared object file", "LD_LIBRARY_PATH")),
    ],
)
def test_what_the_system_says_about_a_program_it_cannot_start_is_printed(
    bench: Bench, tmp_path: Path, damaged: Callable[[Path], None], words: tuple[str, ...]
) -> None:
    cli = tmp_path / "llama-cli"
    damaged(cli)
    cli.chmod(0o755)
    done = bench.start(PLAIN, "-p", "a", "--engine", str(cli))
    assert (done.code, done.out) == (4, b"")
    assert done.err.startswith(f"bitnet-tuning: error: cannot start {cli}: ")
    assert [word for word in words if word not in done.err] == []


def test_a_library_that_vanished_after_the_probe_is_explained(bench: Bench) -> None:
    done = bench.start(PLAIN, "-p", "a", FAKE_EXIT="127")
    assert done.code == 127
    assert "LD_LIBRARY_PATH" in done.ours[-1]


@pytest.mark.skipif(os.name == "nt", reason="POSIX has the limit")
def test_a_limit_on_threads_is_named_when_the_engine_dies(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare, "read_task_limits", lambda root: [("pids.max of /a", 9, 4)])
    for name, code in (("FAKE_EXIT", "1"), ("FAKE_KILL", str(int(signal.SIGABRT)))):
        with monkeypatch.context() as patch:
            patch.setenv(name, code)
            run.main(bench.named("-p", "a", "-t", "4"))
        said = capsys.readouterr().err
        assert "could not start 4 threads: pids.max of /a allows 9" in said
        assert "-t 3" in said and "kernels" not in said


@pytest.mark.parametrize("flags", [["--dry-run"], []])
def test_a_prompt_longer_than_the_context_never_starts_the_engine(
    bench: Bench, tmp_path: Path, flags: list[str]
) -> None:
    before = len(bench.fake.prompts())
    file = tmp_path / "long.txt"
    file.write_text("word " * 3000)
    for script, given in ((PLAIN, ["-p", "word " * 3000]), (OPTIMIZED, ["-f", str(file)])):
        done = bench.start(script, *given, *flags)
        assert (done.code, done.out) == (2, b"")
        assert "at least 3000 tokens" in done.err and "trained on at most 2048 " in done.err
    assert len(bench.fake.prompts()) == before
    assert bench.start(PLAIN, "-p", "word " * 3000, "-c", "4096").code == 0


def test_a_senselessly_small_context_is_refused(bench: Bench) -> None:
    done = bench.start(PLAIN, "-p", "a", "-c", "1")
    assert done.code == 2
    assert "-c" in done.err and "32" in done.err
    assert bench.start(PLAIN, "-p", "a", "-c", "32").code == 0


def test_a_build_without_kernels_runs_only_with_force(tmp_path: Path) -> None:
    weak = Bench(tmp_path, "bitnet")
    weak.fake.isa("SSSE3")
    for script in (PLAIN, OPTIMIZED):
        for flags in ([], ["--dry-run"]):
            done = weak.start(script, "-p", "a", *flags)
            assert (done.code, done.out) == (4, b"")
            assert "AVX2" in done.err and "--force" in done.err
    assert weak.fake.prompts() == []
    done = weak.start(PLAIN, "-p", "a", "--force")
    assert (done.code, done.out) == (0, b"a and more text\n")
    assert "warning" in done.ours[0] and "garbage" in done.ours[0]


class DropIn(NamedTuple):
    """run_inference.py in a folder of its own, on a machine without an engine."""

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
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    others = [name for name in others if not Path(name, "bitnet_tuning").exists()]
    environment["PYTHONPATH"] = os.pathsep.join(others)
    return DropIn(folder, environment)


def test_the_error_for_a_missing_engine_names_the_folders_and_both_remedies(
    drop_in: DropIn,
) -> None:
    # -E and -S leave out an xllamacpp that may be installed.
    done = drop_in.start("-ES", "run_inference.py", "-m", demo.TQ2_0, "-p", "a")
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
    done = drop_in.start("-ES", "run_inference.py", "-p", "hello")
    assert (done.code, done.out, done.ours) == (0, b"hello and more text\n", [])
    (run,) = fake.prompts()
    assert run["argv"][:3] == [str(fake.cli), "-m", str(model)]


def test_the_error_for_a_missing_model_names_the_folders(drop_in: DropIn) -> None:
    FakeEngine(drop_in.folder)
    done = drop_in.start("-ES", "run_inference.py", "-p", "hello")
    assert done.code == 3
    for part in ("models/BitNet-b1.58-2B-4T", str(drop_in.folder), "-m", "BITNET_MODEL"):
        assert part in done.err


def test_the_use_of_the_embedded_engine_and_the_demo_model_is_reported(drop_in: DropIn) -> None:
    pytest.importorskip("xllamacpp")
    done = drop_in.start("run_inference.py", "-p", "The ", "-n", "4", "-temp", "0", "-t", "1")
    assert done.code == 0, done.err
    assert done.out.strip().startswith(b"The ")
    assert [line for line in done.ours if "embedded" in line]
    assert [line for line in done.ours if "demo model" in line]


@pytest.mark.parametrize(
    ("flags", "code"), [(["-t", "-3", "-p", "a"], 2), (["-m", "/nowhere.gguf", "-p", "a"], 3)]
)
def test_a_traceback_is_printed_on_demand(bench: Bench, flags: list[str], code: int) -> None:
    done = bench.start(PLAIN, *flags, BITNET_TUNING_DEBUG="1")
    assert done.code == code
    assert "Traceback" in done.err
    assert len(done.ours) == 1


def test_commands_of_the_package(commands: Commands) -> None:
    helped = commands.call("--help")
    assert helped.code == 0
    assert [name for name in ("host", "plan", "selftest") if name.encode() not in helped.out] == []
    assert commands.call().code == 2
    unknown = commands.call("unheard-of")
    assert unknown.code == 2 and "unheard-of" in unknown.err
    assert commands.call("plan", "--root", str(commands.bench.home / "missing")).code == 3


# Messages before and after a run


def test_run_inference_prints_nothing_of_its_own(bench: Bench) -> None:
    done = bench.start(PLAIN, "-p", "hello", "-t", "1")
    assert (done.code, done.out, done.ours) == (0, b"hello and more text\n", [])
    assert "llama_perf_context_print:        eval time" in done.err


def test_run_inference_optimized_first_prints_threads_and_governor(bench: Bench) -> None:
    done = bench.start(OPTIMIZED, "-p", "hello", "-t", "1")
    threads, governor, _ = done.ours
    assert threads == "threads 1: set by -t"
    assert governor.startswith("governor ")
    assert done.err.index("governor ") < done.err.index("system_info")


def test_stats_are_printed_last(bench: Bench, tmp_path: Path) -> None:
    speeds = "20.0 tokens/s, prompt 100 tokens/s, "
    file = tmp_path / "prompt"
    file.write_text("hello\n")
    for flags in (["-p", "hello"], ["-p", "hello", "--quiet"], ["-f", str(file), "--quiet"]):
        output = "hello, and so on" if "-f" in flags else ", and so on"  # it reads no file
        done = bench.start(OPTIMIZED, *flags, "-t", "1", "--stats", FAKE_OUTPUT=output)
        assert done.ours[-1].startswith(f"{speeds}first token after ")
        assert done.err.endswith(" s, 41 tokens\n")
    silent = bench.start(OPTIMIZED, "-p", "hello", "--stats", FAKE_OUTPUT="")
    assert silent.ours[-1] == f"{speeds}41 tokens"


def test_quiet_hides_the_log_unless_the_engine_fails(bench: Bench) -> None:
    fine = bench.start(OPTIMIZED, "-p", "hello", "-t", "1", "--quiet")
    assert (fine.code, fine.out, fine.err) == (0, b"hello and more text\n", "")
    failed = bench.start(OPTIMIZED, "-p", "hello", "-t", "1", "--quiet", FAKE_EXIT="7")
    assert failed.code == 7
    assert "system_info" in failed.err and "eval time" in failed.err
    killed = bench.start(OPTIMIZED, "-p", "hello", "-t", "1", "--quiet", FAKE_KILL="4")
    assert killed.code == 128 + 4
    assert "system_info" in killed.err and "SIGILL" in killed.ours[-1]


def test_more_threads_than_cpus_are_a_warning_of_one_line(bench: Bench) -> None:
    done = bench.start(PLAIN, "-p", "hello", "-t", "512")
    assert done.code == 0
    (warning,) = done.ours
    assert "512 threads" in warning
    assert bench.got("-t") == b"512"


# What a smaller embedding would gain


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A model with an F16 embedding."""
    return write_bitnet(tmp_path / "m.gguf")


def hints(bench: Bench, home: Path, model: Path | str, *flags: str, **variables: str) -> list[str]:
    """Run at a terminal, with a state folder, and return the lines about smaller embeddings."""
    command = (sys.executable, flags[0], *bench.named("-m", str(model)), "-p", "x", "-t", "1")
    variables |= {"BITNET_TUNING_HOME": str(home), "COLUMNS": "1000"}
    code, _, seen = run_at_terminal(*command, *flags[1:], **variables)
    assert code == int(variables.get("FAKE_EXIT", "0")), seen
    lines = [line.removeprefix("bitnet-tuning: ") for line in seen.splitlines()]
    found = [line for line in lines if "embedding" in line]
    assert not found or found == lines[-1:], "the hint is the last line"
    return found


@pytest.mark.parametrize("script", [PLAIN, OPTIMIZED])
def test_on_a_terminal_a_run_says_once_a_day_what_a_smaller_embedding_gains(
    bench: Bench, wide: Path, tmp_path: Path, script: str
) -> None:
    home = tmp_path / "home"
    (hint,) = hints(bench, home, wide, script)
    assert hint.startswith(
        "99 % of the 15.8 MiB that each token reads is the f16 embedding; "
        "a copy with q6_k is up to ×2.41 as fast; make a smaller copy: "
    )
    assert hint.endswith(f"bitnet_tuning model slim {wide}")
    assert hints(bench, home, wide, script) == []
    other = write_bitnet(tmp_path / "another one.gguf", embedding="f32")
    (hint,) = hints(bench, home, other, script)
    assert "with q6_k is up to ×4.80 as fast;" in hint
    assert hint.endswith(f"bitnet_tuning model slim '{other}'")
    State(str(home)).store("reminder", str(wide.resolve()), Reminder(moment(25 * 3600)))
    assert len(hints(bench, home, wide, script)) == 1


def test_the_hint_names_the_slim_copy_beside_the_model(
    bench: Bench, wide: Path, tmp_path: Path
) -> None:
    copy = write_bitnet(tmp_path / "m-embd-q6_k.gguf", embedding="q6_k")
    (hint,) = hints(bench, tmp_path / "home", wide, PLAIN)
    advice = f"run the copy with a smaller embedding: {sys.executable} {PLAIN}"
    assert hint.endswith(f"as fast; {advice} -m {copy}")
    assert hints(bench, tmp_path / "home", copy, PLAIN) == []


def test_no_hint_where_it_would_disturb(bench: Bench, wide: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert hints(bench, home, wide, OPTIMIZED, "--quiet") == []
    assert hints(bench, home, wide, PLAIN, FAKE_EXIT="7") == []
    assert hints(bench, home, demo.I2_S, PLAIN) == []
    command = [*bench.named("-m", str(wide)), "-p", "x", "-t", "1"]
    piped = start(PLAIN, *command, env={**os.environ, "BITNET_TUNING_HOME": str(home)})
    assert (piped.code, piped.ours) == (0, [])
    assert len(hints(bench, home, wide, PLAIN)) == 1  # none of these runs counts as one


def test_no_hint_that_would_come_at_every_run(bench: Bench, wide: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()  # in place of the state folder, which nobody can write then
    command = (PLAIN, *bench.named("-m", str(wide)), "-p", "x", "-t", "1")
    _, _, seen = run_at_terminal(
        sys.executable, *command, BITNET_TUNING_HOME=str(tmp_path / "file")
    )
    assert "embedding" not in seen


def test_a_model_on_a_slow_drive_is_a_warning_before_the_start(
    bench: Bench, wide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(tmp_path / "root").regular(2, 1).cpuinfo(x86_entries(2))
    flags = [*bench.named("-m", str(wide)), "-p", "x", "--dry-run"]
    point = os.path.realpath(tmp_path)
    for kind, source, options, words in (
        ("ext4", "/dev/sda1", "rw", None),
        ("9p", "C:\\", "rw,aname=drvfs;path=C:\\", "a Windows drive"),
        ("cifs", "//server/models", "rw", "a shared file system"),
    ):
        machine.mount(point, kind, source, options)
        assert run.main(flags, str(machine.path), report=True) == 0
        said = capsys.readouterr().err
        if words is None:
            assert "lies on" not in said
        else:
            assert f"warning: the model lies on {words} ({kind} on {point})" in said
