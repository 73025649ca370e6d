"""The doctor's checks of engine, model and environment, each in every state."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bitnet_tuning import demo
from bitnet_tuning.doctor.gather import read_build
from bitnet_tuning.engine.find import Engine, Location
from bitnet_tuning.errors import TuningError
from bitnet_tuning.model.gguf import read_model
from bitnet_tuning.model.types import ModelFile
from bitnet_tuning.verify.selftest import KnownText, Report, Result, Variant
from tests import profile_samples as samples
from tests.doctor_cases import NOW, case_of, found_in, laptop, states
from tests.gguf_files import write_bitnet
from tests.machines import Machine, x86_entries

DAY = 86400.0
ENGINE, MODEL = samples.ENGINE, samples.MODEL
PROBLEM = TuningError("no such thing: x", "name another one")
EMBEDDED = ENGINE._replace(
    location=Location("/e.py", "asked for with --engine", embedded=True), i2_s=False
)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return laptop(tmp_path / "root")


# Engine


@pytest.mark.parametrize(
    ("engine", "state", "text"),
    [
        (ENGINE, "good", "whose llama-cli completes"),
        (ENGINE._replace(completion="/c", i2_s=True), "good", "bitnet.cpp whose llama-completion"),
        (ENGINE._replace(completion="/c", i2_s=False), "good", "mainline llama.cpp whose"),
        (EMBEDDED, "good", "the embedded engine"),
        (
            EMBEDDED._replace(location=Location("/e.py", "no compiled engine was found", True)),
            "warn",
            "no compiled engine was found",
        ),
        (ENGINE._replace(flags=frozenset()), "bad", "--help"),
        (
            ENGINE._replace(isa=frozenset(("AVX2", "AVX512")), flags=frozenset()),
            "bad",
            "is built for AVX512, which this CPU lacks",
        ),
        (PROBLEM, "bad", PROBLEM.cause),
        (None, "-", ""),
    ],
)
def test_engine(
    machine: Machine, engine: Engine | TuningError | None, state: str, text: str
) -> None:
    assert states(machine, "engine", engine=engine) == state
    found = found_in(case_of(machine, engine=engine))
    assert state == "-" or text in found["engine"].text


@pytest.mark.parametrize(
    ("built", "state"),
    [(NOW - 10, "good"), (NOW - 300 * DAY, "good"), (NOW - 400 * DAY, "warn"), (None, "-")],
)
def test_age(machine: Machine, built: float | None, state: str) -> None:
    assert states(machine, "engine age", built=built) == state


@pytest.mark.parametrize(
    ("flags", "state"),
    [
        ("fpu sse2 avx avx2", "good"),
        ("fpu sse2 avx", "bad"),
        ("asimd asimddp", "good"),
        ("asimd", "warn"),
        ("vsx", "bad"),
        ("", "unknown"),
    ],
)
def test_the_cpu_for_i2_s(machine: Machine, flags: str, state: str) -> None:
    assert states(machine.cpuinfo(x86_entries(8, flags)), "CPU for i2_s") == state


@pytest.mark.parametrize(
    ("isa", "quantization", "state"),
    [
        ({"AVX", "AVX2"}, "i2_s", "good"),
        ({"NEON", "ARM_FMA"}, "i2_s", "good"),
        ({"AVX", "SSE3"}, "i2_s", "bad"),
        ({"AVX", "SSE3"}, "tq2_0", "warn"),
        (set(), "i2_s", "unknown"),
    ],
)
def test_the_build_for_i2_s(machine: Machine, isa: set[str], quantization: str, state: str) -> None:
    engine, model = ENGINE._replace(isa=frozenset(isa)), MODEL._replace(quantization=quantization)
    assert states(machine, "build for i2_s", engine=engine, model=model) == state


def test_a_passed_self_test_answers_what_is_not_shown(machine: Machine) -> None:
    engine, passed = ENGINE._replace(isa=frozenset()), report(True, True)
    machine.cpuinfo(x86_entries(8, ""))
    for name in ("CPU for i2_s", "build for i2_s"):
        assert states(machine, name, engine=engine, selftest=report(False, False)) == "unknown"
        assert states(machine, name, engine=engine, selftest=passed) == "good"


@pytest.mark.parametrize(
    ("runtime", "text"), [("libomp", "libomp"), ("none", "none"), (None, "unknown")]
)
def test_openmp_runtime(machine: Machine, runtime: str | None, text: str) -> None:
    case = case_of(machine, engine=ENGINE._replace(openmp=runtime))
    assert found_in(case)["engine"].text.endswith(f", OpenMP runtime: {text}")


@pytest.mark.parametrize(
    ("swapped", "state"), [((), "good"), (("/other/libggml.so",), "bad"), (None, "-")]
)
def test_libraries(machine: Machine, swapped: tuple[str, ...] | None, state: str) -> None:
    assert states(machine, "libraries", swapped=swapped) == state


def result(passed: bool) -> Result:
    return Result(KnownText("a", "b", 1), Variant(1), passed, "b" if passed else "GGGG")


def report(*passed: bool) -> Report:
    why = (None, None) if all(passed) else ("the build lacks AVX2", "build it again")
    return Report("/e", "/m", tuple(map(result, passed)), *why)


@pytest.mark.parametrize(
    ("found", "state"),
    [
        (report(True, True), "good"),
        (report(True, False), "bad"),
        (PROBLEM, "bad"),
        (None, "unknown"),
    ],
)
def test_selftest(machine: Machine, found: Report | TuningError | None, state: str) -> None:
    assert states(machine, "self-test", selftest=found) == state


def test_a_failed_selftest_says_why_and_what_to_do(machine: Machine) -> None:
    found = found_in(case_of(machine, selftest=report(True, False)))["self-test"]
    assert found.text == "1 of 2 runs gave the expected text: the build lacks AVX2"
    assert found.advice == "build it again"


def test_profile(machine: Machine) -> None:
    profile = samples.profile(machine.host(), ENGINE)
    stale = (profile, ["CPU quota none, now 2"])
    assert states(machine, "profile", profile=profile) == "good"
    assert states(machine, "profile", profile=profile._replace(setting=None)) == "good"
    assert states(machine, "profile", stale=stale) == "warn"
    assert "CPU quota" in found_in(case_of(machine, stale=stale))["profile"].text
    assert states(machine, "profile") == "unknown"
    assert states(machine, "profile", model=None) == "-"


def test_without_an_engine_its_checks_do_not_apply(machine: Machine) -> None:
    named = {"engine", "build for i2_s", "libraries", "self-test", "profile"}
    assert named <= set(found_in(case_of(machine)))
    assert not named & set(found_in(case_of(machine, engine=None, swapped=None)))


# Model


@pytest.mark.parametrize(
    ("engine", "quantization", "state"),
    [
        (ENGINE, "i2_s", "good"),
        (None, "i2_s", "good"),
        (EMBEDDED, "tq2_0", "good"),
        (ENGINE, "tq2_0", "warn"),
        (ENGINE, "f16", "warn"),
        (EMBEDDED, "i2_s", "bad"),
        (ENGINE, "tl2", "bad"),
    ],
)
def test_model(machine: Machine, engine: Engine | None, quantization: str, state: str) -> None:
    model = MODEL._replace(quantization=quantization)
    assert states(machine, "model", engine=engine, model=model) == state


def test_no_model(machine: Machine) -> None:
    assert states(machine, "model", model=PROBLEM) == "bad"
    assert states(machine, "model", model=None) == "-"


def written(folder: Path, name: str = "m.gguf", **parts: str) -> ModelFile:
    return read_model(str(write_bitnet(folder / name, **parts)))


@pytest.mark.parametrize(
    ("parts", "state", "text"),
    [
        (
            {"embedding": "f16"},
            "warn",
            "f16 embedding; a copy with q6_k is up to ×2.41 as fast",
        ),
        ({"embedding": "f32"}, "warn", "up to ×4.80 as fast"),
        (
            {"embedding": "q6_k"},
            "good",
            "of the 6.5 MiB that each token reads is the q6_k",
        ),
        ({"embedding": "f16", "output": "f16"}, "warn", "reads is the f16 output matrix"),
        ({"embedding": "f16", "output": "q6_k"}, "good", "reads is the q6_k output matrix"),
    ],
)
def test_an_embedding_that_costs_time_is_a_warning(
    machine: Machine, tmp_path: Path, parts: dict[str, str], state: str, text: str
) -> None:
    model = written(tmp_path, "a model.gguf", **parts)
    found = found_in(case_of(machine, model=model))["embedding"]
    assert (found.state, text in found.text) == (state, True)
    command = f"make a smaller copy: python3 -m bitnet_tuning model slim '{model.path}'"
    assert found.advice == (command if state == "warn" else None)


def test_a_slim_copy_is_what_to_run(machine: Machine, tmp_path: Path) -> None:
    copy = written(tmp_path, "m-embd-q6_k.gguf", embedding="q6_k")
    found = found_in(case_of(machine, model=written(tmp_path), slim_copies=(copy,)))["embedding"]
    assert (
        found.advice
        == f"run the copy with a smaller embedding: python3 run_inference.py -m {copy.path}"
    )


def test_the_demo_models_embedding_is_not_judged(machine: Machine) -> None:
    model = read_model(demo.I2_S)
    assert states(machine, "embedding", model=model, model_path=demo.I2_S) == "-"
    assert states(machine, "embedding", model=PROBLEM) == "-"


def test_the_models_drive(machine: Machine) -> None:
    machine.windows_drive().mount("/net", "nfs4", "server:/models")
    paths = {"/models/m.gguf": "good", "/mnt/c/m.gguf": "warn", "/net/m.gguf": "warn"}
    found = {path: states(machine, "model's drive", model_path=path) for path in paths}
    assert found == paths
    assert states(machine, "model's drive", mounts=()) == "good"


def test_without_a_model_windows_drives_are_named_under_wsl(machine: Machine) -> None:
    machine.windows_drive()
    assert states(machine, "model's drive", model_path=None) == "-"
    machine.kernel("5.15.153.1-microsoft-standard-WSL2")
    found = found_in(case_of(machine, model_path=None))["model's drive"]
    assert (found.state, "/mnt/c" in (found.advice or "")) == ("unknown", True)


# Environment

GNU = ENGINE._replace(openmp="libgomp")
BARE = ENGINE._replace(openmp="none")
NOT_KNOWN = ENGINE._replace(openmp=None)


@pytest.mark.parametrize(
    ("name", "environ", "engine", "state"),
    [
        ("waiting", {}, ENGINE, "good"),
        ("waiting", {"OMP_WAIT_POLICY": "active"}, GNU, "good"),
        ("waiting", {"OMP_WAIT_POLICY": "PASSIVE"}, GNU, "bad"),
        ("waiting", {"OMP_WAIT_POLICY": "passive"}, BARE, "good"),
        ("waiting", {"KMP_BLOCKTIME": "0"}, ENGINE, "bad"),
        ("waiting", {"KMP_BLOCKTIME": "0ms"}, NOT_KNOWN, "bad"),
        ("waiting", {"KMP_BLOCKTIME": "200"}, ENGINE, "good"),
        ("waiting", {"KMP_BLOCKTIME": "0"}, GNU, "good"),
        ("waiting", {"GOMP_SPINCOUNT": "0"}, GNU, "bad"),
        ("waiting", {"GOMP_SPINCOUNT": "0"}, ENGINE, "good"),
        ("thread limit", {}, ENGINE, "good"),
        ("thread limit", {"OMP_THREAD_LIMIT": "3"}, ENGINE, "bad"),
        ("thread limit", {"OMP_THREAD_LIMIT": "3"}, None, "bad"),
        ("thread limit", {"OMP_THREAD_LIMIT": "4"}, ENGINE, "good"),
        ("thread limit", {"OMP_THREAD_LIMIT": "3"}, BARE, "good"),
        ("thread limit", {"OMP_THREAD_LIMIT": "x"}, ENGINE, "unknown"),
        ("dynamic threads", {}, ENGINE, "good"),
        ("dynamic threads", {"OMP_DYNAMIC": "TRUE"}, ENGINE, "bad"),
        ("dynamic threads", {"OMP_DYNAMIC": "false"}, ENGINE, "good"),
        ("dynamic threads", {"OMP_DYNAMIC": "true"}, BARE, "good"),
        ("binding", {}, ENGINE, "good"),
        ("binding", {"OMP_PROC_BIND": "close"}, ENGINE, "good"),
        ("binding", {"OMP_PROC_BIND": "master"}, GNU, "bad"),
        ("binding", {"OMP_PROC_BIND": "primary,close"}, GNU, "bad"),
        ("binding", {"OMP_PROC_BIND": "primary"}, BARE, "good"),
        ("binding", {"GOMP_CPU_AFFINITY": "0 2"}, GNU, "bad"),
        ("binding", {"GOMP_CPU_AFFINITY": "0-6:2"}, GNU, "good"),
        ("binding", {"GOMP_CPU_AFFINITY": "what"}, GNU, "good"),
        ("ignored variables", {}, ENGINE, "good"),
        ("ignored variables", {"KMP_BLOCKTIME": "200"}, GNU, "warn"),
        ("ignored variables", {"GOMP_SPINCOUNT": "10000"}, ENGINE, "warn"),
        ("ignored variables", {"OMP_PROC_BIND": "true"}, BARE, "warn"),
        ("ignored variables", {"OMP_NUM_THREADS": "4"}, BARE, "good"),
        ("ignored variables", {"KMP_BLOCKTIME": "200"}, NOT_KNOWN, "-"),
    ],
)
def test_variables(
    machine: Machine, name: str, environ: dict[str, str], engine: Engine | None, state: str
) -> None:
    assert states(machine, name, environ, engine=engine) == state


def test_sleeping_threads_may_save_a_quota(machine: Machine) -> None:
    machine.cgroup2("/", {"cpu.max": "100000 100000"})
    assert states(machine, "waiting", {"OMP_WAIT_POLICY": "passive"}) == "unknown"


def test_control_characters_do_not_reach_the_terminal(machine: Machine) -> None:
    found = found_in(case_of(machine, {"OMP_THREAD_LIMIT": "\x1b[2J"}))["thread limit"]
    assert "\x1b" not in found.text


# An engine's files


class Checkout:
    """A checkout with an engine and its library below ``build``, and a source file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.library = self._file("build/3rdparty/libggml.so.1")
        cli = self._file("build/bin/llama-cli")
        self.engine = ENGINE._replace(
            location=Location(str(cli), "named with --engine"),
            files=(str(cli), str(self.library)),
        )

    def _file(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("code")
        return path

    def read(self, **environ: Any) -> tuple[float | None, tuple[str, ...]]:
        return read_build(self.engine, {name: str(value) for name, value in environ.items()})


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "checkout")


def test_the_newest_file_counts(checkout: Checkout) -> None:
    os.utime(checkout.engine.path, (0, 1000))
    os.utime(checkout.library, (0, 2000))
    assert checkout.read()[0] == 2000


def test_what_pip_installed_has_no_age() -> None:
    assert read_build(EMBEDDED, {}) == (None, ())


def test_files_that_are_gone_are_an_error(checkout: Checkout) -> None:
    checkout.library.unlink()
    with pytest.raises(FileNotFoundError):
        checkout.read()


def test_libraries_of_other_builds(checkout: Checkout, tmp_path: Path) -> None:
    other = Checkout(tmp_path / "other").library
    unrelated = tmp_path / "unrelated"
    unrelated.mkdir()
    (unrelated / "libssl.so").write_text("code")
    assert checkout.read()[1] == ()
    own = f"{checkout.library.parent}:{unrelated}::{tmp_path / 'nowhere'}"
    assert checkout.read(LD_LIBRARY_PATH=own)[1] == ()
    assert checkout.read(LD_LIBRARY_PATH=f"{unrelated}:{other.parent}")[1] == (str(other),)


def test_another_build_in_the_same_checkout_is_another_one(checkout: Checkout) -> None:
    library = checkout._file("build-gcc/3rdparty/libggml.so.1")
    assert checkout.read(LD_LIBRARY_PATH=library.parent)[1] == (str(library),)
