"""Explain why an engine failed, from its exit code and the last error in its log."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable

from bitnet_tuning.console import command, counted, size_text
from bitnet_tuning.errors import TASK_LIMITS
from bitnet_tuning.launch.background import Captured
from bitnet_tuning.launch.start import CONTROL_C

_OTHER_CPU = (
    "it is built for instructions that this CPU lacks; build it on this machine, "
    "or without GGML_NATIVE"
)
_ASSERTION = (
    "an assertion in the engine failed, see the last lines of its log; if it is about NaN, "
    f"run `{command('selftest')}` to check the AVX2 or NEON kernels"
)
_NO_KERNEL = (
    "most often because a build without AVX2 or NEON kernels computes NaN; "
    f"run `{command('selftest')}`"
)
_NO_FIT = f"the build may not support this model; run `{command('selftest')}`"

_SIGNALS = {
    "SIGILL": _OTHER_CPU,
    "SIGABRT": _NO_KERNEL,
    "SIGBUS": "the model file was truncated or its disk failed during the run",
    "SIGFPE": _NO_FIT,
    "SIGKILL": "most often because the system ran out of memory",
    "SIGSEGV": _NO_FIT,
    "SIGXCPU": "it used up the CPU time that `ulimit -t` allows",
    "SIGXFSZ": "a file that it wrote reached the size that `ulimit -f` allows",
}
"""Cause and remedy by the signal that killed an engine. Other signals end a run on purpose."""

_WINDOWS_CODES = {
    0xC0000005: ("access violation", _NO_FIT),
    0xC0000017: ("out of memory", "the model needs more memory than is free"),
    0xC000001D: ("illegal instruction", _OTHER_CPU),
    0xC000007B: ("invalid image", "a DLL beside the engine is for another architecture"),
    0xC0000135: ("DLL not found", "keep the DLLs of the build beside llama-cli.exe"),
    0xC0000139: ("entry point not found", "llama-cli.exe stands beside DLLs of another build"),
    0xC00000FD: ("stack overflow", "the build is broken; build it again in Release mode"),
    0xC0000409: ("abort", _NO_KERNEL),
}
"""NTSTATUS values that Windows uses as exit codes (MS-ERREF 2.3), with name and remedy."""

_LOADER = re.compile(
    # of glibc, musl and macOS
    "error while loading shared libraries|symbol lookup error|version `.*' not found|"
    "Error loading shared library|Error relocating|Library not loaded|Symbol not found"
)
BUILD_HERE = "build it again on this machine, where it is now"
ADD_LIBRARIES = "put the folder of its libraries into LD_LIBRARY_PATH"
NO_THREAD = re.compile(r"Resource temporarily unavailable|GGML_ASSERT\(rc == 0\) failed")
"""What OpenMP's runtimes and C++ print, and ggml without OpenMP, if a thread cannot be started."""
_OTHER_TASKS = 2
"""Tasks of a run besides the engine's threads: one writes its log, one leads its group."""


def loader_error(done: Captured) -> str | None:
    """Return why the system did not start a program, in the words of its loader or of ``capture``;
    None if the program itself ran."""
    if (done.code or 0) & 0xFFFFFFFF in (0xC000007B, 0xC0000135, 0xC0000139):  # a DLL
        return explain(done.code or 0)
    lines = [line.strip() for line in done.stderr.splitlines() if done.code and line.strip()]
    named = [line for line in lines if _LOADER.search(line)]
    # Shells and ``capture`` end with 127 or 126 if they cannot start a command.
    return next(iter(named or (lines if done.code in (126, 127) else [])), None)


def explain(
    code: int,
    model_bytes: int | None = None,
    available_bytes: int | None = None,
    has_kernels: bool = False,
) -> str | None:
    """Return one line that explains why an engine was killed or not started, or None for any other
    exit code. ``model_bytes`` is the size of the model, ``available_bytes`` the memory that was
    available before the start. ``has_kernels`` says that the engine is built for AVX2 or NEON."""
    if code == 127:
        missing = "the engine or one of its libraries was not found"
        return f"{missing}: {BUILD_HERE}, or {ADD_LIBRARIES}"
    if code & 0xC0000000 == 0xC0000000:
        if code & 0xFFFFFFFF == CONTROL_C:
            return None
        name, remedy = _WINDOWS_CODES.get(code & 0xFFFFFFFF, ("an exception", ""))
        text = f"the engine ended with 0x{code & 0xFFFFFFFF:08X} ({name})"
        return f"{text}: {remedy}" if remedy else text
    name = next((each.name for each in signal.Signals if each == code - 128), "")
    if name not in _SIGNALS:
        return None
    remedy = _ASSERTION if name == "SIGABRT" and has_kernels else _SIGNALS[name]
    if name == "SIGKILL" and (seconds := _cpu_limit()):
        remedy = f"most likely it used up the {seconds} s of CPU time that `ulimit -t` allows"
    elif name == "SIGKILL":
        sizes = (model_bytes, available_bytes)
        model, free = ("unknown" if size is None else size_text(size) for size in sizes)
        remedy += f" (model: {model}, available memory: {free}); try a smaller -c"
    return f"the engine was killed by {name}: {remedy}"


def _cpu_limit() -> int | None:
    """Return the seconds of CPU time after which the kernel kills a program; None for no limit."""
    import resource  # noqa: PLC0415 (not on Windows)

    limit = resource.getrlimit(resource.RLIMIT_CPU)[1]
    return None if limit == resource.RLIM_INFINITY else limit


def thread_shortage(limits: Iterable[tuple[str, int, int]], threads: int) -> str | None:
    """Return the limit that has no room for an engine with these threads, with a remedy; None if
    all have. A limit is its name, the tasks that it allows, and those that run."""
    name, limit, used = min(limits, key=lambda each: each[1] - each[2], default=("", 0, 0))
    room = limit - used - _OTHER_TASKS
    if not name or room >= threads:
        return None
    fewer = f"use fewer (-t {room}), or " if room > 0 else "end other programs, or "
    return (
        f"the engine could not start {counted(threads, 'thread')}: {name} allows {limit} processes "
        f"and threads, of which {used} run; {fewer}raise that limit"
    )


LONGEST = 160
"""Largest number of characters in a reason, which is shown in tables."""

NO_END = "did not finish within"
"""Beginning of the reason for a run that hung."""

NO_THREADS = "the limit on processes and threads is reached"
"""Beginning of the reason for a run that could not start its threads."""

_SIGNS = re.compile(
    r"(?i)^[\d.]+ E |error|assert|fail|cannot|invalid|abort|unable|too long"
    "|not (found|enough|permitted)|out of memory"
)
_TIMES = re.compile(r"^[\d.]+ ")
"""What mainline llama.cpp begins each line of its log with."""


def failure(done: Captured, seconds: float) -> str | None:
    """Return a line that says why a run of at most ``seconds`` failed, or None if it succeeded."""
    if done.code is None:
        return f"{NO_END} {seconds:.3g} seconds"
    if done.code == 0:
        return None
    if NO_THREAD.search(done.stderr):
        return f"{NO_THREADS} ({TASK_LIMITS})"
    death = explain(done.code)
    cause = death or f"the engine ended with exit code {done.code}"
    # Leave out the remedy and the unknown sizes.
    cause = cause.partition(";")[0].partition(" (")[0]
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if _SIGNS.search(line)]
    error = (errors or (lines if death is None else []) or [""])[-1]
    return shorten(f"{cause}{error and f': {error}'}")


def excerpt(log: str, most: int = 12) -> str:
    """Return at most ``most`` lines of a failed engine's log: those that tell a cause, and the last
    ones. Of lines that differ in their times only, the last is taken."""
    found = [" ".join(line.split()) for line in log.splitlines() if line.strip()]
    lines = [*reversed({_TIMES.sub("", line): line for line in reversed(found)}.values())]
    causes = [line for line in lines if _SIGNS.search(line)][: most - 4]
    kept = {*causes, *lines[-3 if causes else -most :]}
    chosen = [line for line in lines if line in kept]
    return "\n".join(shorten(line, 400 if line in causes else 80) for line in chosen)


def shorten(text: str, most: int = LONGEST) -> str:
    """Return ``text`` on one line of at most ``most`` characters, cut with an ellipsis."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
