"""All remembered profiles: keep, list, compare with today, remove, take from elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from typing import Any

from bitnet_tuning.errors import MissingError, UnsupportedError
from bitnet_tuning.machine.host import fingerprint
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.profile import (
    KIND,
    VERSION,
    EngineKey,
    Evidence,
    ModelKey,
    Profile,
    engine_changes,
)
from bitnet_tuning.store.codec import DamagedError, from_json, to_json
from bitnet_tuning.store.state import SCHEMA, State, identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.engine.find import Engine
    from bitnet_tuning.machine.host import Host
    from bitnet_tuning.model.types import ModelFile
    from bitnet_tuning.plan.setting import Setting


class Stale(NamedTuple):
    """A profile that is not used, and what changed since: a line for each thing."""

    profile: Profile
    changes: tuple[str, ...]


def engine_key(engine: Engine) -> EngineKey:
    """Return the engine as it is now. Raise OSError where a file of it is gone."""
    return EngineKey(engine.path, engine.version, tuple(identity(name) for name in engine.files))


def new_profile(
    host: Host, engine: EngineKey, model: ModelFile, setting: Setting | None, evidence: Evidence
) -> Profile:
    """Return a profile of this moment. ``engine`` is what it was when the tuning began; no
    ``setting`` means that the default stays."""
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Profile(created, fingerprint(host), engine, ModelKey.of(model), setting, evidence)


def to_document(profile: Profile) -> dict[str, Any]:
    """Return the profile for an export."""
    return {"schema": SCHEMA, "version": VERSION, **to_json(profile)}


def store(state: State, profile: Profile) -> str | None:
    """Replace the profile of the same host, engine and model. Return the id, or None where it
    could not be kept: ``state.warning`` says why."""
    try:
        from_json(Profile, json.loads(json.dumps(to_json(profile))))
    except DamagedError as error:
        state.warn(f"this profile cannot be kept: {error}")
        return None
    _spare_others(state.path(KIND, profile.id))
    return profile.id if state.store(KIND, profile.key, profile, VERSION) else None


def _spare_others(path: str) -> None:
    """Move a record of another version away from ``path``, for the program that wrote it."""
    try:
        with open(path, "rb") as file:
            record = json.load(file)
        if (record["schema"], record["version"]) != (SCHEMA, VERSION):
            os.replace(path, f"{path}.other")
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return


def stored_profiles(state: State) -> list[Profile]:
    """Return every profile that can be read, the newest first. Damaged ones are set aside."""
    every = state.load_all(KIND, Profile, VERSION)
    found = [profile for mark, profile in every.items() if profile.id == mark]
    return sorted(found, key=lambda profile: (profile.created, profile.id), reverse=True)


def remove(state: State, ids: list[str]) -> list[str]:
    """Remove these. Return those that were there; raise OSError where one cannot be removed."""
    gone = []
    for mark in ids:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(state.path(KIND, mark))
            gone.append(mark)
    return gone


def find_stale(state: State, host: Host, engine: Engine, model: ModelFile) -> list[Stale]:
    """Return the profiles for this engine's path and this kind of model that something keeps
    from being used, the newest first."""
    found = []
    wanted = ModelKey.of(model)
    for profile in stored_profiles(state):
        if profile.engine.path != engine.path or profile.model[:2] != wanted[:2]:
            continue
        changes = what_changed(profile, host, engine)
        if profile.model.size != wanted.size:
            changes.append(f"model of {profile.model.size} bytes, now {wanted.size}")
        if changes:
            found.append(Stale(profile, tuple(changes)))
    return found


def what_changed(profile: Profile, host: Host, engine: Engine | None = None) -> list[str]:
    """Return what changed since it was measured; nothing for one that is still good here."""
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
    """Return how this host differs from the profile's."""
    now = fingerprint(host)._asdict()
    return [
        f"{_NAMES.get(name, name)} {in_words(then)}, now {in_words(now[name])}"
        for name, then in profile.host._asdict().items()
        if then != now[name]
    ]


def in_words(value: object) -> str:
    """Return a fact of a fingerprint for people."""
    if isinstance(value, dict):
        return "; ".join(f"{name}: {text}" for name, text in value.items())
    return "none" if value is None else str(value)


_LARGEST = 1 << 20
"""Bytes; a profile takes some thousands."""


def read_profile(path: str) -> Profile:
    """Return an exported profile. Raise MissingError for a file that cannot be read,
    UnsupportedError for one that holds no profile."""
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST)
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else error
        raise MissingError(f"cannot read {path}: {what}", "name an exported profile") from error
    try:
        return _parse(content)
    except DamagedError as error:
        raise UnsupportedError(
            f"{path} holds no profile: {error}",
            "export it again: python3 -m bitnet_tuning profile export ID -o FILE",
        ) from error


def _parse(content: bytes) -> Profile:
    try:
        record: Any = json.loads(content)
    except (ValueError, RecursionError):
        raise DamagedError("it is no JSON") from None
    if not isinstance(record, dict):
        raise DamagedError("it is no JSON object")
    version = (record.pop("schema", None), record.pop("version", None))
    if version != (SCHEMA, VERSION):
        raise DamagedError(f"its schema and version are {version}, not {(SCHEMA, VERSION)}")
    return from_json(Profile, record)


def bound_to(profile: Profile, host: Host, engine: EngineKey) -> Profile:
    """Return the profile for the same engine where it lies on this machine: folders and
    modification times may differ, sizes may not. Raise UnsupportedError that says what
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
    """Count files by name and size; folders may come from a system with other separators."""
    names = (os.path.basename(path.replace("\\", "/")) for path, _, _ in engine.files)
    return Counter(zip(names, (size for _, size, _ in engine.files), strict=True))
