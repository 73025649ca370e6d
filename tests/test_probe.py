"""What engines say about themselves, and how long the answers are remembered."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bitnet_tuning import demo
from bitnet_tuning.cli import run as run_inference
from bitnet_tuning.engine import probe
from bitnet_tuning.engine.builds import version_words
from bitnet_tuning.engine.find import Engine, Location
from bitnet_tuning.engine.known import know
from bitnet_tuning.engine.probe import parse_flags, parse_system_info, parse_version
from bitnet_tuning.launch import background
from bitnet_tuning.store.state import State
from tests.engines import FakeEngine

pytestmark = pytest.mark.skipif(os.name == "nt", reason="fake engines are scripts")

HELP_OF_2024 = """\
----- common params -----

-h,    --help, --usage                  print usage and exit
-t,    --threads N                      number of threads to use during generation (default: -1)
                                        (env: LLAMA_ARG_THREADS)
-Cr,   --cpu-range lo-hi                range of CPUs for affinity. Complements --cpu-mask
--cpu-strict <0|1>                      use strict CPU placement (default: 0)
-n,    --predict, --n-predict N         number of tokens to predict (default: -1, -2 = until
                                        context filled)
-e,    --escape                         process escapes sequences (\\n, \\r, \\', \\")
--no-escape                             do not process escape sequences
--rope-scaling {none,linear,yarn}       RoPE frequency scaling method, defaults to linear unless
                                        specified by the model
-sm,   --split-mode {none,layer,row}    how to split the model across multiple GPUs, one of:
                                        - none: use one GPU only
                                        - layer (default): split layers and KV across GPUs
-mg,   --main-gpu INDEX                 the GPU to use for the model (with split-mode = none), see
                                        --tensor-split, and --imagined
-l,    --logit-bias TOKEN_ID(+/-)BIAS   modifies the likelihood of token appearing,
                                        i.e. `--logit-bias 15043+1` to increase likelihood
-cnv,  --conversation                   run in conversation mode:
                                        - does not print special tokens and suffix/prefix

example usage:

  text generation:     /build/bin/llama-cli -m your_model.gguf -p "I believe" -n 128
"""

HELP_OF_2026 = """\
----- common params -----

-h,    --help, --usage                  print usage and exit
--license                               show source code license and dependencies
-cl,   --cache-list                     show list of models in cache
-C,    --cpu-mask M                     CPU affinity mask: arbitrarily long hex.
-fa,   --flash-attn [on|off|auto]       set Flash Attention use ('on', 'off', or 'auto')
--no-perf                               whether to enable internal libllama performance timings
-hf,   -hfr, --hf-repo <user>/<model>[:quant]
                                        Hugging Face model repository; quant is optional
-cnv,  --conversation, -no-cnv, --no-conversation
                                        whether to run in conversation mode:
                                        - interactive mode is also enabled
"""

HELP_OF_2023 = """\
usage: ./main [options]

options:
  -h, --help            show this help message and exit
  -t N, --threads N     number of threads to use during generation (default: 4)
  --temp N              temperature (default: 0.8)
"""


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (
            HELP_OF_2024,
            "-h --help --usage -t --threads -Cr --cpu-range --cpu-strict -n --predict --n-predict "
            "-e --escape --no-escape --rope-scaling -sm --split-mode -mg --main-gpu "
            "-l --logit-bias -cnv --conversation",
        ),
        (
            HELP_OF_2026,
            "-h --help --usage --license -cl --cache-list -C --cpu-mask -fa --flash-attn "
            "--no-perf -hf -hfr --hf-repo -cnv --conversation -no-cnv --no-conversation",
        ),
        (HELP_OF_2023, "-h --help -t --threads --temp"),
        ("error: unknown argument: --help\n", ""),
        ("", ""),
    ],
)
def test_flags_are_those_that_a_help_text_defines(text: str, flags: str) -> None:
    assert parse_flags(text) == set(flags.split())


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("3957 (5eb47b72)", ", version 3957 (5eb47b72)"),
        ("0 (unknown)", ""),
        ("0.6.0-dev (build 0, commit unknown)", ", version 0.6.0-dev"),
        (
            "embedded (xllamacpp 1.2, llama.cpp b10 (unknown), GNU)",
            ", version (xllamacpp 1.2, llama.cpp b10, GNU)",
        ),
        ("", ""),
    ],
)
def test_a_version_that_says_nothing_is_left_out(version: str, words: str) -> None:
    assert version_words(version) == words


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("version: 3957 (5eb47b72)\nbuilt with clang 18\n", "3957 (5eb47b72)"),
        ("ggml_init: something\nversion: 0 (unknown)\n", "0 (unknown)"),
        ("error: invalid argument: --version", ""),
        ("", ""),
    ],
)
def test_the_version_follows_its_label(text: str, version: str) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize(
    ("log", "names"),
    [
        (
            "main: llama threadpool init\n\nsystem_info: n_threads = 1 (n_threads_batch = 1) / 2 | "
            "AVX = 1 | AVX_VNNI = 0 | AVX2 = 1 | AVX512 = 0 | FMA = 1 | SSE3 = 1 | \n\nhello",
            {"AVX", "AVX2", "FMA", "SSE3"},
        ),
        (
            "system_info: n_threads = 4 (n_threads_batch = 4) / 8 | CPU : NEON = 1 | "
            "ARM_FMA = 1 | MATMUL_INT8 = 0 | SVE_CNT = 16 | REPACK = 1 | \n",
            {"NEON", "ARM_FMA", "SVE_CNT", "REPACK"},
        ),
        ("AVX2 = 1 | but in another line", set()),
        ("", set()),
    ],
)
def test_instruction_sets_are_those_with_a_value_other_than_0(log: str, names: set[str]) -> None:
    assert parse_system_info(log) == names


# What is remembered


@pytest.fixture
def fake(tmp_path: Path) -> FakeEngine:
    return FakeEngine(tmp_path / "checkout")


def ask(fake: FakeEngine, folder: Path) -> tuple[Engine, State]:
    state = State(str(folder))
    return know(Location(str(fake.cli), "found"), state), state


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> tuple[FakeEngine, Engine, Path]:
    """An engine, what is known of it, and the record of that."""
    folder = tmp_path_factory.mktemp("probed")
    fake = FakeEngine(folder / "checkout")
    engine, _ = ask(fake, folder / "state")
    (record,) = (folder / "state").iterdir()
    return fake, engine, record


def newer(path: Path) -> None:
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1_000_000))


def grown(path: Path) -> None:
    """Change the size but not the time."""
    before = path.stat()
    path.write_text(path.read_text() + "\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def completion_added(cli: Path) -> None:
    completion = cli.with_name("llama-completion")
    completion.write_text(cli.read_text())
    completion.chmod(0o755)


def library_newer(cli: Path) -> None:
    newer(cli.with_name("libggml.so"))


@pytest.mark.parametrize("change", [newer, grown, completion_added, library_newer])
def test_an_engine_is_probed_once_until_its_files_change(
    fake: FakeEngine, own_state: Path, change: Callable[[Path], None]
) -> None:
    (fake.bin / "libggml.so").write_bytes(b"\x7fELF")
    first, _ = ask(fake, own_state)
    asked = len(fake.runs())
    again, state = ask(fake, own_state)
    assert again == first
    assert 0 < asked == len(fake.runs())
    assert state.warning is None
    change(fake.cli)
    changed, _ = ask(fake, own_state)
    assert len(fake.runs()) > asked
    assert (changed.completion != first.completion) == (change is completion_added)
    asked = len(fake.runs())
    assert ask(fake, own_state)[0] == changed
    assert len(fake.runs()) == asked


def test_a_link_to_another_target_is_another_engine(tmp_path: Path, own_state: Path) -> None:
    (tmp_path / "generation").write_text("bitnet")  # The fake engine reads it beside itself.
    link = tmp_path / "llama-cli"
    for fake in [FakeEngine(tmp_path / name) for name in ("one", "two")]:
        link.unlink(missing_ok=True)
        link.symlink_to(fake.cli)
        for _ in range(2):
            engine = know(Location(str(link), "found"), State(str(own_state)))
            assert engine.files == (str(fake.cli),)
            assert "-tb" in engine.flags
    assert len(list(own_state.glob("engine-*"))) == 1


def test_an_engine_that_hangs_on_help_is_used_but_not_remembered(
    fake: FakeEngine,
    own_state: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def impatient(
        argv: tuple[str, ...],
        variables: Mapping[str, str] | None = None,
        watch: Callable[[int], None] | None = None,
    ) -> background.Captured:
        return background.capture(argv, variables, seconds=0.5, watch=watch)

    monkeypatch.setenv("FAKE_HANG", "help")
    monkeypatch.setattr(probe, "capture", impatient)
    monkeypatch.setattr(probe, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(probe, "at_terminal", lambda: True)
    engine, _ = ask(fake, own_state)
    assert capsys.readouterr().err.count("asking the engine") == 1
    assert engine.flags == frozenset()
    assert list(own_state.glob("engine-*")) == []
    monkeypatch.undo()
    assert "-tb" in ask(fake, own_state)[0].flags


@pytest.mark.parametrize("text", ["#!/bin/sh\nexit 1\n", "#!/nowhere/sh\n", ""])
def test_an_engine_whose_help_fails_is_used_but_not_remembered(
    fake: FakeEngine, own_state: Path, text: str
) -> None:
    fake.cli.write_text(text)
    engine, _ = ask(fake, own_state)
    assert (engine.flags, engine.version) == (frozenset(), "")
    assert list(own_state.glob("engine-*")) == []


def test_an_engine_that_loses_its_system_info_line_once_is_asked_again(
    fake: FakeEngine, own_state: Path
) -> None:
    """llama-completion now and then loses its log (llama.cpp issue 22142)."""
    lose_once = """import pathlib
    seen = pathlib.Path(__file__).with_name("seen")
    word = "system_info" if seen.exists() else "lost"
    seen.touch()
    print(f"{word}: n_threads"""
    text = fake.cli.read_text()
    assert 'print(f"system_info: n_threads' in text
    fake.cli.write_text(text.replace('print(f"system_info: n_threads', lose_once))
    assert ask(fake, own_state)[0].isa == {"AVX", "AVX2", "FMA"}
    assert list(own_state.glob("engine-*"))


def test_an_engine_that_never_prints_system_info_is_remembered(
    fake: FakeEngine, own_state: Path
) -> None:
    fake.cli.write_text(fake.cli.read_text().replace("system_info: ", "lost: "))
    engine, _ = ask(fake, own_state)
    assert (engine.ran, engine.isa) == (True, frozenset())
    runs = len(fake.runs())
    assert ask(fake, own_state)[0] == engine
    assert len(fake.runs()) == runs


# Records that cannot be written or read: the run goes on, with one warning


def warnings_of_a_run(
    fake: FakeEngine,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> list[str]:
    monkeypatch.setenv("BITNET_TUNING_HOME", str(home))
    flags = ["-m", demo.I2_S, "-p", "hello", "--engine", str(fake.cli), "--dry-run"]
    assert run_inference.main(flags) == 0
    shown = capsys.readouterr()
    assert str(fake.cli) in shown.out
    return [line for line in shown.err.splitlines() if "warning" in line]


def read_only(home: Path) -> None:
    home.mkdir()
    home.chmod(stat.S_IRUSR | stat.S_IXUSR)


def a_file(home: Path) -> None:
    home.write_text("not a folder")


def below_a_device(home: Path) -> None:
    home.symlink_to("/dev/null/state")


@pytest.mark.parametrize("trouble", [read_only, a_file, below_a_device])
def test_a_state_folder_that_cannot_be_used_is_one_warning(
    probed: tuple[FakeEngine, Engine, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trouble: Callable[[Path], None],
) -> None:
    if trouble is read_only and os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    home = tmp_path / "home"
    trouble(home)
    (warning,) = warnings_of_a_run(probed[0], home, monkeypatch, capsys)
    assert str(home) in warning


def test_a_full_disk_is_one_warning(
    probed: tuple[FakeEngine, Engine, Path], own_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("bitnet_tuning.store.state.write_atomically", refuse)
    engine, state = ask(probed[0], own_state)
    assert engine == probed[1]
    assert state.warning is not None and os.strerror(errno.ENOSPC) in state.warning


def test_damaged_records_are_one_warning_and_made_anew(
    fake: FakeEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    home = tmp_path / "home"
    assert warnings_of_a_run(fake, home, monkeypatch, capsys) == []
    records = {record: record.read_bytes() for record in home.iterdir()}
    assert len(records) == 2  # the engine's and the model's
    for record in records:
        record.write_bytes(b"\xff\xfe\0")
    (warning,) = warnings_of_a_run(fake, home, monkeypatch, capsys)
    assert "; renamed to " in warning
    assert {record: record.read_bytes() for record in records} == records
    assert warnings_of_a_run(fake, home, monkeypatch, capsys) == []


def without(*fields: str) -> dict[str, object]:
    return dict.fromkeys(fields, ...)


@pytest.mark.parametrize(
    ("part", "change", "why"),
    [
        ("engine", {"flags": [[]]}, "engine.flags[0]: [] is not a string"),
        ("engine", without("openmp"), "engine.openmp"),
        ("", {"files": [["/nowhere", 1, 1]]}, None),
        ("", {"version": 2}, None),
        ("", {"key": "another engine with the same digest"}, None),
    ],
)
def test_a_record_that_does_not_fit_is_made_anew(
    probed: tuple[FakeEngine, Engine, Path],
    own_state: Path,
    part: str,
    change: dict[str, object],
    why: str | None,
) -> None:
    fake, engine, record = probed
    facts = json.loads(record.read_text())
    changed = facts[part] if part else facts
    changed.update(change)
    for field in [field for field, value in changed.items() if value is ...]:
        del changed[field]
    own_state.mkdir()
    (own_state / record.name).write_text(json.dumps(facts))
    again, state = ask(fake, own_state)
    assert again == engine
    assert (own_state / record.name).read_text() == record.read_text()
    assert (why or "") in (state.warning or "")
    assert (state.warning is None) == (why is None)


def test_several_processes_may_probe_at_once(
    fake: FakeEngine, tmp_path: Path, repository: Path
) -> None:
    home = tmp_path / "home"
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from bitnet_tuning.engine.find import Location\n"
        "from bitnet_tuning.engine.known import know\n"
        "from bitnet_tuning.store.state import State\n"
        "state = State(sys.argv[3])\n"
        "engine = know(Location(sys.argv[2], 'found'), state)\n"
        "print(len(engine.flags), state.warning)\n"
    )
    command = [sys.executable, "-c", code, str(repository), str(fake.cli), str(home)]

    def answer(_: int) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout

    with ThreadPoolExecutor() as pool:
        answers = set(pool.map(answer, range(3)))
    assert len(answers) == 1
    assert answers.pop().endswith(" None\n")
    assert [path.suffix for path in home.iterdir()] == [".json"]
