"""A profile: what a tuning found for one host, engine and model, and whether it holds. A file
may come from another machine, so nothing in it is trusted."""

from __future__ import annotations

import json

from bitnet_tuning.console import times
from bitnet_tuning.machine.host import Fingerprint, fingerprint
from bitnet_tuning.machine.root import parse_list
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.setting import Setting, Tokens
from bitnet_tuning.store.codec import (
    Annotated,
    Count,
    DamagedError,
    Moment,
    Positive,
    Text,
    Written,
)
from bitnet_tuning.store.state import State, digest, identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.engine.find import Engine
    from bitnet_tuning.machine.host import Host
    from bitnet_tuning.model.types import ModelFile


PP, TG = "pp", "tg"
"""Prompt processing and token generation: kept apart, as keys of samples everywhere."""
Phase = Annotated[str, {"enum": [PP, TG]}]

OBJECTIVES = (TG, PP, "request")
Goal = Annotated[str, {"enum": list(OBJECTIVES)}]


class Objective(NamedTuple):
    """What is to be fast. ``request`` weighs a prompt of ``n_prompt`` tokens with an answer
    of ``n_gen``."""

    name: Goal = TG
    n_prompt: Tokens = 128
    n_gen: Tokens = 128

    @property
    def phases(self) -> tuple[str, ...]:
        """What must be measured for it."""
        return (PP, TG) if self.name == "request" else (self.name,)


class Estimate(NamedTuple):
    """A median and how far it can be trusted."""

    median: Positive
    low: Positive
    """The interval's ends, in the median's unit."""
    high: Positive
    count: Count  # type: ignore[assignment]  # hides a method that records do not need
    """Values, or rounds, that it rests on."""


OverDefault = Annotated[Estimate, Written(names={"count": "rounds"})]


class Evidence(NamedTuple):
    """What speaks for a profile."""

    objective: Objective
    verdict: Text
    ratio: OverDefault | None
    """Over the default."""
    floor: Positive | None
    """How far the default strayed from itself, as a factor."""
    against_upstream: OverDefault | None
    """Over ``-t 2`` without any environment."""
    speeds: dict[Phase, Positive | None]
    """Medians in tokens/s by phase."""
    results: Text | None
    """Path of the file with all samples."""
    budget: Positive | None
    """Seconds that were granted."""


class EngineKey(NamedTuple):
    """An engine as it was measured."""

    path: Text
    version: Text
    files: tuple[tuple[Text, Count, Count], ...]
    """Path, bytes and modification time (ns) of the program and its libraries."""


class ModelKey(NamedTuple):
    """Models alike in all but the name are equally fast."""

    architecture: Text
    quantization: Text
    size: Count
    name: Text

    @classmethod
    def of(cls, model: ModelFile) -> ModelKey:
        """Return the model's key. A name may be anything that somebody wrote into a header."""
        name = "".join(letter if letter.isprintable() else " " for letter in model.name[:200])
        return cls(model.architecture, model.quantization, model.size, name)


class Profile(NamedTuple):
    """What a tuning found."""

    created: Moment
    host: Fingerprint
    engine: EngineKey
    model: ModelKey
    setting: Setting | None
    """None where the default stays."""
    evidence: Evidence

    def validate(self) -> None:
        """Raise DamagedError for a setting that no tuning finds on that host."""
        if self.setting is not None and self.setting.nice != 0:
            raise DamagedError("a tuning changes no priority", ".setting.nice")
        cpus = self.setting and self.setting.cpus
        if cpus and not cpus <= parse_list(self.host.allowed):
            raise DamagedError(f"not all among the host's {self.host.allowed}", ".setting.cpus")

    @property
    def key(self) -> str:
        """Return what it is stored by."""
        return key_of(self.host, self.engine.path, self.model)

    @property
    def id(self) -> str:
        """Return 16 hexadecimal digits, which its file carries as well."""
        return digest(self.key)

    @property
    def day(self) -> str:
        """Return when it was measured."""
        return self.created[:10]


def claim(profile: Profile) -> str:
    """Return the evidence in half a sentence."""
    when = f"measured on {profile.day}"
    ratio, name = profile.evidence.ratio, profile.evidence.objective.name
    what = {"pp": ", for prompts", "request": ", for whole requests"}.get(name, "")
    return when if ratio is None else f"{when}: {times(*ratio)} over the default{what}"


KIND = "profile"
VERSION = 1
"""Of a profile's form; those of other versions are neither used nor changed."""


def key_of(host: Fingerprint, engine_path: str, model: ModelFile | ModelKey) -> str:
    """Return what a profile for these is stored by."""
    parts = (engine_path, model.architecture, model.quantization, model.size)
    return json.dumps([*parts, host._asdict()], sort_keys=True)


def load(state: State, host: Host, engine: Engine, model: ModelFile) -> Profile | None:
    """Return the profile of this very host, engine and model, or None. One that is damaged is
    set aside, and one of the embedded engine as it was in version 0.1, a single file."""
    seen = fingerprint(host)
    key = key_of(seen, engine.path, model)
    if engine.embedded:
        old = key_of(seen, engine.path.removesuffix("/__main__.py") + ".py", model)
        if state.load(KIND, old, Profile, VERSION):
            state.set_aside(state.path(KIND, digest(old)), "its embedded engine was replaced")
    profile = state.load(KIND, key, Profile, VERSION)
    if profile is None or profile.key != key or engine_changes(profile, engine):
        return None
    return profile


def engine_changes(profile: Profile, engine: Engine | None = None) -> list[str]:
    """Return what became of the profile's engine since, by its files; and where it is given,
    by what is known of it now."""
    changes = [found for file in profile.engine.files if (found := _file_change(*file))]
    if engine is None:
        return changes
    if profile.engine.version != engine.version:
        changes.append(f"engine version {profile.engine.version!r}, now {engine.version!r}")
    others = set(engine.files) ^ {path for path, _, _ in profile.engine.files}
    return changes + [f"{path} was not there or is not used any more" for path in sorted(others)]


def _file_change(path: str, size: int, changed: int) -> str | None:
    try:
        return None if identity(path) == (path, size, changed) else f"{path} is another build"
    except (OSError, ValueError):
        return f"{path} is gone"
