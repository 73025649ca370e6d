"""What a comparison of builds found, remembered for this host and model."""

from __future__ import annotations

import json

from bitnet_tuning.builds import OPEN, Ranked, build_name
from bitnet_tuning.engine import checkout_of, identity
from bitnet_tuning.profile import fingerprint
from bitnet_tuning.records import TYPE_CHECKING, NamedTuple
from bitnet_tuning.state import digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bitnet_tuning.engine import Engine
    from bitnet_tuning.ggml_types import ModelFile
    from bitnet_tuning.host import Host
    from bitnet_tuning.state import Record, Shape, State

KIND = "builds"
_SHAPE: Shape = {"created": str, "objective": str, "reference": str, "builds": dict}


class Found(NamedTuple):
    """One build against the reference."""

    verdict: str
    ratio: tuple[float, float, float] | None
    """Median and the ends of its interval; None for the reference and without a measurement."""


def store_fastest(
    state: State,
    host: Host,
    engines: Sequence[Engine],
    model: ModelFile,
    found: Mapping[str, Found],
    *,
    reference: str,
    created: str,
    objective: str,
) -> bool:
    """Whether it could be kept. ``found`` is by path, and ``reference`` the path of what all
    was measured against."""
    builds = {
        engine.path: {
            "files": _files(engine),
            "verdict": found[engine.path].verdict,
            "ratio": found[engine.path].ratio,
        }
        for engine in engines
        if engine.path in found
    }
    record = {
        "created": created,
        "objective": objective,
        "reference": reference,
        "builds": builds,
    }
    return state.store(KIND, _key(host, engines[0], model), record)


def load_fastest(
    state: State, host: Host, engines: Sequence[Engine], model: ModelFile
) -> dict[str, Ranked]:
    """By path, for every build that is the one that was measured. Nothing where the
    reference is another by now: all was measured against that."""
    record = state.load(KIND, _key(host, engines[0], model), _SHAPE)
    if record is None:
        return {}
    try:
        same = {each.path for each in engines if _is_same(record, each)}
        if record["reference"] not in same:
            return {}
        return {path: _ranked(record, path) for path in same}
    except (LookupError, TypeError, ValueError):
        state.set_aside(state.path(KIND, digest(_key(host, engines[0], model))))
        return {}


def _key(host: Host, engine: Engine, model: ModelFile) -> str:
    parts = (checkout_of(engine.path), model.architecture, model.quantization, model.size)
    return json.dumps([*parts, fingerprint(host)], sort_keys=True)


def _files(engine: Engine) -> list[list[object]]:
    return [identity(path) for path in engine.files]


def _is_same(record: Record, engine: Engine) -> bool:
    measured = record["builds"].get(engine.path)
    try:
        return measured is not None and measured["files"] == _files(engine)
    except OSError:
        return False


def _ranked(record: Record, path: str) -> Ranked:
    found = record["builds"][path]
    if found["ratio"] is None:
        return Ranked(found["verdict"], 1.0, OPEN)
    middle, low, high = map(float, found["ratio"])
    what = {"pp": ", for prompts", "request": ", for whole requests"}.get(record["objective"], "")
    over = build_name(record["reference"])
    when = f"measured on {record['created'][:10]}"
    claim = f"×{middle:.2f} ({low:.2f}–{high:.2f}) over {over}{what}, {when}"
    return Ranked(found["verdict"], middle, claim)
