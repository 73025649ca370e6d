"""Say why a program failed: by its exit code, and by the last error in its log. Pure."""

from __future__ import annotations

import signal

from bitnet_tuning.console import MEBIBYTE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.launch.background import Captured


_OTHER_CPU = (
    "it is built for instructions that this CPU lacks; build it on this machine, "
    "or without GGML_NATIVE"
)
_ASSERTION = (
    "an assertion in the engine failed, its last lines say which; if it is about NaN, its "
    "kernels are broken (AVX2, NEON): run `python3 -m bitnet_tuning selftest`"
)
_NO_KERNEL = (
    "most often NaN from a build without AVX2 or NEON kernels; "
    "run `python3 -m bitnet_tuning selftest`"
)
_NO_FIT = "the build and the model do not fit; run `python3 -m bitnet_tuning selftest`"

_SIGNALS = {
    "SIGILL": _OTHER_CPU,
    "SIGABRT": _NO_KERNEL,
    "SIGBUS": "the model file was cut short or its disk failed while it was read",
    "SIGFPE": _NO_FIT,
    "SIGKILL": "most often out of memory",
    "SIGSEGV": _NO_FIT,
}
"""What to say of a signal. By any other somebody ended the run on purpose."""

_CTRL_C = 0xC000013A

_WINDOWS_CODES = {
    0xC0000005: ("access violation", "the build and the model do not fit; run the self-test"),
    0xC0000017: ("out of memory", "the model needs more memory than is free"),
    0xC000001D: ("illegal instruction", _OTHER_CPU),
    0xC000007B: ("invalid image", "a DLL beside the engine is of another architecture"),
    0xC0000135: ("DLL not found", "keep the DLLs of the build beside llama-cli.exe"),
    0xC0000139: ("entry point not found", "DLLs of two builds are mixed beside llama-cli.exe"),
    0xC00000FD: ("stack overflow", "the build is broken; build it again in Release mode"),
    0xC0000409: ("abort", _NO_KERNEL),
}
"""NTSTATUS values that Windows gives as exit codes (MS-ERREF 2.3)."""


def explain(
    code: int,
    model_bytes: int | None,
    available_bytes: int | None,
    has_kernels: bool = False,
) -> str | None:
    """Return one line on why an engine died, or None if its exit says enough.

    ``available_bytes`` is the memory that was free before the start; ``has_kernels`` says
    that the engine is known to be built for AVX2 or NEON.
    """
    if code & 0xC0000000 == 0xC0000000:
        if code & 0xFFFFFFFF == _CTRL_C:
            return None
        name, remedy = _WINDOWS_CODES.get(code & 0xFFFFFFFF, ("an exception", ""))
        text = f"the engine ended with 0x{code & 0xFFFFFFFF:08X} ({name})"
        return f"{text}: {remedy}" if remedy else text
    try:
        name = signal.Signals(code - 128).name
    except ValueError:
        return None
    if name not in _SIGNALS:
        return None
    remedy = _ASSERTION if name == "SIGABRT" and has_kernels else _SIGNALS[name]
    if name == "SIGKILL":
        model, free = _mebibytes(model_bytes), _mebibytes(available_bytes)
        remedy += f" (the model's size is {model}, available were {free}; a smaller -c needs less)"
    return f"the engine was killed by {name}: {remedy}"


def _mebibytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count // MEBIBYTE} MiB"


LONGEST = 160
"""Characters of a reason: it stands in a table and in a file of results."""

NO_END = "no end after"
"""How the reason of a run that hung begins."""

_SIGNS = ("error", "assert", "failed", "cannot", "invalid")


def failure(done: Captured, seconds: float) -> str | None:
    """Return in one line why a captured run failed; None if it ended well. ``seconds`` is the
    time that it had."""
    if done.code is None:
        return f"{NO_END} {seconds:.3g} seconds"
    if done.code == 0:
        return None
    death = explain(done.code, None, None)
    why = death or f"the engine ended with exit code {done.code}"
    why = why.partition(";")[0].partition(" (")[0]  # no remedy, and no sizes that are not known
    said = _last_error(done.stderr, any_line=death is None)
    return shorten(f"{why}{said and f': {said}'}")


def shorten(text: str, most: int = LONGEST) -> str:
    """Return the text on one line, its end replaced by an ellipsis if it is too long."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _last_error(log: str, any_line: bool) -> str:
    """Return the last line that tells of an error, else the last one if ``any_line`` will do:
    a program that a signal ends has not said why."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if any(sign in line.lower() for sign in _SIGNS)]
    return (errors or lines * any_line or [""])[-1]
