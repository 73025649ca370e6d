"""Watch the processes that tests start, and kill those that a failed test leaves behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SECONDS = 60.0
"""Seconds after which a test gives up waiting, far more than a busy machine needs."""

_MARK = "BITNET_TEST_MARK"


def until(condition: Callable[[], Any]) -> None:
    """Wait until a condition holds; fail the test after SECONDS."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def state(process: int) -> str:
    """Return the state of a process as in proc_pid_stat(5); empty if it does not exist."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def alive(process: int) -> bool:
    """Return whether a process runs. A zombie has ended, but its parent has not waited for it."""
    return state(process) not in ("", "Z")


@contextmanager
def marked(mark: str) -> Iterator[None]:
    """Mark all programs that start in the block, and kill those that still run after it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(_MARK, mark)
        try:
            yield
        finally:
            until(lambda: not _killed(mark))


def _killed(mark: str) -> list[int]:
    found = still_running(mark)
    for process in found:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return found


def still_running(mark: str) -> list[int]:
    """Return the processes that were started with this mark. Only Linux shows them."""
    found = []
    entry = f"{_MARK}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if entry in variables:
            found.append(int(folder.name))
    return found
