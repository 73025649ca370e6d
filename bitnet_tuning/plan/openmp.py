"""Choose the environment variables of an engine, and tell the user's own from exported ones. ggml
passes its thread count to OpenMP itself, and to BLAS libraries (ggml-blas.cpp), so OMP_NUM_THREADS
affects only other code. How threads are bound and how they wait is up to the variables."""

from __future__ import annotations

from collections.abc import Mapping

from bitnet_tuning.engine.find import GOMP, LLVM, MSVC, NONE
from bitnet_tuning.errors import UsageError

THREAD_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
BINDING = {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}

MARK = "BITNET_ENV_COUNT"
"""Variable with which bitnet-env.sh repeats the count if it exports only counts, to mark them."""

BLOCKTIME_MS = "200"
"""Milliseconds that waiting threads of LLVM's OpenMP spin before they sleep. 200 is its documented
default, but it is reported to use 0 on hybrid CPUs; 200 gave 24.7 tokens/s, 0 only 8.8."""

BINDING_BY_USER = (*BINDING, "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "KMP_HW_SUBSET")
WAITING_BY_USER = ("KMP_BLOCKTIME", "OMP_WAIT_POLICY", "KMP_LIBRARY")

ACTIVE = {LLVM: ("KMP_BLOCKTIME", "infinite"), GOMP: ("OMP_WAIT_POLICY", "active")}
"""Variable and value with which each runtime's waiting threads spin and never sleep. LLVM's also
reads OMP_WAIT_POLICY=active, but KMP_BLOCKTIME takes precedence over it."""

_IN_CHATS = {
    ACTIVE[LLVM]: ("KMP_BLOCKTIME", BLOCKTIME_MS),
    ACTIVE[GOMP]: ("GOMP_SPINCOUNT", "10000000"),
}
"""What chats have instead: threads spin through an answer, and sleep while the user types. Ten
million rounds take 0.1 to 0.5 s, by the length of the CPU's pause instruction."""

TUNABLE = frozenset(
    (*THREAD_COUNTS, *BINDING, *WAITING_BY_USER, "GOMP_SPINCOUNT", "GLIBC_TUNABLES")
)
"""Variables that a measured setting may set for an engine."""


def choose_variables(
    runtime: str | None,
    threads: int,
    quota_binds: bool,
    environ: Mapping[str, str],
    *,
    unbound: str | None = None,
) -> tuple[dict[str, str], str]:
    """Return the variables to set for an engine with this OpenMP ``runtime`` (None: unknown), and
    the reason for them, without those that the user set or the engine ignores. ``unbound`` says why
    the threads are not to be bound to cores; None binds them."""
    wanted = {} if runtime == NONE else dict.fromkeys(THREAD_COUNTS, str(threads))
    known = {
        None: "the engine's OpenMP runtime is unknown, so only portable variables are set",
        NONE: "the engine is built without OpenMP and would ignore OMP_* variables",
    }
    reasons = [known.get(runtime, f"the engine's OpenMP runtime, {runtime}, reads these variables")]
    if runtime not in (NONE, MSVC):
        if binding := user_binding(environ):
            reasons.append(f"threads are bound as you set it: {binding}")
        elif unbound:
            reasons.append(f"threads are not bound: {unbound}")
            wanted = without_binding(wanted, environ)
        else:
            wanted |= BINDING
    if runtime == LLVM:
        waiting, reason = _waiting(quota_binds, environ)
        wanted |= waiting
        reasons.append(reason)
    if kept := _set(environ, tuple(name for name in wanted if environ.get(name) != wanted[name])):
        reasons.append(f"not overwritten: your own {kept}")
    ours = {name: value for name, value in wanted.items() if not user_set(environ, name)}
    return ours, "; ".join(reasons)


def unbindable(runtime: str | None, system: str) -> str | None:
    """Return why OpenMP cannot bind threads on this operating system; None if it can."""
    # Elsewhere libgomp prints "Affinity not supported on this configuration" and ignores the
    # variables (libgomp/affinity.c). No runtime can bind threads on macOS.
    if system == "linux" or (runtime == LLVM and system == "win32"):
        return None
    return f"{runtime or 'an unknown OpenMP runtime'} cannot do so on this system"


def _waiting(quota_binds: bool, environ: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Return how long threads of LLVM's OpenMP spin before they sleep, and why."""
    # KMP_BLOCKTIME would take precedence over the user's OMP_WAIT_POLICY or KMP_LIBRARY.
    if chosen := _set(environ, WAITING_BY_USER):
        return {}, f"threads wait as you set it: {chosen}"
    if quota_binds:
        return {}, "KMP_BLOCKTIME is not set: spinning threads would use up the CPU quota"
    reason = "KMP_BLOCKTIME is how many ms waiting threads spin before they sleep"
    return {"KMP_BLOCKTIME": BLOCKTIME_MS}, reason


def in_chats(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a plan with threads that do not spin for ever."""
    return dict(_IN_CHATS.get(pair, pair) for pair in variables.items())


def _set(environ: Mapping[str, str], names: tuple[str, ...]) -> str:
    return ", ".join(name for name in names if user_set(environ, name))


def user_binding(environ: Mapping[str, str]) -> str:
    """Return the variables with which the user binds threads to CPUs, or an empty text."""
    return _set(environ, BINDING_BY_USER)


def without_binding(variables: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables without those that bind threads to CPUs. ``environ`` tells whether
    bitnet-env.sh exported a binding, which would otherwise reach the engine."""
    kept = {name: text for name, text in variables.items() if name not in BINDING}
    return kept | ({"OMP_PROC_BIND": "false"} if "OMP_PROC_BIND" in exported(environ) else {})


def user_waiting(environ: Mapping[str, str]) -> str:
    """Return the variables with which the user chose how threads wait, or an empty text."""
    return _set(environ, (*WAITING_BY_USER, "GOMP_SPINCOUNT"))


def user_set(environ: Mapping[str, str], name: str) -> bool:
    """Return whether the variable ``name`` is set, and not by bitnet-env.sh."""
    return bool(environ.get(name)) and name not in exported(environ)


def exported(environ: Mapping[str, str]) -> frozenset[str]:
    """Return the variables in ``environ`` that bitnet-env.sh set. It sets groups: thread counts,
    binding, waiting; and ``MARK`` if it sets only the counts, as under a CPU quota. Two groups with
    exactly its values are its own. One alone, or with a changed variable, is the user's."""
    found = [group for group in _like_exported(environ) if group]
    return frozenset().union(*found) if len(found) > 1 else frozenset()


def shell_exports(environ: Mapping[str, str], threads: int, quota_binds: bool) -> dict[str, str]:
    """Return the variables that bitnet-env.sh, whose code has the same rule, exports to a shell
    with this environment: none that the user set, or that ``exported`` could not recognise."""
    own = {name: value for name, value in environ.items() if user_set(environ, name)}
    if any(_like_exported(own)):
        return {}
    counts = {name: str(threads) for name in THREAD_COUNTS if name not in own}
    equal = any(own.get(name) == str(threads) for name in THREAD_COUNTS)
    if "OMP_NUM_THREADS" in own or len(counts) < 2 or equal:
        counts = {}
    # Both or neither: one of ours beside one of the user's would be a third kind of binding.
    is_bound = own.get("BITNET_ENV_BIND") == "1" and not user_binding(own)
    binding = BINDING if is_bound else {}
    waiting, _ = _waiting(quota_binds, own)
    mark = {MARK: str(threads)} if counts and not (binding or waiting) else {}
    groups = [group for group in (counts, binding, waiting, mark) if group]
    return {**counts, **binding, **waiting, **mark} if len(groups) > 1 else {}


def _like_exported(environ: Mapping[str, str]) -> tuple[frozenset[str], ...]:
    """Return the variables of each group whose values are the ones that bitnet-env.sh writes."""
    first = environ.get("OMP_NUM_THREADS", "")
    counts = frozenset(name for name in THREAD_COUNTS if first and environ.get(name) == first)
    # bitnet-env.sh writes counts only if the user set neither OMP_NUM_THREADS nor both others.
    if len(counts) < 2 or not all(environ.get(name) for name in THREAD_COUNTS):
        counts = frozenset()
    is_bound = all(environ.get(name) == value for name, value in BINDING.items())
    # The value is LLVM's default, so hardly anybody else sets it.
    waits = environ.get("KMP_BLOCKTIME") == BLOCKTIME_MS
    return (
        counts,
        frozenset(BINDING if is_bound else ()),
        frozenset(("KMP_BLOCKTIME",) if waits else ()),
        frozenset((MARK,) if counts and environ.get(MARK) == first else ()),
    )


def user_threads(environ: Mapping[str, str]) -> int | None:
    """Return the thread count in the user's own OMP_NUM_THREADS; None if there is no valid one."""
    text = environ["OMP_NUM_THREADS"] if user_set(environ, "OMP_NUM_THREADS") else ""
    return _count(text.split(",")[0])  # a list has a count for each level of nesting


def _count(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isdecimal() and len(text) <= 9 and int(text) > 0 else None


def invalid_count(environ: Mapping[str, str]) -> str | None:
    """Return OMP_NUM_THREADS if it is set, but neither a count nor a list of counts."""
    text = environ.get("OMP_NUM_THREADS", "")
    return text if text and not all(map(_count, text.split(","))) else None


def thread_limit(runtime: str | None, environ: Mapping[str, str]) -> int | None:
    """Return the number in OMP_THREAD_LIMIT; None without one, or if the engine ignores it."""
    return None if runtime == NONE else _count(environ.get("OMP_THREAD_LIMIT", ""))


def count_warnings(runtime: str | None, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Warn if the user's OMP_NUM_THREADS is not a count; raise UsageError if it crashes then."""
    text = invalid_count(environ)
    if runtime == NONE or text is None:
        return ()
    cause = f"OMP_NUM_THREADS is '{text}', not a positive whole number"
    if runtime == LLVM:
        # LLVM 16 aborts ("Assertion failure at kmp_runtime.cpp"), or takes all memory first.
        raise UsageError(f"{cause}: LLVM's OpenMP crashes on it", "unset OMP_NUM_THREADS")
    remedy = "remove it with `unset OMP_NUM_THREADS`"
    return (f"{cause}: the engine's OpenMP runtime may abort at it; {remedy}",)
