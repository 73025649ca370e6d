"""How an engine ended and what it said of its speed; pure."""

from __future__ import annotations

import re

from bitnet_tuning.console import MEBIBYTE
from bitnet_tuning.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.launch.run import Captured


class Speed(NamedTuple):
    """One phase of a run, in the engine's own figures."""

    tokens: int
    milliseconds: float

    @property
    def rate(self) -> float | None:
        """Tokens per second."""
        return self.tokens / self.milliseconds * 1000 if self.milliseconds > 0 else None


class Timings(NamedTuple):
    load_ms: float | None
    prompt: Speed | None
    generation: Speed | None


_LINE = r"{} time\s*=\s*([\d.]+) ms(?:\s*/\s*(\d+) (?:tokens|runs))?"
_LOAD = re.compile(_LINE.format(r"load"))
_PROMPT = re.compile(_LINE.format(r"prompt eval"))
_EVAL = re.compile(_LINE.format(r"(?<!prompt )eval"))


def parse_timings(log: str) -> Timings:
    """llama.cpp's timing lines, in any generation's spelling; what is missing is None."""
    load = _LOAD.search(log)
    return Timings(float(load[1]) if load else None, _speed(_PROMPT, log), _speed(_EVAL, log))


def _speed(pattern: re.Pattern[str], log: str) -> Speed | None:
    found = pattern.search(log)
    return Speed(int(found[2]), float(found[1])) if found and found[2] else None


SIGNALS = {
    1: "SIGHUP",
    2: "SIGINT",
    3: "SIGQUIT",
    4: "SIGILL",
    6: "SIGABRT",
    7: "SIGBUS",
    8: "SIGFPE",
    9: "SIGKILL",
    11: "SIGSEGV",
    13: "SIGPIPE",
    15: "SIGTERM",
}
"""Linux numbers; macOS differs in SIGBUS only (10)."""

_BY_USER = frozenset((1, 2, 3, 13, 15))
"""Signals by which somebody ended the run on purpose; nothing needs explaining."""

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

_CTRL_C = 0xC000013A

WINDOWS_CODES = {
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
    """One line on why an engine died, or None where its exit says enough.

    ``available_bytes`` is the memory that was free before the start; ``has_kernels`` says
    that the engine is known to be built for AVX2 or NEON.
    """
    if code & 0xC0000000 == 0xC0000000:
        if code & 0xFFFFFFFF == _CTRL_C:
            return None
        name, remedy = WINDOWS_CODES.get(code & 0xFFFFFFFF, ("an exception", ""))
        text = f"the engine ended with 0x{code & 0xFFFFFFFF:08X} ({name})"
        return f"{text}: {remedy}" if remedy else text
    signal = code - 128
    if signal not in SIGNALS or signal in _BY_USER:
        return None
    if signal == 6 and has_kernels:
        return f"the engine was killed by SIGABRT: {_ASSERTION}"
    remedy = _remedy(signal, model_bytes, available_bytes)
    return f"the engine was killed by {SIGNALS[signal]}: {remedy}"


def _remedy(signal: int, model_bytes: int | None, available_bytes: int | None) -> str:
    if signal == 4:
        return _OTHER_CPU
    if signal == 6:
        return _NO_KERNEL
    if signal == 7:
        return "the model file was cut short or its disk failed while it was read"
    if signal == 9:
        return f"most often out of memory ({_memory(model_bytes, available_bytes)})"
    return "the build and the model do not fit; run `python3 -m bitnet_tuning selftest`"


def _memory(model_bytes: int | None, available_bytes: int | None) -> str:
    model = "unknown" if model_bytes is None else f"{model_bytes // MEBIBYTE} MiB"
    free = "unknown" if available_bytes is None else f"{available_bytes // MEBIBYTE} MiB"
    return f"the model's size is {model}, available were {free}; a smaller -c needs less"


LONGEST = 160
"""Characters of a reason: it stands in a table and in a file of results."""

NO_END = "no end after"
"""How the reason of a run that hung begins."""

_SIGNS = ("error", "assert", "failed", "cannot", "invalid")


def failure(done: Captured, seconds: float) -> str | None:
    """None where the run ended well. ``seconds`` is the time that it had."""
    if done.code is None:
        return f"{NO_END} {seconds:.3g} seconds"
    if done.code == 0:
        return None
    code = done.code if done.code >= 0 else 128 - done.code
    why = explain(code, None, None) or f"the engine ended with exit code {code}"
    said = _last_error(done.stderr, any_line=done.code > 0)
    return shorten(f"{_briefly(why)}{said and f': {said}'}")


def _briefly(why: str) -> str:
    """Without its remedy, and without figures in brackets that are not known here."""
    return why.partition(";")[0].partition(" (")[0]


def shorten(text: str, most: int = LONGEST) -> str:
    """On one line, its end replaced by an ellipsis where it is too long."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _last_error(log: str, any_line: bool) -> str:
    """The last line that tells of an error, else the last one if ``any_line`` will do: what
    a signal ends has not said why."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if any(sign in line.lower() for sign in _SIGNS)]
    return (errors or lines * any_line or [""])[-1]
