"""Checks of OpenMP variables that slow an engine down or have no effect."""

from __future__ import annotations

import re

from bitnet_tuning.console import counted
from bitnet_tuning.doctor.case import BENCHMARK, Case, Check, Finding, bad, good, unknown, warn
from bitnet_tuning.engine.find import GOMP, LLVM, NONE
from bitnet_tuning.machine.root import parse_list
from bitnet_tuning.plan.openmp import BINDING_BY_USER, thread_limit, user_set

_PREFIXES = ("OMP_", "GOMP_", "KMP_")
_NOT_READ = {GOMP: ("KMP_",), LLVM: ("GOMP_SPINCOUNT",), NONE: _PREFIXES}
"""Prefixes of the variables that each OpenMP runtime does not read."""

_ZERO = re.compile(r"0+(ms|us|s)?", re.IGNORECASE | re.ASCII)


def _reads(case: Case, name: str) -> bool:
    """Return whether the engine's runtime reads the variable; an unknown one is assumed to."""
    runtime = case.known_engine.openmp if case.known_engine else None
    return not name.startswith(_NOT_READ.get(runtime or "", ()))


def _value(case: Case, name: str) -> str:
    """Return the variable's value; empty if it is unset or the engine does not read it."""
    return case.environ.get(name, "").strip() if _reads(case, name) else ""


def _waiting(case: Case) -> Finding:
    spinning = ("KMP_BLOCKTIME", "GOMP_SPINCOUNT")
    names = [name for name in spinning if _ZERO.fullmatch(_value(case, name))]
    if _value(case, "OMP_WAIT_POLICY").lower() == "passive":
        names.insert(0, "OMP_WAIT_POLICY")
    if not names:
        return good("threads stay awake while they wait for each other")
    shown = ", ".join(f"{name}={_value(case, name)}" for name in names)
    text = f"{shown} makes threads sleep whenever they wait for each other"
    if case.host.quota_binds:
        return unknown(
            f"{text}, which may help under a CPU quota",
            f"measure it, with and without the variable: {BENCHMARK}",
        )
    return bad(text, f"unset {' '.join(names)}")


def _limit(case: Case) -> Finding:
    text, limit = _value(case, "OMP_THREAD_LIMIT"), thread_limit(None, case.environ)
    wanted = max(case.wanted_threads, case.computed.setting.threads_batch)
    if not text:
        return good("OMP_THREAD_LIMIT is not set")
    if limit is None:
        return unknown(f"OMP_THREAD_LIMIT={text} is not a number", "unset OMP_THREAD_LIMIT")
    if limit < wanted:
        text = f"OMP_THREAD_LIMIT={text} overrides even -t; {wanted} threads suit this machine"
        return bad(text, "unset OMP_THREAD_LIMIT")
    return good(f"OMP_THREAD_LIMIT={text} allows the {wanted} threads that suit this machine")


def _dynamic(case: Case) -> Finding:
    if _value(case, "OMP_DYNAMIC").lower() not in ("true", "1", "yes"):
        return good("OpenMP does not change the number of threads")
    return bad(
        "OMP_DYNAMIC lets OpenMP run fewer threads than -t says while the machine is busy",
        "unset OMP_DYNAMIC",
    )


def _binding(case: Case) -> Finding:
    bound = _value(case, "OMP_PROC_BIND").lower()
    if bound.split(",")[0] in ("master", "primary"):
        return bad(
            f"OMP_PROC_BIND={bound} makes all threads share the CPUs of the first one",
            "unset OMP_PROC_BIND",
        )
    listed, threads = _value(case, "GOMP_CPU_AFFINITY"), case.wanted_threads
    try:
        cpus = parse_list(listed.replace(" ", ","))  # such as 0 3 4-7
    except ValueError:
        cpus = frozenset()
    if cpus and len(cpus) < threads:
        return bad(
            f"GOMP_CPU_AFFINITY={listed} names {counted(len(cpus), 'CPU')} for {threads} threads",
            "unset GOMP_CPU_AFFINITY",
        )
    yours = [name for name in BINDING_BY_USER if user_set(case.environ, name)]
    if yours:
        return good(f"you bind threads yourself: {', '.join(yours)}")
    return good("you set no variable that binds threads")


def _ignored(case: Case) -> Finding | None:
    runtime = case.known_engine.openmp if case.known_engine else None
    if runtime is None:
        return None
    names = [
        name
        for name in sorted(case.environ)
        if name.startswith(_PREFIXES)
        and not _reads(case, name)
        and user_set(case.environ, name)
        and name != "OMP_NUM_THREADS"  # the launchers read it themselves
    ]
    if not names:
        return good("the engine reads all OpenMP variables that are set")
    reader = "the engine, built without OpenMP," if runtime == NONE else runtime
    return warn(f"{reader} does not read {', '.join(names)}", f"unset {' '.join(names)}")


CHECKS: tuple[Check, ...] = (
    ("waiting", _waiting, "measured with libomp: 24.7 tokens/s, with KMP_BLOCKTIME=0 8.8 tokens/s"),
    ("thread limit", _limit, "OpenMP specification, OMP_THREAD_LIMIT; measured with ggml"),
    ("dynamic threads", _dynamic, "OpenMP specification, OMP_DYNAMIC; measured with ggml"),
    ("binding", _binding, "OpenMP specification; measured: on one CPU, 1 s became more than 40 s"),
    ("ignored variables", _ignored, "the manuals of libgomp and of LLVM's OpenMP runtime"),
)
