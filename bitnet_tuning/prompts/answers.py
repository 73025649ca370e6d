"""Answers: what the server said, as the lines that are printed; their order; pure."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from bitnet_tuning.prompts.asks import Ask


class Work(NamedTuple):
    """What an answer took, by the server's own clock; tokens and milliseconds."""

    prompt_tokens: int = 0
    prompt_ms: float = 0.0
    tokens: int = 0
    ms: float = 0.0

    def plus(self, other: Work) -> Work:
        return Work(
            self.prompt_tokens + other.prompt_tokens,
            self.prompt_ms + other.prompt_ms,
            self.tokens + other.tokens,
            self.ms + other.ms,
        )


class Answer(NamedTuple):
    """The answer to the prompt at this place."""

    place: int
    facts: dict[str, Any]
    """``id``, ``prompt`` and either ``text``, ``tokens``, ``prompt_tokens`` and ``stop``
    (``end``, ``length`` or ``word``), or ``error``."""
    work: Work = Work()

    @property
    def refused(self) -> bool:
        return "error" in self.facts

    @property
    def line(self) -> bytes:
        """As it is printed, newline included."""
        return json.dumps(self.facts, ensure_ascii=False).encode() + b"\n"


def from_reply(ask: Ask, reply: Mapping[str, Any]) -> Answer:
    """The server's answer. Raises ValueError for a reply that is none."""
    try:
        # The server cannot generate nothing: asked for no token, it makes one.
        wanted = ask.n_predict != 0
        text = str(reply["content"]) if wanted else ""
        facts = {
            "id": ask.id,
            "prompt": ask.prompt,
            "text": text.encode("utf-8", "replace").decode(),
            "tokens": int(reply["tokens_predicted"]) if wanted else 0,
            "prompt_tokens": int(reply["tokens_evaluated"]),
            "stop": _stop(reply),
        }
        return Answer(ask.place, facts, _work(reply.get("timings") or {}))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the server's reply is no completion: {error!r}") from None


def from_refusal(ask: Ask, reason: str) -> Answer:
    """For a prompt that the engine does not take."""
    return Answer(ask.place, {"id": ask.id, "prompt": ask.prompt, "error": reason})


def _stop(reply: Mapping[str, Any]) -> str:
    """Servers since 2025 have one ``stop_type``, earlier ones a switch for each."""
    kind = reply.get("stop_type")
    if kind == "eos" or reply.get("stopped_eos"):
        return "end"
    return "word" if kind == "word" or reply.get("stopped_word") else "length"


def _work(timings: Mapping[str, Any]) -> Work:
    names = ("prompt_n", "prompt_ms", "predicted_n", "predicted_ms")
    found = [timings.get(name) or 0 for name in names]
    return Work(int(found[0]), float(found[1]), int(found[2]), float(found[3]))


def decoded(line: bytes) -> Any:
    """What a line of JSON holds; None for one that is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def read_answer(facts: Any, ask: Ask) -> Answer | None:
    """A decoded line, where it is a whole answer to this prompt."""
    if not isinstance(facts, dict):
        return None
    if (facts.get("id"), facts.get("prompt")) != (ask.id, ask.prompt):
        return None
    is_whole = isinstance(facts.get("text", facts.get("error")), str)
    return Answer(ask.place, facts) if is_whole else None


class Order:
    """Hands out answers in the order of their prompts, as soon as all before one are out."""

    def __init__(self, first: int = 0) -> None:
        self.next = first
        self._waiting: dict[int, Answer] = {}

    def add(self, answer: Answer) -> Iterator[Answer]:
        """What can go out now. An answer that is out already is dropped."""
        if answer.place >= self.next:
            self._waiting[answer.place] = answer
        while self.next in self._waiting:
            self.next += 1
            yield self._waiting.pop(self.next - 1)
