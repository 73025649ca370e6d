"""Standard output, on which answers stand whole and once, also over several runs."""

from __future__ import annotations

import os
import stat
import sys
from typing import NamedTuple

from bitnet_tuning.prompts.answers import decoded, read_answer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from bitnet_tuning.prompts.answers import Answer
    from bitnet_tuning.prompts.asks import Ask


STDOUT = 1

_MOST_READ = 1 << 30
"""Bytes of a file that are looked through for answers; more than any run prints."""


class Standing(NamedTuple):
    """What a file holds of this run at its end."""

    answers: tuple[Answer, ...]
    """From the first prompt on."""
    torn: int
    """Bytes of an answer behind them that was not written to its end."""
    open_line: bool = False
    """Whether the file ends in the middle of a line that is nobody's answer."""


NOTHING = Standing((), 0)


def standing(content: bytes, asks: tuple[Ask, ...], known: Mapping[int, Answer]) -> Standing:
    """The answers at the end of a file; ``known`` are those of the journal, which has every
    answer before it is printed. One that it lacks counts if it is one to that prompt."""
    *lines, rest = content.split(b"\n")
    lines = lines[-len(asks) :]
    for start in range(len(lines) + 1):
        found = _matching(lines[start:], asks, known)
        if found is not None:
            following = known.get(len(found))
            is_torn = rest and following is not None and following.line.startswith(rest)
            return Standing(found, len(rest) if is_torn else 0, bool(rest) and not is_torn)
    raise AssertionError("no lines match no prompts")


def _matching(
    lines: list[bytes], asks: tuple[Ask, ...], known: Mapping[int, Answer]
) -> tuple[Answer, ...] | None:
    """The lines as answers to the first prompts, or None where one is something else."""
    found = []
    for ask, line in zip(asks, lines, strict=False):
        answer = known.get(ask.place)
        if answer is None:
            answer = read_answer(decoded(line), ask)
            if answer is None:
                return None
        elif answer.line != line + b"\n":
            return None
        found.append(answer)
    return tuple(found)


def is_filled_file() -> bool:
    """Whether standard output is a file that holds something."""
    try:
        seen = os.fstat(STDOUT)
    except OSError:
        return False
    return stat.S_ISREG(seen.st_mode) and seen.st_size > 0


def contents() -> bytes | None:
    """What a file holds to which standard output is appended; None where it is no file, or
    cannot be read or added to at its end."""
    try:
        seen = os.fstat(STDOUT)
        if not stat.S_ISREG(seen.st_mode) or seen.st_size > _MOST_READ or not _at_end(seen.st_size):
            return None
        with open(f"/dev/fd/{STDOUT}", "rb") as file:
            same = os.path.samestat(os.fstat(file.fileno()), seen)
            return file.read() if same else None
    except OSError:
        return None


def _at_end(size: int) -> bool:
    if sys.platform == "win32":
        return False
    import fcntl  # noqa: PLC0415 (not on Windows)

    appends = fcntl.fcntl(STDOUT, fcntl.F_GETFL) & os.O_APPEND
    return bool(appends) or os.lseek(STDOUT, 0, os.SEEK_CUR) == size


def mend(found: Standing, size: int) -> None:
    """Takes the torn answer off a file of ``size`` bytes, and ends a line that is open."""
    if found.torn:
        os.ftruncate(STDOUT, size - found.torn)
        os.lseek(STDOUT, 0, os.SEEK_END)
    elif found.open_line:
        write(b"\n")


def write(data: bytes) -> None:
    """All of it, past Python's buffer. Raises BrokenPipeError where nobody reads it."""
    view = memoryview(data)
    while view:
        view = view[os.write(STDOUT, view) :]
