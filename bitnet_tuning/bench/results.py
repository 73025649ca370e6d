"""One benchmark as a document: all that was measured, on what, how, and what came of it.
docs/results.md says what each field means, docs/results.schema.json is generated from here."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from datetime import datetime, timezone
from itertools import count
from typing import Any

import bitnet_tuning
from bitnet_tuning.bench.comparison import CheckFacts, Round, Rounds
from bitnet_tuning.bench.knobs import Assignment, Space
from bitnet_tuning.bench.search import Decision
from bitnet_tuning.engine.find import Engine
from bitnet_tuning.errors import UsageError
from bitnet_tuning.machine.conditions import Conditions, Meanwhile
from bitnet_tuning.machine.host import HostFacts
from bitnet_tuning.model.types import ModelFile
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.setting import Setting, describe
from bitnet_tuning.store.codec import (
    Annotated,
    Count,
    DamagedError,
    Literal,
    Moment,
    Written,
    from_json,
    schema_of,
    to_json,
)
from bitnet_tuning.store.state import FileIdentity, identity, write_atomically

SCHEMA = 1

RUNNING: Literal["running"] = "running"
INTERRUPTED: Literal["interrupted"] = "interrupted"
FINISHED: Literal["finished"] = "finished"

Commit = Annotated[str, {"pattern": "^([0-9a-f]{40}|[0-9a-f]{64})$"}]
Worded = Annotated[Setting, Written(texts={"words": describe})]


class Program(NamedTuple):
    """What measured."""

    name: str
    version: str
    git_commit: Commit | None
    """Of its own checkout; None where it is installed."""


class EngineFacts(NamedTuple):
    """The program that was measured."""

    path: str
    version: str
    generation: Literal["classic", "completion", "embedded"]
    """``completion`` has a llama-completion beside its llama-cli."""
    openmp: str | None
    isa: tuple[str, ...]
    files: tuple[FileIdentity, ...]
    bench: tuple[str, ...] | None
    """The start of llama-bench's command line; None where the cli's timings were read."""
    git_commit: Commit | None
    """Of the checkout that it was built in."""


class ModelFacts(NamedTuple):
    """The model that was run."""

    path: str
    name: str
    architecture: str
    quantization: str
    size: Count
    """Bytes of the file."""
    bytes_per_token: Count | None
    """Read from memory for each generated token."""


class Surroundings(NamedTuple):
    """The machine's state around the measurement. None for what was not taken."""

    before: Conditions | None = None
    after: Conditions | None = None
    meanwhile: Meanwhile | None = None


class Part(NamedTuple):
    """Facts that not every machine gives, or the reason why they are absent."""

    facts: Mapping[str, Any] | None = None
    reason: str | None = None


class Kept(NamedTuple):
    """Whether the winner was remembered for later runs."""

    stored: bool
    id: str | None
    reason: str


class Results(NamedTuple):
    """Results of a bitnet-tuning benchmark. docs/results.md explains every field."""

    created: Moment
    updated: Moment
    state: Literal["running", "interrupted", "finished"]
    program: Program
    options: Assignment
    host: HostFacts
    engine: EngineFacts
    model: ModelFacts
    space: Space
    """All that may be measured."""
    settings: Mapping[str, Worded]
    """What was named so far."""
    rounds: tuple[Round, ...] = ()
    checks: tuple[CheckFacts, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    """What may have spoilt the figures."""
    conditions: Surroundings = Surroundings()
    bandwidth: Part = Part()
    roof: Part = Part()
    energy: Part = Part()
    decision: Decision | None = None
    profile: Kept | None = None

    def validate(self) -> None:
        """Raise DamagedError where something names a setting that is not there."""
        names = {check.setting: ".checks" for check in self.checks}
        for index, each in enumerate(self.rounds):
            names |= {run.setting: f".rounds[{index}]" for run in each.runs}
        if self.decision is not None:
            names[self.decision.winner] = ".decision.winner"
        for name, place in names.items():
            if name not in self.settings:
                raise DamagedError(f"there is no setting {name!r}", place)

    @property
    def measured(self) -> Rounds:
        """The rounds and checks, as what answers for them."""
        return Rounds(self.options.objective, self.rounds, self.checks)


def to_document(results: Results) -> dict[str, Any]:
    """Return the results as JSON; every setting with its description in words."""
    return {"schema": SCHEMA, **to_json(results)}


def document_schema() -> dict[str, Any]:
    """Return the JSON schema of ``to_document``'s result."""
    schema = schema_of(Results)
    return {
        **schema,
        "properties": {"schema": {"const": SCHEMA}, **schema["properties"]},
        "required": ["schema", *schema["required"]],
    }


LARGEST = 1 << 28
"""Bytes; a benchmark of an hour takes less than one MiB."""


def stamp(now: datetime) -> str:
    """ISO 8601 in UTC, to the second, as documents have it. ``now`` knows its time zone."""
    return now.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def new_path(folder: str, now: datetime) -> str:
    """Return a file below ``folder`` that nobody has, results-2026-01-31T23-59-59Z.json, and
    create it: of two programs that begin in the same second, none writes over the other's."""
    with contextlib.suppress(OSError):
        os.makedirs(folder, exist_ok=True)
    base = os.path.join(folder, f"results-{stamp(now).replace(':', '-')}")
    for number in count(1):
        path = f"{base}.json" if number == 1 else f"{base}-{number}.json"
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        except FileExistsError:
            continue
        except OSError:  # what saves there will say why
            pass
        return path
    raise AssertionError


def to_text(results: Results) -> str:
    """The file's content: a line for every part and for every round.

    Not indented: that takes the JSON encoder written in Python, ten times as long, and a
    document is saved after every round.
    """
    lines = []
    for name, part in to_document(results).items():
        text = _lines(part) if name in ("rounds", "settings") else _dump(part)
        lines.append(f"{_dump(name)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _lines(parts: Any) -> str:
    if isinstance(parts, Mapping):
        lines = [f" {_dump(name)}: {_dump(part)}" for name, part in parts.items()]
        return "{\n" + ",\n".join(lines) + "\n}"
    return "[\n" + ",\n".join(f" {_dump(part)}" for part in parts) + "\n]"


def _dump(part: object) -> str:
    return json.dumps(part, allow_nan=False)


def save(path: str, results: Results) -> None:
    """Replaces ``path`` in one step, following links. Raises UsageError where it cannot be
    written, and ValueError for a number that JSON does not have."""
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(os.path.realpath(path)), exist_ok=True)
    write(path, to_text(results), "results", "--output")


def write(path: str, text: str, what: str, flag: str) -> None:
    """Replaces ``path``, which the user names with ``flag``, in one step, following links.
    Raises UsageError where it cannot be written."""
    try:
        write_atomically(os.path.realpath(path), text.encode())
    except OSError as error:
        raise UsageError(
            f"cannot write {what} to {path}: {error.strerror or error}",
            f"name another file with {flag}",
        ) from error


def load(path: str) -> Results:
    """A saved document; raises UsageError that names the file and what is wrong in it."""
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read results from {path}: {reason}") from error
    try:
        facts = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"no JSON ({error})") from error
    return from_document(facts, path)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def from_document(facts: object, source: str) -> Results:
    """Return the results in ``facts``, which came from ``source``. Raise UsageError."""
    schema = facts.get("schema") if isinstance(facts, dict) else None
    if type(schema) is not int or not isinstance(facts, dict):
        raise _damaged(source, "this is no document of a benchmark")
    if schema > SCHEMA:
        raise UsageError(
            f"{source} was written by a newer version: schema {schema}, known here: {SCHEMA}",
            "update bitnet-tuning, or measure again",
        )
    if schema < SCHEMA:
        raise _damaged(source, f"schema: there is no schema {schema}")
    try:
        return from_json(Results, {name: facts[name] for name in facts if name != "schema"})
    except DamagedError as error:
        raise _damaged(source, str(error)) from error


def _damaged(source: str, what: str) -> UsageError:
    return UsageError(f"{source} is damaged: {what}", "name a file that the benchmark saved")


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
