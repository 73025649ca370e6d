"""Find the model to run, and remember the headers that were read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress

from bitnet_tuning.console import command, word
from bitnet_tuning.errors import MissingError, TuningError
from bitnet_tuning.model import types
from bitnet_tuning.model.types import GENTLE, I2_S, NUMBERS, ModelFile, part_paths
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.store.codec import Moment
from bitnet_tuning.store.state import State, identity, moment

DEFAULT = os.path.join("models", "BitNet-b1.58-2B-4T", "ggml-model-i2_s.gguf")
"""Path of the model below a folder, as upstream's setup_env.py leaves it."""
REPOSITORY = "microsoft/BitNet-b1.58-2B-4T-gguf"
"""Repo of that model on the Hugging Face Hub."""
MARK = "-embd-"
"""What stands between a model's name and the type of the embedding in the name of a slim copy."""
_DEPTH = 3
"""Levels of folders below ``models`` that are searched."""
KIND, VERSION = "header", 3
"""Kind and version of the state records here."""
_REMIND_S = 24 * 3600
"""Seconds between two hints about the same model."""


class Reminder(NamedTuple):
    """The record of a hint."""

    given: Moment


class Choice(NamedTuple):
    """The model to run, and how it was found."""

    model: ModelFile
    reason: str
    """How it was found, as a phrase for the plan's reasons."""
    note: str | None = None
    """Sentence for the user about an unexpected choice; None for an expected one."""


def choose_model(
    named: str | None,
    environ: Mapping[str, str],
    folders: tuple[str, ...],
    embedded: bool,
    state: State,
) -> Choice:
    """Return the first of these models: ``named`` (the flag -m), BITNET_MODEL, LLAMA_ARG_MODEL, the
    default path below one of ``folders``, the only i2_s file below their ``models``, and with the
    embedded engine the demo model. Raise MissingError if there is none, if several i2_s files are
    left to choose from, or if the file cannot be used."""
    variables = ("BITNET_MODEL", "LLAMA_ARG_MODEL")
    for path, source in ((named, "-m"), *((environ.get(name), name) for name in variables)):
        if path:
            # A shell leaves the tilde in --model=~/FILE to the program.
            return Choice(know(os.path.expanduser(path), state), f"named with {source}")
    for folder in folders:
        path = os.path.join(folder, DEFAULT)
        if os.path.isfile(path):
            return _slim_choice(know(path, state), "the default path", state)
    wrong: list[str] = []
    every = _i2_s_files(folders, state, wrong)
    copies = {copy.path for model in every for copy in slim_copies(model, state)}
    found = [model for model in every if model.path not in copies]
    if len(found) == 1:
        return _slim_choice(found[0], "the only i2_s file under models/", state)
    if found:
        names = ", ".join(model.path for model in found)
        raise MissingError(f"found several i2_s models: {names}", "name one of them with -m")
    if embedded:
        from bitnet_tuning import demo  # noqa: PLC0415 (most runs name a model)

        if os.path.isfile(demo.TQ2_0):
            note = "found no model: using the built-in demo model"
            return Choice(know(demo.TQ2_0, state), "the built-in demo model", note)
    raise MissingError(
        f"found no model: there is no {DEFAULT} and no other i2_s file under models/ "
        f"in {', '.join(folders)}{f'; {wrong[0]}' if wrong else ''}",
        f"name one with -m or BITNET_MODEL, or download one: {command('model')} get",
    )


def _slim_choice(model: ModelFile, reason: str, state: State) -> Choice:
    """Return a model, or its slim copy if the user made one."""
    wrong: list[str] = []
    copies = slim_copies(model, state, wrong)
    if not copies:
        note = f"not using the copy with a smaller embedding: {wrong[0]}" if wrong else None
        return Choice(model, reason, note)
    if is_older(copies[0].path, model.path):
        check = f"check the copy: {command('model')} slim {word(model.path)}"
        return Choice(model, reason, f"{model.path} is newer than its slim copy; {check}")
    note = f"using {copies[0].path}, the copy of the model with a smaller embedding"
    return Choice(copies[0], f"the slim copy of {reason}", note)


def is_older(copy: str, model: str) -> bool:
    """Return whether the slim copy in a file may be one of an earlier version of the model."""
    # Only ``model slim`` compares the weights: headers of two versions are often the same.
    return os.path.getmtime(copy) < os.path.getmtime(model)


def slim_path(path: str, kind: str) -> str:
    """Return the path of a copy with an embedding of type ``kind``, of a model or another copy."""
    stem, end = os.path.splitext(path)
    return f"{_unmarked(stem)}{MARK}{kind}{end}"


def _unmarked(stem: str) -> str:
    """Return the original's name for that of a slim copy, else the same, both without suffix."""
    before, _, kind = stem.rpartition(MARK)
    return before if kind in NUMBERS else stem


def slim_copies(
    model: ModelFile, state: State, wrong: list[str] | None = None
) -> tuple[ModelFile, ...]:
    """Return a model's copies with a smaller embedding that lie beside it, the best one to run
    first: those in GENTLE types come before others, and smaller ones before larger. Append to
    ``wrong`` why files with a name of such a copy cannot be used."""
    copies = []
    for path in (slim_path(model.path, kind) for kind in NUMBERS):
        if path == model.path or not os.path.lexists(path):
            continue
        try:
            if not os.access(path, os.R_OK):  # its header may be stored all the same
                raise MissingError(f"{path} may not be read")
            copies.append(know(path, state))
        except TuningError as error:
            if wrong is not None:
                wrong.append(error.cause)

    def rank(copy: ModelFile) -> tuple[bool, int]:
        matrix = types.output_matrix(copy.parts)
        return matrix is None or matrix.type not in GENTLE, copy.size

    return tuple(sorted((each for each in copies if types.is_copy(each, model)), key=rank))


def original_of(model: ModelFile, state: State) -> ModelFile | None:
    """Return the file beside a slim copy from which it was made; None without one."""
    stem, end = os.path.splitext(model.path)
    before = _unmarked(stem)
    if before == stem or not os.path.isfile(before + end):
        return None
    with suppress(TuningError):
        original = know(before + end, state)
        return original if types.is_copy(model, original) else None
    return None


def file_beside(model: ModelFile, state: State) -> ModelFile | None:
    """Return the original of a slim copy, or else a model's best slim copy, that lies beside it."""
    return original_of(model, state) or next(iter(slim_copies(model, state)), None)


def slim_hint(model: ModelFile, state: State) -> str | None:
    """Return a line about what a smaller embedding would gain, and store that it was given. None if
    the embedding is small, for the demo model, and within a day of the last hint."""
    from bitnet_tuning import demo  # noqa: PLC0415 (most runs give no hint)

    path = os.path.realpath(model.path)
    if not types.is_wide(model) or path in demo.MODELS:
        return None
    last = state.load("reminder", path, Reminder)
    if last and moment(_REMIND_S) < last.given <= moment():
        return None
    # If it cannot be stored, every run would give it.
    if not state.store("reminder", path, Reminder(moment())):
        return None
    advice = types.slim_advice(model, slim_copies(model, state))
    return f"{types.gain_text(model)}; {advice}"


def know(path: str, state: State) -> ModelFile:
    """Return the facts in a file's header, stored until it changes: a large vocabulary takes 0.1 s
    to read. Raise MissingError as ``gguf.read_model`` does."""
    key = ""
    with suppress(OSError, ValueError):
        whole = os.path.abspath(path)
        files = [identity(each) for each in dict.fromkeys((whole, *part_paths(whole)))]
        key = ":".join(str(fact) for file in files for fact in file)
    model = state.load(KIND, key, ModelFile, VERSION) if key else None
    if model is None:
        from bitnet_tuning.model.gguf import read_model  # noqa: PLC0415

        model = read_model(path)
        if key:
            state.store(KIND, key, model, VERSION)
    return model._replace(path=path)


def _i2_s_files(folders: tuple[str, ...], state: State, wrong: list[str]) -> list[ModelFile]:
    """Return the i2_s files below the folders; append to ``wrong`` why others cannot be used."""
    models: dict[str, ModelFile] = {}
    for folder in folders:
        for path in _gguf_files(os.path.join(folder, "models"), _DEPTH):
            try:
                model = know(path, state)
            except TuningError as error:
                wrong.append(error.cause)
                continue
            if model.quantization == I2_S:
                models.setdefault(os.path.realpath(path), model)
    return list(models.values())


def _gguf_files(folder: str, depth: int) -> Iterator[str]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        # os.path's tests return False where a DirEntry's methods raise: for a link to itself.
        if entry.name.endswith(".gguf") and os.path.isfile(entry.path):
            yield entry.path
        elif depth > 1 and os.path.isdir(entry.path):
            yield from _gguf_files(entry.path, depth - 1)
