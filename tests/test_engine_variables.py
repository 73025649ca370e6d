"""Variables that others read, too: llama.cpp's own for its flags, and OpenMP's limits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bitnet_tuning.engine.find import GOMP, LLVM, NONE
from bitnet_tuning.machine.topology import Node
from bitnet_tuning.plan.facts import Facts, Plan, Request
from bitnet_tuning.plan.plan import make_plan
from tests.conftest import REPOSITORY
from tests.engines import FakeEngine
from tests.gguf_files import write_gguf
from tests.profile_samples import ENGINE, MODEL
from tests.test_plan import a_host


def run(
    tmp_path: Path, *words: str, script: str = "run_inference_optimized.py", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Print the plan of a run as JSON, with a fake engine."""
    checkout = tmp_path / "checkout"
    if not checkout.exists():
        write_gguf(FakeEngine(checkout).checkout / "m.gguf")
    given = ["--engine", str(checkout), "-m", str(checkout / "m.gguf"), "-p", "x"]
    return subprocess.run(
        [sys.executable, script, *given, "--dry-run", "--json", *words],
        cwd=REPOSITORY,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def planned(tmp_path: Path, *words: str, **options: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the values of the engine's flags, and the reasons."""
    plan: Any = json.loads(run(tmp_path, *words, **options).stdout)
    argv: list[str] = plan["command"]
    return dict(zip(argv[1::2], argv[2::2], strict=False)), plan["reasons"]


SET = {
    "LLAMA_ARG_THREADS": ("3", "-t", "threads"),
    "LLAMA_ARG_CTX_SIZE": ("512", "-c", "ctx_size"),
    "LLAMA_ARG_N_PREDICT": ("-1", "-n", "n_predict"),
    "LLAMA_ARG_TEMPERATURE": ("0.5", "--temp", "temperature"),
    "LLAMA_ARG_BATCH": ("96", "-b", "batch"),
    "LLAMA_ARG_UBATCH": ("80", "-ub", "ubatch"),
}


@pytest.mark.parametrize("script", ["run_inference.py", "run_inference_optimized.py"])
def test_variables_of_llama_cpp_decide_what_no_flag_does(tmp_path: Path, script: str) -> None:
    values = {name: value for name, (value, _, _) in SET.items()}
    flags, reasons = planned(tmp_path, script=script, **values)
    for name, (value, flag, field) in SET.items():
        assert flags[flag] == value
        assert reasons[field] == f"{value}: set by {name}"
    assert flags["-tb"] == "3"


def test_flags_decide_over_variables_of_llama_cpp(tmp_path: Path) -> None:
    values = {name: value for name, (value, _, _) in SET.items()}
    words = ["-t", "2", "-c", "256", "-n", "9", "-temp", "0.25", "-b", "64", "-ub", "32"]
    flags, reasons = planned(tmp_path, *words, **values)
    expected = {"-t": "2", "-c": "256", "-n": "9", "--temp": "0.25", "-b": "64", "-ub": "32"}
    assert flags | expected == flags
    assert "LLAMA_ARG" not in str(reasons)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LLAMA_ARG_THREADS", "many"),
        ("LLAMA_ARG_THREADS", "513"),
        ("LLAMA_ARG_CTX_SIZE", "-5"),
        ("LLAMA_ARG_N_PREDICT", "1.5"),
        ("LLAMA_ARG_TEMPERATURE", "nan"),
        ("LLAMA_ARG_UBATCH", "0"),
    ],
)
def test_an_invalid_value_is_an_error_that_names_the_variable(
    tmp_path: Path, name: str, value: str
) -> None:
    done = run(tmp_path, **{name: value})
    assert (done.returncode, done.stdout) == (2, "")
    assert name in done.stderr.splitlines()[0]
    assert f"`unset {name}`" in done.stderr


def plan(
    environ: dict[str, str], runtime: str = GOMP, cores: int = 8, nodes: int = 1, **request: Any
) -> Plan:
    host = a_host(cores)
    if nodes > 1:
        halves = [frozenset(range(first, 2 * cores, 2)) for first in range(2)]
        host = host._replace(nodes=tuple(Node(at, cpus) for at, cpus in enumerate(halves)))
    engine = ENGINE._replace(openmp=runtime)
    asked = Request(prompt="hello", **request)
    return make_plan(asked, Facts(host, engine, MODEL, "named", environ))


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("LLAMA_ARG_FLASH_ATTN", "flash"),
        ("LLAMA_ARG_NO_MMAP", "mmap"),
        ("LLAMA_ARG_LOAD_MODE", "mmap"),
        ("LLAMA_ARG_MLOCK", "mlock"),
        ("LLAMA_ARG_NUMA", "numa"),
    ],
)
def test_what_no_flag_overrules_is_left_to_the_engine(name: str, field: str) -> None:
    made = plan({name: "1"}, nodes=2)
    assert made.reasons[field] == f"left to the engine, which obeys your {name}=1"
    assert {"-fa", "--no-mmap", "--mlock"}.isdisjoint(made.command)
    if field == "numa":
        assert (made.setting.numa, made.setting.node, made.setting.cpus) == (None, None, None)
        assert plan({}, nodes=2).setting.node is not None or plan({}, nodes=2).setting.numa


# OpenMP's limits


@pytest.mark.parametrize("runtime", [GOMP, LLVM])
@pytest.mark.parametrize(("limit", "warned"), [("1", True), ("4", True), ("5", False)])
def test_a_thread_limit_is_obeyed_with_a_warning_if_it_costs_half(
    runtime: str, limit: str, warned: bool
) -> None:
    made = plan({"OMP_THREAD_LIMIT": limit}, runtime)
    assert made.setting.threads == made.setting.threads_batch == int(limit)
    assert f"limited to {limit} (your OMP_THREAD_LIMIT)" in made.reasons["threads"]
    assert "OMP_THREAD_LIMIT" in made.reasons["threads_batch"]
    assert made.setting.variables["OMP_NUM_THREADS"] == limit
    assert "OMP_PROC_BIND" not in made.setting.variables
    assert any("OMP_THREAD_LIMIT" in each for each in made.warnings) == warned


@pytest.mark.parametrize("limit", ["", "0", "many", "8", "64"])
def test_other_thread_limits_change_nothing(limit: str) -> None:
    assert plan({"OMP_THREAD_LIMIT": limit}) == plan({})


def test_an_engine_without_openmp_has_no_thread_limit() -> None:
    assert plan({"OMP_THREAD_LIMIT": "1"}, NONE) == plan({}, NONE)


def test_a_flag_is_passed_on_whatever_the_thread_limit_but_not_without_a_warning() -> None:
    made = plan({"OMP_THREAD_LIMIT": "2"}, threads=4)
    assert made.setting.threads == 4
    assert "OMP_THREAD_LIMIT=2 allows 2 threads where 4 would run" in made.warnings[0]
    assert plan({"OMP_THREAD_LIMIT": "3"}, threads=4).warnings == ()


@pytest.mark.parametrize(("count", "warned"), [("1", True), ("4", True), ("5", False)])
def test_a_frameworks_thread_count_is_obeyed_with_a_warning_if_it_costs_half(
    count: str, warned: bool
) -> None:
    made = plan({"OMP_NUM_THREADS": count})
    assert made.setting.threads == int(count)
    assert made.reasons["threads"] == f"{count}: set by your OMP_NUM_THREADS"
    assert [f"OMP_NUM_THREADS={count} allows" in each for each in made.warnings] == [True] * warned


@pytest.mark.parametrize("own", [{"BITNET_THREADS": "1"}, {"LLAMA_ARG_THREADS": "1"}])
def test_a_count_that_is_meant_for_engines_needs_no_warning(own: dict[str, str]) -> None:
    assert plan(own).warnings == plan({}, threads=1).warnings == ()
    assert plan({"OMP_NUM_THREADS": "1"}, cores=1).warnings == ()
