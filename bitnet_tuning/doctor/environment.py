"""OpenMP variables that do harm, or nothing; pure."""

from __future__ import annotations

import re

from bitnet_tuning.doctor.case import BENCHMARK, Case, Check, Finding, bad, good, unknown, warn
from bitnet_tuning.engine.find import GOMP, LLVM, NONE
from bitnet_tuning.plan.openmp import BINDING_BY_USER, user_set

_PREFIXES = ("OMP_", "GOMP_", "KMP_")
_NOT_READ = {GOMP: ("KMP_",), LLVM: ("GOMP_SPINCOUNT",), NONE: _PREFIXES}
"""By runtime, beginnings of names that it does not read."""

_ZERO = re.compile(r"0+(ms|us|s)?", re.IGNORECASE | re.ASCII)


def _reads(case: Case, name: str) -> bool:
    """Return whether the engine's runtime reads the variable; one that is not known may."""
    runtime = case.known_engine.openmp if case.known_engine else None
    return not name.startswith(_NOT_READ.get(runtime or "", ()))


def _value(case: Case, name: str) -> str:
    """Return the variable's text; empty where the engine does not read it."""
    return case.environ.get(name, "").strip() if _reads(case, name) else ""


def _waiting(case: Case) -> Finding:
    """Judge how threads wait for each other between steps."""
    names = [name for name in ("KMP_BLOCKTIME", "GOMP_SPINCOUNT") if _is_zero(case, name)]
    if _value(case, "OMP_WAIT_POLICY").lower() == "passive":
        names.insert(0, "OMP_WAIT_POLICY")
    if not names:
        return good("threads stay awake between steps")
    shown = ", ".join(f"{name}={_value(case, name)}" for name in names)
    text = f"{shown}: threads fall asleep after every step"
    if case.host.quota_binds:
        return unknown(f"{text}, which may save a CPU quota", f"{BENCHMARK}, with and without it")
    return bad(text, f"unset {' '.join(names)}")


def _is_zero(case: Case, name: str) -> bool:
    return _ZERO.fullmatch(_value(case, name)) is not None


def _limit(case: Case) -> Finding:
    text = _value(case, "OMP_THREAD_LIMIT")
    wanted = max(case.wanted_threads, case.computed.setting.threads_batch)
    if not text:
        return good("no OMP_THREAD_LIMIT")
    if not text.isdecimal() or len(text) > 9:
        return unknown(f"OMP_THREAD_LIMIT={text} is no number", "unset OMP_THREAD_LIMIT")
    if int(text) < wanted:
        return bad(
            f"OMP_THREAD_LIMIT={text} silently overrides -t: {wanted} threads are wanted",
            "unset OMP_THREAD_LIMIT",
        )
    return good(f"OMP_THREAD_LIMIT={text} leaves room for {wanted} threads")


def _dynamic(case: Case) -> Finding:
    if _value(case, "OMP_DYNAMIC").lower() not in ("true", "1", "yes"):
        return good("OpenMP does not change the number of threads by itself")
    return bad(
        "OMP_DYNAMIC lets OpenMP run fewer threads than -t says as the machine gets busy",
        "unset OMP_DYNAMIC",
    )


def _binding(case: Case) -> Finding:
    bound = _value(case, "OMP_PROC_BIND").lower()
    if bound.split(",")[0] in ("master", "primary"):
        return bad(f"OMP_PROC_BIND={bound} puts all threads on one place", "unset OMP_PROC_BIND")
    listed, threads = _value(case, "GOMP_CPU_AFFINITY"), case.wanted_threads
    places = _places(listed)
    if places is not None and places < threads:
        return bad(
            f"GOMP_CPU_AFFINITY={listed} has {places} CPUs for {threads} threads",
            "unset GOMP_CPU_AFFINITY",
        )
    yours = [name for name in BINDING_BY_USER if user_set(case.environ, name)]
    if yours:
        return good(f"threads are bound as you set {', '.join(yours)}")
    return good("no variable of yours binds threads")


def _places(text: str) -> int | None:
    """Count the CPUs in a list such as ``0 3 4-7`` or ``0-6:2``; None for other texts."""
    cpus: set[int] = set()
    for part in re.split(r"[\s,]+", text):
        found = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4})(?::([1-9][0-9]{0,3}))?)?", part)
        if found is None:
            return None
        first = int(found[1])
        cpus.update(range(first, int(found[2] or first) + 1, int(found[3] or 1)))
    return len(cpus)


def _ignored(case: Case) -> Finding | None:
    """Warn of variables that promise something and do nothing."""
    runtime = case.known_engine.openmp if case.known_engine else None
    if runtime is None:
        return None
    names = [
        name
        for name in sorted(case.environ)
        if name.startswith(_PREFIXES)
        and not _reads(case, name)
        and user_set(case.environ, name)
        and name != "OMP_NUM_THREADS"  # these scripts read it themselves
    ]
    if not names:
        return good("no variable is set that the engine's OpenMP runtime does not read")
    reader = "a build without OpenMP" if runtime == NONE else runtime
    return warn(f"{', '.join(names)}: {reader} does not read this", f"unset {' '.join(names)}")


CHECKS: tuple[Check, ...] = (
    (
        "waiting",
        _waiting,
        "measured: KMP_BLOCKTIME=0 with libomp 8.8 instead of 24.7 tokens/s; "
        "OMP_WAIT_POLICY=passive halves generation with libgomp",
    ),
    ("thread limit", _limit, "OpenMP specification, OMP_THREAD_LIMIT; measured with ggml"),
    ("dynamic threads", _dynamic, "OpenMP specification, OMP_DYNAMIC; measured with ggml"),
    (
        "binding",
        _binding,
        "OpenMP specification, OMP_PROC_BIND; measured: with libgomp a run of a second did not "
        "end within 40",
    ),
    ("ignored variables", _ignored, "documentation of libgomp and of LLVM's OpenMP"),
)
