"""The results of a benchmark as a JSON document: all samples, on which machine and how they were
measured, and the decision. docs/results.md explains each field; docs/results.schema.json is
generated from the classes here."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from itertools import count
from typing import Any

import bitnet_tuning
from bitnet_tuning.bench.comparison import CheckFacts, Round, Rounds
from bitnet_tuning.bench.knobs import Assignment, Space
from bitnet_tuning.bench.search import Decision
from bitnet_tuning.console import NAME
from bitnet_tuning.engine.find import Engine
from bitnet_tuning.errors import UsageError
from bitnet_tuning.machine.conditions import Conditions, Meanwhile
from bitnet_tuning.machine.host import HostFacts
from bitnet_tuning.model.types import ModelFile, bytes_per_token, output_matrix
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.setting import Setting, describe
from bitnet_tuning.store import codec
from bitnet_tuning.store.codec import LATER, Annotated, Count, DamagedError, Moment
from bitnet_tuning.store.state import FileIdentity, identity, moment, write_atomically

SCHEMA = 1

Commit = Annotated[str, {"pattern": "^([0-9a-f]{40}|[0-9a-f]{64})$"}]
Generation = Annotated[str, {"enum": ["classic", "completion", "embedded"]}]
Worded = Annotated[Setting, codec.Record(Setting, texts={"words": describe})]


class Program(NamedTuple):
    """The program that measured."""

    name: str
    version: str
    git_commit: Commit | None
    """Commit of the program's own checkout; None if it is installed."""


class EngineFacts(NamedTuple):
    """The engine that was measured."""

    path: str
    version: str
    generation: Generation
    """``completion`` means that a llama-completion stands beside llama-cli."""
    openmp: str | None
    isa: tuple[str, ...]
    files: tuple[FileIdentity, ...]
    bench: tuple[str, ...] | None
    """The beginning of llama-bench's command line; None if the cli's own timings were used."""
    git_commit: Commit | None
    """Commit of the checkout that the engine was built in."""
    server: Annotated[tuple[str, ...] | None, LATER] = None
    """The beginning of the server's command line, if loaded servers were measured by turns."""


class ModelFacts(NamedTuple):
    """The model that the engine ran."""

    path: str
    name: str
    architecture: str
    quantization: str
    size: Count
    """Size of the file in bytes."""
    bytes_per_token: Count | None
    """Bytes of weights read for each generated token; None if the header does not tell."""
    embedding: Annotated[str | None, LATER] = None
    """Type of the embedding or output matrix that each token reads; None if not known."""
    unnamed: Annotated[bool, LATER] = False
    """Whether it is the model of a run that names none."""


class Surroundings(NamedTuple):
    """The machine's state before and after measuring, and what happened meanwhile, as recorded."""

    before: Conditions | None = None
    after: Conditions | None = None
    meanwhile: Meanwhile | None = None


class Part(NamedTuple):
    """Facts that not every machine shows, or the reason why they are absent."""

    facts: Mapping[str, object] | None = None
    reason: str | None = None


class Kept(NamedTuple):
    """Whether the decision was saved as a profile for later runs."""

    stored: bool
    id: str | None
    reason: str
    """A sentence that says what was saved, or why nothing was."""


class Results(NamedTuple):
    """Results of a bitnet-tuning benchmark. docs/results.md explains every field."""

    created: Moment
    updated: Moment
    state: Annotated[str, {"enum": ["running", "interrupted", "finished"]}]
    program: Program
    options: Assignment
    host: HostFacts
    engine: EngineFacts
    model: ModelFacts
    space: Space
    settings: Mapping[str, Worded]
    """Every setting named so far, by name."""
    rounds: tuple[Round, ...] = ()
    checks: tuple[CheckFacts, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    """What may skew the results, one sentence each."""
    conditions: Surroundings = Surroundings()
    bandwidth: Part = Part()
    roof: Part = Part()
    energy: Part = Part()
    beside: Annotated[ModelFacts | None, LATER] = None
    """The model's slim copy beside it, or the original of one."""
    decision: Decision | None = None
    profile: Kept | None = None

    def validate(self) -> None:
        """Raise DamagedError if a round, a check or the decision names an unknown setting, or a
        setting runs another file that is unknown."""
        names = {check.setting: ".checks" for check in self.checks}
        for index, each in enumerate(self.rounds):
            names |= {run.setting: f".rounds[{index}]" for run in each.runs}
        if self.decision is not None:
            names[self.decision.winner] = ".decision.winner"
        for name, place in names.items():
            if name not in self.settings:
                raise DamagedError(f"there is no setting named {json.dumps(name)}", place)
        named = {**dict(self.space.fixed), "default": self.space.default, **self.settings}
        for name, setting in named.items():
            if setting.embedding is not None and self.beside is None:
                what = f"{json.dumps(name)} runs another file, but there is none"
                raise DamagedError(what, ".settings")

    @property
    def measured(self) -> Rounds:
        """The rounds and checks, ready for evaluation."""
        options = self.options
        return Rounds(options.objective, self.rounds, self.checks, resolution=options.resolution)


def to_document(results: Results) -> dict[str, Any]:
    """Return the results as JSON data, in which every setting has a description in words."""
    return {"schema": SCHEMA, **codec.to_json(results)}


LARGEST = 1 << 28
"""Most bytes that are read of a file; the results of an hour take less than 1 MiB."""


def new_path(folder: str, begun: str = "") -> str:
    """Create a new file in ``folder``, such as results-2026-01-31T23-59-59Z.json for the moment
    ``begun`` (default: now), and return its path. Programs of one second get different files."""
    with contextlib.suppress(OSError):
        os.makedirs(folder, exist_ok=True)
    base = os.path.join(folder, f"results-{(begun or moment()).replace(':', '-')}")
    for number in count(1):
        path = f"{base}.json" if number == 1 else f"{base}-{number}.json"
        try:
            with open(path, "xb"):
                return path
        except FileExistsError:
            continue
        except OSError:
            return path  # ``save`` will fail as well and say why
    raise AssertionError


def to_text(results: Results) -> str:
    """Return the file's content. Raise ValueError for a number that JSON does not have."""
    return json.dumps(to_document(results), indent=1, allow_nan=False) + "\n"


def save(path: str, results: Results) -> None:
    """Write the results to ``path`` (see ``write_atomically``). Raise UsageError if that fails,
    and ValueError for a number that JSON does not have."""
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(os.path.realpath(path)), exist_ok=True)
    write(path, to_text(results), "results", "--output")


def write(path: str, text: str, what: str, flag: str) -> None:
    """Write ``text`` to ``path`` (see ``write_atomically``). Raise UsageError if that fails.
    ``what`` names the file in the message, ``flag`` chooses it."""
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        cause = f"cannot write {what} to {path}: {error.strerror or error}"
        raise UsageError(cause, f"name another file with {flag}") from error


def load(path: str) -> Results:
    """Return saved results. Raise UsageError if the file cannot be read or is damaged."""
    try:
        with open(path, "rb") as file:
            facts = json.loads(file.read(LARGEST), parse_constant=_refuse)
    except OSError as error:
        raise UsageError(f"cannot read results from {path}: {error.strerror}", _REMEDY) from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"not valid JSON ({error})") from error
    return from_document(facts, path)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")


def from_document(facts: object, source: str) -> Results:
    """Return results from JSON data. Raise UsageError, which names ``source``, if that fails."""
    schema = facts.get("schema") if isinstance(facts, dict) else None
    if not isinstance(facts, dict) or type(schema) is not int or schema < SCHEMA:
        raise _damaged(source, "it has no results of a benchmark")
    if schema > SCHEMA:
        raise UsageError(
            f"{source} was written by a newer version of bitnet-tuning: it has schema {schema}, "
            f"this version reads schema {SCHEMA}",
            "update bitnet-tuning, or measure again",
        )
    try:
        return codec.from_json(Results, {name: facts[name] for name in facts if name != "schema"})
    except DamagedError as error:
        raise _damaged(source, str(error)) from error


def _damaged(source: str, what: str) -> UsageError:
    return UsageError(f"{source} is damaged: {what}", _REMEDY)


_REMEDY = "name a results file that the benchmark saved"


def program() -> Program:
    """Return this program's version, and its commit if it runs from its own checkout."""
    folder = os.path.dirname(os.path.dirname(os.path.realpath(bitnet_tuning.__file__)))
    # The package may be copied into a checkout of bitnet.cpp, whose commit is not this program's.
    own = f'name = "{NAME}"' in _read(folder, "pyproject.toml")
    return Program(NAME, bitnet_tuning.__version__, git_commit(folder) if own else None)


def engine_facts(
    engine: Engine, bench: tuple[str, ...] | None, server: tuple[str, ...] | None = None
) -> EngineFacts:
    """Return what results keep of an engine, ``bench`` or ``server`` being what measures."""
    generation = "completion" if engine.completion else "classic"
    return EngineFacts(
        path=engine.path,
        version=engine.version,
        generation="embedded" if engine.embedded else generation,
        openmp=engine.openmp,
        isa=tuple(sorted(engine.isa)),
        files=tuple(map(identity, engine.files)),
        bench=bench,
        git_commit=git_commit(engine.checkout) if engine.checkout else None,
        server=server,
    )


def model_facts(model: ModelFile, unnamed: bool = False) -> ModelFacts:
    """Return what results keep of a model; ``unnamed`` as in ``ModelFacts``."""
    more = {name: getattr(model, name) for name in ModelFacts._fields[:5]}
    matrix, read = output_matrix(model.parts), bytes_per_token(model.parts)
    kind = matrix.type if matrix else None
    return ModelFacts(**more, bytes_per_token=read, embedding=kind, unnamed=unnamed)


def git_commit(folder: str) -> str | None:
    """Return the commit checked out in ``folder``, in hexadecimal, from the files described in
    gitrepository-layout(5); None if that is no checkout."""
    git = os.path.join(folder, _read(folder, ".git").removeprefix("gitdir: ") or ".git")
    head = _read(git, "HEAD")
    if head.startswith("ref: "):
        name, common = head[5:], os.path.join(git, _read(git, "commondir"))
        packed = map(str.split, _read(common, "packed-refs").splitlines())
        listed = next((each[0] for each in packed if name in each), "")
        head = _read(git, name) or _read(common, name) or listed
    return head if re.fullmatch("[0-9a-f]{40,64}", head) else None


def _read(folder: str, name: str) -> str:
    try:
        with open(os.path.join(folder, name), encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
