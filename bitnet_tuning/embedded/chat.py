"""Complete one prompt, or chat over standard input and output."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from bitnet_tuning.embedded.engine import ContextFullError, EmbeddedEngine, PhaseTimes, TextPiece
from bitnet_tuning.embedded.flags import unescape
from bitnet_tuning.embedded.options import LoadOptions
from bitnet_tuning.errors import TuningError
from bitnet_tuning.model.gguf import read_model

MARKER = b"\n> "
"""What a chat prints before it reads a message."""
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n' }}"
    "{% else %}{{ 'Assistant: ' + message['content'] + '\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""Chat template for models that have none, in the Jinja syntax of llama.cpp."""
PLAIN_STOP = "\nUser:"
"""Text at which an answer under PLAIN_TEMPLATE ends."""

# Options that have the same name in a request to llama.cpp's server.
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
_PENALTIES = ("repeat_penalty", "repeat_last_n", "presence_penalty", "frequency_penalty")


@dataclass
class CliOptions(LoadOptions):
    """The options of llama-cli; None leaves a value to llama.cpp. ``n_predict`` is in tokens; below
    0, the text ends when the model ends it or the context is full."""

    prompt: bytes = b""
    system_prompt: bytes = b""
    n_predict: int = -1
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    ignore_eos: bool = False
    reverse_prompts: tuple[bytes, ...] = ()
    chat: bool = False
    single_turn: bool = False
    escape: bool = True
    display_prompt: bool = True
    perf: bool = True
    quiet: bool = False

    def __post_init__(self) -> None:
        """Process escape sequences in the prompts, unless ``escape`` is False."""
        super().__post_init__()
        if self.escape:
            self.prompt = unescape(self.prompt)
            self.system_prompt = unescape(self.system_prompt)
            self.reverse_prompts = tuple(unescape(each) for each in self.reverse_prompts)


def write(content: bytes | str) -> None:
    """Write to standard output and flush it, so that each token appears at once."""
    raw = content.encode("utf-8", "replace") if isinstance(content, str) else content
    sys.stdout.buffer.write(raw)
    sys.stdout.buffer.flush()


def as_text(raw: bytes) -> str:
    """Return the prompt as text for a JSON request; bytes that are not UTF-8 become U+FFFD."""
    return raw.decode("utf-8", "replace")


def until(pieces: Iterable[TextPiece], stops: Iterable[bytes]) -> Iterator[TextPiece]:
    """Yield the pieces up to the one that completes any of ``stops``, as llama-cli does."""
    wanted = [stop for stop in stops if stop]
    keep = max(map(len, wanted), default=1)
    tail = b""
    for piece in pieces:
        yield piece
        tail += piece.text.encode("utf-8", "replace")
        if any(stop in tail for stop in wanted):
            return
        tail = tail[-keep:]


def _answer(
    options: CliOptions, engine: EmbeddedEngine, request: dict[str, Any], rows: list[PhaseTimes]
) -> Iterator[TextPiece]:
    """Yield the pieces of an answer. Its times are the last of ``rows``, current at each piece."""
    for name in (*_SAMPLING, *_PENALTIES):
        if getattr(options, name) is not None:
            request[name] = getattr(options, name)
    # The server does not know llama-cli's -2, "until the context is full": -1 includes it.
    request["n_predict"] = max(options.n_predict, -1)
    if options.seed is not None:
        request["seed"] = options.seed & 0xFFFFFFFF
    if options.ignore_eos:
        request["ignore_eos"] = True
    rows.append(PhaseTimes())
    for piece in until(engine.complete(request), options.reverse_prompts):
        rows[-1] = piece.times or rows[-1]
        yield piece


def complete(options: CliOptions, engine: EmbeddedEngine, rows: list[PhaseTimes]) -> None:
    """Print the prompt and its continuation; append the times to ``rows``."""
    if options.display_prompt:
        write(options.prompt)
    request = {"prompt": as_text(options.prompt), "cache_prompt": False}
    for piece in _answer(options, engine, request, rows):
        # The server generates at least one token; with -n 0 it is not shown.
        if options.n_predict:
            write(piece.text)
        if piece.finish == "stop":
            write(b" [end of text]")
    write(b"\n")


def template_for(model: str) -> str:
    """Return the template for a chat with the model at this path; "" if it has its own."""
    try:
        own = read_model(model).chat_template
    except TuningError:
        return ""  # Loading the model reports the error.
    return "" if own else PLAIN_TEMPLATE


def talk(options: CliOptions, engine: EmbeddedEngine, rows: list[PhaseTimes]) -> None:
    """Answer messages until standard input ends; append the times of each answer to ``rows``."""
    system, first = openings(options)
    before = [{"role": "system", "content": as_text(system)}] if system else []
    turns: list[dict[str, str]] = []

    def reply() -> Iterator[TextPiece]:
        """Yield the answer to the last turn; drop the oldest ones while the context is full."""
        while True:
            # With the prompt cache, only the new message is processed, not the whole chat again.
            request: dict[str, Any] = {"messages": [*before, *turns], "cache_prompt": True}
            if options.chat_template:
                request["stop"] = [PLAIN_STOP]
            try:
                yield from _answer(options, engine, request, rows)
                return
            except ContextFullError:
                if len(turns) < 3:
                    raise
                print("context full: dropping the oldest exchange", file=sys.stderr, flush=True)
                del turns[:2]

    try:
        for content in _messages(options, first):
            turns.append({"role": "user", "content": as_text(content)})
            said: list[str] = []
            try:
                for piece in reply():
                    said.append(piece.text)
                    write(piece.text)
            except KeyboardInterrupt:  # It ends the answer, not the chat.
                write(b"\n")
            turns.append({"role": "assistant", "content": "".join(said)})
            if options.single_turn:
                break
    finally:
        write(b"\n")


def openings(options: CliOptions) -> tuple[bytes, bytes]:
    """Return the system prompt and the first message of a chat; b"" for none."""
    # In llama-cli, -p was the system prompt until -sys came, and is the first message since then.
    # With --single-turn, no other flag could hold the message.
    if options.system_prompt or options.single_turn:
        return options.system_prompt, options.prompt
    return options.prompt, b""


def _messages(options: CliOptions, first: bytes) -> Iterator[bytes]:
    if first:
        yield first
    while (line := _read()) is not None:
        content = unescape(line) if options.escape else line
        if content:
            yield content


def _read() -> bytes | None:
    """Return one message, None at the end of input; a backslash at a line's end continues it."""
    write(MARKER)
    content = b""
    while line := sys.stdin.buffer.readline():
        part = line.rstrip(b"\r\n")
        if not part.endswith(b"\\"):
            return content + part
        content += part[:-1] + b"\n"
    return content or None
