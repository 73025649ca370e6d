"""The self-test: what passes, what fails, and which cause it names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitnet_tuning import demo
from bitnet_tuning.__main__ import main
from bitnet_tuning.engine.find import EMBEDDED, locate_all
from bitnet_tuning.engine.known import know
from bitnet_tuning.launch.background import Captured
from bitnet_tuning.launch.failure import NO_END
from bitnet_tuning.machine.detect import read_host
from bitnet_tuning.model.gguf import read_model, read_tensors
from bitnet_tuning.store.state import State
from bitnet_tuning.verify import selftest
from bitnet_tuning.verify.selftest import KnownText, Report, Result, Variant
from tests.engines import FakeEngine
from tests.machines import Machine
from tests.profile_samples import ENGINE

CASE = KnownText("a prompt", " and its text", 4)
TWO, ONE, BATCHED = Variant(2), Variant(1), Variant(2, 32, 32)


def a_report(*results: tuple[Variant, bool], problem: str | None = None) -> Report:
    runs = (
        Result(CASE, variant, passed, "", None if passed else problem)
        for variant, passed in results
    )
    return Report("/build/bin/llama-cli", demo.I2_S, tuple(runs))


@pytest.mark.parametrize(
    ("engine", "flags", "report", "control", "words"),
    [
        ({"isa": frozenset(("AVX",))}, "sse2 avx avx2", a_report((TWO, False)), None, "lacks AVX2"),
        ({}, "sse2 avx", a_report((TWO, False)), None, "CPU has no AVX2"),
        (
            {"isa": frozenset()},
            "avx2",
            a_report((TWO, False), problem="x: invalid ggml type 36"),
            None,
            "mainline",
        ),
        ({}, "avx2", a_report((TWO, False), problem="killed by SIGILL"), None, "this CPU lacks"),
        ({}, "avx2", a_report((TWO, True), (BATCHED, False)), True, "batches"),
        ({}, "avx2", a_report((ONE, True), (TWO, False)), True, "several threads"),
        ({}, "avx2", a_report((ONE, False), (TWO, False)), True, "i2_s kernels are wrong"),
        ({}, "avx2", a_report((ONE, False), (TWO, False)), False, "or the demo model"),
    ],
)
def test_the_likeliest_cause_is_named(
    tmp_path: Path,
    engine: dict[str, Any],
    flags: str,
    report: Report,
    control: bool | None,
    words: str,
) -> None:
    host = read_host(str(tmp_path))._replace(isa=tuple(flags.split()))
    assert words in next(selftest.causes(report, ENGINE._replace(**engine), host, control))[0]


@pytest.mark.parametrize(
    ("stdout", "text"),
    [
        ("a prompt and its text\n", " and its text"),
        (" a prompt and its text\n\n", " and its text"),
        ("<s>a prompt and its text [end of text]\n", " and its text"),
        ("no echo", "no echo"),
    ],
)
def test_the_text_after_the_prompt_is_found(stdout: str, text: str) -> None:
    assert selftest.continuation(stdout, "a prompt") == text


def test_every_prompt_is_run_with_several_threads_and_batches() -> None:
    cases = selftest.load_cases()
    runs = list(selftest.variants(cases, usable=6))
    assert {case for case, _ in runs} == set(cases)
    assert {variant.threads for _, variant in runs} >= {1, 3, 6}
    assert len({variant.batch for _, variant in runs}) >= 3


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command with flags and environment variables; returns exit code, stdout and stderr."""

    def call(*arguments: str, **variables: str) -> tuple[int, str, str]:
        with monkeypatch.context() as patch:
            for name, text in variables.items():
                patch.setenv(name, text)
            code = main(["selftest", *arguments])
        return code, *capsys.readouterr()

    return call


def test_wrong_words_fail_with_both_texts(tmp_path: Path, run: Run) -> None:
    engine = FakeEngine(tmp_path / "checkout")
    code, out, _ = run("--engine", str(engine.cli), FAKE_OUTPUT=" GGGGGGGG")
    assert code == 1
    assert "PASS" not in out
    assert "got       GGGGGGGG" in out
    assert "expected" in out
    lines = out.splitlines()
    assert lines[2].startswith("FAIL  likely cause: ") and lines[3].startswith("      ")
    total = len(selftest.load_cases())
    assert lines[-1] == f"FAIL  0 of {total} runs gave the expected text"


def test_after_the_time_is_up_no_other_case_starts(tmp_path: Path) -> None:
    fake = FakeEngine(tmp_path / "checkout")
    engine = know(locate_all(str(fake.cli), {}, ())[0], State(str(tmp_path / "state")))
    host = Machine(tmp_path / "host").host()
    assert len(selftest.run_selftest(engine, host, demo.TQ2_0, until=0).results) == 1


def test_an_engine_that_crashes_fails_with_its_reason(tmp_path: Path, run: Run) -> None:
    engine = FakeEngine(tmp_path / "checkout")
    code, out, _ = run("--engine", str(engine.cli), "--json", FAKE_KILL="11")
    report = json.loads(out)
    assert code == 1
    assert report["passed"] is False
    assert "SIGSEGV" in report["cases"][0]["problem"]


def test_an_engine_for_another_cpu_is_not_run(tmp_path: Path, run: Run) -> None:
    engine = FakeEngine(tmp_path / "checkout")
    code, out, err = run("--engine", str(engine.cli), FAKE_KILL="4")
    assert (code, out) == (4, "")
    assert "SIGILL" in err and "build it on this machine" in err
    assert engine.prompts() == []  # the probe has seen it die


def test_an_engine_that_hangs_ends_the_selftest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeEngine(tmp_path / "checkout")
    engine = know(locate_all(str(fake.cli), {}, ())[0], State(str(tmp_path / "state")))
    monkeypatch.setenv("FAKE_SLEEP", "600")
    monkeypatch.setenv("FAKE_OUTPUT", "")
    monkeypatch.setattr(selftest, "RUN_SECONDS", 0.5)
    report = selftest.run_selftest(engine, Machine(tmp_path / "host").host(), demo.TQ2_0)
    first, one_thread = report.results
    assert (report.passed, one_thread.variant.threads) == (None, 1)
    assert str(first.problem).startswith(NO_END)


def test_a_build_without_kernels_is_tested_all_the_same(tmp_path: Path, run: Run) -> None:
    engine = FakeEngine(tmp_path / "checkout").isa("SSSE3")
    code, out, _ = run("--engine", str(engine.cli))
    assert code == 1 and engine.prompts() != []
    assert "FAIL" in out


def test_a_limit_on_threads_is_the_cause_and_not_the_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = know(
        locate_all(str(FakeEngine(tmp_path / "checkout").cli), {}, ())[0],
        State(str(tmp_path / "state")),
    )
    log = "libgomp: Thread creation failed: Resource temporarily unavailable"
    monkeypatch.setattr(selftest, "capture", lambda *_: Captured(1, "", log))
    monkeypatch.setattr(selftest, "read_task_limits", lambda root: [("ulimit -u", 5, 2)])
    report = selftest.run_selftest(engine, Machine(tmp_path / "host").host(), demo.TQ2_0)
    assert not report.passed
    assert "ulimit -u allows 5" in str(report.diagnosis) and "-t 1" in str(report.diagnosis)
    monkeypatch.setattr(selftest, "read_task_limits", lambda root: [])
    report = selftest.run_selftest(engine, Machine(tmp_path / "host").host(), demo.TQ2_0)
    assert "the limit on processes and threads" in str(report.diagnosis)


def test_a_missing_engine_is_3(tmp_path: Path, run: Run) -> None:
    code, _, err = run("--engine", str(tmp_path / "nowhere"))
    assert code == 3
    assert "nowhere" in err


def flip_one_tensor(source: str, target: Path) -> None:
    """Write a copy of the file in which one matrix has its signs swapped: 0, 1, 2 are 2, 1, 0."""
    data = bytearray(Path(source).read_bytes())
    (matrix,) = [info for info in read_tensors(source) if info.name == "blk.0.ffn_down.weight"]
    ranges = (
        [(matrix.offset, matrix.weights // 4)]
        if matrix.kind == 36
        else [(matrix.offset + 66 * block, 64) for block in range(matrix.weights // 256)]
    )
    for start, length in ranges:
        for at in range(start, start + length):
            data[at] = 0xAA - data[at]
    target.write_bytes(data)


def test_the_embedded_engine_reproduces_every_text(run: Run) -> None:
    pytest.importorskip("xllamacpp")
    code, out, _ = run("--engine", EMBEDDED, "--json")
    report = json.loads(out)
    assert code == 0, out
    assert {case["prompt"] for case in report["cases"]} == {
        case.prompt for case in selftest.load_cases()
    }
    for case in report["cases"]:
        assert case["passed"], case
        assert case["got"].strip().startswith(case["expected"].strip())


def test_one_flipped_tensor_fails(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    path = tmp_path / "flipped.gguf"
    flip_one_tensor(demo.TQ2_0, path)
    engine = know(locate_all(EMBEDDED, {}, ())[0], State(str(tmp_path / "state")))
    case = min(selftest.load_cases(), key=lambda each: each.tokens)
    done = selftest.run_case(engine, read_host(), read_model(str(path)), case, ONE)
    assert (done.passed, done.problem) == (False, None)


def slow_after(fake: FakeEngine, share: float, threads: str = "") -> None:
    """Make the engine print a share of each text (of those with some number of threads) and then
    sleep, as on a machine that is far too slow."""
    texts = {case.prompt: case.text for case in selftest.load_cases()}
    fake.curve(texts=texts)
    text = fake.cli.read_text()
    slow = f"""is_slow = value("-n") != "1" and value("-t") {threads or "!= '0'"}
    text = text[: int(len(text) * {share})] if is_slow else text
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()
    if is_slow:
        time.sleep(600)
    sys.stdout.buffer.write(b"\\\\n")"""
    line = 'sys.stdout.buffer.write(text.encode() + b"\\n")'
    assert text.count(line) == 1
    fake.cli.write_text(text.replace(line, slow))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_machine_that_is_too_slow_shows_nothing(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    fake = FakeEngine(tmp_path / "checkout")
    slow_after(fake, share)
    monkeypatch.setattr(selftest, "RUN_SECONDS", 1.0)
    code, out, _ = run("--engine", str(fake.cli))
    assert code == 4
    assert "FAIL" not in out and "likely cause" not in out
    assert "too slow to tell" in out
    assert "0 of 2 runs" in out  # one with several threads, one with a single thread
    assert f"wrong in the first {'0 ' if not share else ''}" in out
    code, out, _ = run("--engine", str(fake.cli), "--json")
    report = json.loads(out)
    assert (code, report["passed"], report["cases"][0]["passed"]) == (4, None, None)


def test_wrong_words_of_a_slow_machine_fail(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeEngine(tmp_path / "checkout")
    slow_after(fake, 1.0)
    fake.curve(texts={case.prompt: "GGGGGGGG" for case in selftest.load_cases()})
    monkeypatch.setattr(selftest, "RUN_SECONDS", 2.0)
    code, out, _ = run("--engine", str(fake.cli))
    assert code == 1
    assert "FAIL" in out


def test_after_a_slow_run_one_thread_is_tried(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeEngine(tmp_path / "checkout")
    slow_after(fake, 0.5, threads="!= '1'")
    monkeypatch.setattr(selftest, "RUN_SECONDS", 3.0)
    code, out, _ = run("--engine", str(fake.cli))
    total = len(selftest.load_cases())
    assert code == 4
    assert f"SLOW  {total - 1} of {total} runs" in out


def test_batches_are_no_cause_if_nothing_else_was_run(tmp_path: Path) -> None:
    host = read_host(str(tmp_path))._replace(isa=("avx2",))
    (cause, _), *_ = selftest.causes(a_report((BATCHED, False)), ENGINE, host, None)
    assert "batches" not in cause
