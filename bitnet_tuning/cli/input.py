"""Prompts that are read from standard input or from a file."""

from __future__ import annotations

import codecs
import os
import sys

from bitnet_tuning.console import command, say
from bitnet_tuning.errors import UsageError
from bitnet_tuning.plan.facts import Request
from bitnet_tuning.prepare import LONGEST_PROMPT, is_stdin
from bitnet_tuning.store.state import read_file

MOST_BYTES = (1 << 17) - 1
"""Longest argument in bytes: execve(2) limits one to 32 pages, with its null byte."""


def read_stdin(what: str) -> bytes:
    """Return all of standard input, and ask for it on a terminal. Raise UsageError for UTF-16."""
    if sys.stdin is None:
        return b""
    if sys.stdin.isatty():
        say(f"type {what}, end with {'Ctrl-Z and Enter' if os.name == 'nt' else 'Ctrl-D'}")
    return cleaned(sys.stdin.buffer.read(), "standard input")


def cleaned(text: bytes, where: str) -> bytes:
    """Return a text without a byte order mark. Raise UsageError for null bytes, as in UTF-16."""
    if b"\0" in text:
        remedy = "save it as UTF-8: iconv -f UTF-16 -t UTF-8 FILE"
        raise UsageError(f"{where} is no text in UTF-8: it has null bytes, as in UTF-16", remedy)
    if text.startswith(codecs.BOM_UTF8):
        say(f"dropped the byte order mark at the start of {where}")
    return text.removeprefix(codecs.BOM_UTF8)


def with_prompt(request: Request) -> Request:
    """Return the request with the prompt that ``-`` stands for, or that its file holds if the
    engine cannot read the file as it is. Raise TuningError if there is none."""
    path, where, content = request.prompt_file, "standard input", b""
    piped = "-" in (request.prompt, path)
    flag = "-p/--prompt" if path is None else "-f/--file"
    if request.chat and (piped or is_stdin(path)):
        raise UsageError(
            f"argument {flag}: a chat reads your messages from standard input, so its prompt "
            "cannot come from there",
            "give it as text with -p, or in a file with -f",
        )
    if piped or path is None:
        text = read_stdin("the prompt")
    elif os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        return request  # a pipe, as in ``-f <(command)``, can be read only once, by the engine
    else:
        remedy, where = "name a readable file with -f", path
        content = read_file(path, f"the prompt file {path}", remedy, LONGEST_PROMPT)
        text = cleaned(content, path)
    if text in (b"", b"\n"):  # engines drop one newline at the end of a prompt file
        remedy = f'pipe a text into it: echo "How many threads?" | {command("run")} -p -'
        cause = f"argument {flag}: the prompt in {where} is empty"
        raise UsageError(cause, remedy if piped else "")
    if text == content:
        return request
    text = text.removesuffix(b"\n")
    if len(text) > MOST_BYTES:
        cause = f"argument {flag}: the prompt in {where} is too long for a command line"
        raise UsageError(cause, "name a file without a byte order mark with -f")
    return request._replace(prompt=os.fsdecode(text), prompt_file=None)
