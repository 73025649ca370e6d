"""The one place that starts engines."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping

from bitnet_tuning.errors import UnsupportedError
from bitnet_tuning.launch.program import (
    NO_INPUT,
    Launch,
    Outcome,
    cannot_start,
)
from bitnet_tuning.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from subprocess import Popen


_NTSTATUS_CONTROL_C = 0xC000013A

_KILL_GRACE = 3
"""Seconds that a killed program has to be gone."""

WATCH_SECONDS = 0.01
"""From one call of what watches a captured program to the next."""


class Captured(NamedTuple):
    """What a program printed. ``code`` is None where it ran out of time, and negative, the
    number of the signal, where one ended it."""

    code: int | None
    stdout: str
    stderr: str


def run(launch: Launch) -> Outcome:
    """Runs the engine to its end and says how it ended.

    Signals reach it exactly once, also when the whole process group gets them; it
    does not outlive this process. Raises UnsupportedError where it cannot be started.
    """
    if os.name == "nt":
        return _run_windows(launch)
    from bitnet_tuning.launch.posix import run_posix  # noqa: PLC0415

    return run_posix(launch)


def capture(
    argv: tuple[str, ...],
    variables: Mapping[str, str] | None = None,
    seconds: float = 15,
    *,
    unset: frozenset[str] = frozenset(),
    cpus: frozenset[int] | None = None,
    nice: int = 0,
    watch: Callable[[int], None] | None = None,
) -> Captured:
    """Runs a program without input and answers what it printed.

    It has this process's environment but for ``unset`` and with ``variables``, may use
    ``cpus`` and has ``nice`` added to its niceness where the kernel grants it. What fails
    to start has code 127. Nothing of it is left when the call ends, also by an exception,
    or when this process is gone. ``watch`` is called again and again while it runs, with
    its process id, which on POSIX systems is its process group's as well.
    """
    from subprocess import PIPE, TimeoutExpired  # noqa: PLC0415

    from bitnet_tuning.launch.server import beside, kill  # noqa: PLC0415

    try:
        with beside(Launch(argv, variables or {}, cpus, nice=nice), unset, PIPE) as child:
            try:
                output, log = _printed(child, seconds, watch)
            except TimeoutExpired:
                kill(child)
                return _rest(child)
            return Captured(child.returncode, _text(output), _text(log))
    except UnsupportedError as error:
        return Captured(127, "", error.cause)


def _printed(
    child: Popen[bytes], seconds: float, watch: Callable[[int], None] | None
) -> tuple[bytes, bytes]:
    """Its stdout and stderr; raises TimeoutExpired. Between two calls of ``watch`` nothing
    of them is lost: communicate may be called again."""
    if watch is None:
        return child.communicate(timeout=seconds)
    import time  # noqa: PLC0415
    from subprocess import TimeoutExpired  # noqa: PLC0415

    end = time.monotonic() + seconds
    while True:
        try:
            return child.communicate(timeout=WATCH_SECONDS)
        except TimeoutExpired:
            if time.monotonic() >= end:
                raise
            watch(child.pid)


def _rest(child: Popen[bytes]) -> Captured:
    """What a killed program had printed. A descendant that left its group may hold its
    pipes open: it is not waited for."""
    from subprocess import TimeoutExpired  # noqa: PLC0415

    try:
        output, log = child.communicate(timeout=_KILL_GRACE)
    except TimeoutExpired as late:
        return Captured(None, _text(late.stdout), _text(late.stderr))
    return Captured(None, _text(output), _text(log))


def _text(data: bytes | str | None) -> str:
    return data if isinstance(data, str) else (data or b"").decode("utf-8", "replace")


def _run_windows(launch: Launch) -> Outcome:
    """Ctrl-C reaches the engine from the console itself, so it is only waited out here."""
    import subprocess  # noqa: PLC0415

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        engine = subprocess.Popen(
            launch.argv,
            env={**os.environ, **launch.variables},
            stdin=None if launch.stdin != NO_INPUT else subprocess.DEVNULL,
            stderr=subprocess.PIPE if launch.keep_log else None,
        )
        log = engine.communicate()[1] or b""
    except OSError as error:
        raise cannot_start(launch.argv, error) from error
    finally:
        signal.signal(signal.SIGINT, before)
    if launch.keep_log and launch.show_log:
        sys.stderr.buffer.write(log)
    return Outcome(_windows_code(engine.returncode), log)


def _windows_code(status: int) -> int:
    """Ctrl-C as everywhere else; NTSTATUS values signed, as ``sys.exit`` can pass them on."""
    if status & 0xFFFFFFFF == _NTSTATUS_CONTROL_C:
        return 130
    return status - (1 << 32) if status >= 1 << 31 else status
