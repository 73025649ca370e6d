"""Know an engine: by the answers remembered of it, and what it must be refused for."""

from __future__ import annotations

import os

from bitnet_tuning.engine.find import Engine, Location, beside
from bitnet_tuning.engine.instruction_sets import OF_THE_CPU, chooses_itself, refusal
from bitnet_tuning.errors import UnsupportedError
from bitnet_tuning.machine.detect import read_flags
from bitnet_tuning.model.types import I2_S
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.store.state import State, identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.machine.host import Host
    from bitnet_tuning.model.types import ModelFile

VERSION = 4
"""Version of the questions here; answers to older ones are asked for again."""


class Probed(NamedTuple):
    """What is remembered of an engine."""

    engine: Engine
    files: tuple[tuple[str, int, int], ...]
    """The identity of each of its files."""


def know(location: Location, state: State) -> Engine:
    """Return what is known of the engine: from the last probe as long as its files are the
    same, else from a new one, which is remembered."""
    found = state.load("engine", location.cli, Probed, VERSION)
    if found is not None and _is_current(found, location) and _holds_here(found.engine):
        return found.engine._replace(location=location)
    from bitnet_tuning.engine.probe import probe  # noqa: PLC0415 (only for an unknown engine)

    engine, complete = probe(location)
    if complete:
        probed = Probed(engine, tuple(identity(path) for path in engine.files))
        state.store("engine", location.cli, probed, VERSION)
    return engine


def with_architecture(engine: Engine, name: str) -> Engine:
    """Return the engine with an answer to whether it knows this architecture as well."""
    if name in engine.architectures or engine.i2_s is None:
        return engine
    from bitnet_tuning.engine.binary import knows_name  # noqa: PLC0415 (seldom)

    found = knows_name(engine.files, name)
    known = {} if found is None else {name: found}
    return engine._replace(architectures={**engine.architectures, **known})


def _is_current(found: Probed, location: Location) -> bool:
    program = location.cli if location.embedded else os.path.realpath(location.cli)
    completion = None if location.embedded else beside(location.cli, "llama-completion")
    try:
        return (
            found.engine.files[:1] == (program,)
            and found.engine.completion == completion
            and all(identity(path) == (path, *rest) for path, *rest in found.files)
        )
    except (OSError, ValueError):
        return False


def _holds_here(engine: Engine) -> bool:
    """Return whether the answers hold for this CPU: always, if they depend on the build alone."""
    of_the_build = not (chooses_itself(engine) or engine.isa & OF_THE_CPU)
    return (engine.ran and of_the_build) or engine.cpu == frozenset(read_flags())


def check_pair(engine: Engine, model: ModelFile) -> None:
    """Raise UnsupportedError for what would fail after loading, or compute garbage."""
    if model.quantization in ("tl1", "tl2"):
        raise UnsupportedError(
            f"{model.path} is a {model.quantization} file: it works only in a build generated "
            "for its very shape",
            "use the model's i2_s file: python3 setup_env.py -md MODEL_FOLDER -q i2_s",
        )
    if model.quantization == I2_S and engine.i2_s is False:
        kind = "the embedded engine" if engine.embedded else engine.path
        raise UnsupportedError(
            f"{kind} is mainline llama.cpp and has no i2_s kernels, which {model.path} needs",
            "use a llama-cli built from bitnet.cpp (--engine), or a TQ2_0 file of the model",
        )
    if engine.architectures.get(model.architecture) is False:
        raise UnsupportedError(
            f"the engine {engine.path} does not know the architecture "
            f"{model.architecture!r} of {model.path}",
            "use a current bitnet.cpp build (--engine), or another file of the model",
        )


def check_isa(engine: Engine, host: Host) -> None:
    """Raise UnsupportedError for a build that this CPU would end by an illegal instruction."""
    refused = refusal(engine, host.isa)
    if refused is None:
        return
    if engine.embedded:
        raise UnsupportedError(
            f"the embedded engine {refused}",
            "build bitnet.cpp or llama.cpp on this machine and name its llama-cli with --engine",
        )
    another = engine.checkout and f" (--engine {engine.checkout} takes the best of its builds)"
    raise UnsupportedError(
        f"{engine.path} {refused}",
        "build it on this machine (cmake -B build -DGGML_NATIVE=ON), or name another build "
        f"with --engine{another or ''}",
    )
