"""A profile from another machine of a fleet, bound to the engine of this one."""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

from bitnet_tuning.errors import MissingError, UnsupportedError
from bitnet_tuning.profile import VERSION, fingerprint
from bitnet_tuning.profile_record import EngineKey, Profile, from_record
from bitnet_tuning.profiles import host_changes
from bitnet_tuning.state import SCHEMA

if TYPE_CHECKING:
    from bitnet_tuning.host import Host

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
