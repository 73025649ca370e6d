"""Measuring settings by turns on loaded servers: speeds, failures, nothing left running."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from bitnet_tuning import demo
from bitnet_tuning.bench import resident
from bitnet_tuning.bench.comparison import DEFAULT, Sizes
from bitnet_tuning.bench.resident import find_residents
from bitnet_tuning.bench.results import load
from bitnet_tuning.bench.runner import (
    MOST_GENERATED,
    MOST_PROMPT,
    Patience,
    Runner,
    find_bench,
    patience_within,
)
from bitnet_tuning.bench.words import Checker
from bitnet_tuning.cli import test_optimizations
from bitnet_tuning.cli.benchmark import main
from bitnet_tuning.engine.find import EMBEDDED
from bitnet_tuning.launch import background
from bitnet_tuning.launch.failure import NO_END
from bitnet_tuning.machine.memory import Memory
from bitnet_tuning.model.gguf import read_model
from bitnet_tuning.plan.facts import Facts
from bitnet_tuning.plan.memory import RESIDENT_SHARE, need_of
from bitnet_tuning.plan.profile import PP, TG
from bitnet_tuning.plan.setting import Setting
from bitnet_tuning.serve import server as serving
from tests.bench_engines import FOLDERS, compiled, facts_of
from tests.conftest import REPOSITORY
from tests.engines import FakeEngine
from tests.processes import alive, state, until
from tests.test_bench_check import KNOWN

pytestmark = pytest.mark.skipif(os.name == "nt", reason="fake engines are scripts")
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")

SIZES = Sizes(32, 8, 1)
ONE, TWO, THREE = Setting(1, 1), Setting(2, 2), Setting(3, 3)
CURVE: dict[str, Any] = {"threads": {"1": 1000, "2": 1800}, "pp": 4}
GIBIBYTE = 1 << 30


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> tuple[FakeEngine, Facts]:
    """An engine with a server, and what is known about it."""
    folder = tmp_path_factory.mktemp("engine")
    fake = FakeEngine(folder / "checkout", bench=True, server=True)
    return fake, facts_of(str(fake.cli), folder)


@pytest.fixture
def fake(probed: tuple[FakeEngine, Facts]) -> FakeEngine:
    fake, _ = probed
    for name in ("runs.jsonl", "asked.jsonl", "starts.jsonl", "children.jsonl"):
        (fake.bin / name).unlink(missing_ok=True)
    return fake.curve(**CURVE)


@pytest.fixture
def runner(fake: FakeEngine, probed: tuple[FakeEngine, Facts]) -> Iterator[Runner]:
    """A runner that measures by servers, which end with the test."""
    residents = find_residents(probed[1])
    assert residents is not None
    found = Runner(probed[1], None, SIZES, Patience(first=60.0, least=1.0), residents)
    yield found
    found.close()
    assert not [run["pid"] for run in fake.servers() if alive(run["pid"])]


# Speeds


def test_speeds_are_those_of_the_threads(fake: FakeEngine, runner: Runner) -> None:
    runs = {name: runner.measure(name, each) for name, each in {"a": ONE, "b": TWO}.items()}
    for name, rate in {"a": 1000, "b": 1800}.items():
        assert runs[name].problem is None
        assert runs[name].samples[TG] == pytest.approx((rate,))
        assert runs[name].samples[PP] == pytest.approx((4 * rate,))
    prompts = [each["prompt"] for each in fake.asked()]
    assert [len(each) for each in prompts] == [32, 1, 32, 1]
    assert prompts[0] == list(range(1, 33))
    assert fake.benches() == []
    assert runner.program == "llama-server"


def test_the_longest_slices_fit_into_the_context(fake: FakeEngine, runner: Runner) -> None:
    fake.curve(threads={"1": 10000}, pp=4)
    runner.sizes = Sizes(MOST_PROMPT, MOST_GENERATED, 1)
    assert runner.measure("a", ONE).problem is None


def test_prompts_have_their_own_threads(runner: Runner) -> None:
    run = runner.measure("a", Setting(1, 2))
    assert run.samples[TG] + run.samples[PP] == pytest.approx((1000, 4 * 1800))


def test_one_phase_is_measured_alone(fake: FakeEngine, runner: Runner) -> None:
    runner.sizes = Sizes(32, 8, 3)
    assert set(runner.measure("a", ONE, (TG,)).samples) == {TG}
    assert [each["n_predict"] for each in fake.asked()] == [9, 9, 9]


@on_linux
def test_generated_tokens_have_their_cpu_seconds(runner: Runner) -> None:
    run = runner.measure("a", ONE)
    assert run.cpu is not None and 0 < run.cpu < 60
    assert runner.measure("a", ONE, (PP,)).cpu is None


def test_no_prompt_is_cached_and_no_text_ends_early(fake: FakeEngine, runner: Runner) -> None:
    runner.measure("a", ONE)
    for body in fake.asked():
        assert (body["cache_prompt"], body["ignore_eos"], body["temperature"]) == (False, True, 0)
        assert body["logit_bias"] == [[resident.GENERATED, resident.BIAS]]


def test_tokens_stay_inside_a_small_vocabulary(
    fake: FakeEngine, probed: tuple[FakeEngine, Facts]
) -> None:
    facts = probed[1]._replace(model=probed[1].model._replace(vocabulary=7))
    residents = find_residents(facts)
    assert residents is not None
    residents.ask(ONE, PP, 20, 60)
    residents.close()
    (body,) = fake.asked()
    assert max(body["prompt"]) == 6
    assert body["logit_bias"][0][0] < 7


def test_every_knob_reaches_the_server(fake: FakeEngine, runner: Runner) -> None:
    settings = {
        "mmap=0": ONE._replace(mmap=False),
        "flash=1": ONE._replace(flash=True),
        "ubatch=64": ONE._replace(ubatch=64),
        "poll=100": ONE._replace(poll=100),
        "numa=distribute": ONE._replace(numa="distribute"),
        "mlock=1": ONE._replace(mlock=True),
        "KMP_BLOCKTIME=0": ONE._replace(env=(("KMP_BLOCKTIME", "0"),)),
    }
    factors = {condition: 1 / number for number, condition in enumerate(settings, 2)}
    fake.curve(**CURVE, factors=factors)
    for name, each in settings.items():
        assert runner.measure(name, each, (TG,)).samples[TG] == pytest.approx(
            (1000 * factors[name],)
        )
    for run in fake.servers():
        argv = run["argv"]
        assert (argv[argv.index("-c") + 1], argv[argv.index("-np") + 1]) == ("528", "1")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity here")
def test_cpus_and_niceness_are_the_servers_alone(fake: FakeEngine, runner: Runner) -> None:
    before = os.sched_getaffinity(0), os.nice(0)
    runner.measure("a", ONE._replace(cpus=frozenset((min(before[0]),)), nice=-5), (TG,))
    (run,) = fake.servers()
    assert run["cpus"] == [min(before[0])]
    assert run["nice"] in {before[1], before[1] - 5}, "a higher priority takes a privilege"
    assert (os.sched_getaffinity(0), os.nice(0)) == before


def test_a_setting_with_an_embedding_runs_the_other_file(
    fake: FakeEngine, runner: Runner, tmp_path: Path
) -> None:
    assert runner.residents is not None
    slim = tmp_path / "slim.gguf"
    slim.write_bytes(Path(demo.TQ2_0).read_bytes())
    facts = runner.facts._replace(beside=read_model(str(slim)))
    runner.residents.facts = runner.facts = facts
    fake.curve(**CURVE, factors={"model=slim.gguf": 1.5})
    run = runner.measure("a", ONE._replace(embedding="q6_k"), (TG,))
    assert run.samples[TG] == pytest.approx((1500,))


def test_proxies_are_not_asked(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert runner.measure("a", ONE).problem is None


def test_a_server_without_api_keys_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SERVER_NO_KEY", "1")
    fake = FakeEngine(tmp_path / "checkout", server=True).curve(**CURVE)
    residents = find_residents(facts_of(str(fake.cli), tmp_path))
    assert residents is not None
    assert residents.ask(ONE, TG, 8, 60)[0] == pytest.approx(1000)
    residents.close()
    assert "LLAMA_API_KEY" not in fake.servers()[0]["env"]


# Turns


@on_linux
def test_a_server_is_loaded_once_and_stopped_while_others_are_asked(
    fake: FakeEngine, runner: Runner
) -> None:
    for name in "abcabc":
        assert runner.measure(name, {"a": ONE, "b": TWO, "c": THREE}[name], (TG,)).problem is None
    servers = [run["pid"] for run in fake.servers()]
    assert [each["pid"] for each in fake.asked()] == servers * 2
    until(lambda: [state(each) for each in servers] == ["T"] * 3)


@on_linux
def test_what_a_script_started_is_stopped_and_ended_with_it(
    fake: FakeEngine, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SERVER_LEAVES", "1")
    assert runner.measure("a", ONE).problem is None
    (child,) = psutil.Process(fake.servers()[0]["pid"]).children()
    until(lambda: state(child.pid) == "T")
    runner.close()
    until(lambda: not alive(child.pid))


def test_a_system_that_forbids_stopping_does_not_hinder(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbidden: list[int] = []

    def send(target: int, number: int) -> None:
        if number in (signal.SIGSTOP, signal.SIGCONT):
            forbidden.append(number)
            raise PermissionError
        os.kill(target, number)

    monkeypatch.setattr(background, "send", send)
    assert runner.measure("a", ONE, (TG,)).problem is None
    assert forbidden == [signal.SIGCONT, signal.SIGSTOP]


# Failures


@pytest.mark.parametrize(
    ("curve", "words"),
    [
        ({"crash": {"threads=2": 11}}, "the engine was killed by SIGSEGV"),
        ({"crash": {"threads=2": "exit 3"}}, "error: the fake engine fails as it was told to"),
        ({"start": {"threads=2": "exit 3"}}, "exit code 3: error loading model"),
        ({"start": {"threads=2": "exit 0"}}, "the server ended with exit code 0"),
        ({"broken": {"threads=2": "lie"}}, "the engine says that tg80 took"),
        ({"broken": {"threads=2": "count"}}, "tg had 79 tokens instead of 80"),
        ({"broken": {"threads=2": "timings"}}, "the server printed no timings"),
        ({"broken": {"threads=2": "refuse"}}, "the server refuses a slice: it refuses tokens"),
        ({"broken": {"threads=2": "json"}}, "the reply is not JSON"),
        ({"broken": {"threads=2": "answers"}}, 'it answers a slice with "x", the default with "TT'),
        ({"broken": {"threads=2": "zero"}}, "the engine says that tg80 took 0 s"),
        ({"broken": {"threads=2": "nan"}}, "the server printed no timings"),
        ({"broken": {"threads=2": "huge"}}, "the server printed no timings"),
    ],
)
def test_a_setting_that_fails_twice_is_out_and_others_go_on(
    fake: FakeEngine, runner: Runner, curve: dict[str, Any], words: str
) -> None:
    fake.curve(threads={"1": 400, "2": 400}, **curve)
    runner.sizes = Sizes(32, 80, 1)
    assert runner.measure("one", ONE, (TG,)).problem is None
    for _ in range(2):
        run = runner.measure("two", TWO, (TG,))
        assert run.samples == {}
        assert words in str(run.problem)
        assert runner.residents is not None and not runner.residents.has(TWO)
        assert runner.measure("one", ONE, (TG,)).problem is None
    assert len([run for run in fake.servers() if "2" in run["argv"]]) == 2


@pytest.mark.parametrize("curve", [{"hang": ["threads=2"]}, {"start": {"threads=2": "hang"}}])
def test_a_server_that_hangs_is_killed_after_the_defaults_time(
    fake: FakeEngine, runner: Runner, curve: dict[str, Any]
) -> None:
    fake.curve(**CURVE, **curve)
    assert runner.measure("default", ONE).problem is None
    run = runner.measure("two", TWO)
    assert str(run.problem).startswith(NO_END)
    assert float(str(run.problem).split()[-2]) < 60, "not the limit of the first run"
    assert not alive(fake.servers()[-1]["pid"])


def test_a_lie_in_short_slices_is_seen_over_several(fake: FakeEngine, runner: Runner) -> None:
    fake.curve(threads={"1": 400, "2": 400}, broken={"threads=2": "lie"})
    runner.sizes = Sizes(32, 24, 1)
    problems = [runner.measure("two", TWO, (TG,)).problem for _ in range(4)]
    assert any("slices took" in str(each) for each in problems)
    assert runner.measure("one", ONE, (TG,)).problem is None


@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_a_reply_that_does_not_end_is_a_failure(
    pause: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "_REPLY", 1 << 20)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with suppress(OSError), server.accept()[0] as connection:
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                while True:
                    connection.sendall(b" " * (16 if pause else 1 << 16))
                    time.sleep(pause)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(serving.BrokenError, match="does not end"):
            serving.Client(server.getsockname()[1], None).complete({}, 0.3)
        thread.join(30)


def test_long_slices_have_time_also_while_a_server_loads(runner: Runner) -> None:
    runner.patience = Patience(first=60.0, least=0.2, factor=1.0)
    runner.sizes = Sizes(32, 1, 1)
    assert runner.measure(DEFAULT, ONE).problem is None
    runner.sizes = Sizes(32, 450, 1)
    assert runner.measure(DEFAULT, ONE, (TG,)).problem is None
    assert runner.measure("two", TWO, (TG,)).problem is None


def test_a_slice_that_was_disturbed_is_asked_again(fake: FakeEngine, runner: Runner) -> None:
    fake.curve(**CURVE, odd=[1, 2])
    assert runner.measure("a", ONE, (TG,)).samples[TG] == pytest.approx((1000,))
    assert len(fake.asked()) == 3


def test_a_knob_that_the_server_lacks_is_a_reason(runner: Runner) -> None:
    assert runner.residents is not None
    server = runner.residents.server
    runner.residents.server = server._replace(flags=server.flags - {"-fa", "--flash-attn"})
    assert "no flag -fa" in str(runner.measure("a", ONE._replace(flash=True)).problem)


def test_limits_leave_most_of_the_budget() -> None:
    assert [patience_within(budget)[:2] for budget in (10, 60, 300, 1200)] == [
        (30, 5),
        (30, 10),
        (120, 20),
        (120, 20),
    ]


# Memory


def test_without_a_server_or_memory_for_two_there_are_no_residents(
    probed: tuple[FakeEngine, Facts], tmp_path: Path
) -> None:
    facts = probed[1]
    short = facts.host._replace(memory=Memory(8 * GIBIBYTE, facts.model.size))
    assert find_residents(facts._replace(host=short)) is None
    bare = FakeEngine(tmp_path / "checkout", bench=True)
    assert find_residents(facts_of(str(bare.cli), tmp_path)) is None


def test_the_longest_unused_servers_make_room(
    fake: FakeEngine, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [GIBIBYTE]
    monkeypatch.setattr(resident, "read_memory", lambda *_: Memory(8 * GIBIBYTE, free[0]))
    for name, each in {"a": ONE, "b": TWO, "c": THREE}.items():
        runner.measure(name, each, (TG,))
    runner.measure("a", ONE, (TG,))
    first, second, third = (run["pid"] for run in fake.servers())
    need = need_of(runner.facts.model, resident.LONGEST + resident.MARGIN, None)
    free[0] = int((need.total - 1) / RESIDENT_SHARE)
    runner.measure("d", THREE._replace(flash=True), (TG,))
    assert [alive(each) for each in (first, second, third)] == [True, False, False]
    free[0] = 0
    runner.measure("e", TWO._replace(flash=True), (TG,))
    assert [alive(run["pid"]) for run in fake.servers()] == [False] * 4 + [True]


# Ends

ASK = """
import sys
from pathlib import Path
from tests.test_bench_resident import ONE, SIZES, Runner, facts_of, find_residents
facts = facts_of(sys.argv[1], Path(sys.argv[2]))
runner = Runner(facts, None, SIZES, residents=find_residents(facts))
runner.measure("two", ONE._replace(threads=2))
print(runner.measure("one", ONE, ("tg",)).samples, flush=True)
"""


def benchmark(fake: FakeEngine, folder: Path) -> subprocess.Popen[str]:
    """Measure two settings in a process of its own, which does not end its servers itself."""
    command = [sys.executable, "-c", ASK, str(fake.cli), str(folder)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


@on_linux
@pytest.mark.parametrize("curve", [{"hang": ["threads=1"]}, {"start": {"threads=1": "hang"}}])
def test_a_killed_benchmark_leaves_no_server(
    fake: FakeEngine, tmp_path: Path, curve: dict[str, Any]
) -> None:
    fake.curve(**CURVE, **curve)
    process = benchmark(fake, tmp_path)
    try:
        until(lambda: len(fake.servers()) == 2 and len(fake.asked()) >= 2)
        servers = [run["pid"] for run in fake.servers()]
        assert all(map(alive, servers))
    finally:
        process.kill()
        process.communicate()
    until(lambda: not any(map(alive, servers)))


@on_linux
def test_ctrl_z_stops_the_server_too_and_the_slice_is_asked_again(
    fake: FakeEngine, tmp_path: Path
) -> None:
    fake.curve(threads={"1": 4, "2": 1000})
    process = benchmark(fake, tmp_path)
    try:
        until(lambda: len(fake.asked()) == 3)
        process.send_signal(signal.SIGTSTP)
        server = fake.servers()[-1]["pid"]
        until(lambda: (state(process.pid), state(server)) == ("T", "T"))
        fake.curve(**CURVE)
        process.send_signal(signal.SIGCONT)
        said, _ = process.communicate()
    finally:
        process.kill()
        process.wait()
    assert [len(each["prompt"]) for each in fake.asked()] == [32, 1, 1, 1]
    assert "'tg': (" in said


@pytest.mark.parametrize("check", [False, True])
def test_a_pause_of_this_process_is_no_fault_of_a_setting(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, check: bool
) -> None:
    complete, calls = serving.Client.complete, list[object]()

    def paused(client: serving.Client, body: dict[str, object], seconds: float) -> object:
        calls.append(body)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGCONT)
            time.sleep(0.01)
            raise serving.BrokenError("timed out")
        return complete(client, body, seconds)

    monkeypatch.setattr(serving.Client, "complete", paused)
    if check:
        texts = Checker(runner.facts, ONE, residents=runner.residents)
        assert "timed out" not in str(texts.problem(TWO))
    else:
        assert runner.measure("a", ONE).problem is None
    assert len(calls) > 2


def test_a_slice_that_costs_no_cpu_time_is_refused(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent = {ONE: 1.0, TWO: 0.3, THREE: 0.1}
    used = 0.0

    def seconds(family: object) -> float:
        nonlocal used
        used += spent[setting]
        return used

    monkeypatch.setattr(resident, "_cpu_seconds", seconds)
    problems = {}
    for setting in spent:
        problems[setting] = runner.measure("a", setting, (TG,)).problem
    assert problems[ONE] is problems[TWO] is None
    assert "computes less than the default: 0.1 s of CPU time, not 1" in str(problems[THREE])


def test_an_exception_ends_the_servers(fake: FakeEngine, runner: Runner) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    runner.measure("a", ONE)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(resident, "agree", interrupt)
        runner.measure("a", ONE)
    runner.close()
    assert not alive(fake.servers()[0]["pid"])


# Whole programs

QUIET: dict[str, Any] = {
    **{"threads": {"1": 1000, "2": 1400}, "noise": 0.01, "texts": KNOWN},
    "lies": {},
}


def tuned(fake: FakeEngine, path: Path, *more: str) -> list[str]:
    return ["--engine", str(fake.cli), "-m", demo.I2_S, "--output", str(path), *more]


def test_a_benchmark_measures_by_servers_and_says_so(
    fake: FakeEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.curve(**QUIET)
    assert main(tuned(fake, tmp_path / "r.json", "--budget", "8", "--threads", "1,2")) == 0
    results = load(str(tmp_path / "r.json"))
    assert results.engine.server == (str(fake.bin / "llama-server"),)
    assert (results.engine.bench, fake.benches()) == (None, [])
    assert results.rounds
    assert "cannot measure" not in capsys.readouterr().err
    assert not [run["pid"] for run in fake.servers() if alive(run["pid"])]


def test_where_the_server_does_not_start_llama_bench_measures(
    fake: FakeEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every = dict.fromkeys((f"threads={count}" for count in range(1, 300)), "exit 3")
    fake.curve(**QUIET, start=every)
    assert main(tuned(fake, tmp_path / "r.json", "--budget", "5", "--threads", "1,2")) == 0
    results = load(str(tmp_path / "r.json"))
    assert results.engine.server is None
    assert results.engine.bench == (str(fake.bin / "llama-bench"),)
    said = capsys.readouterr().err
    assert said.count("llama-server cannot measure, so llama-bench does: ") == 1
    assert "error loading model" in said


@pytest.mark.parametrize("moment", ["loading", "asking"])
def test_ctrl_c_leaves_no_server_and_resume_goes_on(
    fake: FakeEngine, tmp_path: Path, moment: str
) -> None:
    path, program = tmp_path / "r.json", str(REPOSITORY / "benchmark_optimized.py")
    others = [f"threads={count}" for count in range(1, 300)]
    fake.curve(**QUIET)
    flags = tuned(fake, path, "--budget", "600", "--threads", "1,2", "--no-selftest")
    process = subprocess.Popen([sys.executable, program, *flags], stderr=subprocess.PIPE, text=True)
    try:
        until(path.exists)
        until(lambda: len(load(str(path)).rounds) >= 2)
        hanging = {"start": dict.fromkeys(others, "hang"), "crash": dict.fromkeys(others, 9)}
        fake.curve(**QUIET, **(hanging if moment == "loading" else {"hang": others}))
        count = len(fake.servers()) if moment == "loading" else len(fake.asked())
        until(lambda: len(fake.servers() if moment == "loading" else fake.asked()) > count)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, said
    assert "to go on: " in said
    assert not [run["pid"] for run in fake.servers() if alive(run["pid"])]


@pytest.mark.parametrize("program", ["llama-server", "llama-bench"])
def test_an_interrupted_tuning_goes_on_with_the_same_program(
    fake: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    path, measure, left = tmp_path / "r.json", Runner.measure, [0]

    def measured(*arguments: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGINT)
        return measure(*arguments)

    monkeypatch.setattr(Runner, "measure", measured)
    absent = {f"threads={count}": "exit 3" for count in range(1, 300)}
    fake.curve(**QUIET, start=absent if program == "llama-bench" else {})
    left[0] = 12
    assert main(tuned(fake, path, "--budget", "600", "--threads", "1,2")) == 130
    before = load(str(path))
    fake.curve(**QUIET)
    left[0] = 12
    assert main(["--resume", str(path)]) == 130
    after = load(str(path))
    assert len(after.rounds) > len(before.rounds) > 0
    assert after.rounds[: len(before.rounds)] == before.rounds
    assert after.engine == before.engine
    assert bool(after.engine.server) == (program == "llama-server") == (not fake.benches())


def test_the_self_check_compares_speeds_on_servers(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.curve(**QUIET, factors={"OMP_PROC_BIND=true": 1.5})
    monkeypatch.setenv("FAKE_WORK", "1 0.3")
    test_optimizations.main(["--engine", str(fake.cli), "-m", demo.I2_S])
    assert " rounds with llama-server" in capsys.readouterr().out
    assert fake.benches() == []
    assert not [run["pid"] for run in fake.servers() if alive(run["pid"])]


# Other engines


@pytest.mark.slow
def test_the_embedded_engine_measures_by_its_server(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    facts = facts_of(EMBEDDED, tmp_path)
    residents = find_residents(facts)
    assert residents is not None
    runner = Runner(facts, find_bench(facts.engine), Sizes(16, 4, 2), residents=residents)
    try:
        for setting in (ONE, TWO, ONE._replace(flash=True, mmap=False)):
            run = runner.measure(repr(setting), setting)
            assert run.problem is None
            assert {phase: len(found) for phase, found in run.samples.items()} == {PP: 2, TG: 2}
    finally:
        runner.close()


@pytest.mark.skipif(not FOLDERS, reason="BITNET_TEST_ENGINES names no engine")
@pytest.mark.parametrize("folder", FOLDERS)
def test_compiled_engines_measure_by_their_servers(folder: str, tmp_path: Path) -> None:
    facts, _ = compiled(folder, tmp_path)
    residents = find_residents(facts)
    if residents is None:
        pytest.skip("there is no server")
    runner = Runner(facts, None, Sizes(16, 4, 2), residents=residents)
    try:
        for setting in (ONE, TWO, ONE._replace(flash=True), ONE._replace(mmap=False, ubatch=16)):
            assert runner.measure(repr(setting), setting).problem is None
    finally:
        runner.close()
