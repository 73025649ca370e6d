"""Profiles: the record that a tuning saves for one host, engine and model, and how they are saved,
loaded, compared and imported. One may come from another machine, so nothing in it is trusted."""

from __future__ import annotations

import contextlib
import json
import os

from bitnet_tuning.console import command, size_text, times
from bitnet_tuning.engine.find import Engine
from bitnet_tuning.errors import UnsupportedError
from bitnet_tuning.machine.host import Fingerprint, Host, fingerprint
from bitnet_tuning.machine.root import parse_list
from bitnet_tuning.model.types import ModelFile
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.setting import Setting, Tokens
from bitnet_tuning.store import codec
from bitnet_tuning.store.codec import LATER, Annotated, Count, DamagedError, Moment, Positive, Text
from bitnet_tuning.store.state import SCHEMA, State, change_of, digest, identity, moment, read_file

PP, TG = "pp", "tg"
"""Phases of a run, prompt processing and token generation, as samples and speeds name them."""
Phase = Annotated[str, {"enum": [PP, TG]}]

OBJECTIVES = (TG, PP, REQUEST := "request")
Goal = Annotated[str, {"enum": list(OBJECTIVES)}]


class Objective(NamedTuple):
    """What a tuning makes fast: a phase, or a whole request. A request has a prompt of ``n_prompt``
    tokens and an answer of ``n_gen`` tokens."""

    name: Goal = TG
    n_prompt: Tokens = 128
    n_gen: Tokens = 128

    @property
    def phases(self) -> tuple[str, ...]:
        """Phases that must be measured for the objective."""
        return (PP, TG) if self.name == "request" else (self.name,)


class Estimate(NamedTuple):
    """A median with its 95 % confidence interval, in the same unit."""

    median: Positive
    low: Positive
    high: Positive
    count: Count  # type: ignore[assignment]  # hides a method that records do not need
    """Number of values or rounds that were measured."""


OverDefault = Annotated[Estimate, codec.Record(Estimate, names={"count": "rounds"})]


class Evidence(NamedTuple):
    """The measurements that a profile is based on."""

    objective: Objective
    verdict: Text
    ratio: OverDefault | None
    """Speed relative to the default."""
    floor: Positive | None
    """Noise floor in profiles of versions that had one."""
    against_upstream: OverDefault | None
    """Speed relative to the upstream default, ``-t 2`` without environment variables."""
    speeds: dict[Phase, Positive | None]
    """Median tokens/s of each phase."""
    results: Text | None
    """Path of the results file with all samples."""
    budget: Positive | None
    """Seconds that the tuning was allowed to take."""
    resolution: Annotated[Positive | None, LATER] = None
    """Share by which speeds may differ and count as equal; None in older profiles."""


class EngineKey(NamedTuple):
    """The build of an engine that was measured."""

    path: Text
    version: Text
    files: tuple[tuple[Text, Count, Count], ...]
    """Path, size in bytes and modification time in ns of the program and of its libraries."""


class ModelKey(NamedTuple):
    """What tells models of different speed apart; the name is for users only."""

    architecture: Text
    quantization: Text
    size: Count
    name: Text

    @classmethod
    def of(cls, model: ModelFile) -> ModelKey:
        """Return the key of a model."""
        # The name is whatever somebody wrote into the file's header.
        name = "".join(letter if letter.isprintable() else " " for letter in model.name[:200])
        return cls(model.architecture, model.quantization, model.size, name)


class Profile(NamedTuple):
    """The saved result of a tuning."""

    created: Moment
    host: Fingerprint
    engine: EngineKey
    model: ModelKey
    setting: Setting | None
    """The fastest setting; None if the default is as fast."""
    evidence: Evidence

    def validate(self) -> None:
        """Raise DamagedError if no tuning can find this setting on this host."""
        if self.setting is None:
            return
        if self.setting.nice != 0:
            raise DamagedError("must be 0: no tuning changes the priority", ".setting.nice")
        if self.setting.embedding is not None:
            raise DamagedError("must be null: no tuning changes the file", ".setting.embedding")
        if self.setting.cpus and not self.setting.cpus <= parse_list(self.host.allowed):
            raise DamagedError(f"must be among the host's {self.host.allowed}", ".setting.cpus")

    @property
    def key(self) -> str:
        """The key under which the profile is stored."""
        return key_of(self.host, self.engine.path, self.model)

    @property
    def id(self) -> str:
        """The 16 hexadecimal digits that name the profile and its file."""
        return digest(self.key)

    @property
    def day(self) -> str:
        """The date of the tuning, such as ``2026-01-31``."""
        return self.created[:10]


def claim(profile: Profile) -> str:
    """Return when the profile was measured and what it gained, as a part of a sentence."""
    when = f"measured on {profile.day}"
    ratio, name = profile.evidence.ratio, profile.evidence.objective.name
    what = {"pp": ", for prompts", "request": ", for whole requests"}.get(name, "")
    near = profile.evidence.resolution
    what += f" (resolution {100 * near:g} %)" if near else ""
    return when if ratio is None else f"{when}: {times(*ratio)} over the default{what}"


KIND = "profile"
VERSION = 1
"""Version of the file format; profiles of other versions are not used."""


def key_of(host: Fingerprint, engine_path: str, model: ModelFile | ModelKey) -> str:
    """Return the key under which a profile for this host, engine and model is stored."""
    parts = (engine_path, model.architecture, model.quantization, model.size)
    return json.dumps([*parts, host._asdict()], sort_keys=True)


def load(state: State, host: Host, engine: Engine, model: ModelFile) -> Profile | None:
    """Return the profile for exactly this host, engine and model, or None. A damaged profile is
    renamed (see ``State.set_aside``)."""
    key = key_of(fingerprint(host), engine.path, model)
    profile = state.load(KIND, key, Profile, VERSION)
    if profile is None or profile.key != key or engine_changes(profile, engine):
        return None
    return profile


def engine_changes(profile: Profile, engine: Engine | None = None) -> list[str]:
    """Return how the profile's engine changed since the tuning: a text for each change. Without
    ``engine``, which describes its present state, only the files are compared."""
    changes = [found for file in profile.engine.files if (found := change_of(*file))]
    if engine is None:
        return changes
    if profile.engine.version != engine.version:
        was = profile.engine.version or "-"
        changes.append(f"engine version {was}, now {engine.version or '-'}")
    others = set(engine.files) ^ {path for path, _, _ in profile.engine.files}
    return changes + [f"{path} was added or is no longer used" for path in sorted(others)]


def engine_key(engine: Engine) -> EngineKey:
    """Return the key of the engine's present build. Raise OSError if a file of it is missing."""
    return EngineKey(engine.path, engine.version, tuple(map(identity, engine.files)))


def new_profile(
    host: Host, engine: EngineKey, model: ModelFile, setting: Setting | None, evidence: Evidence
) -> Profile:
    """Return a profile created now. ``engine`` is the build as it was when the tuning began.
    ``setting`` is None if the default is as fast as any other."""
    return Profile(moment(), fingerprint(host), engine, ModelKey.of(model), setting, evidence)


def to_document(profile: Profile) -> dict[str, object]:
    """Return the content of an exported profile."""
    return {"schema": SCHEMA, "version": VERSION, **codec.to_json(profile)}


def store(state: State, profile: Profile) -> str | None:
    """Save a profile, in place of one for the same host, engine and model. Return its id, or None
    if it could not be saved: ``state.warning`` tells why."""
    try:
        codec.from_json(Profile, json.loads(json.dumps(codec.to_json(profile))))
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
        changes = [*what_changed(profile, host, engine), *model_changes(profile, model)]
        if changes:
            return profile, changes
    return None


def what_changed(profile: Profile, host: Host, engine: Engine | None = None) -> list[str]:
    """Return a text for each change since the tuning; none if the profile can be used."""
    return [*host_changes(profile, host), *engine_changes(profile, engine)]


def model_changes(profile: Profile, model: ModelFile) -> list[str]:
    """Return how the model's file changed since the tuning: a text if it has another size."""
    sizes = (profile.model.size, model.size)
    then, now = map(size_text, sizes)
    if then == now:
        then, now = (f"{size:,} bytes" for size in sizes)
    return [] if then == now else [f"model size {then}, now {now}"]


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
        found = json.loads(content)
        if not isinstance(found, dict):
            raise DamagedError("it is not a JSON object")
        for name, supported in (("schema", SCHEMA), ("version", VERSION)):
            if found.pop(name, None) != supported:
                raise DamagedError(f"must be {supported}", name)
        return codec.from_json(Profile, found)
    except (ValueError, RecursionError) as error:
        what = error if isinstance(error, DamagedError) else "it is not JSON"
        remedy = f"export it again: {command('profile')} export ID > FILE"
        raise UnsupportedError(f"{path} is not a valid profile: {what}", remedy) from error


def bound_to(profile: Profile, host: Host, engine: EngineKey) -> Profile:
    """Return the profile for this host, with ``engine`` as the engine's place on it. Folders and
    modification times of the engine's files may differ, their sizes may not. Raise
    UnsupportedError, with the differences, if the host or the engine is another."""
    differences, theirs = host_changes(profile, host), profile.engine
    if theirs.version != engine.version:
        differences.append(f"engine version {theirs.version or '-'}, here {engine.version or '-'}")
    changed = {name for name, _ in _sizes(theirs) ^ _sizes(engine)}
    if differences := differences + [f"{name} is not the same here" for name in sorted(changed)]:
        raise UnsupportedError(
            f"the profile was measured on a different machine or engine: {'; '.join(differences)}",
            f"measure here: {command('bench')}",
        )
    return profile._replace(engine=engine)


def _sizes(engine: EngineKey) -> set[tuple[str, int]]:
    """Return the name and the size in bytes of each of the engine's files."""
    # The paths may come from another system, with other separators.
    return {(path.replace("\\", "/").rpartition("/")[2], size) for path, size, _ in engine.files}
