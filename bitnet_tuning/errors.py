"""Errors that a user can act on; each class names its program's exit code."""

from __future__ import annotations


class TuningError(Exception):
    """Something went wrong: ``cause`` says what happened, ``remedy`` what to do about it. Each is
    one line, without a full stop where it ends in something to paste."""

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
