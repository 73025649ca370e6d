"""Fixtures for every test: a neutral environment and a state folder of its own."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # for a plain ``pytest``; ``python -m pytest`` has it

# Everything else is removed before the first test: settings of OpenMP, BLAS, llama.cpp or the
# terminal change what the programs under test do, and no list of them is ever complete.
_KEPT = (
    "PATH",
    "HOME",
    "USER",
    "TMPDIR",
    "TEMP",
    "TMP",
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
_KEPT_PREFIXES = ("PYTEST_", "COVERAGE_", "COV_CORE_")


@pytest.fixture(scope="session", autouse=True)
def neutral_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Remove the user's own settings from the environment, for all fixtures and subprocesses."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name not in _KEPT and not name.startswith(_KEPT_PREFIXES):
                patch.delenv(name)
        patch.setenv("BITNET_TUNING_HOME", str(tmp_path_factory.getbasetemp() / "state"))
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
