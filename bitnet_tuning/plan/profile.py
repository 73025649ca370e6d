"""Profiles: the record that a tuning saves for one host, engine and model, and how one is loaded. A
profile may have been imported from another machine, so nothing in it is trusted."""

from __future__ import annotations

import json

from bitnet_tuning.console import times
from bitnet_tuning.engine.find import Engine
from bitnet_tuning.machine.host import Fingerprint, Host, fingerprint
from bitnet_tuning.machine.root import parse_list
from bitnet_tuning.model.types import ModelFile
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.setting import Setting, Tokens
from bitnet_tuning.store import codec
from bitnet_tuning.store.codec import LATER, Annotated, Count, DamagedError, Moment, Positive, Text
from bitnet_tuning.store.state import State, change_of, digest

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
        if self.setting is not None and self.setting.nice != 0:
            raise DamagedError("must be 0: no tuning changes the priority", ".setting.nice")
        if self.setting is not None and self.setting.embedding is not None:
            raise DamagedError("must be null: no tuning changes the file", ".setting.embedding")
        cpus = self.setting and self.setting.cpus
        if cpus and not cpus <= parse_list(self.host.allowed):
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
        changes.append(
            f"engine version {profile.engine.version or '-'}, now {engine.version or '-'}"
        )
    others = set(engine.files) ^ {path for path, _, _ in profile.engine.files}
    return changes + [f"{path} was added or is no longer used" for path in sorted(others)]
