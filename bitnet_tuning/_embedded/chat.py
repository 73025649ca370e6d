"""A conversation over standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from bitnet_tuning._embedded import output, sampling, text
from bitnet_tuning._embedded.engine import Engine, Piece
from bitnet_tuning._embedded.errors import ContextFullError
from bitnet_tuning._embedded.options import Options
from bitnet_tuning._embedded.timings import Timings
from bitnet_tuning.errors import TuningError
from bitnet_tuning.model.gguf import read_model

MARKER = b"\n> "
# For a model that brings no template of its own.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n' }}"
    "{% else %}{{ 'Assistant: ' + message['content'] + '\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
PLAIN_STOP = "\nUser:"


def template_for(model: str) -> str:
    """The template to chat with ``model``, a path; "" where it has its own."""
    try:
        own = read_model(model).chat_template
    except TuningError:
        return ""  # Loading says better what is wrong.
    return "" if own else PLAIN_TEMPLATE


class Conversation:
    """Messages so far and the timings of the answers."""

    def __init__(self, options: Options, engine: Engine) -> None:
        self._options = options
        self._engine = engine
        self._system: list[dict[str, str]] = []
        self._turns: list[dict[str, str]] = []
        self.timings: list[Timings] = []

    def set_system(self, content: bytes) -> None:
        """Tell the model what it is, before the first message."""
        self._system = [_message("system", content)]

    def say(self, content: bytes) -> None:
        """Send a message and print the answer; Ctrl-C ends the answer, not the chat."""
        self._turns.append(_message("user", content))
        answer: list[str] = []
        try:
            self._listen(answer)
        except KeyboardInterrupt:
            output.write(b"\n")
        self._turns.append({"role": "assistant", "content": "".join(answer)})

    def _listen(self, answer: list[str]) -> None:
        newest: list[Timings] = []
        until = output.Until(self._options.reverse_prompts)
        try:
            for piece in until(self._answer()):
                answer.append(piece.text)
                output.write(piece.text)
                newest = [piece.timings] if piece.timings else newest
        finally:
            self.timings += newest

    def _answer(self) -> Iterator[Piece]:
        """The answer's pieces; a full context forgets the oldest exchange first."""
        while True:
            try:
                yield from self._engine.chat(self._request())
                return
            except ContextFullError:
                if len(self._turns) < 3:
                    raise
                output.note("context full: the oldest exchange is forgotten")
                del self._turns[:2]

    def _request(self) -> dict[str, Any]:
        # The prompt cache within the one sequence is what keeps a chat's history
        # from being processed anew for each message.
        request = sampling.request(self._options)
        request["messages"] = [*self._system, *self._turns]
        request["cache_prompt"] = True
        if self._engine.setup.chat_template:
            request["stop"] = [PLAIN_STOP]
        return request


def run(options: Options, engine: Engine) -> int:
    """Talk until standard input ends. Returns the exit code."""
    conversation = Conversation(options, engine)
    system, first = _openings(options)
    if system:
        conversation.set_system(system)
    try:
        for content in _messages(options, first):
            conversation.say(content)
            if options.single_turn:
                break
    finally:
        output.write(b"\n")
        if options.perf and options.log:
            output.note(engine.perf(conversation.timings))
    return 0


def _openings(options: Options) -> tuple[bytes, bytes]:
    """System prompt and first message.

    -p was the system prompt before llama-cli had -sys, and is the first message
    since; a chat of one turn has no other place for its message.
    """
    if options.system_prompt or options.single_turn:
        return options.system_prompt, options.prompt
    return options.prompt, b""


def _messages(options: Options, first: bytes) -> Iterator[bytes]:
    if first:
        yield first
    while (line := _read()) is not None:
        content = text.unescape(line) if options.escape else line
        if content:
            yield content


def _read() -> bytes | None:
    """One message, None at the end of input; a final backslash continues it."""
    output.write(MARKER)
    content = b""
    while line := sys.stdin.buffer.readline():
        part = line.rstrip(b"\r\n")
        if not part.endswith(b"\\"):
            return content + part
        content += part[:-1] + b"\n"
    return content or None


def _message(role: str, content: bytes) -> dict[str, str]:
    return {"role": role, "content": text.for_model(content)}
