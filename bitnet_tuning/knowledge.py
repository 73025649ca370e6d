"""What an engine can do: remembered from its last probe, or asked anew."""

from __future__ import annotations

import os

from bitnet_tuning import isa
from bitnet_tuning.engine import Engine, Location, beside, identity
from bitnet_tuning.records import TYPE_CHECKING
from bitnet_tuning.state import ABSENT, State

if TYPE_CHECKING:
    from bitnet_tuning.state import Record, Shape

_PROBE = 2
"""Version of the questions that probe.py asks; old answers are asked for anew."""

_SHAPE: Shape = {
    "identities": list,
    "version": str,
    "flags": list,
    "chat_flags": list,
    "openmp": (str, ABSENT),
    "blas": list,
    "isa": list,
    "i2_s": (bool, ABSENT),
    "architectures": dict,
    "completion": (str, ABSENT),
}


def know(location: Location, state: State) -> Engine:
    """What is known of the engine: from the last probe as long as its files are the same,
    else from a new one, which is remembered."""
    record = state.load("engine", location.cli, _SHAPE)
    if record is not None and _is_current(record, location):
        try:
            engine = _engine(location, record)
            if _holds_here(engine):
                return engine
        except (KeyError, TypeError):
            pass  # an older version's, or lists of something else
    from bitnet_tuning.probe import probe  # noqa: PLC0415

    record = {**probe(location), "probe": _PROBE}
    if record["complete"]:
        state.store("engine", location.cli, record)
    return _engine(location, record)


def with_architecture(engine: Engine, name: str) -> Engine:
    """The engine, with an answer to whether it knows this architecture as well."""
    if name in engine.architectures or engine.i2_s is None:
        return engine
    from bitnet_tuning.binary import knows_name  # noqa: PLC0415

    found = knows_name(engine.files, name)
    known = {} if found is None else {name: found}
    return engine._replace(architectures={**engine.architectures, **known})


def _is_current(record: Record, location: Location) -> bool:
    try:
        program = location.cli if location.embedded else os.path.realpath(location.cli)
        if record.get("probe") != _PROBE:
            return False
        same = record["identities"][0][0] == program and all(
            identity(path) == [path, *rest] for path, *rest in record["identities"]
        )
        completion = None if location.embedded else beside(location.cli, "llama-completion")
        return bool(same and record["completion"] == completion)
    except (OSError, LookupError, TypeError, ValueError):
        return False


def _holds_here(engine: Engine) -> bool:
    """Whether the answers hold for this CPU: always, where they tell of the build alone."""
    if engine.ran and not isa.chooses_itself(engine) and not engine.isa & isa.OF_THE_CPU:
        return True
    from bitnet_tuning.host import read_flags  # noqa: PLC0415

    return engine.cpu == frozenset(read_flags())


def _engine(location: Location, record: Record) -> Engine:
    return Engine(
        location=location,
        version=record["version"],
        flags=frozenset(record["flags"]),
        chat_flags=frozenset(record["chat_flags"]),
        openmp=record["openmp"],
        blas=tuple(record["blas"]),
        isa=frozenset(record["isa"]),
        i2_s=record["i2_s"],
        architectures=record["architectures"],
        files=tuple(identity[0] for identity in record["identities"]),
        completion=record["completion"],
        cpu=frozenset(record["cpu"]),
        ran=record["ran"],
    )
