"""Reading what the doctor judges. Nothing here fails for what is not there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from bitnet_tuning.bench import snapshot
from bitnet_tuning.cli.doctor_build import read_build
from bitnet_tuning.cli.inference import engine_folders, find_engine
from bitnet_tuning.doctor.facts import Case, Problem
from bitnet_tuning.engine import Engine
from bitnet_tuning.errors import TuningError
from bitnet_tuning.ggml_types import ModelFile
from bitnet_tuning.governor import left_behind
from bitnet_tuning.governor_record import Ledger
from bitnet_tuning.host import Host, read_host
from bitnet_tuning.host.base_clock import read_base_clock
from bitnet_tuning.host.cgroups import Cgroups
from bitnet_tuning.host.kernel_settings import read_kernel_settings
from bitnet_tuning.host.locking import read_lock_limit
from bitnet_tuning.host.memory import read_memory
from bitnet_tuning.host.mounts import read_mounts
from bitnet_tuning.host.root import Root
from bitnet_tuning.host.wsl_config import read_wsl_configs
from bitnet_tuning.knowledge import with_architecture
from bitnet_tuning.model import choose_model, know
from bitnet_tuning.profile import load as load_profile
from bitnet_tuning.profiles import find_stale
from bitnet_tuning.selftest import run_selftest
from bitnet_tuning.state import State, default_folder

Read = TypeVar("Read")

_NO_GROUPS = Cgroups((), (), ())


class Inquiry(NamedTuple):
    """What is to be judged. Of a recorded machine (``root``), an engine and a model only
    where they are named."""

    root: str = "/"
    engine: str | None = None
    model: str | None = None
    selftest: bool = True


def gather(inquiry: Inquiry) -> Case:
    """Takes about a second on a live machine, and the self-test's time."""
    root = Root(inquiry.root)
    state = State(default_folder(os.environ))
    case = _with_governors(_machine(root, read_host(inquiry.root)), root, state)
    case = _with_model(_with_engine(case, inquiry, state), inquiry, state)
    case = _with_profile(case, state)
    engine = case.known_engine
    if engine is None or not inquiry.selftest:
        return case
    return case._replace(selftest=attempt(lambda: run_selftest(engine, read_host())))


def attempt(read: Callable[[], Read]) -> Read | Problem:
    """What ``read`` answers, or why it does not."""
    try:
        return read()
    except TuningError as error:
        return Problem(error.cause, error.remedy)
    except Exception as error:
        return Problem(f"{type(error).__name__}: {error}", "BITNET_TUNING_DEBUG=1 shows more")


def _machine(root: Root, host: Host) -> Case:
    """Conditions come first: a probe of the engine would be a load itself."""
    seen = snapshot.take(host, root, snapshot.LOAD_SECONDS if root.live else 0.0)
    mounts = read_mounts(root)
    return Case(
        host=host,
        live=root.live,
        environ=os.environ,
        now=time.time(),
        conditions=seen if root.live else seen._replace(other_load=None),
        base_clock=read_base_clock(root, host.allowed, host.brand),
        machine_memory=read_memory(root, _NO_GROUPS),
        lock_limit=read_lock_limit(root),
        kernel=read_kernel_settings(root),
        mounts=mounts,
        wsl_configs=read_wsl_configs(root, mounts) if host.wsl else (),
    )


def _with_governors(case: Case, root: Root, state: State) -> Case:
    left = attempt(lambda: left_behind(Ledger(root.path, state.folder)))
    return case if isinstance(left, Problem) else case._replace(left_governors=tuple(left.values()))


def _with_engine(case: Case, inquiry: Inquiry, state: State) -> Case:
    if not case.live and inquiry.engine is None:
        return case
    engine = attempt(lambda: find_engine(inquiry.engine, state, inquiry.model))
    if isinstance(engine, Problem):
        return case._replace(engine=engine)
    build = attempt(lambda: read_build(engine, case.environ))
    return case._replace(engine=engine, build=build)


def _with_model(case: Case, inquiry: Inquiry, state: State) -> Case:
    if not case.live:
        return case if inquiry.model is None else _recorded_model(case, inquiry, state)
    engine = case.known_engine
    model = attempt(lambda: _find_model(engine, inquiry.model, state))
    if isinstance(model, Problem):
        return case._replace(model=model)
    case = case._replace(model=model, model_path=os.path.realpath(model.path))
    return case._replace(engine=with_architecture(engine, model.architecture)) if engine else case


def _find_model(engine: Engine | None, named: str | None, state: State) -> ModelFile:
    """As a run with this engine would choose it; raises MissingError."""
    folders = engine_folders()
    if engine and engine.checkout and engine.checkout not in folders:
        folders = (*folders, engine.checkout)
    embedded = engine is not None and engine.embedded
    return choose_model(named, os.environ, folders, embedded, state).model


def _recorded_model(case: Case, inquiry: Inquiry, state: State) -> Case:
    """A path of the recorded machine, whose file may lie below the root folder."""
    path = os.path.abspath(inquiry.model or "")
    base = os.path.abspath(inquiry.root)
    inside = path if path.startswith(f"{base}{os.sep}") else f"{base}{path}"
    there = path if inside == path else inside
    model = attempt(lambda: know(there if os.path.exists(there) else path, state))
    return case._replace(model=model, model_path=inside[len(base) :])


def _with_profile(case: Case, state: State) -> Case:
    engine, model, host = case.known_engine, case.known_model, case.host
    if engine is None or model is None:
        return case
    profile = attempt(lambda: load_profile(state, host, engine, model))
    stale = attempt(lambda: find_stale(state, host, engine, model)) if profile is None else []
    if isinstance(stale, Problem):
        return case._replace(profile=stale)
    return case._replace(profile=profile, stale=tuple(stale))
