"""Prompts that are read from standard input or from a file."""

from __future__ import annotations

import codecs
import os
import sys

from bitnet_tuning.console import command, say, size_text
from bitnet_tuning.errors import MissingError, UsageError
from bitnet_tuning.machine.memory import file_in_memory
from bitnet_tuning.plan.facts import Request
from bitnet_tuning.prepare import LONGEST_PROMPT, is_stdin
from bitnet_tuning.store.state import read_file

MOST_BYTES = (1 << 17) - 1
"""Longest argument in bytes: execve(2) limits one to 32 pages, with its null byte."""


def read_stdin(what: str) -> bytes:
    """Return the text on standard input, as ``cleaned`` does, and ask for it on a terminal. Raise
    UsageError if it is too long, MissingError if it cannot be read."""
    if sys.stdin is None:
        return b""
    if sys.stdin.isatty():
        say(f"type {what}, end with {'Ctrl-Z and Enter' if os.name == 'nt' else 'Ctrl-D'}")
    try:
        content = sys.stdin.buffer.read(LONGEST_PROMPT + 1)
    except OSError as error:  # it is open for writing only, or it is a terminal that is gone
        cause = f"cannot read standard input: {error.strerror}"
        raise MissingError(cause, "redirect a file or a pipe into it: < FILE") from error
    return cleaned(content, "standard input", LONGEST_PROMPT)


def cleaned(text: bytes, where: str, most: int = sys.maxsize) -> bytes:
    """Return a text without a byte order mark. Raise UsageError unless it is UTF-8, at which some
    engines abort, and for null bytes, as in UTF-16."""
    if len(text) > most:
        remedy = "shorten it, or put many prompts into a file: --prompts FILE"
        raise UsageError(f"{where} is longer than {size_text(most)}", remedy)
    wrong, code = ("it has null bytes, as in UTF-16", "UTF-16") if b"\0" in text else ("", "LATIN1")
    try:
        text.decode()
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        wrong = wrong or f"byte {error.start + 1}, in line {line}"
    if wrong:
        remedy = f"save it as UTF-8: iconv -f {code} -t UTF-8 FILE"
        raise UsageError(f"{where} is no text in UTF-8: {wrong}", remedy)
    if text.startswith(codecs.BOM_UTF8):
        say(f"dropped the byte order mark at the start of {where}")
    return text.removeprefix(codecs.BOM_UTF8)


def with_prompt(request: Request, runs: bool = True) -> Request:
    """Return the request with the prompt that ``-`` stands for, or that its file holds if the
    engine cannot read the file as it is. With ``runs``, a long one becomes a file in memory. Raise
    TuningError if there is none."""
    path, where = request.prompt_file, "standard input"
    is_file = path is not None and os.path.isfile(path)
    piped = "-" in (request.prompt, path) or (is_stdin(path) and not is_file)
    flag = "-p/--prompt" if path is None else "-f/--file"
    if request.chat and (piped or is_stdin(path)):
        raise UsageError(
            f"argument {flag}: a chat reads your messages from standard input, so its prompt "
            "cannot come from there",
            "give it as text with -p, or in a file with -f",
        )
    if piped or path is None:
        text = content = read_stdin("the prompt")
    else:  # a pipe, as in ``-f <(command)``, can be read only once
        remedy, where = "name a readable file with -f", path
        content = read_file(path, f"the prompt file {path}", remedy, LONGEST_PROMPT + 1)
        text = cleaned(content, path, LONGEST_PROMPT)
    if text in (b"", b"\n"):  # engines drop one newline at the end of a prompt file
        remedy = f'pipe a text into it: echo "How many threads?" | {command("run")} -p -'
        cause = f"argument {flag}: the prompt in {where} is empty"
        raise UsageError(cause, remedy if piped else "")
    if is_file and text == content:
        return request
    if len(text.removesuffix(b"\n")) <= MOST_BYTES:
        return request._replace(prompt=os.fsdecode(text.removesuffix(b"\n")), prompt_file=None)
    path = file_in_memory(text) if runs else None
    if path is None:
        cause = f"argument {flag}: the prompt in {where} is too long for a command line"
        raise UsageError(cause, "save it to a file without a byte order mark, and use -f FILE")
    return request._replace(prompt=None, prompt_file=path)
