"""An engine that is looked at while it runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bitnet_tuning.errors import UnsupportedError
from bitnet_tuning.launch import run as launch
from bitnet_tuning.launch.program import Launch
from tests.engines import FakeEngine

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX processes")

REPO = Path(__file__).resolve().parents[1]
SECONDS = 20.0


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    monkeypatch.setenv("FAKE_SLEEP", "0.2")
    return FakeEngine(tmp_path / "checkout")


@pytest.mark.parametrize("keep_log", [False, True])
def test_it_is_called_with_the_engines_id_while_that_runs(
    engine: FakeEngine, keep_log: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []
    argv = (str(engine.cli), "-m", "x", "-p", "a")
    before = threading.active_count(), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert launch.run(Launch(argv, {}, keep_log=keep_log, watch=seen.append)).code == 0
    (run,) = engine.prompts()
    assert len(seen) > 1 and set(seen) == {run["pid"]}
    assert (threading.active_count(), signal.pthread_sigmask(signal.SIG_BLOCK, ())) == before
    assert capfd.readouterr().out == "a and more text\n"


def test_it_is_over_when_the_run_is(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_EXIT", "7")
    inside: list[bool] = []

    def slow(_: int) -> None:
        inside.append(True)
        time.sleep(0.1)
        inside.pop()

    argv = (str(engine.cli), "-m", "x", "-p", "a")
    assert launch.run(Launch(argv, {}, watch=slow)).code == 7
    assert inside == []


def test_what_it_raises_ends_nothing_but_the_watching(
    engine: FakeEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []

    def broken(process: int) -> None:
        seen.append(process)
        raise ValueError

    argv = (str(engine.cli), "-m", "x", "-p", "a")
    assert launch.run(Launch(argv, {}, watch=broken)).code == 0
    assert len(seen) == 1
    assert "Error" not in capfd.readouterr().err


def test_nothing_is_watched_where_nothing_is_started() -> None:
    seen: list[int] = []
    with pytest.raises(UnsupportedError):
        launch.run(Launch(("/nowhere/llama-cli",), {}, watch=seen.append))
    assert seen == []


WATCHED = """\
import sys
sys.path.insert(0, {repo!r})
from bitnet_tuning.launch import run as launch
argv = ({cli!r}, "-m", "x", "-p", "hello")
done = launch.run(launch.Launch(argv, {{}}, keep_log={keep_log}, watch=lambda _: sum(range(9999))))
sys.exit(done.code)
"""


@pytest.mark.parametrize("keep_log", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_reach_the_engine_at_once(
    engine: FakeEngine, keep_log: bool, number: signal.Signals
) -> None:
    """One that the watching thread took would wait for the engine's own end."""
    code = WATCHED.format(repo=str(REPO), cli=str(engine.cli), keep_log=keep_log)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "FAKE_SLEEP": "60"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"hello and more text\n"
    process.send_signal(number)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + number
