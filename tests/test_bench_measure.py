"""Commands for llama-bench and the cli, and which of their answers count."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_tuning import demo
from bitnet_tuning.bench import llama_bench
from bitnet_tuning.bench.comparison import Sizes
from bitnet_tuning.bench.llama_bench import (
    Bench,
    BenchCommand,
    FailedRunError,
    bench_commands,
    parse_bench,
)
from bitnet_tuning.errors import UnsupportedError
from bitnet_tuning.model.gguf import read_model
from bitnet_tuning.plan.profile import PP, TG
from bitnet_tuning.plan.setting import UPSTREAM, Setting

COMMON = frozenset(("-m", "-p", "-n", "-t", "-r", "-o", "-ub", "-fa", "--numa", "--poll", "-ngl"))
BITNET = Bench(("/build/bin/llama-bench",), COMMON | {"-mmp"})
MAINLINE = Bench(("/build/bin/llama-bench",), COMMON | {"-lm"})
BOTH = (PP, TG)
ONE = Setting(1, 1)


def flags(setting: Setting, bench: Bench = BITNET) -> dict[str, str]:
    """Return the flags of the only process that the setting takes."""
    (command,) = bench_commands(setting, bench, "x.gguf", Sizes(64, 16, 3), BOTH)
    assert command.argv[0] == "/build/bin/llama-bench"
    return dict(zip(command.argv[1::2], command.argv[2::2], strict=True))


def test_both_phases_are_one_process() -> None:
    assert flags(Setting(4, 4)) == {
        **{"-m": "x.gguf", "-t": "4", "-p": "64", "-n": "16"},
        **{"-r": "3", "-o": "json", "-ngl": "0"},
    }


def test_other_threads_for_prompts_take_two_processes() -> None:
    prompt, generation = bench_commands(Setting(2, 8), BITNET, "x.gguf", Sizes(64, 16, 1), BOTH)
    assert prompt.argv[-6:] == ("-t", "8", "-p", "64", "-n", "0")
    assert generation.argv[-6:] == ("-t", "2", "-p", "0", "-n", "16")
    assert [*prompt.tokens, *generation.tokens] == [PP, TG]


@pytest.mark.parametrize(
    ("words", "phase"),
    [
        (("-t", "8", "-p", "64", "-n", "0"), PP),
        (("-t", "2", "-p", "0", "-n", "16"), TG),
    ],
)
def test_only_the_phase_asked_for_is_measured(words: tuple[str, ...], phase: str) -> None:
    (command,) = bench_commands(Setting(2, 8), BITNET, "x.gguf", Sizes(64, 16, 1), (phase,))
    assert command.argv[-6:] == words
    assert list(command.tokens) == [phase]


@pytest.mark.parametrize(
    ("setting", "bench", "wanted", "said"),
    [
        (ONE._replace(mmap=False), BITNET, {"-mmp": "0"}, ("use_mmap", 0)),
        (ONE._replace(mmap=True), BITNET, {"-mmp": "1"}, ("use_mmap", 1)),
        (ONE._replace(mmap=False), MAINLINE, {"-lm": "none"}, ("load_mode", "none")),
        (ONE._replace(mmap=True), MAINLINE, {"-lm": "mmap"}, ("load_mode", "mmap")),
        (ONE._replace(mlock=True), MAINLINE, {"-lm": "mmap+mlock"}, ("load_mode", "mmap+mlock")),
        (ONE._replace(mlock=True, mmap=False), MAINLINE, {"-lm": "mlock"}, ("load_mode", "mlock")),
        (ONE._replace(flash=True), BITNET, {"-fa": "1"}, ("flash_attn", 1)),
        (ONE._replace(flash=False), MAINLINE, {"-fa": "0"}, ("flash_attn", 0)),
        (ONE._replace(ubatch=128), BITNET, {"-ub": "128"}, ("n_ubatch", 128)),
        (ONE._replace(poll=0), BITNET, {"--poll": "0"}, ("poll", 0)),
    ],
)
def test_a_knob_is_passed_and_checked_in_the_answer(
    setting: Setting, bench: Bench, wanted: dict[str, str], said: tuple[str, object]
) -> None:
    assert wanted.items() <= flags(setting, bench).items()
    (command,) = bench_commands(setting, bench, "x.gguf", Sizes(64, 16, 1), BOTH)
    assert said in command.fields.items()


def test_numa_is_passed_though_no_row_has_it() -> None:
    assert flags(ONE._replace(numa="isolate"))["--numa"] == "isolate"


@pytest.mark.parametrize(
    "setting",
    [
        ONE._replace(mmap=False),
        ONE._replace(mlock=True),
        ONE._replace(flash=False),
        ONE._replace(ubatch=64),
        ONE._replace(poll=0),
        ONE._replace(numa="distribute"),
    ],
)
def test_a_knob_without_a_flag_is_refused(setting: Setting) -> None:
    bare = Bench(("llama-bench",), llama_bench.NEEDED)
    with pytest.raises(UnsupportedError, match="no flag -"):
        bench_commands(setting, bare, "x.gguf", Sizes(64, 16, 1), BOTH)
    with pytest.raises(UnsupportedError, match="no flag -"):
        llama_bench.check_cli(setting, frozenset(("-m", "-p")))


def test_a_locked_model_is_refused_by_bitnets_llama_bench() -> None:
    with pytest.raises(UnsupportedError, match="no flag -lm"):
        bench_commands(ONE._replace(mlock=True), BITNET, "x.gguf", Sizes(64, 16, 1), BOTH)


# Answers

BOTH_ROWS = BenchCommand((), {PP: 64, TG: 16}, 2, {"n_threads": 4, "use_mmap": 0})
PP_ROW = BOTH_ROWS._replace(tokens={PP: 64})
PP_SAID = {
    **{"n_prompt": 64, "n_gen": 0, "n_threads": 4, "use_mmap": False},
    **{"samples_ts": [101.5, 99.5], "samples_ns": [1, 2]},
}
TG_SAID = {**PP_SAID, "n_prompt": 0, "n_gen": 16, "samples_ts": [20.25, 19]}


def answered(*rows: dict[str, Any]) -> str:
    return json.dumps(rows, indent=2)


def test_every_sample_is_kept() -> None:
    speeds = parse_bench(answered(PP_SAID, TG_SAID), BOTH_ROWS)
    assert speeds == {PP: (101.5, 99.5), TG: (20.25, 19.0)}


def test_rows_may_come_in_any_order_and_say_less() -> None:
    short = {name: value for name, value in PP_SAID.items() if name != "use_mmap"}
    speeds = parse_bench(answered(TG_SAID, short), BOTH_ROWS)
    assert speeds[PP] == (101.5, 99.5)


def test_a_log_before_and_behind_the_array_does_not_matter() -> None:
    text = f"[1/2] loading\nload: [ok]\n{answered(PP_SAID)}\n[done]\n"
    assert parse_bench(text, PP_ROW) == {PP: (101.5, 99.5)}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "llama-bench printed no JSON"),
        ("error: nothing", "llama-bench printed no JSON"),
        (answered(PP_SAID)[:-20], "llama-bench printed broken JSON"),
        ("[" * 100_000, "llama-bench printed broken JSON"),
        ("[1, 2]", "llama-bench printed broken JSON"),
        ("[]", "llama-bench printed 0 rows instead of 1"),
        (answered(PP_SAID, TG_SAID), "llama-bench printed 2 rows instead of 1"),
        (answered(TG_SAID), "llama-bench printed no row for pp64"),
        (answered({**PP_SAID, "n_threads": 2}), "pp64 ran with n_threads = 2, not 4"),
        (answered({**PP_SAID, "n_threads": None}), "pp64 ran with n_threads = null, not 4"),
        (answered({**PP_SAID, "use_mmap": True}), "pp64 ran with use_mmap = true, not 0"),
        (answered({**PP_SAID, "samples_ts": [1.0]}), "pp64 has 1 of 2 samples"),
        (answered({**PP_SAID, "samples_ts": 5}), "pp64 has none of 2 samples"),
        (answered({**PP_SAID, "samples_ts": [1.0, 0]}), "pp64 has an impossible speed: 0"),
        (answered({**PP_SAID, "samples_ts": [1.0, -2.5]}), "pp64 has an impossible speed: -2.5"),
        (answered({**PP_SAID, "samples_ts": [math.nan, 1.0]}), "pp64 has an impossible speed: NaN"),
        (
            answered({**PP_SAID, "samples_ts": [math.inf, 1.0]}),
            "pp64 has an impossible speed: Infinity",
        ),
        (answered({**PP_SAID, "samples_ts": [True, 1.0]}), "pp64 has an impossible speed: true"),
        (
            answered({**PP_SAID, "samples_ts": ["fast", 1.0]}),
            'pp64 has an impossible speed: "fast"',
        ),
    ],
)
def test_nonsense_is_a_reason_and_never_a_number(text: str, reason: str) -> None:
    with pytest.raises(FailedRunError) as found:
        parse_bench(text, PP_ROW)
    assert str(found.value) == reason


def test_a_row_must_tell_its_threads() -> None:
    silent = {name: value for name, value in PP_SAID.items() if name != "n_threads"}
    with pytest.raises(FailedRunError, match="n_threads = unknown"):
        parse_bench(answered(silent), PP_ROW)


def test_a_number_beyond_every_float_is_no_speed() -> None:
    text = answered(PP_SAID).replace("101.5", "1" + "0" * 400)
    with pytest.raises(FailedRunError, match="has an impossible speed"):
        parse_bench(text, PP_ROW)


@settings(max_examples=50, deadline=None)
@given(st.text() | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_any_other_output_is_a_failed_run(text: str) -> None:
    with pytest.raises(FailedRunError):
        parse_bench(text, PP_ROW)


# The cli


def log(prompt: str = "50.00 ms /    70 tokens", generation: str = "800.00 ms / 16 runs") -> str:
    return (
        f"llama_perf_context_print: prompt eval time = {prompt} ( ... )\n"
        f"llama_perf_context_print:        eval time = {generation} ( ... )\n"
    )


def test_the_clis_timings_are_one_sample_each() -> None:
    assert llama_bench.parse_cli(log(), Sizes(64, 16, 1), BOTH) == {PP: (1400.0,), TG: (20.0,)}
    assert llama_bench.parse_cli(log(), Sizes(64, 16, 1), (TG,)) == {TG: (20.0,)}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the engine printed no timing for pp"),
        (log(prompt="5.00 ms / 3 tokens"), "pp had 3 tokens instead of at least 64"),
        (log(generation="5.00 ms / 7 runs"), "tg had 7 tokens instead of at least 8"),
        (log(generation="0.00 ms / 16 runs"), "tg16 has an impossible speed: null"),
    ],
)
def test_timings_that_are_no_measurement_are_a_reason(text: str, reason: str) -> None:
    with pytest.raises(FailedRunError) as found:
        llama_bench.parse_cli(text, Sizes(64, 16, 1), BOTH)
    assert str(found.value) == reason


def test_the_clis_prompt_is_long_enough_and_always_the_same() -> None:
    model = read_model(demo.TQ2_0)._replace(context_length=None)
    request = llama_bench.cli_request(Sizes(64, 16, 1), BOTH, model, frozenset(("--ignore-eos",)))
    again = llama_bench.cli_request(Sizes(64, 16, 1), BOTH, model, frozenset())
    assert request.prompt is not None and request.prompt == again.prompt
    words = request.prompt.split()
    assert len(words) == 64 and len(set(words)) > 30
    assert (request.n_predict, request.temperature) == (17, 0.0)
    assert (request.extra, again.extra) == (("--ignore-eos",), ())
    assert request.ctx_size >= 2 * 64 + 17
    small = llama_bench.cli_request(
        Sizes(64, 16, 1), BOTH, model._replace(context_length=99), frozenset()
    )
    assert small.ctx_size == 99


# The environment

OURS = {
    "OMP_NUM_THREADS": "4",
    "MKL_NUM_THREADS": "4",
    "OPENBLAS_NUM_THREADS": "4",
    "OMP_PROC_BIND": "true",
    "OMP_PLACES": "cores",
}


def test_what_the_sourced_file_exported_does_not_leak_into_a_setting() -> None:
    assert llama_bench.stale(UPSTREAM, OURS) == set(OURS)
    kept = UPSTREAM._replace(env=(("OMP_NUM_THREADS", "2"),))
    assert llama_bench.stale(kept, OURS) == set(OURS) - {"OMP_NUM_THREADS"}


def test_the_sourced_waiting_does_not_leak_either() -> None:
    waiting = {**OURS, "KMP_BLOCKTIME": "200"}
    assert llama_bench.stale(UPSTREAM, waiting) == set(waiting)
    others = {**waiting, "OMP_PROC_BIND": "close"}
    assert llama_bench.stale(UPSTREAM, others) == set(waiting) - {"OMP_PROC_BIND", "OMP_PLACES"}


def test_the_users_own_variables_stay() -> None:
    assert llama_bench.stale(UPSTREAM, {"OMP_PROC_BIND": "close", "OMP_NUM_THREADS": "4"}) == set()
