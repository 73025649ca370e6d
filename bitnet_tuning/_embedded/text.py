"""Text on its way to the model: bytes as they came, escapes as llama.cpp reads them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from bitnet_tuning._embedded.errors import EngineError

_ESCAPE = re.compile(rb"\\(x[0-9A-Fa-f]{2}|.)", re.DOTALL)
_MEANING = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"'": b"'", b'"': b'"', b"\\": b"\\"}


def from_argv(text: str) -> bytes:
    """The bytes that the shell passed, be they UTF-8 or not."""
    return os.fsencode(text)


def from_file(path: str) -> bytes:
    """A prompt file's bytes without one final newline, as llama.cpp reads it.

    Raises EngineError where the file cannot be read.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise EngineError(f"failed to open file '{path}': {error.strerror}") from None
    return content.removesuffix(b"\n")


def unescape(raw: bytes) -> bytes:
    r"""Replace ``\n \r \t \' \" \\`` and ``\x41``; any other backslash stays."""
    return _ESCAPE.sub(_meaning, raw)


def _meaning(match: re.Match[bytes]) -> bytes:
    letter = match[1]
    if len(letter) == 3:
        return bytes([int(letter[1:], 16)])
    return _MEANING.get(letter, match[0])


def for_model(raw: bytes) -> str:
    """The prompt as the model reads it.

    The engine takes its requests as JSON, which can only carry text: bytes that
    are no UTF-8 become U+FFFD.
    """
    return raw.decode("utf-8", "replace")
