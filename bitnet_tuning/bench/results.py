"""One benchmark as a document: all that was measured, on what, how, and what came of it;
pure. docs/results.md says what each field means."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any, Literal, NamedTuple

from bitnet_tuning.bench import knobs
from bitnet_tuning.bench.ledger import Space
from bitnet_tuning.bench.samples import OBJECTIVES, PP, TG, Objective, Round, Sizes
from bitnet_tuning.bench.statistics import Estimate
from bitnet_tuning.errors import UsageError
from bitnet_tuning.plan import setting
from bitnet_tuning.plan.setting import Setting
from bitnet_tuning.store.codec import DamagedError, build, plain
from bitnet_tuning.store.state import write_atomically

SCHEMA = 1

RUNNING: Literal["running"] = "running"
INTERRUPTED: Literal["interrupted"] = "interrupted"
FINISHED: Literal["finished"] = "finished"

State = Literal["running", "interrupted", "finished"]


class Program(NamedTuple):
    """What measured."""

    name: str
    version: str
    git_commit: str | None
    """Of its own checkout; None where it is installed."""


class Options(NamedTuple):
    """What was asked for."""

    budget: float
    """Seconds."""
    effort: Literal["quick", "normal", "full"]
    objective: Objective
    threads: tuple[int, ...] | None
    """The only counts to try; None for those that suit the machine."""
    modes: tuple[str, ...] | None
    """The only modes to measure; None for all."""
    sizes: Sizes | None
    """Tokens and samples of every run; None until the engine's speed is known."""


class NodeFacts(NamedTuple):
    id: int
    cpus: tuple[int, ...]


class HybridFacts(NamedTuple):
    performance_cores: int
    efficiency_cores: int
    performance_cpus: tuple[int, ...]
    efficiency_cpus: tuple[int, ...]


class Machine(NamedTuple):
    """The host, as ``python3 -m bitnet_tuning host --json`` prints it."""

    brand: str | None
    """The processor's name for people."""
    logical_cpus: tuple[int, ...]
    allowed_cpus: tuple[int, ...]
    physical_cores: int
    packages: int
    numa_nodes: tuple[NodeFacts, ...]
    hybrid: HybridFacts | None
    threads_per_core: int
    cpu_quota: float | None
    """CPUs."""
    usable_cores: int
    governor: str | None
    wsl: int | None
    memory_total: int | None
    """Bytes."""
    memory_available: int | None
    """Bytes."""
    isa: tuple[str, ...]
    vendor: str | None
    topology_known: bool


class FileFacts(NamedTuple):
    """How a file is told from its later versions."""

    path: str
    size: int
    """Bytes."""
    modified: int
    """Nanoseconds since 1970."""


class EngineFacts(NamedTuple):
    """The program that was measured."""

    path: str
    version: str
    generation: Literal["classic", "completion", "embedded"]
    """``completion`` has a llama-completion beside its llama-cli."""
    openmp: str | None
    isa: tuple[str, ...]
    files: tuple[FileFacts, ...]
    bench: tuple[str, ...] | None
    """The start of llama-bench's command line; None where the cli's timings were read."""
    git_commit: str | None
    """Of the checkout that it was built in."""


class ModelFacts(NamedTuple):
    """The model that was run."""

    path: str
    name: str
    architecture: str
    quantization: str
    size: int
    """Bytes of the file."""
    bytes_per_token: int | None
    """Read from memory for each generated token."""


class CheckFacts(NamedTuple):
    """Whether a setting's output was right."""

    setting: str
    problem: str | None
    after_round: int
    """Number of the last round before it; 0 for none."""


class Surroundings(NamedTuple):
    """The machine's state around the measurement, as bench.conditions writes it."""

    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None
    meanwhile: Mapping[str, Any] | None = None


class Part(NamedTuple):
    """Facts that not every machine gives, or the reason why they are absent."""

    facts: Mapping[str, Any] | None = None
    reason: str | None = None


class Decision(NamedTuple):
    """What came of it."""

    winner: str
    """The setting to use: the default's name unless another one was shown to be faster."""
    verdict: str
    estimate: Estimate | None
    """Ratio of the finalist's value to the default's, in the duel."""
    floor: float | None
    """How far from 1, as a factor, the default strays from itself; at least 1."""
    reason: str


class Kept(NamedTuple):
    """Whether the winner was remembered for later runs."""

    stored: bool
    id: str | None
    reason: str


class Results(NamedTuple):
    """The whole document."""

    created: str
    """ISO 8601, UTC."""
    updated: str
    state: State
    program: Program
    options: Options
    host: Machine
    engine: EngineFacts
    model: ModelFacts
    space: Space
    """All that may be measured."""
    settings: Mapping[str, Setting]
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


def machine(facts: Mapping[str, Any]) -> Machine:
    """From what the host command prints; facts that the document does not have are left
    out. Raises DamagedError where one is missing."""
    known = {name: facts[name] for name in Machine._fields if name in facts}
    return build(Machine, known, "host", {})


def to_json(results: Results) -> dict[str, Any]:
    """As it is saved; every setting with its description in words."""
    return {"schema": SCHEMA, **plain(results, {Setting: _setting_json, Space: knobs.as_json})}


def _setting_json(value: Setting) -> dict[str, Any]:
    return {**setting.as_json(value), "words": setting.describe(value)}


def from_json(facts: Mapping[str, Any]) -> Results:
    """The inverse; raises DamagedError, a ValueError, that names the field. ``schema`` must
    have been looked at."""
    content = {name: part for name, part in facts.items() if name != "schema"}
    results = build(Results, content, "", {Setting: _setting, Space: knobs.from_json})
    for where, problem in _contradictions(results):
        raise DamagedError(where, problem)
    return results


def _setting(facts: Mapping[str, Any]) -> Setting:
    if not isinstance(facts, Mapping) or not isinstance(facts.get("words"), str):
        raise ValueError("not a setting")
    # Words follow from the rest.
    return setting.from_json({name: part for name, part in facts.items() if name != "words"})


def _contradictions(results: Results) -> Iterable[tuple[str, str]]:
    """What the parts say of each other and of speeds, which types cannot hold."""
    if results.options.objective.name not in OBJECTIVES:
        yield "options.objective.name", f"not one of {', '.join(OBJECTIVES)}"
    if min(results.options.objective[1:]) < 1:
        yield "options.objective", "a request without tokens"
    for name in ("created", "updated"):
        if not _is_stamp(getattr(results, name)):
            yield name, "not a time such as 2026-01-31T23:59:59Z"
    names = {check.setting: "checks" for check in results.checks}
    if results.decision is not None:
        names[results.decision.winner] = "decision.winner"
    for index, one in enumerate(results.rounds):
        where = f"rounds[{index}]"
        names |= {run.setting: where for run in one.runs}
        for run in one.runs:
            if not run.samples.keys() <= {PP, TG}:
                yield where, "samples of an unknown phase"
            if min((speed for phase in run.samples.values() for speed in phase), default=1) <= 0:
                yield where, "a speed that is not positive"
            if not all(run.samples.values()) or bool(run.samples) != (run.problem is None):
                yield where, "a run has samples or a problem, and only one of the two"
    for name, where in names.items():
        if name not in results.settings:
            yield where, f"there is no setting {name!r}"


def _is_stamp(text: str) -> bool:
    shape = "".join("0" if letter.isdigit() and letter.isascii() else letter for letter in text)
    return shape == "0000-00-00T00:00:00Z"


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
    return results_from_json(facts, path)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def results_from_json(facts: object, source: str) -> Results:
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
        return from_json(facts)
    except (ValueError, RecursionError) as error:
        raise _damaged(source, str(error)) from error


def _damaged(source: str, what: str) -> UsageError:
    return UsageError(f"{source} is damaged: {what}", "name a file that the benchmark saved")
