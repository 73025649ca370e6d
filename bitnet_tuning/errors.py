"""Errors that a user can act on; each class has the exit code that it leads to."""

from __future__ import annotations

from errno import EAGAIN, EMFILE, ENFILE, ENOMEM


class TuningError(Exception):
    """An error with its cause and, where there is one, a remedy. Each is a line of text, without a
    full stop, so that a command at its end can be copied."""

    exit_code = 1

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.cause}\n  {self.remedy}" if self.remedy else self.cause


class UsageError(TuningError):
    """The command line or a variable asks for something impossible."""

    exit_code = 2


class MissingError(TuningError):
    """Something that is needed is missing, such as an engine or a model."""

    exit_code = 3


class UnsupportedError(TuningError):
    """This host, engine or model cannot do what was asked."""

    exit_code = 4


class ShortageError(TuningError):
    """This process or the system lacks something that programs need, whichever is started."""

    exit_code = 4


TASK_LIMITS = "ulimit -u, or pids.max of the control group"
"""Names of the limits on processes and threads together."""

_SHORTAGES = {
    EMFILE: "allow more open files: ulimit -n 4096",
    ENFILE: "close other programs: the system has too many open files",
    ENOMEM: "close other programs, or allow more memory",
    EAGAIN: f"the limit of processes is reached ({TASK_LIMITS}): end other programs",
}


def shortage(error: Exception, what: str) -> ShortageError | None:
    """Return the error to raise if ``what`` failed for a lack that all programs meet, or None."""
    number, cause = getattr(error, "errno", None), getattr(error, "strerror", None) or error
    if isinstance(error, RuntimeError):  # Python names no reason for a thread that does not start
        number = EAGAIN
    return ShortageError(f"{what}: {cause}", _SHORTAGES[number]) if number in _SHORTAGES else None


def cause_of(error: Exception) -> str:
    """Return an error in words: the system's and the file, if it is the system's error."""
    if not isinstance(error, OSError):
        return f"{type(error).__name__}: {error}"
    return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
