"""Measuring settings of fake engines: numbers where all went well, else reasons."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bitnet_tuning import demo
from bitnet_tuning.bench.comparison import Run, Sizes
from bitnet_tuning.bench.llama_bench import Bench
from bitnet_tuning.bench.runner import Patience, Runner, find_bench
from bitnet_tuning.engine.find import EMBEDDED, locate_all
from bitnet_tuning.engine.known import know
from bitnet_tuning.launch.background import Captured
from bitnet_tuning.launch.failure import LONGEST, failure
from bitnet_tuning.model.gguf import read_model
from bitnet_tuning.plan.facts import Facts
from bitnet_tuning.plan.profile import PP, TG
from bitnet_tuning.plan.setting import UPSTREAM, Setting
from bitnet_tuning.store.state import State
from tests.engines import FakeEngine
from tests.machines import Machine
from tests.processes import alive, until

REPO = Path(__file__).resolve().parent.parent
SIZES = Sizes(32, 8, 2)
SOON = Patience(first=20.0, least=1.0, factor=1.0)
ONE, TWO = Setting(1, 1), Setting(2, 2)
CURVE: dict[str, object] = {"threads": {"1": 10, "2": 18}, "pp": 4}

pytestmark = pytest.mark.skipif(os.name == "nt", reason="fake engines are scripts")

Make = Callable[..., tuple[FakeEngine, Runner]]


def place(where: str, folder: Path, model: str = demo.TQ2_0) -> Facts:
    engine = know(locate_all(where, {}, ())[0], State(str(folder / "state")))
    host = Machine(folder / "host").regular(4).host()
    return Facts(host, engine, read_model(model), "named", os.environ)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A fake engine with a curve, and what measures it."""

    def made(
        generation: str = "bitnet", bench: bool = True, **curve: object
    ) -> tuple[FakeEngine, Runner]:
        fake = FakeEngine(tmp_path / "checkout", generation, bench).curve(**{**CURVE, **curve})
        here = place(str(fake.cli), tmp_path)
        found = find_bench(here.engine)
        assert (found is not None) == bench
        return fake, Runner(here, found, SIZES, SOON)

    return made


@pytest.mark.parametrize("generation", ["bitnet", "mainline"])
def test_samples_come_by_phase(make: Make, generation: str) -> None:
    fake, runner = make(generation)
    run = runner.measure("one", ONE)
    assert (run.setting, run.problem) == ("one", None)
    assert run.samples == {PP: (40.0, 40.0), TG: (10.0, 10.0)}
    assert run.seconds > 0
    assert len(fake.benches()) == 1


def test_one_phase_is_measured_alone(make: Make) -> None:
    fake, runner = make()
    assert runner.measure("two", TWO, (TG,)).samples == {TG: (18.0, 18.0)}
    (run,) = fake.benches()
    assert run["argv"][run["argv"].index("-p") + 1] == "0"


def test_prompts_with_threads_of_their_own(make: Make) -> None:
    fake, runner = make()
    assert runner.measure("x", Setting(1, 2)).samples == {PP: (72.0, 72.0), TG: (10.0, 10.0)}
    assert len(fake.benches()) == 2


@pytest.mark.parametrize("generation", ["bitnet", "mainline"])
@pytest.mark.parametrize(
    ("setting", "condition"),
    [
        (ONE._replace(mmap=False), "mmap=0"),
        (ONE._replace(flash=True), "flash=1"),
        (ONE._replace(flash=False), "flash=0"),
        (ONE._replace(ubatch=64), "ubatch=64"),
        (ONE._replace(poll=100), "poll=100"),
        (ONE._replace(numa="distribute"), "numa=distribute"),
        (ONE._replace(env=(("KMP_BLOCKTIME", "0"),)), "KMP_BLOCKTIME=0"),
    ],
)
def test_a_knob_reaches_the_engine(
    make: Make, generation: str, setting: Setting, condition: str
) -> None:
    _, runner = make(generation, factors={condition: 0.5})
    assert runner.measure("x", setting).samples[TG] == (5.0, 5.0)
    assert runner.measure("one", ONE).samples[TG] == (10.0, 10.0)


def test_cpus_and_niceness_reach_the_engine_alone(make: Make) -> None:
    fake, runner = make()
    before = os.sched_getaffinity(0), os.nice(0)
    runner.measure("x", ONE._replace(cpus=frozenset((min(before[0]),)), nice=-1))
    (run,) = fake.benches()
    assert run["cpus"] == [min(before[0])]
    assert run["nice"] in {before[1], before[1] - 1}, "tried, where it takes a privilege"
    assert (os.sched_getaffinity(0), os.nice(0)) == before


def test_upstream_gets_nothing_of_a_sourced_file(
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
    assert run["env"]["KMP_BLOCKTIME"] == "17", "the user's own"


# Failures


@pytest.mark.parametrize(
    ("crash", "words"),
    [
        (11, "the engine was killed by SIGSEGV"),
        (9, "the engine was killed by SIGKILL"),
        ("exit 3", "exit code 3: error: the fake engine fails as it was told to"),
    ],
)
def test_an_engine_that_crashes_for_two_threads(make: Make, crash: object, words: str) -> None:
    _, runner = make(crash={"threads=2": crash})
    run = runner.measure("two", TWO)
    assert run.samples == {}
    assert words in str(run.problem)
    assert "\n" not in str(run.problem) and len(str(run.problem)) <= 160
    assert runner.measure("one", ONE).problem is None


def test_an_engine_that_hangs_is_killed(make: Make) -> None:
    fake, runner = make(hang=["threads=2"])
    assert runner.measure("default", ONE).problem is None
    run = runner.measure("two", TWO)
    assert run.samples == {}
    assert str(run.problem).startswith("did not finish within ")
    assert 1 <= run.seconds < 10
    assert not alive(fake.benches()[-1]["pid"])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("json", "broken JSON"),
        ("empty", "no JSON"),
        ("nan", "impossible speed: NaN"),
        ("zero", "impossible speed: 0.0"),
        ("negative", "impossible speed: -3.5"),
        ("text", 'impossible speed: "fast"'),
        ("rows", "1 rows instead of 2"),
        ("samples", "1 of 2 samples"),
        ("threads", "n_threads = 3, not 2"),
    ],
)
def test_an_answer_that_is_nonsense(make: Make, how: str, words: str) -> None:
    _, runner = make(broken={"threads=2": how})
    run = runner.measure("two", TWO)
    assert run.samples == {}
    assert words in str(run.problem)


def test_a_log_before_the_answer_is_skipped(make: Make) -> None:
    _, runner = make(broken={"threads=1": "log"})
    assert runner.measure("one", ONE).samples[TG] == (10.0, 10.0)


def test_a_knob_that_llama_bench_lacks_is_a_reason(make: Make) -> None:
    fake, runner = make()
    run = runner.measure("locked", ONE._replace(mlock=True))
    assert (run.samples, run.problem) == (
        {},
        "the program has no flag for locking the model (-lm)",
    )
    assert fake.benches() == []


def test_an_engine_that_is_gone_is_a_reason(make: Make) -> None:
    fake, runner = make()
    (fake.bin / "llama-bench").unlink()
    assert "127" in str(runner.measure("one", ONE).problem)


@pytest.mark.parametrize(
    ("done", "reason"),
    [
        (Captured(0, "", "error: none that matters"), None),
        (Captured(None, "", ""), "did not finish within 20 seconds"),
        (Captured(1, "", ""), "the engine ended with exit code 1"),
        (Captured(1, "", "loading\nerror: no\n  such file\n"), "exit code 1: error: no"),
        (Captured(1, "", "loading\nunknown model\n"), "exit code 1: unknown model"),
        (
            Captured(137, "", "loading"),
            "the engine was killed by SIGKILL: most often because the system ran out of memory",
        ),
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


# How long a run may take


def test_the_default_says_how_long_a_run_may_take(make: Make) -> None:
    _, runner = make(seconds=0.3)
    runner.patience = Patience(first=120.0, least=0.01, factor=10.0)
    assert runner.seconds() == 120
    runner.measure("other", ONE)
    assert runner.seconds() == 120
    default = runner.measure("default", ONE)
    assert runner.seconds() == pytest.approx(10 * default.seconds)
    assert runner.seconds((TG,)) == runner.seconds(), "a part takes no longer than the whole"
    runner.sizes = Sizes(64, 16, 2)
    assert runner.seconds() == 120


def test_a_quick_default_leaves_others_some_time(make: Make) -> None:
    _, runner = make()
    runner.patience = Patience()
    runner.measure("default", ONE)
    assert runner.seconds() == 20


# Without a llama-bench


@pytest.mark.parametrize("generation", ["bitnet", "mainline"])
def test_the_clis_timings_serve_without_a_llama_bench(make: Make, generation: str) -> None:
    fake, runner = make(generation, bench=False, factors={"mmap=0": 0.5})
    run = runner.measure("x", Setting(2, 2, mmap=False))
    assert run.problem is None
    assert {phase: len(samples) for phase, samples in run.samples.items()} == {PP: 1, TG: 1}
    assert run.samples[PP][0] == pytest.approx(36.0, rel=0.01)
    assert run.samples[TG][0] == pytest.approx(9.0, rel=0.01)
    (started,) = fake.prompts()
    assert started["program"] == ("llama-cli" if generation == "bitnet" else "llama-completion")
    assert "--ignore-eos" in started["argv"]


def test_a_cli_that_loses_its_timings_is_asked_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, runner = make("mainline", bench=False)
    monkeypatch.setenv("FAKE_LOSES", "0.5")
    assert runner.measure("one", ONE).problem is None
    assert len(fake.prompts()) == 2
    monkeypatch.setenv("FAKE_LOSES", "0.5 always")
    assert runner.measure("one", ONE).problem == "the engine printed no timing for pp"


def test_a_crashing_cli_is_a_reason(make: Make) -> None:
    _, runner = make(bench=False, crash={"threads=2": 6})
    assert "SIGABRT" in str(runner.measure("two", TWO).problem)


def test_a_knob_that_the_cli_lacks_is_a_reason(make: Make) -> None:
    _, runner = make(bench=False)
    bare = runner.facts.engine._replace(flags=frozenset(("-m", "-p", "-n", "-t", "-tb")))
    runner.facts = runner.facts._replace(engine=bare)
    assert "no flag for flash" in str(runner.measure("x", ONE._replace(flash=True)).problem)


# Which program measures


def test_a_program_that_is_no_llama_bench_is_not_used(tmp_path: Path) -> None:
    fake = FakeEngine(tmp_path / "checkout", bench=True)
    (fake.bin / "llama-bench").write_text("#!/bin/sh\necho nothing\n")
    assert find_bench(place(str(fake.cli), tmp_path).engine) is None


def test_the_embedded_engine_measures_every_knob_that_it_lists(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    here = place(EMBEDDED, tmp_path)
    bench = find_bench(here.engine)
    assert bench is not None
    runner = Runner(here, bench, Sizes(16, 4, 1))
    every = Setting(1, 1, mmap=False, flash=True, ubatch=8, numa="distribute")
    for setting in (ONE, every, every._replace(flash=False, mmap=True)):
        run = runner.measure("x", setting)
        assert run.problem is None
        assert {phase: len(found) for phase, found in run.samples.items()} == {PP: 1, TG: 1}


# No engine outlives the benchmark

KILLED = """
import sys
sys.path.insert(0, {repo!r})
from pathlib import Path
from tests.test_bench_runner import ONE, SIZES, Runner, find_bench, place
from bitnet_tuning.plan.profile import PP, TG
here = place({cli!r}, Path({folder!r}))
Runner(here, find_bench(here.engine), SIZES).measure("one", ONE)
"""


def test_a_killed_benchmark_leaves_no_engine(tmp_path: Path) -> None:
    fake = FakeEngine(tmp_path / "checkout", bench=True).curve(hang=["threads=1"])
    code = KILLED.format(repo=str(REPO), cli=str(fake.cli), folder=str(tmp_path))
    benchmark = subprocess.Popen([sys.executable, "-c", code])
    until(lambda: bool(fake.benches()))
    time.sleep(0.1)
    engine = fake.benches()[0]["pid"]
    assert alive(engine)
    benchmark.send_signal(signal.SIGKILL)
    benchmark.wait()
    until(lambda: not alive(engine))


# Compiled engines

FOLDERS = [name for name in os.environ.get("BITNET_TEST_ENGINES", "").split(os.pathsep) if name]
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


def real(folder: str, tmp_path: Path) -> tuple[Facts, Bench]:
    here = place(folder, tmp_path)
    model = demo.TQ2_0 if here.engine.i2_s is False else demo.I2_S
    bench = find_bench(here.engine)
    assert bench is not None
    return here._replace(model=read_model(model)), bench


@pytest.mark.skipif(not FOLDERS, reason="BITNET_TEST_ENGINES names no engine")
@pytest.mark.parametrize("knob", KNOBS)
@pytest.mark.parametrize("folder", FOLDERS)
def test_real_engines_take_every_knob(folder: str, knob: str, tmp_path: Path) -> None:
    here, bench = real(folder, tmp_path)

    def measured(by: Bench | None) -> Run:
        return Runner(here, by, Sizes(16, 4, 1)).measure(knob, KNOBS[knob])

    for run in (measured(bench), measured(None)):
        assert run.problem is None
        assert set(run.samples) == {PP, TG}
