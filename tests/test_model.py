"""Which model is run, and how long its header is remembered."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bitnet_tuning import demo
from bitnet_tuning.errors import MissingError
from bitnet_tuning.model import gguf
from bitnet_tuning.model.find import (
    DEFAULT,
    Choice,
    choose_model,
    know,
    original_of,
    slim_copies,
    slim_path,
)
from bitnet_tuning.model.types import ModelFile
from bitnet_tuning.store.state import State
from tests.gguf_files import write_bitnet


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with an empty ``models``."""
    (tmp_path / "checkout" / "models").mkdir(parents=True)
    return tmp_path / "checkout"


@pytest.fixture
def state(own_state: Path) -> State:
    return State(str(own_state))


def add(folder: Path, name: str, kind: str = "i2_s") -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return str(write_bitnet(path, kind))


def choose(
    state: State,
    *folders: Path,
    named: str | None = None,
    environ: dict[str, str] | None = None,
    embedded: bool = False,
) -> Choice:
    return choose_model(named, environ or {}, tuple(map(str, folders)), embedded, state)


def refusal(state: State, *folders: Path, named: str | None = None) -> MissingError:
    with pytest.raises(MissingError) as caught:
        choose(state, *folders, named=named)
    return caught.value


# The order of places


def test_the_flag_counts_first(checkout: Path, state: State) -> None:
    add(checkout, DEFAULT)
    mine, other = add(checkout, "mine.gguf"), add(checkout, "other.gguf")
    choice = choose(state, checkout, named=mine, environ={"BITNET_MODEL": other})
    assert (choice.model.path, choice.reason) == (mine, "named with -m")


def test_the_variable_counts_next(checkout: Path, state: State) -> None:
    add(checkout, DEFAULT)
    other = add(checkout, "other.gguf", "tq2_0")
    choice = choose(state, checkout, environ={"BITNET_MODEL": other})
    assert (choice.model.path, choice.reason) == (other, "named with BITNET_MODEL")


def test_llama_cpps_own_variable_counts_after_it(checkout: Path, state: State) -> None:
    add(checkout, DEFAULT)
    mine, other = add(checkout, "mine.gguf"), add(checkout, "other.gguf")
    variables = {"BITNET_MODEL": "", "LLAMA_ARG_MODEL": other}
    choice = choose(state, checkout, environ=variables)
    assert (choice.model.path, choice.reason) == (other, "named with LLAMA_ARG_MODEL")
    assert choose(state, checkout, environ={**variables, "BITNET_MODEL": mine}).model.path == mine


def test_the_default_path_counts_before_other_i2_s_files(checkout: Path, state: State) -> None:
    default = add(checkout, DEFAULT)
    add(checkout, "models/other/model.gguf")
    choice = choose(state, checkout, environ={"BITNET_MODEL": ""})
    assert (choice.model.path, choice.reason, choice.note) == (default, "the default path", None)


def test_folders_are_searched_in_order(tmp_path: Path, state: State) -> None:
    first, second = (add(tmp_path / name, DEFAULT) for name in "ab")
    assert choose(state, tmp_path / "a", tmp_path / "b").model.path == first
    assert choose(state, tmp_path / "b", tmp_path / "a").model.path == second


def test_no_other_model_replaces_a_named_one_that_is_missing(checkout: Path, state: State) -> None:
    add(checkout, DEFAULT)
    assert "no such model file" in refusal(state, checkout, named="missing.gguf").cause


def test_no_other_model_replaces_a_damaged_default(checkout: Path, state: State) -> None:
    path = add(checkout, DEFAULT)
    os.truncate(path, 1000)
    add(checkout, "models/other/model.gguf")
    assert path in refusal(state, checkout).cause


# Searching below models/


def test_the_only_i2_s_file_is_chosen(checkout: Path, state: State) -> None:
    path = add(checkout, "models/some/model.gguf")
    add(checkout, "models/some/other.gguf", "tq2_0")
    (checkout / "models/some/notes.txt").write_text("x")
    choice = choose(state, checkout)
    assert (choice.model.path, choice.model.quantization) == (path, "i2_s")
    assert "only i2_s file" in choice.reason


def test_of_several_i2_s_files_none_is_chosen_and_the_error_names_them(
    checkout: Path, state: State
) -> None:
    paths = [add(checkout, f"models/{name}/model.gguf") for name in "ab"]
    error = refusal(state, checkout)
    assert all(path in error.cause for path in paths)
    assert "-m" in error.remedy


def test_several_links_to_a_file_count_once(checkout: Path, state: State) -> None:
    add(checkout, "models/a/model.gguf")
    (checkout / "models/link.gguf").symlink_to("a/model.gguf")
    (checkout / "models/b").symlink_to("a")
    assert choose(state, checkout, checkout).model.quantization == "i2_s"


def test_files_that_are_not_models_are_skipped(checkout: Path, state: State) -> None:
    path = add(checkout, "models/good.gguf")
    models = checkout / "models"
    (models / "empty.gguf").touch()
    (models / "junk.gguf").write_bytes(b"junk" * 100)
    (models / "folder.gguf").mkdir()
    (models / "dangling.gguf").symlink_to("nowhere")
    (models / "circle.gguf").symlink_to("circle.gguf")
    (models / "circle").symlink_to("circle")
    (models / "up").symlink_to("..")
    os.mkfifo(models / "pipe.gguf")
    assert choose(state, checkout).model.path == path


def test_a_folder_may_have_the_name_of_a_model_file(checkout: Path, state: State) -> None:
    path = add(checkout, "models/x.gguf/model.gguf")
    assert choose(state, checkout).model.path == path


def test_deep_folders_are_not_searched(checkout: Path, state: State) -> None:
    add(checkout, "models/1/2/3/4/model.gguf")
    assert "found no model" in refusal(state, checkout).cause
    assert refusal(state, checkout).remedy.endswith("one: python3 -m bitnet_tuning model get")


def test_without_any_model_the_error_names_the_folders_and_the_remedies(
    tmp_path: Path, state: State
) -> None:
    error = refusal(state, tmp_path / "a", tmp_path / "b")
    assert str(tmp_path / "a") in error.cause
    assert str(tmp_path / "b") in error.cause
    assert "BITNET_MODEL" in error.remedy
    assert error.exit_code == 3


# The demo model


def test_the_embedded_engine_runs_the_demo_model_if_there_is_no_other(
    checkout: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = add(checkout, "demo.gguf", "tq2_0")
    monkeypatch.setattr(demo, "TQ2_0", path)
    choice = choose(state, checkout, embedded=True)
    assert choice.model.path == path
    assert choice.note is not None
    assert "demo" in choice.note
    assert "no model" in refusal(state, checkout).cause


def test_the_embedded_engine_needs_a_model_without_the_demo_model(
    checkout: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "TQ2_0", str(checkout / "missing.gguf"))
    with pytest.raises(MissingError, match="no model"):
        choose(state, checkout, embedded=True)


# Remembered headers


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the paths of headers that are read from their files."""
    paths: list[str] = []
    read = gguf.read_model

    def noted(path: str) -> ModelFile:
        paths.append(path)
        return read(path)

    monkeypatch.setattr(gguf, "read_model", noted)
    return paths


# Copies with a smaller embedding


def slim(path: str, kind: str = "q6_k", **metadata: object) -> str:
    return str(write_bitnet(slim_path(path, kind), embedding=kind, **metadata))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [DEFAULT, "models/mine.gguf"])
def test_a_slim_copy_is_used_in_place_of_a_model_that_nobody_named(
    checkout: Path, state: State, name: str
) -> None:
    path = add(checkout, name)
    assert choose(state, checkout).note is None
    copy = slim(path)
    choice = choose(state, checkout)
    assert choice.model.path == copy
    assert copy in str(choice.note)
    assert "slim copy" in choice.reason
    assert choose(state, checkout, named=path).model.path == path
    assert choose(state, checkout, environ={"BITNET_MODEL": path}).model.path == path


def test_of_several_slim_copies_the_smallest_that_loses_little_is_used(
    checkout: Path, state: State
) -> None:
    path = add(checkout, DEFAULT)
    copies = [slim(path), slim(path, "q8_0"), slim(path, "q4_0")]
    assert [copy.path for copy in slim_copies(know(path, state), state)] == copies
    assert choose(state, checkout).model.path == copies[0]


def test_a_slim_copy_of_another_model_is_not_used(checkout: Path, state: State) -> None:
    path = add(checkout, DEFAULT)
    slim(path, general__name="another")
    Path(slim_path(path, "q8_0")).write_bytes(b"GGUF")
    write_bitnet(slim_path(path, "f32"), embedding="f32")
    assert choose(state, checkout).model.path == path


def test_a_model_without_a_name_may_have_a_slim_copy(checkout: Path, state: State) -> None:
    path = str(write_bitnet(checkout / "m.gguf", general__name=""))
    assert slim_copies(know(path, state), state) == ()
    copy = slim(path, general__name="")
    assert [each.path for each in slim_copies(know(path, state), state)] == [copy]


@pytest.mark.parametrize("name", [DEFAULT, "models/mine.gguf"])
def test_a_slim_copy_of_an_older_model_is_not_used(checkout: Path, state: State, name: str) -> None:
    path = add(checkout, name)
    os.utime(slim(path), (1, 1))
    choice = choose(state, checkout)
    assert choice.model.path == path
    check = f"check the copy: python3 -m bitnet_tuning model slim {path}"
    assert choice.note == f"{path} is newer than its slim copy; {check}"


def test_a_slim_copy_that_cannot_be_used_is_named(checkout: Path, state: State) -> None:
    path = add(checkout, DEFAULT)
    copy = Path(slim(path))
    copy.write_bytes(copy.read_bytes()[:-40])
    choice = choose(state, checkout)
    assert choice.model.path == path
    assert str(choice.note).startswith(
        f"not using the copy with a smaller embedding: {copy} is truncated"
    )


def test_the_draft_of_a_copy_is_no_copy(checkout: Path, state: State) -> None:
    path = str(write_bitnet(checkout / "model"))
    write_bitnet(checkout / "model-embd-q6_k.slim-draft", embedding="q6_k")
    write_bitnet(checkout / "model-embd-other", embedding="q6_k")
    assert slim_copies(know(path, state), state) == ()
    copy = write_bitnet(checkout / "model-embd-q6_k", embedding="q6_k")
    assert [each.path for each in slim_copies(know(path, state), state)] == [str(copy)]


def test_models_that_differ_in_their_embedding_are_several(checkout: Path, state: State) -> None:
    add(checkout, "models/a/m.gguf")
    write_bitnet(checkout / "models" / "a" / "other.gguf", embedding="q6_k")
    error = refusal(state, checkout)
    assert error.cause.startswith("found several i2_s models")
    (checkout / "models" / "b").mkdir()
    os.rename(checkout / "models/a/other.gguf", checkout / "models/b/m-embd-q6_k.gguf")
    assert refusal(state, checkout).cause == error.cause.replace("a/other", "b/m-embd-q6_k")


def test_of_copies_without_their_original_the_best_is_used(checkout: Path, state: State) -> None:
    path = add(checkout, "models/m.gguf")
    copies = [slim(path), slim(path, "q8_0")]
    Path(path).unlink()
    os.utime(copies[1], (1, 1))
    assert choose(state, checkout).model.path == copies[0]
    assert slim_path(copies[1], "q6_k") == copies[0]


def test_the_original_of_a_slim_copy_is_found(tmp_path: Path, state: State) -> None:
    path = str(write_bitnet(tmp_path / "m.gguf"))
    copy = know(slim(path), state)
    found = original_of(copy, state)
    assert found is not None and found.path == path
    assert original_of(found, state) is None
    write_bitnet(path, general__name="another")
    assert original_of(copy, state) is None
    Path(path).unlink()
    assert original_of(copy, state) is None


def test_a_slim_copy_whose_original_is_gone_is_the_only_i2_s_file(
    checkout: Path, state: State
) -> None:
    path = add(checkout, "models/m.gguf")
    copy = slim(path)
    Path(path).unlink()
    assert choose(state, checkout).model.path == copy


def test_a_header_is_read_once(tmp_path: Path, state: State, reads: list[str]) -> None:
    path = add(tmp_path, "model.gguf")
    first = know(path, state)
    assert know(path, State(state.folder)) == first
    assert reads == [path]


def test_a_changed_file_is_read_again(tmp_path: Path, state: State, reads: list[str]) -> None:
    path = add(tmp_path, "model.gguf")
    know(path, state)
    add(tmp_path, "model.gguf", "tq2_0")
    assert know(path, state).quantization == "tq2_0"
    os.utime(path, ns=(1, 1))
    know(path, state)
    assert len(reads) == 3


def test_a_remembered_model_has_the_path_by_which_it_is_named(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    know(add(tmp_path, "model.gguf"), state)
    monkeypatch.chdir(tmp_path)
    assert know("model.gguf", state).path == "model.gguf"
    assert len(reads) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"version": 1},
        {"types": None},
        {"types": [1]},
        {"types": [["a"]]},
        {"types": [["a", 1, 2, 3]]},
        {"size": "a"},
    ],
)
def test_a_record_in_another_form_is_not_used(
    tmp_path: Path, state: State, reads: list[str], change: dict[str, object]
) -> None:
    path = add(tmp_path, "model.gguf")
    first = know(path, state)
    (file,) = Path(state.folder).glob("header-*.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert know(path, state) == first
    assert len(reads) == 2
    assert (state.warning is None) == ("version" in change)


def test_a_state_folder_that_cannot_be_written_is_one_warning(
    tmp_path: Path, reads: list[str]
) -> None:
    (tmp_path / "file").touch()
    state = State(str(tmp_path / "file" / "state"))
    path = add(tmp_path, "model.gguf")
    assert know(path, state) == know(path, state)
    assert len(reads) == 2
    assert state.warning is not None


@pytest.mark.parametrize("path", ["a\0b", "missing", "\ud800", ""])
def test_a_path_that_no_file_can_have_is_an_error(state: State, path: str) -> None:
    with pytest.raises(MissingError):
        know(path, state)
