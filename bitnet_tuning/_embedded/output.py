"""Standard output, in bytes and at once."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from bitnet_tuning._embedded.engine import Piece


def write(content: bytes | str) -> None:
    """Write and flush, so that a reader sees each token as it is made."""
    raw = content.encode("utf-8", "replace") if isinstance(content, str) else content
    sys.stdout.buffer.write(raw)
    sys.stdout.buffer.flush()


def note(line: str) -> None:
    """Say something on standard error."""
    print(line, file=sys.stderr, flush=True)


class Until:
    """Passes pieces on up to the first reverse prompt, which it shows, as llama-cli does."""

    def __init__(self, stops: Iterable[bytes]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._tail = b""
        self._keep = max(map(len, self._stops), default=1)
        self.met = False

    def __call__(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """Yield pieces until one completes a reverse prompt."""
        for piece in pieces:
            yield piece
            fresh = piece.text.encode("utf-8", "replace")
            tail = self._tail + fresh
            self.met = any(stop in tail for stop in self._stops)
            if self.met:
                return
            self._tail = tail[-self._keep :]
