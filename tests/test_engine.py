"""Where engines are looked for, and what is known of one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bitnet_tuning.engine import find as engines
from bitnet_tuning.engine.find import Location, locate_all
from bitnet_tuning.engine.known import know, with_architecture
from bitnet_tuning.errors import MissingError
from bitnet_tuning.store.state import State
from tests.engines import FakeEngine

pytestmark = pytest.mark.skipif(os.name == "nt", reason="programs without a suffix")


def program(path: Path) -> Path:
    """Create an executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide an installed embedded engine."""
    monkeypatch.setattr(
        sys, "path", [path for path in sys.path if not Path(path, "xllamacpp").exists()]
    )


@pytest.fixture
def installed(not_installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install an embedded engine; return its main file."""
    file = tmp_path / "site-packages" / "xllamacpp" / "__init__.py"
    file.parent.mkdir(parents=True)
    file.touch()
    monkeypatch.setattr(sys, "path", [str(file.parents[1]), *sys.path])
    return file


def test_places_are_searched_in_their_order(tmp_path: Path, installed: Path) -> None:
    """An engine is in each place; the first one is removed again and again."""
    flag = program(tmp_path / "flag" / "llama-cli")
    variable = program(tmp_path / "variable" / "llama-cli")
    script = program(tmp_path / "script" / "build" / "bin" / "llama-cli")
    current = program(tmp_path / "current" / "build" / "bin" / "llama-cli")
    on_path = program(tmp_path / "path" / "llama-cli")
    folders = (str(tmp_path / "script"), str(tmp_path / "current"))
    environ = {"PATH": f"/nowhere:{tmp_path / 'path'}", "BITNET_ENGINE": str(variable)}

    def found(named: str | None = None) -> str:
        return locate_all(named, environ, folders)[0].cli

    assert found(str(flag)) == str(flag)
    assert found() == str(variable)
    del environ["BITNET_ENGINE"]
    for place in (script, current, on_path):
        assert found() == str(place)
        place.unlink()
    last = locate_all(None, environ, folders)[0]
    assert last.embedded and last.cli.endswith("__main__.py")
    installed.unlink()
    with pytest.raises(MissingError):
        found()


@pytest.mark.parametrize("where", ["llama-cli", "build/bin/llama-cli", "bin/llama-cli"])
@pytest.mark.parametrize("source", ["--engine", "BITNET_ENGINE"])
def test_a_named_engine_is_a_program_its_folder_or_a_checkout(
    tmp_path: Path, where: str, source: str
) -> None:
    cli = program(tmp_path / "checkout" / where)
    for name in (cli, cli.parent, tmp_path / "checkout"):
        named, environ = (
            (str(name), {}) if source == "--engine" else (None, {"BITNET_ENGINE": str(name)})
        )
        location = locate_all(named, environ, ())[0]
        assert location == Location(str(cli), f"named with {source}")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llama-server", "is llama-server, no engine"),
        ("llama-bench", "is llama-bench, no engine"),
        ("m.gguf", "is a model, no engine"),
    ],
)
def test_another_program_or_a_model_is_no_engine(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(MissingError, match=words):
        locate_all(str(program(tmp_path / name)), {}, ())
    wrapper = program(tmp_path / "llama-cli-mine")
    assert locate_all(str(wrapper), {}, ())[0].cli == str(wrapper)


def test_a_named_engine_may_be_relative_or_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = program(tmp_path / "bin" / "llama-cli")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("bin", "./bin/llama-cli", "~/bin/llama-cli", "."):
        assert locate_all(name, {}, ())[0].cli == str(cli)


def test_a_program_of_any_name_may_be_named(tmp_path: Path) -> None:
    other = program(tmp_path / "my-llama")
    assert locate_all(str(other), {}, ())[0].cli == str(other)


@pytest.mark.parametrize("source", ["--engine", "BITNET_ENGINE"])
def test_no_other_engine_replaces_a_named_one_that_is_missing(
    tmp_path: Path, source: str, installed: Path
) -> None:
    program(tmp_path / "build" / "bin" / "llama-cli")
    (tmp_path / "empty").mkdir()
    for name, words in (("gone", "no such engine"), ("empty", "no llama-cli in the folder")):
        path = str(tmp_path / name)
        named, environ = (path, {}) if source == "--engine" else (None, {"BITNET_ENGINE": path})
        with pytest.raises(MissingError, match=words) as caught:
            locate_all(named, environ, (str(tmp_path),))
        assert caught.value.exit_code == 3
        assert source in caught.value.cause and path in caught.value.cause


def test_the_embedded_engine_can_be_named(installed: Path) -> None:
    assert locate_all("embedded", {}, ())[0].embedded
    assert locate_all(None, {"BITNET_ENGINE": "embedded"}, ())[0].embedded
    installed.unlink()
    with pytest.raises(MissingError, match="not installed") as caught:
        locate_all("embedded", {}, ())
    assert "pip install xllamacpp" in caught.value.remedy


def test_without_any_engine_the_error_names_the_places_and_both_remedies(tmp_path: Path) -> None:
    with pytest.raises(MissingError) as caught:
        locate_all(None, {"PATH": str(tmp_path)}, (str(tmp_path / "a"), str(tmp_path / "b")))
    text = str(caught.value)
    for part in ("build/bin/llama-cli", f"{tmp_path}/a, {tmp_path}/b", "PATH", "embedded engine"):
        assert part in text
    for way in ("--engine", "BITNET_ENGINE", "pip install xllamacpp"):
        assert way in caught.value.remedy


def test_a_file_on_path_that_is_not_executable_is_skipped(tmp_path: Path) -> None:
    program(tmp_path / "a" / "llama-cli").chmod(0o644)
    second = program(tmp_path / "b" / "llama-cli")
    found = locate_all(None, {"PATH": f"{tmp_path}/a{os.pathsep}{tmp_path}/b"}, ())[0]
    assert found == Location(str(second), "found on PATH")


def test_a_windows_build_has_exe_files_in_a_release_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_SUFFIX", ".exe")
    monkeypatch.setattr(engines, "_CLI", "llama-cli.exe")
    release = tmp_path / "build" / "bin" / "Release"
    cli = program(release / "llama-cli.exe")
    bench = program(release / "llama-bench.exe")
    program(tmp_path / "build" / "bin" / "llama-cli")  # not a program on Windows
    assert locate_all(None, {}, (str(tmp_path),))[0].cli == str(cli)
    for name in (release, tmp_path, cli):
        assert locate_all(str(name), {}, ())[0].cli == str(cli)
    assert engines.beside(str(cli), "llama-bench") == str(bench)
    assert engines.beside(str(cli), "llama-completion") is None


def test_programs_are_also_found_beside_the_target_of_a_link(tmp_path: Path) -> None:
    cli = program(tmp_path / "build" / "bin" / "llama-cli")
    completion = program(tmp_path / "build" / "bin" / "llama-completion")
    link = tmp_path / "llama-cli"
    link.symlink_to(cli)
    assert engines.beside(str(link), "llama-completion") == str(completion)


# What is known of an engine


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(str(tmp_path / "state"))


def here(cli: Path) -> Location:
    return Location(str(cli), "found")


@pytest.mark.parametrize("generation", ["bitnet", "mainline"])
def test_each_generation_has_its_program_for_chats_and_for_prompts(
    tmp_path: Path, state: State, generation: str
) -> None:
    fake = FakeEngine(tmp_path / "checkout", generation)
    program(fake.bin / "llama-bench")
    engine = know(here(fake.cli), state)
    once = fake.cli if generation == "bitnet" else fake.completion
    assert engine.program(chat=False) == (str(once),)
    assert engine.program(chat=True) == (str(fake.cli),)
    assert engine.completion == (None if generation == "bitnet" else str(fake.completion))
    assert engine.other("bench") == (str(fake.bin / "llama-bench"),)
    assert engine.other("server") == ()
    assert engine.checkout == str(fake.checkout)
    assert engine.version == "3957 (5eb47b72)"
    assert {"-tb", "--threads-batch", "--mlock"} <= engine.flags
    assert "AVX2" in engine.isa and "AVX512" not in engine.isa


def test_kernels_and_runtime_of_a_script_are_not_known(tmp_path: Path, state: State) -> None:
    engine = know(here(FakeEngine(tmp_path / "checkout").cli), state)
    assert (engine.openmp, engine.i2_s, engine.architectures) == (None, None, {})
    assert with_architecture(engine, "anything") == engine


def test_any_architecture_is_looked_for_in_the_engines_files(tmp_path: Path, state: State) -> None:
    engine = know(here(FakeEngine(tmp_path / "checkout").cli), state)
    library = tmp_path / "libllama.so"
    library.write_bytes(b"\x7fELF\0ggml_init\0llama\0bitnet-b1.58\0mamba\0")
    engine = engine._replace(files=(str(library),), i2_s=True, architectures={"llama": True})
    assert with_architecture(engine, "mamba").architectures == {"llama": True, "mamba": True}
    assert with_architecture(engine, "rwkv").architectures == {"llama": True, "rwkv": False}
    assert with_architecture(engine, "llama") is engine


def test_an_engine_outside_a_build_folder_has_no_checkout(tmp_path: Path, state: State) -> None:
    fake = FakeEngine(tmp_path / "checkout")
    plain = tmp_path / "plain"
    fake.bin.rename(plain)
    assert know(here(plain / "llama-cli"), state).checkout is None
