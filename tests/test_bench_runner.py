"""Measuring settings of fake engines: speeds if all goes well, else the reason."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bitnet_tuning import demo
from bitnet_tuning.bench.comparison import Sizes
from bitnet_tuning.bench.runner import Patience, Runner, find_bench
from bitnet_tuning.engine.find import EMBEDDED
from bitnet_tuning.launch.background import Captured
from bitnet_tuning.launch.failure import LONGEST, NO_END, failure
from bitnet_tuning.plan.profile import PP, TG
from bitnet_tuning.plan.setting import UPSTREAM, Setting
from tests.bench_engines import FOLDERS, Engines, compiled, facts_of
from tests.conftest import REPOSITORY
from tests.engines import FakeEngine
from tests.processes import alive, until

pytestmark = pytest.mark.skipif(os.name == "nt", reason="fake engines are scripts")

SIZES = Sizes(32, 8, 2)
ONE, TWO = Setting(1, 1), Setting(2, 2)
CURVE: dict[str, object] = {"threads": {"1": 1e4, "2": 1.8e4}, "pp": 4}

Make = Callable[..., tuple[FakeEngine, Runner]]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Engines:
    return Engines(tmp_path_factory.mktemp("engines"))


@pytest.fixture
def make(engines: Engines) -> Make:
    """Make a fake engine with a curve, and a runner that measures it."""

    def made(
        generation: str = "bitnet", bench: bool = True, **curve: object
    ) -> tuple[FakeEngine, Runner]:
        fake, facts, found = engines.get(generation, bench)
        assert (found is not None) == bench
        fake.curve(**{**CURVE, **curve})
        return fake, Runner(facts, found, SIZES, Patience(first=60.0, least=1.0, factor=1.0))

    return made


@pytest.mark.parametrize("generation", ["bitnet", "mainline"])
def test_a_run_has_samples_by_phase(make: Make, generation: str) -> None:
    fake, runner = make(generation)
    run = runner.measure("one", ONE)
    assert (run.setting, run.problem) == ("one", None)
    assert run.samples == {PP: (4e4, 4e4), TG: (1e4, 1e4)}
    assert run.seconds > 0
    assert len(fake.benches()) == 1


def test_one_phase_is_measured_alone(make: Make) -> None:
    fake, runner = make()
    assert runner.measure("two", TWO, (TG,)).samples == {TG: (1.8e4, 1.8e4)}
    (run,) = fake.benches()
    assert run["argv"][run["argv"].index("-p") + 1] == "0"


def test_prompts_with_threads_of_their_own_take_a_second_process(make: Make) -> None:
    fake, runner = make()
    assert runner.measure("x", Setting(1, 2)).samples == {PP: (7.2e4, 7.2e4), TG: (1e4, 1e4)}
    assert len(fake.benches()) == 2


@pytest.mark.parametrize("bench", [True, False])
def test_a_setting_with_an_embedding_runs_the_other_file(
    make: Make, tmp_path: Path, bench: bool
) -> None:
    fake, runner = make(bench=bench, factors={"model=slim.gguf": 1.5})
    slim = runner.facts.model._replace(path=shutil.copy(demo.TQ2_0, str(tmp_path / "slim.gguf")))
    runner.facts = runner.facts._replace(beside=slim)
    runner.sizes = Sizes(32, 8, 1)
    speeds = {
        embedding: runner.measure("x", ONE._replace(embedding=embedding), (TG,)).samples[TG]
        for embedding in (None, "q6_k")
    }
    assert {name: round(speed / 1000) for name, (speed,) in speeds.items()} == {
        None: 10,
        "q6_k": 15,
    }
    os.remove(slim.path)
    fake.curve(**CURVE, crash={"model=slim.gguf": "exit 1"})
    assert "exit code 1" in str(runner.measure("x", ONE._replace(embedding="q6_k")).problem)


@pytest.mark.parametrize("generation", ["bitnet", "mainline"])
def test_every_knob_reaches_the_engine(make: Make, generation: str) -> None:
    settings = {
        "mmap=0": ONE._replace(mmap=False),
        "flash=1": ONE._replace(flash=True),
        "flash=0": ONE._replace(flash=False),
        "ubatch=64": ONE._replace(ubatch=64),
        "poll=100": ONE._replace(poll=100),
        "numa=distribute": ONE._replace(numa="distribute"),
        "KMP_BLOCKTIME=0": ONE._replace(env=(("KMP_BLOCKTIME", "0"),)),
    }
    factors = {condition: 1 / number for number, condition in enumerate(settings, 2)}
    _, runner = make(generation, factors=factors)
    speeds = {name: runner.measure("x", each, (TG,)).samples for name, each in settings.items()}
    assert speeds == {name: {TG: (1e4 * factor,) * 2} for name, factor in factors.items()}
    assert runner.measure("one", ONE, (TG,)).samples == {TG: (1e4, 1e4)}


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity here")
def test_cpus_and_niceness_apply_to_the_engine_alone(make: Make) -> None:
    fake, runner = make()
    before = os.sched_getaffinity(0), os.nice(0)
    runner.measure("x", ONE._replace(cpus=frozenset((min(before[0]),)), nice=-1))
    (run,) = fake.benches()
    assert run["cpus"] == [min(before[0])]
    assert run["nice"] in {before[1], before[1] - 1}, "a higher priority takes a privilege"
    assert (os.sched_getaffinity(0), os.nice(0)) == before


def test_upstreams_setting_runs_without_what_bitnet_env_exported(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, runner = make()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "4")
    monkeypatch.setenv("OMP_PROC_BIND", "true")
    monkeypatch.setenv("OMP_PLACES", "cores")
    monkeypatch.setenv("KMP_BLOCKTIME", "17")
    runner.measure("upstream", UPSTREAM)
    (run,) = fake.benches()
    assert not [name for name in run["env"] if name.startswith("OMP_") or "THREADS" in name]
    assert run["env"]["KMP_BLOCKTIME"] == "17", "the user's own value"


# Failures


@pytest.mark.parametrize(
    ("crash", "words"),
    [
        (11, "the engine was killed by SIGSEGV"),
        ("exit 3", "exit code 3: error: the fake engine fails as it was told to"),
    ],
)
def test_a_crash_is_a_reason_in_one_line(make: Make, crash: object, words: str) -> None:
    _, runner = make(crash={"threads=2": crash})
    run = runner.measure("two", TWO)
    assert run.samples == {}
    assert words in str(run.problem)
    assert "\n" not in str(run.problem) and len(str(run.problem)) <= LONGEST
    assert runner.measure("one", ONE).problem is None


def test_an_engine_that_hangs_is_killed(make: Make) -> None:
    fake, runner = make(hang=["threads=2"])
    assert runner.measure("default", ONE).problem is None
    run = runner.measure("two", TWO)
    assert run.samples == {}
    assert str(run.problem).startswith(NO_END)
    assert not alive(fake.benches()[-1]["pid"])


def test_nonsense_is_a_reason_and_a_log_before_the_answer_is_not(make: Make) -> None:
    """test_bench_measure.py has all kinds of nonsense."""
    _, runner = make(broken={"threads=2": "json", "threads=1": "log"})
    run = runner.measure("two", TWO)
    assert (run.samples, run.problem) == ({}, "llama-bench printed broken JSON")
    assert runner.measure("one", ONE).samples[TG] == (1e4, 1e4)


def test_a_knob_that_llama_bench_lacks_is_a_reason(make: Make) -> None:
    fake, runner = make()
    run = runner.measure("locked", ONE._replace(mlock=True))
    assert run.samples == {}
    assert run.problem == "the program has no flag -lm"
    assert fake.benches() == []


def test_an_engine_that_is_gone_is_a_reason(tmp_path: Path) -> None:
    fake = FakeEngine(tmp_path / "checkout", bench=True)
    facts = facts_of(str(fake.cli), tmp_path)
    runner = Runner(facts, find_bench(facts.engine), SIZES)
    (fake.bin / "llama-bench").unlink()
    assert "was not found" in str(runner.measure("one", ONE).problem)


@pytest.mark.parametrize(
    ("done", "reason"),
    [
        (Captured(0, "", "error: none that matters"), None),
        (Captured(None, "", ""), f"{NO_END} 20 seconds"),
        (Captured(1, "", ""), "the engine ended with exit code 1"),
        (Captured(1, "", "loading\nerror: no\n  such file\n"), "exit code 1: error: no"),
        (Captured(1, "", "loading\nunknown model\n"), "exit code 1: unknown model"),
        (Captured(137, "", "loading"), "because the system ran out of memory"),
        (Captured(134, "", "x.c:1: GGML_ASSERT(a) failed\n#0"), "x.c:1: GGML_ASSERT(a) failed"),
    ],
)
def test_the_reason_of_a_failure_is_one_line(done: Captured, reason: str | None) -> None:
    found = failure(done, 20.0)
    assert found == reason or (reason is not None and str(found).endswith(reason))


def test_a_long_reason_is_cut() -> None:
    found = failure(Captured(1, "", f"error: {'x' * 999}"), 20.0)
    assert found is not None
    assert len(found) == LONGEST
    assert found.endswith("x…")


# Time limits


def test_the_limit_is_a_multiple_of_the_defaults_time(make: Make) -> None:
    _, runner = make()
    runner.measure("other", ONE)
    assert runner.longest == {}
    default = runner.measure("default", ONE)
    assert runner.longest == {SIZES: default.seconds}
    limits = [Patience(first=120.0, least=0.0).after(longest) for longest in (None, 2.0)]
    assert limits == [120, 16]


def test_the_limit_has_a_minimum() -> None:
    assert [Patience().after(longest) for longest in (None, 0.1, 5.0)] == [120, 20, 40]


# Without a llama-bench


@pytest.mark.parametrize("generation", ["bitnet", "mainline"])
def test_without_llama_bench_the_clis_timings_are_used(make: Make, generation: str) -> None:
    fake, runner = make(generation, bench=False, factors={"mmap=0": 0.5})
    run = runner.measure("x", Setting(2, 2, mmap=False))
    assert run.problem is None
    assert {phase: len(samples) for phase, samples in run.samples.items()} == {PP: 1, TG: 1}
    assert run.samples[PP][0] == pytest.approx(3.6e4, rel=0.01)
    assert run.samples[TG][0] == pytest.approx(9e3, rel=0.01)
    (started,) = fake.prompts()
    assert started["program"] == ("llama-cli" if generation == "bitnet" else "llama-completion")
    assert "--ignore-eos" in started["argv"]


def test_a_cli_that_loses_its_timings_runs_again(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = FakeEngine(tmp_path / "checkout", "mainline").curve(**CURVE)
    runner = Runner(facts_of(str(fake.cli), tmp_path), None, SIZES)
    monkeypatch.setenv("FAKE_LOSES", "0.5")
    assert runner.measure("one", ONE).problem is None
    assert len(fake.prompts()) == 2
    monkeypatch.setenv("FAKE_LOSES", "0.5 always")
    assert runner.measure("one", ONE).problem == "the engine printed no timing for pp"


def test_a_crash_of_the_cli_is_a_reason(make: Make) -> None:
    _, runner = make(bench=False, crash={"threads=2": 6})
    assert "SIGABRT" in str(runner.measure("two", TWO).problem)


def test_a_knob_that_the_cli_lacks_is_a_reason(make: Make) -> None:
    _, runner = make(bench=False)
    bare = runner.facts.engine._replace(flags=frozenset(("-m", "-p", "-n", "-t", "-tb")))
    runner.facts = runner.facts._replace(engine=bare)
    assert "no flag -fa" in str(runner.measure("x", ONE._replace(flash=True)).problem)


# Which program measures


def test_a_program_that_is_no_llama_bench_is_not_used(tmp_path: Path) -> None:
    fake = FakeEngine(tmp_path / "checkout", bench=True)
    (fake.bin / "llama-bench").write_text("#!/bin/sh\necho nothing\n")
    assert find_bench(facts_of(str(fake.cli), tmp_path).engine) is None


def test_the_embedded_engine_measures_every_knob_that_it_lists(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    facts = facts_of(EMBEDDED, tmp_path)
    bench = find_bench(facts.engine)
    assert bench is not None
    runner = Runner(facts, bench, Sizes(16, 4, 1))
    every = Setting(1, 1, mmap=False, flash=True, ubatch=8, numa="distribute")
    for setting in (every, every._replace(flash=False, mmap=True)):
        run = runner.measure("x", setting)
        assert run.problem is None
        assert {phase: len(found) for phase, found in run.samples.items()} == {PP: 1, TG: 1}


MEASURE = """
import sys
from pathlib import Path
from tests.test_bench_runner import ONE, SIZES, Runner, facts_of, find_bench
facts = facts_of(sys.argv[1], Path(sys.argv[2]))
Runner(facts, find_bench(facts.engine), SIZES).measure("one", ONE)
"""


def test_a_killed_benchmark_leaves_no_engine(tmp_path: Path) -> None:
    fake = FakeEngine(tmp_path / "checkout", bench=True).curve(hang=["threads=1"])
    command = [sys.executable, "-c", MEASURE, str(fake.cli), str(tmp_path)]
    benchmark = subprocess.Popen(command, cwd=REPOSITORY)
    try:
        until(fake.benches)
        engine = fake.benches()[0]["pid"]
        assert alive(engine)
    finally:
        benchmark.kill()
        benchmark.wait()
    until(lambda: not alive(engine))


# Compiled engines

CPUS = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}
KNOBS = {
    "nothing": ONE,
    "prompt threads": Setting(1, 2),
    "mmap": ONE._replace(mmap=True),
    "no mmap": ONE._replace(mmap=False),
    "flash attention": ONE._replace(flash=True),
    "no flash attention": ONE._replace(flash=False),
    "micro-batch": ONE._replace(ubatch=16),
    "poll": ONE._replace(poll=0),
    "numa": ONE._replace(numa="distribute"),
    "environment": ONE._replace(env=(("OMP_WAIT_POLICY", "active"),)),
    "CPUs": ONE._replace(cpus=frozenset((min(CPUS),))),
}


@pytest.mark.skipif(not FOLDERS, reason="BITNET_TEST_ENGINES names no engine")
@pytest.mark.parametrize("knob", KNOBS)
@pytest.mark.parametrize("folder", FOLDERS)
def test_compiled_engines_accept_every_knob(folder: str, knob: str, tmp_path: Path) -> None:
    facts, bench = compiled(folder, tmp_path)
    for program in (bench, None):
        run = Runner(facts, program, Sizes(16, 4, 1)).measure(knob, KNOBS[knob])
        assert run.problem is None
        assert set(run.samples) == {PP, TG}
