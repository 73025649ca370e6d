"""Runs of compiled engines; BITNET_TEST_ENGINES names folders with a llama-cli."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bitnet_tuning import demo
from bitnet_tuning.model.gguf import read_tensors
from tests.test_selftest import flip_one_tensor

REPO = Path(__file__).resolve().parent.parent
SECONDS = 300.0
"""Limit for a run: a build without OpenMP is slow while others compute, since its threads spin."""
FOLDERS = [name for name in os.environ.get("BITNET_TEST_ENGINES", "").split(os.pathsep) if name]

pytestmark = pytest.mark.skipif(not FOLDERS, reason="BITNET_TEST_ENGINES names no engine")


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPO,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@functools.cache
def plan(folder: str) -> dict[str, Any]:
    done = run("-m", "bitnet_tuning", "plan", "--engine", folder, "-m", demo.TQ2_0, "--json")
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


@functools.cache
def model_for(folder: str) -> str:
    """Return the demo model's i2_s file if the engine knows i2_s, else its TQ2_0 file."""
    done = run("-m", "bitnet_tuning", "plan", "--engine", folder, "-m", demo.I2_S)
    return demo.TQ2_0 if done.returncode == 4 else demo.I2_S


@functools.cache
def computes_right(folder: str) -> bool:
    return run("-m", "bitnet_tuning", "selftest", "--engine", folder).returncode == 0


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_prompt_is_completed_and_the_engine_ends(folder: str) -> None:
    flags = ["--engine", folder, "-m", model_for(folder), "-temp", "0", "-n", "24"]
    done = run("run_inference.py", *flags, "-p", "How many threads")
    assert done.returncode == 0, done.stderr
    assert done.stdout.lstrip().startswith("How many threads")
    if computes_right(folder):
        assert "one thread per physical core" in done.stdout


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_engine_reports_the_planned_threads(folder: str) -> None:
    flags = ["--engine", folder, "-m", model_for(folder), "-n", "2", "-t", "1", "-p", "a"]
    # llama-completion now and then loses the end of its log (llama.cpp issue 22142).
    logs = (run("run_inference.py", *flags).stderr for _ in range(6))
    assert any("n_threads = 1 (n_threads_batch = 1)" in log for log in logs)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_chat_ends_with_its_input(folder: str) -> None:
    flags = ["--engine", folder, "-m", model_for(folder), "-temp", "0", "-n", "64"]
    done = run("run_inference.py", *flags, "-p", "Be brief.", "-cnv", stdin="What is SMT?\n")
    assert done.returncode == 0, done.stderr
    if computes_right(folder):
        assert "multithreading" in done.stdout


def interrupted(folder: str) -> int:
    """Return the exit code of a run that is interrupted as soon as it prints."""
    flags = ["--engine", folder, "-m", model_for(folder), "-n", "-1", "-p", "a", "-t", "1"]
    with subprocess.Popen(
        [sys.executable, "run_inference.py", *flags],
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.read(1)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    return process.returncode


@pytest.mark.parametrize("folder", FOLDERS)
def test_an_interrupt_ends_with_130(folder: str) -> None:
    """A run of the demo model takes milliseconds and may end before the interrupt."""
    codes = [interrupted(folder) for _ in range(10)]
    assert 130 in codes
    assert set(codes) <= {0, 130}


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_self_test_detects_a_flipped_tensor(folder: str, tmp_path: Path) -> None:
    if not computes_right(folder):
        pytest.skip("this build computes garbage with any model")
    model = tmp_path / "flipped.gguf"
    flip_one_tensor(model_for(folder), model)
    done = run("-m", "bitnet_tuning", "selftest", "--engine", folder, "--model", str(model))
    assert done.returncode == 1
    assert "PASS" not in done.stdout


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("kind", ["q6_k", "q8_0"])
def test_a_copy_with_a_smaller_embedding_passes_the_self_test(
    folder: str, kind: str, tmp_path: Path
) -> None:
    quantizer = Path(plan(folder)["engine"]).parent / "llama-quantize"
    if not quantizer.exists() or not computes_right(folder):
        pytest.skip("it has no llama-quantize, or computes garbage with any model")
    original, copy = model_for(folder), str(tmp_path / "copy.gguf")
    flags = ["--allow-requantize", "--token-embedding-type", kind, original, copy]
    form = "TQ2_0" if original == demo.TQ2_0 else "I2_S"
    subprocess.run([quantizer, *flags, form, "1"], capture_output=True, timeout=SECONDS, check=True)
    before, after = ({info.name: info for info in read_tensors(path)} for path in (original, copy))
    changed = [name for name in before if before[name].kind != after[name].kind]
    assert changed == ["token_embd.weight"]
    done = run("-m", "bitnet_tuning", "selftest", "--engine", folder, "--model", copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("folder", FOLDERS)
def test_backslashes_and_newlines_reach_the_model(folder: str) -> None:
    prompt = 'C:\\new "quoted"\nsecond line \N{SLIGHTLY SMILING FACE}'
    flags = ["--engine", folder, "-m", model_for(folder), "-n", "1", "-temp", "0"]
    done = run("run_inference.py", *flags, "-p", prompt)
    assert done.stdout.lstrip().startswith(prompt)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_environment_suits_the_openmp_runtime(folder: str) -> None:
    facts = plan(folder)
    runtime = facts["reasons"]["env"]
    assert ("KMP_BLOCKTIME" in facts["env"]) <= ("libomp" in runtime)
    assert ("OMP_PLACES" in facts["env"]) == ("without OpenMP" not in runtime)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_slim_copy_of_the_demo_model_still_knows_its_texts(folder: str, tmp_path: Path) -> None:
    model = tmp_path / "demo.gguf"
    shutil.copyfile(model_for(folder), model)
    done = run("-m", "bitnet_tuning", "model", "slim", str(model), "--engine", folder)
    assert done.returncode == 0, done.stderr
    copy = tmp_path / "demo-embd-q6_k.gguf"
    assert sorted(tmp_path.iterdir()) == [copy, model]
    if computes_right(folder):
        flags = ["--engine", folder, "--model", str(copy)]
        assert run("-m", "bitnet_tuning", "selftest", *flags).returncode == 0


QUESTIONS = ("How many threads", "What is SMT?", "What is a CPU quota?", "Why")


def has_server(folder: str) -> bool:
    return (Path(plan(folder)["engine"]).parent / "llama-server").exists()


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("slots", ["1", "4"])
def test_many_prompts_get_the_answers_that_each_gets_alone(folder: str, slots: str) -> None:
    if not has_server(folder):
        pytest.skip("it has no llama-server")
    flags = ["--engine", folder, "-m", model_for(folder), "-temp", "0", "-n", "24", "--quiet"]
    lines = "".join(json.dumps(question) + "\n" for question in QUESTIONS * 3)
    script = "run_inference_optimized.py"
    done = run(script, *flags, "--prompts", "-", "--slots", slots, stdin=lines)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["prompt"] for answer in answers] == list(QUESTIONS * 3)
    for answer in answers[: len(QUESTIONS)]:
        expected = f"{answer['prompt']}{answer['text']}".split()
        # llama-completion now and then loses its last words (llama.cpp issue 22142).
        texts = (run(script, *flags, "-p", answer["prompt"]).stdout.split() for _ in range(5))
        assert any(text == expected for text in texts)


@pytest.mark.parametrize("folder", FOLDERS)
def test_only_the_prompt_that_is_too_long_is_refused(folder: str) -> None:
    if not has_server(folder):
        pytest.skip("it has no llama-server")
    flags = ["--engine", folder, "-m", model_for(folder), "-n", "4", "-c", "128", "--slots", "2"]
    lines = "".join(json.dumps(text) + "\n" for text in ("Why", "Why " * 300, "How"))
    done = run("run_inference_optimized.py", *flags, "--prompts", "-", stdin=lines)
    assert done.returncode == 1
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert ["error" in answer for answer in answers] == [False, True, False]
