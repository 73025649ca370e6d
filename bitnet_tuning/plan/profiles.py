"""Save, list, compare, remove and import profiles."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

from bitnet_tuning.engine.find import Engine
from bitnet_tuning.errors import UnsupportedError
from bitnet_tuning.machine.host import Host, fingerprint
from bitnet_tuning.model.types import ModelFile
from bitnet_tuning.plan.profile import (
    KIND,
    VERSION,
    EngineKey,
    Evidence,
    ModelKey,
    Profile,
    engine_changes,
)
from bitnet_tuning.plan.setting import Setting
from bitnet_tuning.store.codec import DamagedError, from_json, to_json
from bitnet_tuning.store.state import SCHEMA, State, identity, moment, read_file


def engine_key(engine: Engine) -> EngineKey:
    """Return the key of the engine's present build. Raise OSError if a file of it is missing."""
    return EngineKey(engine.path, engine.version, tuple(map(identity, engine.files)))


def new_profile(
    host: Host, engine: EngineKey, model: ModelFile, setting: Setting | None, evidence: Evidence
) -> Profile:
    """Return a profile created now. ``engine`` is the build as it was when the tuning began.
    ``setting`` is None if the default is as fast as any other."""
    return Profile(moment(), fingerprint(host), engine, ModelKey.of(model), setting, evidence)


def to_document(profile: Profile) -> dict[str, Any]:
    """Return the content of an exported profile."""
    return {"schema": SCHEMA, "version": VERSION, **to_json(profile)}


def store(state: State, profile: Profile) -> str | None:
    """Save a profile, in place of one for the same host, engine and model. Return its id, or None
    if it could not be saved: ``state.warning`` tells why."""
    try:
        from_json(Profile, json.loads(json.dumps(to_json(profile))))
    except DamagedError as error:
        state.warn(f"this profile cannot be saved: {error}")
        return None
    return profile.id if state.store(KIND, profile.key, profile, VERSION) else None


def stored_profiles(state: State) -> list[Profile]:
    """Return all profiles, the newest first. Damaged ones are renamed and left out."""
    every = state.load_all(KIND, Profile, VERSION)
    found = [profile for mark, profile in every.items() if profile.id == mark]
    return sorted(found, key=lambda profile: (profile.created, profile.id), reverse=True)


def remove(state: State, profile: Profile) -> None:
    """Remove a profile. Raise OSError if its file cannot be removed."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(state.path(KIND, profile.id))


def find_stale(
    state: State, host: Host, engine: Engine, model: ModelFile
) -> tuple[Profile, list[str]] | None:
    """Return the newest outdated profile for this engine's path and this kind of model, with a text
    for each change since the tuning; None without one."""
    wanted = ModelKey.of(model)
    for profile in stored_profiles(state):
        if profile.engine.path != engine.path or profile.model[:2] != wanted[:2]:
            continue
        changes = what_changed(profile, host, engine)
        if profile.model.size != wanted.size:
            changes.append(f"model size {profile.model.size} bytes, now {wanted.size}")
        if changes:
            return profile, changes
    return None


def what_changed(profile: Profile, host: Host, engine: Engine | None = None) -> list[str]:
    """Return a text for each change since the tuning; none if the profile can be used."""
    return [*host_changes(profile, host), *engine_changes(profile, engine)]


_NAMES = {
    "brand": "CPU model",
    "online": "online CPUs",
    "allowed": "allowed CPUs",
    "quota": "CPU quota",
    "speeds": "speeds of cores",
    "nodes": "NUMA nodes",
    "performance_cpus": "performance CPUs",
}


def host_changes(profile: Profile, host: Host) -> list[str]:
    """Return a text for each difference between the profile's host and this one."""
    now = fingerprint(host)._asdict()
    return [
        f"{_NAMES.get(name, name)} {in_words(then)}, now {in_words(now[name])}"
        for name, then in profile.host._asdict().items()
        if then != now[name]
    ]


def in_words(value: object) -> str:
    """Return a value of a fingerprint as users see it."""
    if isinstance(value, dict):
        return "; ".join(f"{name}: {text}" for name, text in value.items())
    return "none" if value is None else str(value)


_LARGEST = 1 << 20
"""Largest size of an exported profile in bytes; a usual one has a few thousand."""


def read_profile(path: str) -> Profile:
    """Return the profile in an exported file. Raise MissingError if the file cannot be read,
    UnsupportedError if it holds no valid profile."""
    content = read_file(path, path, "name an exported profile", _LARGEST)
    try:
        found: Any = json.loads(content)
        if not isinstance(found, dict):
            raise DamagedError("it is not a JSON object")
        for name, supported in (("schema", SCHEMA), ("version", VERSION)):
            if found.pop(name, None) != supported:
                raise DamagedError(f"must be {supported}", name)
        return from_json(Profile, found)
    except (ValueError, RecursionError) as error:
        what = error if isinstance(error, DamagedError) else "it is not JSON"
        raise UnsupportedError(
            f"{path} is not a valid profile: {what}",
            "export it again: python3 -m bitnet_tuning profile export ID > FILE",
        ) from error


def bound_to(profile: Profile, host: Host, engine: EngineKey) -> Profile:
    """Return the profile for this host, with ``engine`` as the engine's place on it.

    Folders and modification times of the engine's files may differ, their sizes may not. Raise
    UnsupportedError, with the differences, if the host or the engine is another.
    """
    differences = [*host_changes(profile, host), *_engine_differences(profile.engine, engine)]
    if differences:
        raise UnsupportedError(
            f"the profile was measured on a different machine or engine: {'; '.join(differences)}",
            "measure here: python3 benchmark_optimized.py",
        )
    return profile._replace(engine=engine)


def _engine_differences(theirs: EngineKey, ours: EngineKey) -> list[str]:
    found = []
    if theirs.version != ours.version:
        found.append(f"engine version {theirs.version or '-'}, here {ours.version or '-'}")
    changed = {name for name, _ in _sizes(theirs) ^ _sizes(ours)}
    return found + [f"{name} is not the same here" for name in sorted(changed)]


def _sizes(engine: EngineKey) -> set[tuple[str, int]]:
    """Return the name and the size in bytes of each of the engine's files."""
    # The paths may come from another system, with other separators.
    return {(path.replace("\\", "/").rpartition("/")[2], size) for path, size, _ in engine.files}
