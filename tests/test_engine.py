"""Where an engine is looked for, and what is remembered of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bitnet_tuning import demo
from bitnet_tuning.engine import find as engines
from bitnet_tuning.engine.find import Location, locate_all
from bitnet_tuning.engine.known import know, with_architecture
from bitnet_tuning.errors import MissingError
from bitnet_tuning.model.find import choose_model
from bitnet_tuning.store.state import State
from tests.engines import FakeEngine

pytestmark = pytest.mark.skipif(os.name == "nt", reason="programs without a suffix")


def program(path: Path) -> Path:
    """An executable file; what is in it does not matter for finding it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No embedded engine, unless a test says otherwise."""
    monkeypatch.setattr(engines, "has_embedded", lambda: False)


def test_the_order_in_which_places_are_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From all places at once, the first is taken away again and again."""
    flag = program(tmp_path / "flag" / "llama-cli")
    variable = program(tmp_path / "variable" / "llama-cli")
    script = program(tmp_path / "script" / "build" / "bin" / "llama-cli")
    current = program(tmp_path / "current" / "build" / "bin" / "llama-cli")
    on_path = program(tmp_path / "path" / "llama-cli")
    monkeypatch.setattr(engines, "has_embedded", lambda: True)
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
    monkeypatch.setattr(engines, "has_embedded", lambda: False)
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
def test_a_named_engine_that_is_missing_is_an_error(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although there are others: never quietly another one."""
    monkeypatch.setattr(engines, "has_embedded", lambda: True)
    program(tmp_path / "build" / "bin" / "llama-cli")
    (tmp_path / "empty").mkdir()
    for name, words in (("gone", "no such engine"), ("empty", "no llama-cli in the folder")):
        path = str(tmp_path / name)
        named, environ = (path, {}) if source == "--engine" else (None, {"BITNET_ENGINE": path})
        with pytest.raises(MissingError, match=words) as caught:
            locate_all(named, environ, (str(tmp_path),))[0]
        assert caught.value.exit_code == 3
        assert source in caught.value.cause and path in caught.value.cause


def test_the_embedded_engine_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingError, match="not installed") as caught:
        locate_all("embedded", {}, ())[0]
    assert "pip install xllamacpp" in caught.value.remedy
    monkeypatch.setattr(engines, "has_embedded", lambda: True)
    assert locate_all("embedded", {}, ())[0].embedded
    assert locate_all(None, {"BITNET_ENGINE": "embedded"}, ())[0].embedded


def test_nothing_found_says_what_was_looked_for_and_both_ways_out(tmp_path: Path) -> None:
    with pytest.raises(MissingError) as caught:
        locate_all(None, {"PATH": str(tmp_path)}, (str(tmp_path / "a"), str(tmp_path / "b")))[0]
    text = str(caught.value)
    for part in ("build/bin/llama-cli", f"{tmp_path}/a, {tmp_path}/b", "PATH", "embedded engine"):
        assert part in text
    for way in ("--engine", "BITNET_ENGINE", "pip install xllamacpp"):
        assert way in caught.value.remedy


def test_a_file_on_path_that_cannot_be_executed_is_passed_over(tmp_path: Path) -> None:
    program(tmp_path / "a" / "llama-cli").chmod(0o644)
    second = program(tmp_path / "b" / "llama-cli")
    found = locate_all(None, {"PATH": f"{tmp_path}/a{os.pathsep}{tmp_path}/b"}, ())[0]
    assert found == Location(str(second), "found on PATH")


def test_the_layout_of_a_windows_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_link_leads_to_the_programs_beside_its_target(tmp_path: Path) -> None:
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
def test_an_engine_knows_its_program_for_each_purpose(
    tmp_path: Path, state: State, generation: str
) -> None:
    fake = FakeEngine(tmp_path / "checkout", generation)
    program(fake.bin / "llama-bench")
    engine = know(here(fake.cli), state)
    once = fake.cli if generation == "bitnet" else fake.completion
    assert engine.program(chat=False) == (str(once),)
    assert engine.program(chat=True) == (str(fake.cli),)
    assert engine.completion == (None if generation == "bitnet" else str(fake.completion))
    assert engine.bench == str(fake.bin / "llama-bench")
    assert engine.server is None
    assert engine.checkout == str(fake.checkout)
    assert engine.version == "3957 (5eb47b72)"
    assert {"-tb", "--threads-batch", "--mlock"} <= engine.flags
    assert "AVX2" in engine.isa and "AVX512" not in engine.isa


def test_a_script_says_nothing_of_its_kernels_and_runtime(tmp_path: Path, state: State) -> None:
    engine = know(here(FakeEngine(tmp_path / "checkout").cli), state)
    assert (engine.openmp, engine.i2_s, engine.architectures) == (None, None, {})
    assert with_architecture(engine, "anything") == engine


def test_any_models_architecture_is_looked_for_in_the_engines_own_files(
    tmp_path: Path, state: State
) -> None:
    engine = know(here(FakeEngine(tmp_path / "checkout").cli), state)
    library = tmp_path / "libllama.so"
    library.write_bytes(b"\x7fELF\0ggml_init\0llama\0bitnet-b1.58\0mamba\0")
    engine = engine._replace(files=(str(library),), i2_s=True, architectures={"llama": True})
    assert with_architecture(engine, "mamba").architectures == {"llama": True, "mamba": True}
    assert with_architecture(engine, "rwkv").architectures == {"llama": True, "rwkv": False}
    assert with_architecture(engine, "llama") is engine


def test_a_build_outside_of_a_checkout_has_none(tmp_path: Path, state: State) -> None:
    fake = FakeEngine(tmp_path / "checkout")
    plain = tmp_path / "plain"
    fake.bin.rename(plain)
    assert know(here(plain / "llama-cli"), state).checkout is None


# The model that belongs to it


def copied(path: Path, model: str = demo.I2_S) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(model)
    return path


def test_the_order_in_which_models_are_searched(tmp_path: Path, state: State) -> None:
    named = copied(tmp_path / "named.gguf")
    variable = copied(tmp_path / "variable.gguf")
    default = copied(tmp_path / "models" / "BitNet-b1.58-2B-4T" / "ggml-model-i2_s.gguf")
    other = tmp_path / "models" / "deep" / "other.gguf"
    copied(tmp_path / "models" / "ternary.gguf", demo.TQ2_0)
    environ = {"BITNET_MODEL": str(variable)}

    def chosen(name: str | None = None, embedded: bool = False) -> tuple[str, str | None]:
        choice = choose_model(name, environ, (str(tmp_path),), embedded, state)
        assert choice.reason
        return choice.model.path, choice.note

    assert chosen(str(named)) == (str(named), None)
    assert chosen() == (str(variable), None)
    del environ["BITNET_MODEL"]
    assert chosen() == (str(default), None)
    default.unlink()
    other.parent.mkdir()
    other.write_bytes(Path(demo.I2_S).read_bytes())
    assert chosen() == (str(other), None)
    other.unlink()
    path, note = chosen(embedded=True)
    assert path == demo.TQ2_0
    assert note is not None and "demo model" in note
    with pytest.raises(MissingError, match="no model") as caught:
        chosen()
    for part in ("models/BitNet-b1.58-2B-4T/ggml-model-i2_s.gguf", str(tmp_path), "-m"):
        assert part in str(caught.value)


def test_several_models_are_not_chosen_from(tmp_path: Path, state: State) -> None:
    for name in ("one", "two"):
        path = tmp_path / "models" / name / "ggml-model-i2_s.gguf"
        path.parent.mkdir(parents=True)
        path.write_bytes(Path(demo.I2_S).read_bytes())
    with pytest.raises(MissingError, match="several") as caught:
        choose_model(None, {}, (str(tmp_path),), True, state)
    assert "one" in caught.value.cause and "two" in caught.value.cause


def test_links_to_one_model_count_once_and_damaged_files_not_at_all(
    tmp_path: Path, state: State
) -> None:
    first = copied(tmp_path / "models" / "a.gguf")
    copied(tmp_path / "models" / "b.gguf")
    (tmp_path / "models" / "c.gguf").write_bytes(b"GGUF")
    assert choose_model(None, {}, (str(tmp_path),), False, state).model.path == str(first)


def damaged(change: Callable[[Path], object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "model.gguf"
        path.write_bytes(Path(demo.I2_S).read_bytes())
        change(path)
        return path

    return make


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "gone.gguf", "no such model file"),
        (lambda folder: folder, "folder"),
        (damaged(lambda path: path.write_bytes(b"")), "empty"),
        (damaged(lambda path: path.write_bytes(b"PK\3\4 and so on")), "not b'GGUF'"),
        (damaged(lambda path: os.truncate(path, 100)), "more than the file can hold"),
        (damaged(lambda path: os.truncate(path, 1_000_000)), "truncated"),
    ],
)
def test_an_unusable_model_is_told_in_which_way(
    tmp_path: Path, state: State, make: Callable[[Path], Path], words: str
) -> None:
    path = make(tmp_path)
    with pytest.raises(MissingError) as caught:
        choose_model(str(path), {}, (), False, state)
    assert caught.value.exit_code == 3
    assert words in caught.value.cause and str(path) in caught.value.cause


def test_a_header_is_remembered_until_the_file_changes(tmp_path: Path, state: State) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(Path(demo.I2_S).read_bytes())

    def quantization() -> str:
        return choose_model(str(path), {}, (), False, state).model.quantization

    assert quantization() == quantization() == "i2_s"
    path.write_bytes(Path(demo.TQ2_0).read_bytes())
    assert quantization() == "tq2_0"
