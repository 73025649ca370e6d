"""Give every test a neutral environment and a state folder of its own, and clean up after it."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # for a plain ``pytest``; ``python -m pytest`` has it

from tests.processes import killed, programs  # noqa: E402

# The suite removes every other variable before the first test: settings of OpenMP, BLAS,
# llama.cpp and the terminal change what the programs under test do, and no list of those is
# ever complete.
_KEPT = (
    "PATH",
    "HOME",
    "USER",
    "SYSTEMROOT",
    "COMSPEC",
    "PATHEXT",
    "APPDATA",
    "LOCALAPPDATA",
    "USERPROFILE",
    "PYTHONPATH",  # where the package under test may come from
    "LD_LIBRARY_PATH",  # some Pythons need it to start
    "DYLD_LIBRARY_PATH",
    "VIRTUAL_ENV",
    "PYENV_ROOT",
    "PYENV_VERSION",
    "BITNET_TEST_ENGINES",
)
_GRACE = 10.0
"""Seconds that programs, which tests have told to end, may still take."""

_KEPT_PREFIXES = ("PYTEST_", "COVERAGE_", "COV_CORE_")


_MOST_WORKERS = 8
"""A bound for machines with many cores: every worker imports all the test libraries anew."""


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Kill what tests left running when Ctrl-C, or the death of a worker, ended them early."""
    factory: pytest.TempPathFactory | None = getattr(session.config, "_tmp_path_factory", None)
    if factory is not None:
        killed(_of_folder(factory.getbasetemp()))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return the number of workers for ``-n auto``: one per CPU that this process may use."""
    # xdist counts the machine's cores, of which a container often has a few only.
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(mine or 1, _MOST_WORKERS)


@pytest.fixture(scope="session", autouse=True)
def neutral_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Remove the user's own settings from the environment, for all fixtures and subprocesses."""
    base = tmp_path_factory.getbasetemp()
    temporary = base / "temporary"
    temporary.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name not in _KEPT and not name.startswith(_KEPT_PREFIXES):
                patch.delenv(name)
        patch.setenv("BITNET_TUNING_HOME", str(base / "state"))
        patch.setenv("BITNET_IGNORE_LOAD", "1")
        for name in ("TMPDIR", "TEMP", "TMP"):
            patch.setenv(name, str(temporary))
        patch.setattr(tempfile, "tempdir", str(temporary))
        yield


@pytest.fixture(scope="session", autouse=True)
def default_signals() -> Iterator[None]:
    """Start every program under test with default signal handling, even under nohup."""
    # execve(2) resets a handler to the default but keeps an ignored signal ignored. nohup
    # ignores SIGHUP; a shell script ignores SIGINT and SIGQUIT in its background jobs.
    by_python = {getattr(signal, name, None) for name in ("SIGPIPE", "SIGXFSZ")}
    ignored = [
        number
        for number in signal.valid_signals() - by_python
        if signal.getsignal(number) is signal.SIG_IGN
    ]
    for number in ignored:
        signal.signal(number, lambda *_: None)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="module", autouse=True)
def nothing_left(
    neutral_environment: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Fail if the module's tests leave a program running or a file in the temporary folder.

    Programs are recognised by the path of this session's folder in their environment, so they
    are found even if they have left the session and the process group.
    """
    yield
    base = tmp_path_factory.getbasetemp()
    end = time.monotonic() + _GRACE
    while programs(_of_folder(base)) and time.monotonic() < end:
        time.sleep(0.05)
    running = killed(_of_folder(base))
    assert not running, f"left running and killed now: {running}"
    files = [path.name for path in (base / "temporary").iterdir()]
    assert not files, f"left in the temporary folder: {files}"


def _of_folder(base: Path) -> Callable[[dict[str, str]], bool]:
    """Return whether an environment names a path below ``base``, as a function."""
    start = f"{base}{os.sep}"
    return lambda variables: any(start in text for text in variables.values())


@pytest.fixture(autouse=True)
def own_state(neutral_environment: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder for remembered records, of this test alone; it does not exist yet."""
    folder = tmp_path.with_name(f"{tmp_path.name}-state")
    monkeypatch.setenv("BITNET_TUNING_HOME", str(folder))
    return folder


@pytest.fixture
def repository() -> Path:
    """The root folder of the checkout."""
    return REPOSITORY
