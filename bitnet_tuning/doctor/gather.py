"""Reading what the doctor judges. Nothing here fails for what is not there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeVar

from bitnet_tuning.doctor.case import Build, Case, Problem
from bitnet_tuning.engine.builds import build_name
from bitnet_tuning.engine.find import Engine
from bitnet_tuning.engine.probe import with_architecture
from bitnet_tuning.errors import TuningError
from bitnet_tuning.machine import conditions
from bitnet_tuning.machine.cgroups import Cgroups
from bitnet_tuning.machine.clock import read_base_clock
from bitnet_tuning.machine.detect import read_host
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.limits import read_lock_limit
from bitnet_tuning.machine.memory import read_huge_pages, read_memory, read_numa_balancing
from bitnet_tuning.machine.mounts import read_mounts
from bitnet_tuning.machine.root import Root
from bitnet_tuning.machine.wsl import read_wsl_configs
from bitnet_tuning.model.find import choose_model, know
from bitnet_tuning.model.types import ModelFile
from bitnet_tuning.plan.profile import load as load_profile
from bitnet_tuning.plan.profiles import find_stale
from bitnet_tuning.prepare import engine_folders, find_engine
from bitnet_tuning.store.state import State, default_folder
from bitnet_tuning.verify.selftest import run_selftest

Read = TypeVar("Read")


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
    case = _machine(root, read_host(inquiry.root))
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
    seen = conditions.take(host, root, conditions.LOAD_SECONDS if root.live else 0.0)
    mounts = read_mounts(root)
    return Case(
        host=host,
        live=root.live,
        environ=os.environ,
        now=time.time(),
        conditions=seen if root.live else seen._replace(other_load_cpus=None),
        base_clock=read_base_clock(root, host.allowed, host.brand),
        machine_memory=read_memory(root, Cgroups()),
        lock_limit=read_lock_limit(root),
        huge_pages=read_huge_pages(root),
        numa_balancing=read_numa_balancing(root),
        mounts=mounts,
        wsl_configs=read_wsl_configs(root, mounts) if host.wsl else (),
    )


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


_SOURCE_FOLDERS = ("src", "include", "common", "ggml", "3rdparty")
"""Of a checkout of bitnet.cpp or llama.cpp; what else it holds does not change a build."""

_SOURCES = (".c", ".cc", ".cpp", ".h", ".hpp", ".S", "CMakeLists.txt")
_GENERATED = ("build-info.cpp",)
"""Written into the sources by every build."""

_MOST_FOLDERS = 2000
"""A checkout has some hundreds; what is more is not looked at."""


def read_build(engine: Engine, environ: Mapping[str, str]) -> Build:
    """Raises OSError for files that are gone."""
    if engine.embedded:
        return Build(None, None, ())
    return Build(
        built=max(os.stat(file).st_mtime for file in engine.files),
        changed=_newest_source(engine.checkout),
        swapped=_swapped(engine, environ),
    )


def _newest_source(checkout: str | None) -> float | None:
    """Seconds since the epoch."""
    times = _source_times(checkout) if checkout else ()
    return max(times, default=None)


def _source_times(checkout: str) -> Iterator[float]:
    folders = [os.path.join(checkout, name) for name in _SOURCE_FOLDERS]
    for _ in range(_MOST_FOLDERS):
        if not folders:
            return
        for entry in _entries(folders.pop()):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif entry.name.endswith(_SOURCES) and entry.name not in _GENERATED:
                yield entry.stat(follow_symlinks=False).st_mtime


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:
        return []


def _swapped(engine: Engine, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Libraries outside of the engine's own build with the names of those that it needs."""
    checkout = engine.checkout
    folder = os.path.dirname(engine.path)
    own = os.path.realpath(os.path.join(checkout, build_name(engine.path)) if checkout else folder)
    needed = {_stem(file) for file in engine.files if ".so" in os.path.basename(file)}
    folders = [folder for folder in environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    paths = [entry.path for folder in folders for entry in _entries(folder)]
    return tuple(
        path
        for path in sorted(paths)
        if _stem(path) in needed and not os.path.realpath(path).startswith(f"{own}{os.sep}")
    )


def _stem(path: str) -> str:
    """``libggml`` of ``libggml.so.0.9``."""
    return os.path.basename(path).partition(".so")[0]
