"""Saved benchmarks: written in one step, read with care."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from bitnet_tuning.bench import document
from bitnet_tuning.bench.document import (
    FINISHED,
    INTERRUPTED,
    RUNNING,
    SCHEMA,
    CheckFacts,
    Decision,
    EngineFacts,
    FileFacts,
    Kept,
    Machine,
    ModelFacts,
    Options,
    Part,
    Program,
    Results,
    Surroundings,
    machine,
    to_json,
)
from bitnet_tuning.errors import UsageError
from bitnet_tuning.state import write_atomically

__all__ = [
    "FINISHED",
    "INTERRUPTED",
    "RUNNING",
    "SCHEMA",
    "CheckFacts",
    "Decision",
    "EngineFacts",
    "FileFacts",
    "Kept",
    "Machine",
    "ModelFacts",
    "Options",
    "Part",
    "Program",
    "Results",
    "Surroundings",
    "default_path",
    "from_json",
    "load",
    "machine",
    "new_path",
    "save",
    "stamp",
    "to_json",
    "to_text",
    "write",
]

LARGEST = 1 << 28
"""Bytes; a benchmark of an hour takes less than one MiB."""


def stamp(now: datetime) -> str:
    """ISO 8601 in UTC, to the second, as documents have it. ``now`` knows its time zone."""
    return now.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def default_path(folder: str, now: datetime) -> str:
    """A name below ``folder`` that is not taken: results-2026-01-31T23-59-59Z.json."""
    base = os.path.join(folder, f"results-{stamp(now).replace(':', '-')}")
    path, number = f"{base}.json", 1
    while os.path.lexists(path):
        number += 1
        path = f"{base}-{number}.json"
    return path


def new_path(folder: str, now: datetime) -> str:
    """As ``default_path``, and taken at once by an empty file: of two programs that begin in
    the same second, none writes over the other's results."""
    with contextlib.suppress(OSError):
        os.makedirs(folder, exist_ok=True)
    while True:
        path = default_path(folder, now)
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        except FileExistsError:
            continue
        except OSError:  # what saves there will say why
            pass
        return path


def to_text(results: Results) -> str:
    """The file's content: a line for every part and for every round.

    Not indented: that takes the JSON encoder written in Python, ten times as long, and a
    document is saved after every round.
    """
    lines = []
    for name, part in to_json(results).items():
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
    return from_json(facts, path)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def from_json(facts: object, source: str) -> Results:
    """The document in ``facts``, which came from ``source``; raises UsageError."""
    schema = facts.get("schema") if isinstance(facts, Mapping) else None
    if not isinstance(facts, Mapping) or not isinstance(schema, int) or isinstance(schema, bool):
        raise _damaged(source, "this is no document of a benchmark")
    if schema > SCHEMA:
        raise UsageError(
            f"{source} was written by a newer version: schema {schema}, known here: {SCHEMA}",
            "update bitnet-tuning, or measure again",
        )
    try:
        if schema != SCHEMA:
            raise ValueError(f"schema: there is no schema {schema}")
        return document.from_json(facts)
    except (ValueError, RecursionError) as error:
        raise _damaged(source, str(error)) from error


def _damaged(source: str, what: str) -> UsageError:
    return UsageError(f"{source} is damaged: {what}", "name a file that the benchmark saved")
