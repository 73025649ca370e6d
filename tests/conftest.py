"""What every test gets: an environment that says nothing of the user's own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # for a plain ``pytest``; ``python -m pytest`` has it

_PREFIXES = ("BITNET_", "OMP_", "KMP_", "GOMP_")
_NAMES = ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@pytest.fixture(scope="session", autouse=True)
def neutral_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For fixtures of any scope, and for what they start."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(_PREFIXES) or name in _NAMES:
                patch.delenv(name)
        patch.setenv("BITNET_TUNING_HOME", str(tmp_path_factory.getbasetemp() / "state"))
        yield


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
