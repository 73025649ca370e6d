"""Performance mode looks at the running engine: whole programs, the real ``/proc``."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from bitnet_tuning import demo
from bitnet_tuning.cli import effects as cli_effects
from bitnet_tuning.cli.effects import TOO_SOON, UNSEEN
from bitnet_tuning.machine.limits import read_privileges
from tests.engines import FakeEngine
from tests.machines import Machine

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")

REPO = Path(__file__).resolve().parents[1]
OPTIMIZED = str(REPO / "run_inference_optimized.py")
SECONDS = 60
NAMES = (
    "CPUs",
    "priority",
    "locked memory",
    "wait policy",
    "environment",
    "huge pages",
    "memory nodes",
    "governor",
)


class Done(NamedTuple):
    code: int
    out: str
    ours: list[str]

    @property
    def effects(self) -> dict[str, str]:
        """By their names, of those that are listed."""
        found = {name: line for line in self.ours for name in NAMES if line.startswith(f"{name}  ")}
        return {name: line.removeprefix(name).strip() for name, line in found.items()}

    @property
    def missed(self) -> list[str]:
        return [line for line in self.ours if "did not act" in line]


def run(*flags: str, **variables: str) -> Done:
    return start(OPTIMIZED, *flags, **variables)


def start(*command: str, **variables: str) -> Done:
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    prefix = "bitnet-tuning: "
    lines = [line for line in done.stderr.splitlines() if line.startswith(prefix)]
    return Done(done.returncode, done.stdout, [line.removeprefix(prefix) for line in lines])


def may_lock() -> bool:
    limit = read_privileges().lockable
    return limit is None or limit > os.path.getsize(demo.I2_S)


@pytest.fixture
def fake(tmp_path: Path) -> FakeEngine:
    return FakeEngine(tmp_path / "checkout")


def perform(fake: FakeEngine, *flags: str, sleep: str = "0.6", **variables: str) -> Done:
    named = ("--engine", str(fake.cli), "-m", demo.I2_S, "-p", "hello", "-t", "1")
    return run(*named, "--performance-mode", *flags, FAKE_SLEEP=sleep, **variables)


def test_stats_list_what_the_engine_really_received(fake: FakeEngine) -> None:
    done = perform(fake, "--stats")
    (received,) = fake.prompts()
    assert tuple(done.effects) == NAMES
    assert done.effects["CPUs"].startswith("acted")
    cpus = done.effects["CPUs"].rpartition("seen ")[2].split("(")[0].strip()
    assert cpus == format_cpus(received["cpus"])
    assert done.effects["priority"].endswith(f"niceness {received['nice']}")
    environment = done.effects["environment"]
    assert environment.startswith("acted")
    assert "OMP_NUM_THREADS=1" in environment
    assert done.ours[-1].startswith("prompt 100.0 tokens/s")


def format_cpus(cpus: list[int]) -> str:
    done = subprocess.run(
        ["grep", "Cpus_allowed_list", "/proc/self/status"],
        preexec_fn=lambda: os.sched_setaffinity(0, cpus),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()[1]


def test_what_did_not_act_is_told_without_stats(fake: FakeEngine) -> None:
    """The fake locks nothing, whatever it is told."""
    if not may_lock():
        pytest.skip("no memory may be locked here")
    done = perform(fake, sleep="1.2")
    assert [line.partition(":")[0] for line in done.missed] == ["locked memory did not act"]
    assert done.effects == {}
    quiet = perform(fake, "--quiet", "--stats", sleep="1.2")
    assert quiet.effects["locked memory"].startswith("did not act  wanted 1 MiB, seen 0 MiB")


def test_without_stats_quiet_hides_it(fake: FakeEngine) -> None:
    assert perform(fake, "--quiet").ours in ([], perform(fake, "--quiet", "--dry-run").ours)


def test_a_script_around_the_engine_that_drops_variables_is_seen_through(fake: FakeEngine) -> None:
    real = fake.cli.rename(fake.bin / "real")
    fake.cli.write_text(f'#!/bin/sh\nenv -u OMP_NUM_THREADS {real} "$@"\nexit $?\n')
    fake.cli.chmod(0o755)
    done = perform(fake)
    assert done.code == 0
    (line,) = [line for line in done.missed if line.startswith("environment")]
    wanted, seen = line.split(", seen ")
    assert "OMP_NUM_THREADS=1" in wanted and "OMP_NUM_THREADS=1" not in seen


def test_a_run_without_performance_mode_is_not_looked_at(fake: FakeEngine) -> None:
    named = ("--engine", str(fake.cli), "-m", demo.I2_S, "-p", "hello", "-t", "1", "--stats")
    done = run(*named, FAKE_SLEEP="0.3")
    assert done.missed == [] and "environment" not in done.effects


def test_where_nothing_can_be_seen_it_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli_effects, "shows_programs", lambda _: False)
    assert cli_effects.observer_of(None, "/") is None  # type: ignore[arg-type]
    for all_of_it, expected in ((True, f"bitnet-tuning: {UNSEEN}\n"), (False, "")):
        cli_effects.say_effects(None, None, False, False, all_of_it)  # type: ignore[arg-type]
        assert capsys.readouterr().err == expected


def test_an_engine_that_fails_at_once(fake: FakeEngine) -> None:
    fake.cli.write_text(fake.cli.read_text().replace("def chat()", "os._exit(9)\n\n\ndef chat()"))
    done = perform(fake, "--stats")
    assert done.code == 9
    assert done.effects or TOO_SOON in done.ours


ELSEWHERE = """\
import sys
sys.path.insert(0, {repo!r})
from bitnet_tuning.cli.run_optimized import main
sys.exit(main(sys.argv[2:], root=sys.argv[1]))
"""


def test_cpus_and_governor_that_were_asked_for(fake: FakeEngine, tmp_path: Path) -> None:
    """On a hybrid machine the fast CPUs only; this one's affinity is real all the same."""
    cpu = min(os.sched_getaffinity(0))
    every = range(cpu, cpu + 4)
    machine = Machine(tmp_path / "root").cores([[it] for it in every])
    machine.intel_kinds(f"{cpu}-{cpu + 1}", f"{cpu + 2}-{cpu + 3}")
    machine.governors(dict.fromkeys(every, "powersave"))
    named = ("--engine", str(fake.cli), "-m", demo.I2_S, "-p", "hello")
    flags = ("--performance-mode", "--set-governor", "--stats")
    program = ("-c", ELSEWHERE.format(repo=str(REPO)), str(machine.path))
    done = start(*program, *named, *flags, FAKE_SLEEP="0.3")
    received = format_cpus(fake.prompts()[-1]["cpus"])
    words = f"acted wanted {cpu}-{cpu + 1}, seen {received} (1 thread)"
    assert done.effects["CPUs"].split() == words.split()
    assert done.effects["governor"].split() == ["acted", "performance"]


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs xllamacpp")
def test_the_embedded_engine_in_performance_mode() -> None:
    flags = ("--engine", "embedded", "-m", demo.TQ2_0, "-p", "How many threads", "-n", "32")
    done = run(*flags, "--performance-mode", "--stats", "--quiet")
    assert done.code == 0
    assert tuple(done.effects) == NAMES
    assert done.missed == []
    assert done.effects["environment"].startswith("acted")
    if may_lock():
        assert done.effects["locked memory"].startswith(("acted", "not seen"))
    if read_privileges().lowest_nice <= -5:
        assert done.effects["priority"].startswith("acted")
