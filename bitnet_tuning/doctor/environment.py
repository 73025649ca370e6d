"""Variables that do harm, or nothing; pure."""

from __future__ import annotations

import re

from bitnet_tuning.doctor.case import Case, Knob, Verdict, bad, good, unknown, warn
from bitnet_tuning.engine.binary import GOMP, LLVM, NONE
from bitnet_tuning.plan.openmp import BINDING_BY_USER, user_set

_PREFIXES = ("OMP_", "GOMP_", "KMP_")
_FOREIGN = {GOMP: ("KMP_",), LLVM: ("GOMP_SPINCOUNT",), NONE: _PREFIXES}
"""By runtime, beginnings of names that it does not read."""

_ONE_PLACE = ("master", "primary")
_TRUE = ("true", "1", "yes")
_ZERO = re.compile(r"0+(ms|us|s)?", re.IGNORECASE | re.ASCII)
_BENCHMARK = "python3 benchmark_optimized.py"


def _value(case: Case, name: str) -> str:
    return case.environ.get(name, "").strip()


def _runtime(case: Case) -> str | None:
    """None where the engine, or its runtime, is not known: then any might read anything."""
    return case.known_engine.openmp if case.known_engine else None


def _reads(case: Case, name: str) -> bool:
    return not name.startswith(_FOREIGN.get(_runtime(case) or "", ()))


def _waiting(case: Case) -> Verdict:
    """How threads wait for each other between steps."""
    harmful = [f"{name}={_value(case, name)}" for name in _sleeping(case) if _reads(case, name)]
    if not harmful:
        return good("threads stay awake between steps")
    text = f"{', '.join(harmful)}: threads fall asleep after every step"
    names = " ".join(item.partition("=")[0] for item in harmful)
    if case.host.quota_binds:
        return unknown(f"{text}, which may save a CPU quota", f"{_BENCHMARK}, with and without it")
    return bad(text, f"unset {names}")


def _sleeping(case: Case) -> list[str]:
    """Variables that are set to that."""
    found = []
    if _value(case, "OMP_WAIT_POLICY").lower() == "passive":
        found.append("OMP_WAIT_POLICY")
    zero = ("KMP_BLOCKTIME", "GOMP_SPINCOUNT")
    return found + [name for name in zero if _ZERO.fullmatch(_value(case, name))]


def _limit(case: Case) -> Verdict:
    text = _value(case, "OMP_THREAD_LIMIT")
    wanted = max(case.wanted_threads, case.computed.prompt)
    if not text or not _reads(case, "OMP_THREAD_LIMIT"):
        return good("no OMP_THREAD_LIMIT")
    if not text.isdecimal() or len(text) > 9:
        return unknown(f"OMP_THREAD_LIMIT={text} is no number", "unset OMP_THREAD_LIMIT")
    if int(text) < wanted:
        return bad(
            f"OMP_THREAD_LIMIT={text} silently overrides -t: {wanted} threads are wanted",
            "unset OMP_THREAD_LIMIT",
        )
    return good(f"OMP_THREAD_LIMIT={text} leaves room for {wanted} threads")


def _dynamic(case: Case) -> Verdict:
    if _value(case, "OMP_DYNAMIC").lower() not in _TRUE or not _reads(case, "OMP_DYNAMIC"):
        return good("OpenMP does not change the number of threads by itself")
    return bad(
        "OMP_DYNAMIC lets OpenMP run fewer threads than -t says as the machine gets busy",
        "unset OMP_DYNAMIC",
    )


def _binding(case: Case) -> Verdict:
    words = _value(case, "OMP_PROC_BIND").lower()
    if words.split(",")[0] in _ONE_PLACE and _reads(case, "OMP_PROC_BIND"):
        return bad(f"OMP_PROC_BIND={words} puts all threads on one place", "unset OMP_PROC_BIND")
    listed, count = _value(case, "GOMP_CPU_AFFINITY"), case.wanted_threads
    places = _places(listed)
    if places is not None and places < count and _reads(case, "GOMP_CPU_AFFINITY"):
        return bad(
            f"GOMP_CPU_AFFINITY={listed} has {places} CPUs for {count} threads",
            "unset GOMP_CPU_AFFINITY",
        )
    yours = [name for name in BINDING_BY_USER if user_set(case.environ, name)]
    if yours:
        return good(f"threads are bound as you set {', '.join(yours)}")
    return good("nothing of yours binds threads")


def _places(text: str) -> int | None:
    """CPUs in a list such as ``0 3 4-7`` or ``0-6:2``; None for what is no such list."""
    cpus: set[int] = set()
    for part in re.split(r"[\s,]+", text):
        found = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4})(?::([1-9][0-9]{0,3}))?)?", part)
        if found is None:
            return None
        first = int(found[1])
        cpus.update(range(first, int(found[2] or first) + 1, int(found[3] or 1)))
    return len(cpus)


def _ignored(case: Case) -> Verdict | None:
    """Variables that promise something and do nothing."""
    engine, runtime = case.known_engine, _runtime(case)
    if engine is None or runtime is None:
        return None
    names = sorted(
        name
        for name in case.environ
        if name.startswith(_PREFIXES)
        and not _reads(case, name)
        and user_set(case.environ, name)
        # These scripts read it themselves.
        and name != "OMP_NUM_THREADS"
    )
    if not names:
        return good("no variable is set that the engine's OpenMP runtime does not read")
    whose = "a build without OpenMP" if runtime == NONE else runtime
    return warn(f"{', '.join(names)}: {whose} does not read this", f"unset {' '.join(names)}")


KNOBS = (
    Knob(
        "waiting",
        _waiting,
        "measured: KMP_BLOCKTIME=0 with libomp 8.8 instead of 24.7 tokens/s; "
        "OMP_WAIT_POLICY=passive halves generation with libgomp",
    ),
    Knob("thread limit", _limit, "OpenMP specification, OMP_THREAD_LIMIT; measured with ggml"),
    Knob("dynamic threads", _dynamic, "OpenMP specification, OMP_DYNAMIC; measured with ggml"),
    Knob(
        "binding",
        _binding,
        "OpenMP specification, OMP_PROC_BIND; measured: with libgomp a run of a second did not "
        "end within 40",
    ),
    Knob("ignored variables", _ignored, "documentation of libgomp and of LLVM's OpenMP"),
)
