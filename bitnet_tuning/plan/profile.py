"""A profile's form: what it holds, and the strict check of one that comes from a file;
pure. A file may come from another machine, so nothing in it is trusted."""

from __future__ import annotations

import json

from bitnet_tuning.machine.host import fingerprint
from bitnet_tuning.machine.root import parse_list
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.openmp import TUNABLE
from bitnet_tuning.plan.setting import MOST_THREADS_ENGINE, Setting, as_json, from_json
from bitnet_tuning.store.state import State, digest, identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from bitnet_tuning.model.types import ModelFile

    Check = Callable[[Any, str], object]
    "Raises ValueError for a value, named by its place, that must not be there."
    from bitnet_tuning.engine.find import Engine
    from bitnet_tuning.machine.host import Host

    pass


OBJECTIVES = ("tg", "pp", "request")
NUMA = ("distribute", "isolate", "numactl")
_MOST_UBATCH = 1 << 20
_MOST_NODES = 1 << 10
"""The kernel's MAX_NUMNODES at most."""
_LONGEST = 1 << 16
"""Characters of a text; the list of a large host's cores has some thousands."""


class Ratio(NamedTuple):
    """How much faster, with the ends of its interval."""

    median: float
    low: float
    high: float
    rounds: int
    """That it rests on."""


class Evidence(NamedTuple):
    """What speaks for a profile."""

    objective: dict[str, Any]
    """``name`` (tg, pp, request), ``n_prompt``, ``n_gen``."""
    verdict: str
    ratio: Ratio | None
    """Over the default."""
    floor: float | None
    """How far the default strayed from itself, as a factor."""
    against_upstream: Ratio | None
    """Over ``-t 2`` without any environment."""
    speeds: dict[str, float | None]
    """Medians in tokens/s by phase, ``pp`` and ``tg``."""
    results: str | None
    """Path of the file with all samples."""
    budget: float | None
    """Seconds that were granted."""


class EngineKey(NamedTuple):
    """An engine as it was measured."""

    path: str
    version: str
    files: tuple[tuple[str, int, int], ...]
    """Path, bytes and modification time (ns) of the program and its libraries."""


class ModelKey(NamedTuple):
    """Models alike in all but the name are equally fast."""

    architecture: str
    quantization: str
    size: int
    name: str

    @classmethod
    def of(cls, model: ModelFile) -> ModelKey:
        """A name may be anything that somebody wrote into a header."""
        name = "".join(letter if letter.isprintable() else " " for letter in model.name[:200])
        return cls(model.architecture, model.quantization, model.size, name)


class Profile(NamedTuple):
    """What a tuning found."""

    created: str
    """UTC, as in 2026-11-23T04:05:06Z."""
    host: dict[str, Any]
    engine: EngineKey
    model: ModelKey
    setting: Setting | None
    """None where the default stays."""
    evidence: Evidence


def day(profile: Profile) -> str:
    return profile.created[:10]


def claim(profile: Profile) -> str:
    """The evidence in half a sentence."""
    when = f"measured on {day(profile)}"
    ratio, name = profile.evidence.ratio, profile.evidence.objective["name"]
    what = {"pp": ", for prompts", "request": ", for whole requests"}.get(name, "")
    return when if ratio is None else f"{when}: {ratio_text(ratio)} over the default{what}"


def ratio_text(ratio: Ratio) -> str:
    return f"×{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"


def as_record(profile: Profile) -> dict[str, Any]:
    """For a file; ``from_record`` takes it back."""
    evidence = profile.evidence._asdict()
    for name in ("ratio", "against_upstream"):
        evidence[name] = evidence[name] and evidence[name]._asdict()
    engine = profile.engine._asdict()
    return {
        "created": profile.created,
        "host": profile.host,
        "engine": {**engine, "files": [list(file) for file in profile.engine.files]},
        "model": profile.model._asdict(),
        "setting": profile.setting and as_json(profile.setting),
        "evidence": evidence,
    }


def from_record(record: Mapping[str, Any]) -> Profile:
    """Raises ValueError, in a few words, for what ``as_record`` never writes. Fields beside
    a profile's own are not looked at."""
    facts = {name: record[name] for name in Profile._fields if name in record}
    _PROFILE(facts, "the profile")
    engine = facts["engine"]
    files = tuple((path, size, changed) for path, size, changed in engine["files"])
    evidence = facts["evidence"]
    ratios = {
        name: evidence[name] and Ratio(**evidence[name]) for name in ("ratio", "against_upstream")
    }
    setting = None if facts["setting"] is None else from_json(facts["setting"])
    if setting is not None:
        _check_setting(setting, facts["host"]["allowed"])
    return Profile(
        created=facts["created"],
        host=facts["host"],
        engine=EngineKey(**{**engine, "files": files}),
        model=ModelKey(**facts["model"]),
        setting=setting,
        evidence=Evidence(**{**evidence, **ratios}),
    )


def _check_setting(setting: Setting, allowed: str) -> None:
    """Within what a tuning can find: a variable such as LD_PRELOAD, say, is none of it."""
    threads = max(setting.threads, setting.threads_batch)
    strange = [name for name, text in setting.env if name not in TUNABLE or _controls(text)]
    wrong = (
        (threads > MOST_THREADS_ENGINE, f"{threads} threads"),
        (bool(strange), f"variables that no tuning sets ({', '.join(map(repr, strange))})"),
        (
            setting.cpus is not None and not parse_list(allowed) >= setting.cpus > frozenset(),
            "CPUs that it may not use",
        ),
        (not 1 <= (setting.ubatch or 1) <= _MOST_UBATCH, f"a micro-batch of {setting.ubatch}"),
        (not 0 <= (setting.poll or 0) <= 100, f"a poll level of {setting.poll}"),
        (setting.numa not in (None, *NUMA), f"numa {setting.numa!r}"),
        (setting.nice != 0, "a priority"),
        (not 0 <= (setting.node or 0) < _MOST_NODES, f"node {setting.node}"),
        (setting.interleave == frozenset(), "no nodes to spread memory over"),
    )
    for is_wrong, what in wrong:
        if is_wrong:
            raise ValueError(f"its setting has {what}")


def _need(is_right: bool, place: str, value: object) -> None:
    if not is_right:
        raise ValueError(f"{place} is {repr(value)[:60]}")


def _text(value: Any, place: str) -> None:
    is_text = isinstance(value, str) and len(value) <= _LONGEST
    _need(is_text and not _controls(value), place, value)


def _controls(text: str) -> bool:
    """Whether it would do something to a terminal. Bytes of a path that are no text do not."""
    return not text.isprintable() and any(
        not (letter.isprintable() or "\udc80" <= letter <= "\udcff") for letter in text
    )


def _whole(value: Any, place: str) -> None:
    _need(type(value) is int and 0 <= value < 1 << 64, place, value)


def _positive(value: Any, place: str) -> None:
    _need(type(value) in (int, float) and 0 < value < 1e18, place, value)


def _cpus(value: Any, place: str) -> None:
    _text(value, place)
    parse_list(value)


def _moment(value: Any, place: str) -> None:
    _need(isinstance(value, str) and len(value) == len("2026-11-23T04:05:06Z"), place, value)
    form = "".join("0" if letter in "0123456789" else letter for letter in value)
    _need(form == "0000-00-00T00:00:00Z", place, value)


def _setting(value: Any, place: str) -> None:
    """Its fields are checked when it is read."""
    _need(isinstance(value, dict), place, value)


def _one_of(*allowed: str) -> Check:
    return lambda value, place: _need(value in allowed, place, value)


def _optional(check: Check) -> Check:
    return lambda value, place: value is None or check(value, place)


def _sequence(*checks: Check) -> Check:
    def check_all(value: Any, place: str) -> None:
        _need(isinstance(value, list) and len(value) == len(checks), place, value)
        for check, item in zip(checks, value, strict=True):
            check(item, f"an item of {place}")

    return check_all


def _list_of(check: Check) -> Check:
    def check_all(value: Any, place: str) -> None:
        _need(isinstance(value, list), place, value)
        for item in value:
            check(item, f"an item of {place}")

    return check_all


def _mapping_to(check: Check) -> Check:
    def check_all(value: Any, place: str) -> None:
        _need(isinstance(value, dict), place, value)
        for name, item in value.items():
            _text(name, f"a name in {place}")
            check(item, f"{name} of {place}")

    return check_all


def _fields(**checks: Check) -> Check:
    def check_all(value: Any, place: str) -> None:
        _need(isinstance(value, dict), place, value)
        odd = sorted(set(value) ^ set(checks))
        if odd:
            has = "lacks" if odd[0] in checks else "has an unknown"
            raise ValueError(f"{place} {has} {odd[0]!r}")
        for name, check in checks.items():
            check(value[name], f"{name} of {place}")

    return check_all


_RATIO = _fields(median=_positive, low=_positive, high=_positive, rounds=_whole)
_HOST = _fields(
    brand=_optional(_text),
    online=_cpus,
    allowed=_cpus,
    quota=_optional(_positive),
    cores=_text,
    speeds=_mapping_to(_cpus),
    nodes=_mapping_to(_cpus),
    performance_cpus=_optional(_cpus),
)
_PROFILE = _fields(
    created=_moment,
    host=_HOST,
    engine=_fields(path=_text, version=_text, files=_list_of(_sequence(_text, _whole, _whole))),
    model=_fields(architecture=_text, quantization=_text, size=_whole, name=_text),
    setting=_optional(_setting),
    evidence=_fields(
        objective=_fields(name=_one_of(*OBJECTIVES), n_prompt=_whole, n_gen=_whole),
        verdict=_text,
        ratio=_optional(_RATIO),
        floor=_optional(_positive),
        against_upstream=_optional(_RATIO),
        speeds=_fields(pp=_optional(_positive), tg=_optional(_positive)),
        results=_optional(_text),
        budget=_optional(_positive),
    ),
)


KIND = "profile"
VERSION = 1
"""Of a profile's form; those of other versions are neither used nor changed."""


def key_of(host: Mapping[str, Any], engine_path: str, model: ModelFile | ModelKey) -> str:
    """By which a profile is stored; ``host`` is a fingerprint."""
    parts = (engine_path, model.architecture, model.quantization, model.size)
    return json.dumps([*parts, host], sort_keys=True)


def load(state: State, host: Host, engine: Engine, model: ModelFile) -> Profile | None:
    """The profile of this very host, engine and model, or None. One that is damaged is
    set aside."""
    seen = fingerprint(host)
    key = key_of(seen, engine.path, model)
    record = state.load(KIND, key)
    if record is None or record.get("version") != VERSION:
        return None

    try:
        profile = from_record(record)
    except ValueError:
        state.set_aside(state.path(KIND, digest(key)))
        return None
    wanted = ModelKey.of(model)._replace(name=profile.model.name)
    same = (profile.host, profile.engine.path, profile.model) == (seen, engine.path, wanted)
    return profile if same and not engine_changes(profile, engine) else None


def engine_changes(profile: Profile, engine: Engine | None = None) -> list[str]:
    """What became of the profile's engine since, by its files; and where it is given, by
    what is known of it now."""
    changes = [found for file in profile.engine.files if (found := _file_change(*file))]
    if engine is None:
        return changes
    if profile.engine.version != engine.version:
        changes.append(f"engine version {profile.engine.version!r}, now {engine.version!r}")
    others = set(engine.files) ^ {path for path, _, _ in profile.engine.files}
    return changes + [f"{path} was not there or is not used any more" for path in sorted(others)]


def _file_change(path: str, size: int, changed: int) -> str | None:
    try:
        return None if identity(path) == [path, size, changed] else f"{path} is another build"
    except (OSError, ValueError):
        return f"{path} is gone"
