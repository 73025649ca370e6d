"""Read what the doctor judges. What is missing or unreadable never stops the reading."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from glob import escape, glob
from typing import TypeVar

from bitnet_tuning.doctor.case import Case
from bitnet_tuning.engine.builds import build_name
from bitnet_tuning.engine.find import Engine
from bitnet_tuning.engine.known import with_architecture
from bitnet_tuning.errors import TuningError, cause_of
from bitnet_tuning.machine import conditions
from bitnet_tuning.machine.cgroups import Cgroups, read_mounts
from bitnet_tuning.machine.detect import read_host, read_lock_limit
from bitnet_tuning.machine.memory import read_huge_pages, read_memory, read_numa_balancing
from bitnet_tuning.machine.root import Root
from bitnet_tuning.machine.sensors import read_base_clock
from bitnet_tuning.machine.wsl import read_wsl_configs, with_windows_cores
from bitnet_tuning.model.find import know, slim_copies
from bitnet_tuning.plan import profile as profiles
from bitnet_tuning.prepare import crowded_host, find_engine, find_model
from bitnet_tuning.store.state import State
from bitnet_tuning.verify.selftest import run_selftest

Read = TypeVar("Read")


def gather(
    root: str = "/", engine: str | None = None, model: str | None = None, selftest: bool = True
) -> Case:
    """Return the facts about the machine below ``root``, the engine and the model. For a recorded
    machine (another ``root`` than ``/``) only a named engine or model is read. On this machine
    reading takes about a second, and the self-test a few more."""
    place = Root(root)
    state = State()
    host = with_windows_cores(read_host(root), root, ask=True)
    # The load of others first: the engine's probe, which comes later, would count as load.
    seen = conditions.take(host, place, conditions.LOAD_SECONDS if place.live else 0.0)
    mounts = read_mounts(place)
    case = Case(
        host=host,
        live=place.live,
        environ=os.environ,
        now=time.time(),
        conditions=seen if place.live else seen._replace(other_load_cpus=None),
        base_clock=read_base_clock(place, host.allowed, host.brand),
        machine_memory=read_memory(place, Cgroups()),
        lock_limit=read_lock_limit(place),
        huge_pages=read_huge_pages(place),
        numa_balancing=read_numa_balancing(place),
        mounts=mounts,
        wsl_configs=read_wsl_configs(place, mounts) if host.wsl else (),
    )
    if place.live or engine is not None:
        found_engine = attempt(lambda: find_engine(engine, state, model))
        case = case._replace(engine=found_engine)
        if isinstance(found_engine, Engine):
            build = attempt(lambda: read_build(found_engine, os.environ))
            built, swapped = (None, None) if isinstance(build, TuningError) else build
            case = case._replace(built=built, swapped=swapped)
    if place.live:
        case = _with_model(case, model, state)
    elif model is not None:
        # Named as it is on the recorded machine, or by its path on this one.
        path, base = os.path.abspath(model), os.path.abspath(root)
        inside = path if path.startswith(f"{base}{os.sep}") else f"{base}{path}"
        found = attempt(lambda: know(inside if os.path.exists(inside) else path, state))
        case = case._replace(model=found, model_path=inside[len(base) :])
    ready, known = case.known_engine, case.known_model
    if ready and known:
        profile = profiles.load(state, case.host, ready, known)
        stale = None if profile else profiles.find_stale(state, case.host, ready, known)
        case = case._replace(profile=profile, stale=stale)
    # This machine would run the trial and the self-test, which say nothing about a recorded one.
    if ready is None or not place.live:
        return case
    host = crowded_host(case.host, ready, state, again=True)
    report = attempt(lambda: run_selftest(ready, host)) if selftest else None
    return case._replace(host=host, selftest=report)


def attempt(read: Callable[[], Read]) -> Read | TuningError:
    """Return the result of ``read``, or the error that it raises."""
    try:
        return read()
    except TuningError as error:
        return error
    except OSError as error:
        return TuningError(cause_of(error), "check that the file exists and can be read")
    except Exception as error:
        remedy = "this is a bug in bitnet-tuning; report it with this message"
        return TuningError(cause_of(error), remedy)


def _with_model(case: Case, named: str | None, state: State) -> Case:
    """Add the model that a run with this engine would choose."""
    engine = case.known_engine
    chosen = attempt(lambda: find_model(named, engine and engine.location, state))
    if isinstance(chosen, TuningError):
        return case._replace(model=chosen)
    model = chosen.model
    path, copies = os.path.realpath(model.path), slim_copies(model, state)
    case = case._replace(model=model, model_path=path, slim_copies=copies)
    return case._replace(engine=with_architecture(engine, model.architecture)) if engine else case


def read_build(engine: Engine, environ: Mapping[str, str]) -> tuple[float | None, tuple[str, ...]]:
    """Return ``built`` and ``swapped`` of a ``Case``. A library on LD_LIBRARY_PATH is swapped in if
    it has the name of one that the engine needs, but is not of its build. May raise OSError."""
    if engine.embedded:
        return None, ()
    built = max(os.stat(file).st_mtime for file in engine.files)
    own = os.path.dirname(engine.path)
    if engine.checkout:
        own = os.path.join(engine.checkout, build_name(engine.path))
    own = os.path.join(os.path.realpath(own), "")
    names = map(os.path.basename, engine.files)
    needed = {name.partition(".so")[0] for name in names if ".so" in name}  # libggml of .so.0.9
    swapped = []
    for folder in filter(None, environ.get("LD_LIBRARY_PATH", "").split(":")):
        for path in sorted(glob(f"{escape(folder)}/*.so*")):
            stem = os.path.basename(path).partition(".so")[0]
            if stem in needed and not os.path.realpath(path).startswith(own):
                swapped.append(path)
    return built, tuple(swapped)
