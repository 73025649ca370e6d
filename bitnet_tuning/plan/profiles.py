"""All remembered profiles: keep, list, compare with today, remove."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from bitnet_tuning.errors import MissingError, UnsupportedError
from bitnet_tuning.machine.host import fingerprint
from bitnet_tuning.plan.profile import (
    KIND,
    VERSION,
    EngineKey,
    Evidence,
    ModelKey,
    Profile,
    as_record,
    engine_changes,
    from_record,
    key_of,
)
from bitnet_tuning.store.state import SCHEMA, State, digest, identity, locked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.engine.find import Engine
    from bitnet_tuning.machine.host import Host
    from bitnet_tuning.model.types import ModelFile
    from bitnet_tuning.plan.setting import Setting


_LOCK = "profiles.lock"


class Stored(NamedTuple):
    """A profile and the id that its file carries, 16 hexadecimal digits."""

    id: str
    profile: Profile


class Stale(NamedTuple):
    """A profile that is not used, and what changed since: a line for each thing."""

    stored: Stored
    changes: tuple[str, ...]


def engine_key(engine: Engine) -> EngineKey:
    """The engine as it is now; raises OSError where a file of it is gone."""
    files = []
    for name in engine.files:
        path, size, changed = identity(name)
        files.append((str(path), int(str(size)), int(str(changed))))
    return EngineKey(engine.path, engine.version, tuple(files))


def new_profile(
    host: Host, engine: EngineKey, model: ModelFile, setting: Setting | None, evidence: Evidence
) -> Profile:
    """Of this moment. ``engine`` as it was when the tuning began; no ``setting`` where the
    default stays."""
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Profile(created, fingerprint(host), engine, ModelKey.of(model), setting, evidence)


def id_of(profile: Profile) -> str:
    return digest(key_of(profile.host, profile.engine.path, profile.model))


def to_document(profile: Profile) -> dict[str, Any]:
    """For an export."""
    return {"schema": SCHEMA, "version": VERSION, **as_record(profile)}


def store(state: State, profile: Profile) -> str | None:
    """The id, or None where it could not be kept: ``state.warning`` says why then. Replaces
    the profile of the same host, engine and model."""
    key = key_of(profile.host, profile.engine.path, profile.model)
    record = {"version": VERSION, **as_record(profile)}
    try:
        from_record(json.loads(json.dumps(record)))
    except ValueError as error:
        state.warn(f"this profile cannot be kept: {error}")
        return None
    with exclusive(state):
        _spare_others(state.path(KIND, digest(key)))
        return digest(key) if state.store(KIND, key, record) else None


@contextlib.contextmanager
def exclusive(state: State) -> Iterator[None]:
    """Keeps other writers out. Where that does not succeed, it is a warning: every file is
    written whole in any case."""
    with contextlib.suppress(OSError):
        os.makedirs(state.folder, exist_ok=True)
    with locked(os.path.join(state.folder, _LOCK)) as held:
        if not held:
            state.warn(f"{state.folder} could not be locked: another program may write there")
        yield


def _spare_others(path: str) -> None:
    """Moves a record of another version away from ``path``, for the program that wrote it."""
    try:
        with open(path, "rb") as file:
            record = json.load(file)
        if (record["schema"], record["version"]) != (SCHEMA, VERSION):
            os.replace(path, f"{path}.other")
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return


def stored_profiles(state: State) -> list[Stored]:
    """Every one that can be read, the newest first; damaged ones are set aside."""
    found = []
    for mark, record in state.load_all(KIND, {}).items():
        if record.get("version") != VERSION or digest(record["key"]) != mark:
            continue
        try:
            found.append(Stored(mark, from_record(record)))
        except ValueError:
            state.set_aside(state.path(KIND, mark))
    return sorted(found, key=lambda stored: (stored.profile.created, stored.id), reverse=True)


def remove(state: State, ids: list[str]) -> list[str]:
    """Those of the ids that were there; raises OSError for one that cannot be removed."""
    gone = []
    with exclusive(state):
        for mark in ids:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(state.path(KIND, mark))
                gone.append(mark)
    return gone


def find_stale(state: State, host: Host, engine: Engine, model: ModelFile) -> list[Stale]:
    """Profiles for this engine's path and this kind of model that something keeps from
    being used, the newest first."""
    found = []
    wanted = ModelKey.of(model)
    for stored in stored_profiles(state):
        profile = stored.profile
        alike = (profile.model.architecture, profile.model.quantization)
        if profile.engine.path != engine.path or alike != wanted[:2]:
            continue
        changes = what_changed(profile, host, engine)
        if profile.model.size != wanted.size:
            changes.append(f"model of {profile.model.size} bytes, now {wanted.size}")
        if changes:
            found.append(Stale(stored, tuple(changes)))
    return found


def what_changed(profile: Profile, host: Host, engine: Engine | None = None) -> list[str]:
    """Since it was measured; empty for one that is still good here."""
    return [*host_changes(profile, host), *engine_changes(profile, engine)]


_NAMES = {
    "online": "CPUs online",
    "allowed": "allowed CPUs",
    "quota": "CPU quota",
    "speeds": "speeds of cores",
    "nodes": "NUMA nodes",
    "performance_cpus": "performance CPUs",
}


def host_changes(profile: Profile, host: Host) -> list[str]:
    """How this host differs from the profile's."""
    now = fingerprint(host)
    return [
        f"{_NAMES.get(name, name)} {_words(then)}, now {_words(now[name])}"
        for name, then in profile.host.items()
        if then != now[name]
    ]


def _words(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name}: {text}" for name, text in value.items())
    return "none" if value is None else str(value)


_LARGEST = 1 << 20
"""Bytes; a profile takes some thousands."""


def read_profile(path: str) -> Profile:
    """Raises MissingError for a file that cannot be read, UnsupportedError for one that
    holds no profile."""
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST)
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else error
        raise MissingError(f"cannot read {path}: {what}", "name an exported profile") from error
    try:
        return _parse(content)
    except (ValueError, RecursionError) as error:
        raise UnsupportedError(
            f"{path} holds no profile: {str(error)[:200]}",
            "export it again: python3 -m bitnet_tuning profile export ID -o FILE",
        ) from error


def _parse(content: bytes) -> Profile:
    """Raises ValueError."""
    try:
        record: Any = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    if not isinstance(record, dict):
        raise ValueError("it is no JSON object")
    version = (record.get("schema"), record.get("version"))
    if version != (SCHEMA, VERSION):
        raise ValueError(f"its schema and version are {version}, not {(SCHEMA, VERSION)}")
    return from_record(record)


def bound_to(profile: Profile, host: Host, engine: EngineKey) -> Profile:
    """The profile for the same engine where it lies on this machine: folders and
    modification times may differ, sizes may not. Raises UnsupportedError that says what
    differs."""
    differences = [*host_changes(profile, host), *_engine_differences(profile.engine, engine)]
    if differences:
        raise UnsupportedError(
            f"the profile was measured on another kind of machine or engine: "
            f"{'; '.join(differences)}",
            "measure here: python3 benchmark_optimized.py",
        )
    return profile._replace(host=fingerprint(host), engine=engine)


def _engine_differences(theirs: EngineKey, ours: EngineKey) -> list[str]:
    found = []
    if theirs.version != ours.version:
        found.append(f"engine version {theirs.version!r}, here {ours.version!r}")
    then, now = _sizes(theirs), _sizes(ours)
    found += [f"{name} of {size} bytes is not here" for name, size in sorted(then - now)]
    found += [f"{name} of {size} bytes is only here" for name, size in sorted(now - then)]
    return found


def _sizes(engine: EngineKey) -> Counter[tuple[str, int]]:
    """Files by name and size; folders may come from a system with other separators."""
    names = (os.path.basename(path.replace("\\", "/")) for path, _, _ in engine.files)
    return Counter(zip(names, (size for _, size, _ in engine.files), strict=True))
