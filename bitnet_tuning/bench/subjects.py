"""What a benchmark was made with: this program, an engine and a model, as its document
names them."""

from __future__ import annotations

import contextlib
import os

import bitnet_tuning
from bitnet_tuning.bench.results import EngineFacts, ModelFacts, Program
from bitnet_tuning.engine.find import Engine
from bitnet_tuning.model.types import ModelFile
from bitnet_tuning.store.codec import Literal
from bitnet_tuning.store.state import FileIdentity, identity

NAME = "bitnet-tuning"


def program() -> Program:
    """This program; with its commit where it runs from its own checkout."""
    folder = os.path.dirname(os.path.dirname(os.path.abspath(bitnet_tuning.__file__)))
    # Copied into a checkout of bitnet.cpp, that one's commit would say nothing of us.
    project = _read(os.path.join(folder, "pyproject.toml")) or ""
    own = f'name = "{NAME}"' in project
    return Program(NAME, bitnet_tuning.__version__, git_commit(folder) if own else None)


def engine_facts(engine: Engine, bench: tuple[str, ...] | None) -> EngineFacts:
    """``bench`` is the start of llama-bench's command line, if there is one."""
    checkout = engine.checkout
    return EngineFacts(
        path=engine.path,
        version=engine.version,
        generation=_generation(engine),
        openmp=engine.openmp,
        isa=tuple(sorted(engine.isa)),
        files=tuple(_files(engine.files)),
        bench=bench,
        git_commit=None if checkout is None else git_commit(checkout),
    )


def _generation(engine: Engine) -> Literal["classic", "completion", "embedded"]:
    if engine.embedded:
        return "embedded"
    return "completion" if engine.completion else "classic"


def _files(paths: tuple[str, ...]) -> list[FileIdentity]:
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            found.append(identity(path))
    return found


def model_facts(model: ModelFile, bytes_per_token: int | None) -> ModelFacts:
    shared = {name: getattr(model, name) for name in ModelFacts._fields[:-1]}
    return ModelFacts(**shared, bytes_per_token=bytes_per_token)


def git_commit(folder: str) -> str | None:
    """The commit checked out in ``folder``, in hexadecimal; None where that is no checkout.

    Git itself need not be there, and is not asked: see gitrepository-layout(5).
    """
    git = _git_folder(folder)
    head = (_read(os.path.join(git, "HEAD")) or "").strip()
    if not head.startswith("ref: "):
        return _commit(head)
    ref = head[len("ref: ") :]
    common = os.path.join(git, (_read(os.path.join(git, "commondir")) or "").strip())
    for place in (git, common):
        found = _commit((_read(os.path.join(place, *ref.split("/"))) or "").strip())
        if found:
            return found
    return _packed(_read(os.path.join(common, "packed-refs")) or "", ref)


def _git_folder(folder: str) -> str:
    """``.git``, or where that file points: worktrees and submodules have it elsewhere."""
    git = os.path.join(folder, ".git")
    pointer = (_read(git) or "").strip()
    if not pointer.startswith("gitdir: "):
        return git
    return os.path.join(folder, pointer[len("gitdir: ") :])


def _packed(text: str, ref: str) -> str | None:
    for line in text.splitlines():
        commit, _, name = line.partition(" ")
        if name == ref:
            return _commit(commit)
    return None


def _commit(text: str) -> str | None:
    """SHA-1 or SHA-256, or nothing of the kind."""
    right = len(text) in (40, 64) and set(text) <= set("0123456789abcdef")
    return text if right else None


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except (OSError, ValueError):
        return None
