"""Which environment variables act on an engine; pure.

ggml hands its own thread count to OpenMP, so OMP_NUM_THREADS only serves what
else runs in the process; binding and waiting are what the runtime decides.
"""

from __future__ import annotations

from collections.abc import Mapping

from bitnet_tuning.engine.find import GOMP, LLVM, MSVC, NONE

THREAD_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
BINDING = {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}

MARK = "BITNET_ENV_COUNT"
"""What bitnet-env.sh exports beside thread counts that stand alone: the same count."""

BLOCKTIME_MS = "200"
"""Milliseconds that LLVM's threads spin before they sleep: its documented default, which
it is reported to lower to 0 on hybrid CPUs. 0 was measured at 8.8 tokens/s against 24.7."""

BINDING_BY_USER = (
    "OMP_PROC_BIND",
    "OMP_PLACES",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "KMP_HW_SUBSET",
)

WAITING_BY_USER = ("KMP_BLOCKTIME", "OMP_WAIT_POLICY", "KMP_LIBRARY")

ACTIVE = {LLVM: ("KMP_BLOCKTIME", "infinite"), GOMP: ("OMP_WAIT_POLICY", "active")}
"""What keeps a runtime's threads spinning while they wait, however long. With LLVM's,
OMP_WAIT_POLICY=active means the same and is outranked by KMP_BLOCKTIME."""

TUNABLE = frozenset(
    (*THREAD_COUNTS, *BINDING, *WAITING_BY_USER, "GOMP_SPINCOUNT", "GLIBC_TUNABLES")
)
"""All that a measured setting may bring into an engine's environment."""


def choose_variables(
    runtime: str | None,
    blas: tuple[str, ...],
    threads: int,
    quota_binds: bool,
    environ: Mapping[str, str],
    *,
    moved: bool = False,
) -> tuple[dict[str, str], str]:
    """Return the variables to set for an engine with this OpenMP ``runtime`` (None: not
    known), and why. ``moved`` says that the engine binds its threads to NUMA nodes by itself.

    Nothing that the user set is set again; a variable that the engine ignores is left out.
    """
    wanted = _thread_counts(runtime, blas, threads)
    reasons = [_runtime_sentence(runtime)]
    if runtime not in (NONE, MSVC):
        wanted |= {} if moved else _binding(environ)
        reasons += ["threads not bound: the engine moves them to its nodes"] if moved else []
        reasons += [f"threads not bound: you set {name}" for name in _set(environ, BINDING_BY_USER)]
    if runtime == LLVM:
        waiting, reason = _waiting(quota_binds, environ)
        wanted |= waiting
        reasons.append(reason)
    kept = _set(environ, tuple(name for name in wanted if environ.get(name) != wanted[name]))
    if kept:
        reasons.append(f"{', '.join(kept)} as you set it")
    ours = {name: value for name, value in wanted.items() if not user_set(environ, name)}
    return ours, "; ".join(reasons)


def _waiting(quota_binds: bool, environ: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Decide how long LLVM's threads spin. KMP_BLOCKTIME outranks the other ways to say it."""
    chosen = _set(environ, WAITING_BY_USER)
    if chosen:
        return {}, (f"how threads wait is yours: you set {', '.join(chosen)}")
    if quota_binds:
        return {}, ("KMP_BLOCKTIME is left alone: spinning would use up the CPU quota")
    reason = "KMP_BLOCKTIME keeps its threads awake between tokens"
    return {"KMP_BLOCKTIME": BLOCKTIME_MS}, reason


def waits_by_user(environ: Mapping[str, str]) -> list[str]:
    """Return the variables by which the user chose how threads wait."""
    return _set(environ, (*WAITING_BY_USER, "GOMP_SPINCOUNT"))


def _set(environ: Mapping[str, str], names: tuple[str, ...]) -> list[str]:
    return [name for name in names if user_set(environ, name)]


def _thread_counts(runtime: str | None, blas: tuple[str, ...], threads: int) -> dict[str, str]:
    names = set(THREAD_COUNTS) if runtime != NONE else set()
    names |= {"MKL_NUM_THREADS"} if "mkl" in blas else set()
    names |= {"OPENBLAS_NUM_THREADS"} if "openblas" in blas else set()
    return {name: str(threads) for name in THREAD_COUNTS if name in names}


def _binding(environ: Mapping[str, str]) -> dict[str, str]:
    """Return both or neither: half of a binding around the user's own would be something else."""
    return {} if binds_itself(environ) else dict(BINDING)


def _runtime_sentence(runtime: str | None) -> str:
    if runtime is None:
        return "the engine's OpenMP runtime is not known, so only portable variables are set"
    if runtime == NONE:
        return "the engine is built without OpenMP and would ignore OMP_* variables"
    return f"the engine uses {runtime}, which obeys these"


def binds_itself(environ: Mapping[str, str]) -> bool:
    """Return whether the user chose thread places (a sourced bitnet-env.sh is not the user)."""
    return any(user_set(environ, name) for name in BINDING_BY_USER)


def user_set(environ: Mapping[str, str], name: str) -> bool:
    """Return whether ``name`` is set, by somebody other than bitnet-env.sh."""
    return bool(environ.get(name)) and name not in exported(environ)


def exported(environ: Mapping[str, str]) -> frozenset[str]:
    """Return the variables of this environment that bitnet-env.sh set.

    What it sets is the mark: thread counts, binding and waiting, of which two groups hold what
    it writes. A single one may be the user's own; where the counts would stand alone, as under
    a quota, they come with a variable of their own. Whoever changes a group by hand takes it
    over.
    """
    found = [group for group in _like_exported(environ) if group]
    return frozenset().union(*found) if len(found) > 1 else frozenset()


def shell_exports(environ: Mapping[str, str], threads: int, quota_binds: bool) -> dict[str, str]:
    """Return what bitnet-env.sh exports to a shell with this environment.

    The file has the same rule: nothing that the user set, and nothing that ``exported`` could
    not tell from the user's own afterwards.
    """
    own = {name: value for name, value in environ.items() if user_set(environ, name)}
    if any(_like_exported(own)):
        return {}
    counts = {name: str(threads) for name in THREAD_COUNTS if name not in own}
    equal = any(own.get(name) == str(threads) for name in THREAD_COUNTS)
    if "OMP_NUM_THREADS" in own or len(counts) < 2 or equal:
        counts = {}
    binding = _binding(own) if own.get("BITNET_ENV_BIND") == "1" else {}
    waiting, _ = _waiting(quota_binds, own)
    mark = {MARK: str(threads)} if counts and not (binding or waiting) else {}
    groups = [group for group in (counts, binding, waiting, mark) if group]
    return {**counts, **binding, **waiting, **mark} if len(groups) > 1 else {}


def _like_exported(environ: Mapping[str, str]) -> tuple[frozenset[str], ...]:
    """Return the variables of each group, where they hold what bitnet-env.sh writes."""
    first = environ.get("OMP_NUM_THREADS", "")
    counts = frozenset(name for name in THREAD_COUNTS if first and environ.get(name) == first)
    # Counts are written where the user set neither OMP_NUM_THREADS nor both others.
    if len(counts) < 2 or not all(environ.get(name) for name in THREAD_COUNTS):
        counts = frozenset()
    is_bound = all(environ.get(name) == value for name, value in BINDING.items())
    # The time is LLVM's default, so hardly anybody else sets it.
    waits = environ.get("KMP_BLOCKTIME") == BLOCKTIME_MS
    return (
        counts,
        frozenset(BINDING if is_bound else ()),
        frozenset(("KMP_BLOCKTIME",) if waits else ()),
        frozenset((MARK,) if counts and environ.get(MARK) == first else ()),
    )


def user_threads(environ: Mapping[str, str]) -> int | None:
    """Return the user's own OMP_NUM_THREADS; of a list per nesting level, the first."""
    if not user_set(environ, "OMP_NUM_THREADS"):
        return None
    first = environ["OMP_NUM_THREADS"].split(",")[0].strip()
    is_count = first.isdecimal() and len(first) <= 9 and int(first) > 0
    return int(first) if is_count else None
