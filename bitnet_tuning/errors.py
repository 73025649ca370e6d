"""Errors that a user can act on.

Each class names the exit code of the program that ends with it, so that the
error boundary in ``cli`` needs no table of its own.
"""

from __future__ import annotations


class TuningError(Exception):
    """Something went wrong in a way that can be explained.

    ``cause`` says what happened and ``remedy`` what to do about it; each is one
    line, without a full stop where it ends in something to paste.
    """

    exit_code = 1

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.cause}\n  {self.remedy}" if self.remedy else self.cause


class UsageError(TuningError):
    """The command line asks for something that makes no sense."""

    exit_code = 2


class MissingError(TuningError):
    """Something the run needs is not there: an engine or a model."""

    exit_code = 3


class UnsupportedError(TuningError):
    """This host, engine or model cannot do what was asked."""

    exit_code = 4
