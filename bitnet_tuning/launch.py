"""The one place that starts engines."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping

from bitnet_tuning.process import (
    FEED,
    INHERIT,
    INTERRUPT_GRACE,
    NO_INPUT,
    Launch,
    Outcome,
    cannot_start,
)
from bitnet_tuning.records import NamedTuple

__all__ = [
    "FEED",
    "INHERIT",
    "INTERRUPT_GRACE",
    "NO_INPUT",
    "Captured",
    "Launch",
    "Outcome",
    "capture",
    "run",
]

_NTSTATUS_CONTROL_C = 0xC000013A


class Captured(NamedTuple):
    """A finished probe. ``code`` is None where it ran out of time."""

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
    from bitnet_tuning.posix import run_posix  # noqa: PLC0415

    return run_posix(launch)


def capture(
    argv: tuple[str, ...], variables: Mapping[str, str] | None = None, seconds: float = 15
) -> Captured:
    """Runs a short probe without input. Never raises: what fails has code 127."""
    import subprocess  # noqa: PLC0415

    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, **(variables or {})},
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        return Captured(None, _text(late.stdout), _text(late.stderr))
    except (OSError, ValueError) as error:
        return Captured(127, "", str(error))
    return Captured(done.returncode, _text(done.stdout), _text(done.stderr))


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
