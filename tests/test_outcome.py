"""Timings in an engine's log, and explanations of its exit code."""

from __future__ import annotations

import resource

import pytest

from bitnet_tuning.engine.probe import Speed, Timings, parse_timings
from bitnet_tuning.launch.background import Captured
from bitnet_tuning.launch.failure import (
    NO_THREADS,
    explain,
    failure,
    loader_error,
    thread_shortage,
)

GIBIBYTE = 1 << 30

LLAMA_PRINT = """\
llama_print_timings:        load time =     386.24 ms
llama_print_timings:      sample time =      10.09 ms /    64 runs   (    0.16 ms per token)
llama_print_timings: prompt eval time =     125.50 ms /    11 tokens (   11.41 ms per token)
llama_print_timings:        eval time =    2520.00 ms /    63 runs   (   40.00 ms per token)
llama_print_timings:       total time =    2700.12 ms /    74 tokens
"""

LLAMA_PERF = """\
llama_perf_sampler_print:    sampling time =       6.71 ms /    70 runs   (    0.10 ms per token)
llama_perf_context_print:        load time =     386.24 ms
llama_perf_context_print: prompt eval time =     125.50 ms /    11 tokens (   11.41 ms per token)
llama_perf_context_print:        eval time =    2520.00 ms /    63 runs   (   40.00 ms per token)
llama_perf_context_print:       total time =    2700.12 ms /    74 tokens
"""

COMMON_PERF = """\
common_perf_print:    sampling time =       8.97 ms
common_perf_print:    samplers time =       4.21 ms /    75 tokens
common_perf_print:        load time =     386.24 ms
common_perf_print: prompt eval time =     125.50 ms /    11 tokens (   11.41 ms per token)
common_perf_print:        eval time =    2520.00 ms /    63 runs   (   40.00 ms per token)
common_perf_print:       total time =    2700.12 ms /    74 tokens
common_perf_print: unaccounted time =      40.00 ms /   1.5 %      (total - sampling - eval)
common_perf_print:    graphs reused =         62
"""


@pytest.mark.parametrize(
    "log", [LLAMA_PRINT, LLAMA_PERF, COMMON_PERF, f"loader: data\n\n{COMMON_PERF}breakdown: |\n"]
)
def test_timings_of_every_generation_are_read(log: str) -> None:
    assert parse_timings(log) == Timings(Speed(11, 125.5), Speed(63, 2520.0))


def test_rates_are_tokens_per_second() -> None:
    timings = parse_timings(LLAMA_PERF)
    assert timings.prompt is not None and timings.generation is not None
    assert timings.prompt.rate == pytest.approx(87.65, abs=0.01)
    assert timings.generation.rate == pytest.approx(25.0)


@pytest.mark.parametrize("log", ["", "error: failed to load model", "total time = 3 ms"])
def test_a_log_without_timings_gives_none(log: str) -> None:
    assert parse_timings(log) == Timings(None, None)


def test_each_phase_is_read_without_the_other() -> None:
    (prompt,) = (line for line in LLAMA_PERF.splitlines() if "prompt eval" in line)
    (generation,) = (line for line in LLAMA_PERF.splitlines() if "   eval time" in line)
    assert parse_timings(prompt) == Timings(Speed(11, 125.5), None)
    assert parse_timings(generation) == Timings(None, Speed(63, 2520.0))


def test_a_phase_without_duration_has_no_rate() -> None:
    """With ``-n 1`` the prompt's own pass generates the only token."""
    timings = parse_timings("eval time =       0.00 ms /     1 runs   (    0.00 ms per token, inf)")
    assert timings.generation == Speed(1, 0.0)
    assert timings.generation.rate is None


@pytest.mark.parametrize(
    ("signal", "words"),
    [
        (4, ("SIGILL", "instructions", "GGML_NATIVE")),
        (6, ("SIGABRT", "NaN", "AVX2", "selftest")),
        (7, ("SIGBUS", "model file")),
        (8, ("SIGFPE", "selftest")),
        (11, ("SIGSEGV", "selftest")),
        (24, ("SIGXCPU", "CPU time", "ulimit -t")),
        (25, ("SIGXFSZ", "size", "ulimit -f")),
    ],
)
def test_a_deadly_signal_is_named_with_a_remedy(signal: int, words: tuple[str, ...]) -> None:
    line = explain(128 + signal, None, None)
    assert line is not None and "\n" not in line
    assert [word for word in words if word not in line] == []


def test_sigkill_is_explained_with_the_size_of_model_and_memory() -> None:
    line = explain(128 + 9, 3 * GIBIBYTE, GIBIBYTE)
    assert line is not None and "\n" not in line
    for part in ("SIGKILL", "memory", "3.0 GiB", "1.0 GiB"):
        assert part in line
    assert "unknown" in (explain(128 + 9, None, None) or "")


def test_sigkill_under_a_limit_of_cpu_time_names_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (5, 7))
    line = explain(128 + 9, GIBIBYTE, 8 * GIBIBYTE) or ""
    assert "7 s of CPU time that `ulimit -t` allows" in line
    assert "memory" not in line


@pytest.mark.parametrize(
    "code",
    [
        *(0, 1, 2, 3, 126),  # no signal
        *(128 + signal for signal in (1, 2, 3, 13, 15)),  # signals that end a run on purpose
        *(128, 128 + 64, 255, 300),
        0xC000013A,  # Ctrl-C on Windows
    ],
)
def test_other_exit_codes_are_not_explained(code: int) -> None:
    assert explain(code, 1, 1) is None


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0xC000001D, ("0xC000001D", "illegal instruction", "GGML_NATIVE")),
        (0xC0000005, ("0xC0000005", "access violation")),
        (0xC0000135, ("0xC0000135", "DLL")),
        (0xC0000409, ("0xC0000409", "AVX2")),
        (0xC0000017, ("0xC0000017", "memory")),
        (0xC0000ABC, ("0xC0000ABC", "exception")),
        (0xC000001D - (1 << 32), ("0xC000001D", "illegal instruction")),
    ],
)
def test_windows_codes_are_explained_signed_or_not(code: int, words: tuple[str, ...]) -> None:
    line = explain(code, None, None)
    assert line is not None and "\n" not in line
    assert [word for word in words if word not in line] == []


LD_SO = "/b/llama-cli: error while loading shared libraries: libllama.so: cannot open shared object"
GLIBC = "/b/llama-cli: /lib/libc.so.6: version `GLIBC_2.99' not found (required by /b/llama-cli)"
MUSL = "Error loading shared library libllama.so: No such file or directory (needed by /b/x)"
DYLD = "dyld[71]: Library not loaded: @rpath/libllama.dylib"


@pytest.mark.parametrize(
    ("code", "log", "said"),
    [
        (127, LD_SO, LD_SO),
        (1, GLIBC, GLIBC),
        (127, f"{MUSL}\nError relocating /b/x: llama_free: symbol not found", MUSL),
        (134, f"\n{DYLD}\n  Referenced from: /b/x\n  Reason: tried: …", DYLD),
        (
            127,
            "cannot start /b/x: Exec format error\n  build it",
            "cannot start /b/x: Exec format error",
        ),
        (126, "/b/x: 2: exec: /b/y: Permission denied", "/b/x: 2: exec: /b/y: Permission denied"),
        (1, "error: unknown argument: --help", None),
        (0, LD_SO, None),
        (None, "", None),
        (134, "GGML_ASSERT(x) failed", None),
        (127, "", None),
    ],
)
def test_a_program_that_its_loader_did_not_start_is_told_from_one_that_failed(
    code: int | None, log: str, said: str | None
) -> None:
    assert loader_error(Captured(code, "", log)) == said


@pytest.mark.parametrize("code", [0xC0000135, 0xC0000135 - (1 << 32), 0xC000007B, 0xC0000139])
def test_a_missing_dll_is_the_loaders_error(code: int) -> None:
    assert "DLL" in (loader_error(Captured(code, "", "")) or "")


def test_an_engine_that_was_not_loaded_is_explained_with_the_remedy() -> None:
    assert "LD_LIBRARY_PATH" in (explain(127, None, None) or "")


@pytest.mark.parametrize(
    ("code", "log"),
    [
        (
            134,
            "OMP: Error #34: System unable\nOMP: System error #11: Resource temporarily "
            "unavailable\nOMP: Hint Try decreasing the value of OMP_NUM_THREADS.",
        ),
        (1, "libgomp: Thread creation failed: Resource temporarily unavailable"),
        (134, "/src/ggml.c:20845: GGML_ASSERT(rc == 0) failed"),
        (
            134,
            "terminate called after throwing an instance of 'std::system_error'\n"
            "  what():  Resource temporarily unavailable",
        ),
    ],
    ids=["libomp", "libgomp", "no OpenMP", "C++"],
)
def test_every_runtime_without_threads_is_told_from_broken_kernels(code: int, log: str) -> None:
    reason = failure(Captured(code, "", log), 30)
    assert reason is not None and reason.startswith(NO_THREADS)
    assert "ulimit -u" in reason and "pids.max" in reason


def test_the_tightest_limit_is_named_with_the_threads_that_fit() -> None:
    limits = [("pids.max of /a", 100, 10), ("ulimit -u", 12, 5)]
    assert thread_shortage(limits, 5) is None
    text = thread_shortage(limits, 6) or ""
    for part in ("6 threads", "ulimit -u", "12", "of which 5 run", "-t 5", "raise"):
        assert part in text
    assert "-t" not in (thread_shortage([("ulimit -u", 7, 5)], 1) or "")
    assert thread_shortage([], 1000) is None
