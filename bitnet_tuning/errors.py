"""Errors that a user can act on; each class has the exit code that it leads to."""

from __future__ import annotations


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


def cause_of(error: Exception) -> str:
    """Return an error in words: the system's and the file, if it is the system's error."""
    if not isinstance(error, OSError):
        return f"{type(error).__name__}: {error}"
    return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
