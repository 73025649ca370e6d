"""Watch the processes that tests start, and kill those that a failed test leaves behind."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
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


def run_at_terminal(*command: str, **variables: str) -> tuple[int, bytes, str]:
    """Run a program whose stderr is a terminal; return its exit code, its stdout and what it wrote
    to the terminal."""
    near, far = os.openpty()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=far,
        env={**os.environ, **variables},
    )
    os.close(far)
    seen = b""
    with suppress(OSError):  # so Linux tells that nobody writes any more
        while data := os.read(near, 1 << 16):
            seen += data
    os.close(near)
    out = process.communicate(timeout=SECONDS)[0]
    return process.returncode, out, seen.decode("utf-8", "replace").replace("\r\n", "\n")


@contextmanager
def marked(mark: str) -> Iterator[None]:
    """Mark all programs that start in the block, and kill those that still run after it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(_MARK, mark)
        try:
            yield
        finally:
            until(lambda: not _killed(mark))


def _killed(mark: str) -> dict[psutil.Process, str]:
    return killed(lambda variables: variables.get(_MARK) == mark)


def still_running(mark: str) -> dict[psutil.Process, str]:
    """Return the programs that were started with this mark, as ``programs`` does."""
    return programs(lambda variables: variables.get(_MARK) == mark)


def killed(chosen: Callable[[dict[str, str]], bool]) -> dict[psutil.Process, str]:
    """Kill the programs that ``programs`` returns, and return them."""
    found = programs(chosen)
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return found


def programs(chosen: Callable[[dict[str, str]], bool]) -> dict[psutil.Process, str]:
    """Return the running programs for whose environment ``chosen`` is true, with their command
    lines; this one is not among them."""
    found = {}
    for process in psutil.process_iter():
        # A process may be gone, a zombie, or another user's.
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and chosen(process.environ()):
                found[process] = " ".join(process.cmdline())
    return found
