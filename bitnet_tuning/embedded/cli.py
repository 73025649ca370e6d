"""The embedded llama-cli: complete one prompt, or chat over standard input and output."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from bitnet_tuning.console import tell
from bitnet_tuning.embedded.engine import ContextFullError, EmbeddedEngine, PhaseTimes, TextPiece
from bitnet_tuning.embedded.flags import LOAD_FLAGS, CliFlag, LookAlike, Options, from_file
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
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty")


def write(content: bytes | str) -> None:
    """Write to standard output and flush it, so that each token appears at once."""
    raw = content.encode("utf-8", "replace") if isinstance(content, str) else content
    if sys.stdout is not None:  # it was closed at the start
        sys.stdout.buffer.write(raw)
        sys.stdout.buffer.flush()


def as_text(raw: bytes) -> str:
    """Return the prompt as text for a JSON request; bytes that are not UTF-8 become U+FFFD."""
    return raw.decode("utf-8", "replace")


def _answer(
    options: Options, engine: EmbeddedEngine, request: dict[str, Any], rows: list[PhaseTimes]
) -> Iterator[TextPiece]:
    """Yield the pieces of an answer. Its times are the last of ``rows``, current at each piece."""
    for name in _SAMPLING:
        if getattr(options, name) is not None:
            request[name] = getattr(options, name)
    # The server does not know llama-cli's -2, "until the context is full": -1 includes it.
    request["n_predict"] = max(options.n_predict, -1)
    if options.seed is not None:
        request["seed"] = options.seed & 0xFFFFFFFF
    if options.ignore_eos:
        request["ignore_eos"] = True
    rows.append(PhaseTimes())
    for piece in engine.complete(request):
        rows[-1] = piece.times or rows[-1]
        yield piece


def complete(options: Options, engine: EmbeddedEngine, rows: list[PhaseTimes]) -> None:
    """Print the prompt and its continuation; append the times to ``rows``."""
    write(options.prompt)
    request = {"prompt": as_text(options.prompt), "cache_prompt": False}
    for piece in _answer(options, engine, request, rows):
        # The server generates at least one token; with -n 0 it is not shown.
        if options.n_predict:
            write(piece.text)
        if piece.finish == "stop":
            write(b" [end of text]")
    write(b"\n")


def talk(options: Options, engine: EmbeddedEngine, rows: list[PhaseTimes]) -> None:
    """Answer messages until standard input ends; append the times of each answer to ``rows``."""
    # -p is the system prompt, as in bitnet.cpp's llama-cli.
    system = as_text(options.prompt)
    before = [{"role": "system", "content": system}] if system else []
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
                tell("context full: dropping the oldest exchange")
                del turns[:2]

    try:
        for content in _messages():
            turns.append({"role": "user", "content": as_text(content)})
            said: list[str] = []
            try:
                for piece in reply():
                    said.append(piece.text)
                    write(piece.text)
            except KeyboardInterrupt:  # It ends the answer, not the chat.
                write(b"\n")
            turns.append({"role": "assistant", "content": "".join(said)})
    finally:
        write(b"\n")


def _messages() -> Iterator[bytes]:
    """Yield the lines of standard input that are not blank, after a marker for each line."""
    write(MARKER)
    for line in sys.stdin.buffer:
        if content := line.rstrip(b"\r\n"):
            yield content
        write(MARKER)


def run(options: Options) -> None:
    """Complete a prompt or chat. Raise TuningError for an unusable model or a refused prompt."""
    with suppress(TuningError):  # Loading the model reports the error.
        if options.chat and not read_model(options.model).chat_template:
            options.chat_template = PLAIN_TEMPLATE
    engine = EmbeddedEngine(options)
    if not options.quiet:
        tell(f"\n{engine.system_info()}\n")
    rows: list[PhaseTimes] = []
    try:
        (talk if options.chat else complete)(options, engine, rows)
    finally:
        # Also after Ctrl-C, with the times until then.
        if not options.quiet:
            tell(engine.perf(rows))


PROGRAM = LookAlike(
    "embedded: llama-cli built on xllamacpp (mainline llama.cpp, CPU only)",
    (
        *LOAD_FLAGS,
        CliFlag("-p, --prompt TEXT", "prompt", "prompt; in a chat the system prompt", os.fsencode),
        CliFlag("-f, --file FNAME", "prompt", "file that holds the prompt", from_file),
        CliFlag("-n, --predict, --n-predict N", "n_predict", "tokens to generate", int),
        CliFlag("-s, --seed SEED", "seed", "sampling seed (default: -1, random)", int),
        CliFlag("--temp, --temperature N", "temperature", "temperature; 0 is greedy", float),
        CliFlag("--top-k N", "top_k", "top-k sampling; 0 is off", int),
        CliFlag("--top-p N", "top_p", "top-p sampling; 1.0 is off", float),
        CliFlag("--min-p N", "min_p", "min-p sampling; 0.0 is off", float),
        CliFlag("--repeat-penalty N", "repeat_penalty", "repetition penalty; 1.0 is off", float),
        CliFlag("--ignore-eos", "ignore_eos", "continue past the end of the text"),
        CliFlag("-cnv, --conversation", "chat", "chat: read messages from standard input"),
        CliFlag("-no-cnv, --no-conversation", "chat", "complete the prompt (default)"),
        CliFlag("--log-disable", "quiet", "print only errors on standard error"),
    ),
    {"prompt": b"", "n_predict": -1},
    run,
)
