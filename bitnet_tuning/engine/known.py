"""Remember what probes found out about engines, and refuse what an engine cannot run."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

from bitnet_tuning.engine.find import Engine, Location, beside
from bitnet_tuning.engine.instruction_sets import OF_THE_CPU, chooses_itself, refusal
from bitnet_tuning.errors import UnsupportedError
from bitnet_tuning.machine.detect import read_flags
from bitnet_tuning.machine.host import Crowding, Host, fingerprint
from bitnet_tuning.model.types import I2_S, ModelFile
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.store.state import State, change_of, digest, identity, moment

VERSION = 7
"""Version of the questions that a probe asks; records of another version are not used."""

BUILD = "build it on this machine (cmake -B build -DGGML_NATIVE=ON)"

CROWDED, FREE = "crowded", "uncrowded"
"""Kinds of stored trials: those that must be repeated some time, and those that found no limit."""

RETRY_S, CONFIRMED_S = 3600, 24 * 3600
"""Seconds after which a trial is repeated that found a limit, since a load that cannot be seen from
inside the virtual machine may end, or that other load made worthless; and a confirmed limit."""


class Probed(NamedTuple):
    """The record of one engine's probe."""

    engine: Engine
    files: tuple[tuple[str, int, int], ...]
    """Path, size in bytes and time of change of each of the engine's files."""


def know(location: Location, state: State) -> Engine:
    """Return what is known of the engine: from its stored record while its files are unchanged and
    the record holds for this CPU, otherwise from a new probe, which is stored."""
    if found := recall(location, state):
        return found
    from bitnet_tuning.engine.probe import probe  # noqa: PLC0415 (only for an unknown engine)

    engine, complete = probe(location)
    if complete:
        probed = Probed(engine, tuple(map(identity, engine.files)))
        state.store("engine", location.cli, probed, VERSION)
    return engine


def recall(location: Location, state: State) -> Engine | None:
    """Return what the engine's stored record says; None without one that holds here and now."""
    found = state.load("engine", location.cli, Probed, VERSION)
    if found is None:
        return None
    engine = found.engine
    program = location.cli if location.embedded else os.path.realpath(location.cli)
    completion = None if location.embedded else beside(location.cli, "llama-completion")
    is_same = engine.files[:1] == (program,) and engine.completion == completion
    if not is_same or any(change_of(*file) for file in found.files):
        return None
    # A state folder may be shared by machines, so the answers may be about another CPU.
    of_the_build = not (chooses_itself(engine) or engine.isa & OF_THE_CPU)
    holds_here = (engine.ran and of_the_build) or engine.cpu == frozenset(read_flags())
    return engine._replace(location=location) if holds_here else None


def know_crowding(
    host: Host, state: State, attempt: Callable[[], Crowding] | None, again: bool = False
) -> Host:
    """Return the host with the limit that a stored trial found, if any. Without one that is still
    valid, or with ``again``, make a trial with ``attempt``, if that is given, and store it."""
    # There is nothing to find on bare metal, but only x86 tells that there is a hypervisor.
    bare = host.vendor in ("GenuineIntel", "AuthenticAMD") and "hypervisor" not in host.isa
    if host.usable_cores < 2 or bare or not sys.platform.startswith("linux"):
        return host
    key = str(tuple(fingerprint(host)))
    # Most hosts are not crowded: then the file need not be read, which would take 0.5 ms.
    free = state.path(FREE, digest(key))
    if not again and os.path.exists(free):
        return host
    found = state.load(CROWDED, key, Crowding)
    is_old = found is None or found.tried < moment(CONFIRMED_S if found.confirmed else RETRY_S)
    # If nothing could be stored, every start would make a trial.
    unknown = Crowding(moment(), host.usable_cores, None)
    if attempt and (again or (is_old and state.store(CROWDED, key, found or unknown))):
        tried = attempt()
        if tried.limits:
            with contextlib.suppress(OSError):
                os.unlink(free)
        if tried.threads or is_old:
            found = tried._replace(confirmed=tried.limits and bool(found and found.limits))
            state.store(FREE if found.threads == found.planned else CROWDED, key, found)
    return host._replace(crowded=found) if found and found.limits else host


def with_architecture(engine: Engine, name: str) -> Engine:
    """Return the engine with an entry for this model architecture added, if its files tell."""
    if name in engine.architectures or engine.i2_s is None:
        return engine
    from bitnet_tuning.engine.probe import knows_name  # noqa: PLC0415 (seldom)

    found = knows_name(engine.files, name)
    known = {} if found is None else {name: found}
    return engine._replace(architectures={**engine.architectures, **known})


def check_pair(engine: Engine, model: ModelFile) -> None:
    """Raise UnsupportedError if the engine would reject the model or compute garbage with it."""
    name = "the embedded engine" if engine.embedded else engine.path
    if model.quantization in ("tl1", "tl2"):
        why = f"{model.quantization} files need a build that was generated for that model's shape"
        how = "BitNet's python3 setup_env.py -md MODEL_FOLDER -q i2_s makes one"
        remedy = f"use an i2_s file of the model ({how})"
        raise UnsupportedError(f"{name} cannot run {model.path}: {why}", remedy)
    if model.quantization == I2_S and engine.i2_s is False:
        why = "it is built from mainline llama.cpp, which has no i2_s kernels"
        remedy = "name a llama-cli built from bitnet.cpp with --engine, or a TQ2_0 file with -m"
        raise UnsupportedError(f"{name} cannot run {model.path}: {why}", remedy)
    if engine.architectures.get(model.architecture) is False:
        cause = f"{name} does not know the architecture {model.architecture} of {model.path}"
        remedy = "name a newer build with --engine, or another file of the model with -m"
        raise UnsupportedError(cause, remedy)


def check_start(engine: Engine) -> Engine:
    """Return the engine. Raise UnsupportedError if the system cannot start it."""
    if engine.fault:
        raise UnsupportedError(*engine.fault)
    return engine


def check_isa(engine: Engine, host: Host) -> None:
    """Raise UnsupportedError if the build cannot start, or uses instructions that the CPU lacks."""
    check_start(engine)
    refused = refusal(engine, host.isa)
    if refused is None:
        return
    if engine.embedded:
        remedy = "build bitnet.cpp on this machine and name its llama-cli with --engine"
        raise UnsupportedError(f"the embedded engine {refused}", remedy)
    best = engine.checkout and f" (--engine {engine.checkout} selects the best of its builds)"
    remedy = f"{BUILD}, or name another build with --engine{best or ''}"
    raise UnsupportedError(f"{engine.path} {refused}", remedy)
