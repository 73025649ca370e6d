"""The measured winner for this host, engine and model, as a run needs it.

A run without one pays for one file that is not there: what reads, checks and keeps
profiles is imported only when there is one.
"""

from __future__ import annotations

import json

from bitnet_tuning.cpulist import format_list
from bitnet_tuning.engine import identity
from bitnet_tuning.records import TYPE_CHECKING
from bitnet_tuning.state import State, digest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from bitnet_tuning.engine import Engine
    from bitnet_tuning.ggml_types import ModelFile
    from bitnet_tuning.host import Host
    from bitnet_tuning.profile_record import ModelKey, Profile

KIND = "profile"
VERSION = 1
"""Of a profile's form; those of other versions are neither used nor changed."""


def fingerprint(host: Host) -> dict[str, Any]:
    """What of a host makes a measurement hold: topology, limits, brand. Not what varies
    from run to run, such as free memory and the governor."""
    speeds: dict[str, set[int]] = {}
    for core in host.cores:
        speeds.setdefault(f"{core.speed:.2f}", set()).update(core.cpus)
    return {
        "brand": host.brand,
        "online": format_list(host.online),
        "allowed": format_list(host.allowed),
        "quota": host.quota,
        "cores": " ".join(",".join(map(str, sorted(core.cpus))) for core in host.cores),
        "speeds": {speed: format_list(cpus) for speed, cpus in speeds.items()},
        "nodes": {str(node.id): format_list(node.cpus) for node in host.nodes},
        "performance_cpus": host.hybrid and format_list(host.hybrid.performance_cpus),
    }


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
    from bitnet_tuning.profile_record import ModelKey, from_record  # noqa: PLC0415

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
