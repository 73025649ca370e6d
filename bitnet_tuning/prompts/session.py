"""Asking all prompts and keeping every answer: journal first, then standard output."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from bitnet_tuning.prompts import sink
from bitnet_tuning.prompts.answers import Answer, Order, Work, from_refusal, from_reply
from bitnet_tuning.prompts.client import BrokenError, RefusedError
from bitnet_tuning.prompts.flight import in_flight

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.prompts.asks import Ask
    from bitnet_tuning.prompts.client import Client
    from bitnet_tuning.prompts.server import Running, Waiting


_TRIES = 2
"""For a prompt that the server fails at, though it lives."""


class Total(NamedTuple):
    """What this process asked and got."""

    answered: int = 0
    refused: int = 0
    tokens: int = 0
    """Generated."""
    work: Work = Work()
    seconds: float = 0.0
    """From the first request to the last answer."""

    @property
    def prompts(self) -> int:
        return self.answered + self.refused

    def plus(self, answer: Answer, seconds: float) -> Total:
        return Total(
            self.answered + (not answer.refused),
            self.refused + answer.refused,
            self.tokens + int(answer.facts.get("tokens", 0)),
            self.work.plus(answer.work),
            seconds,
        )


class Output:
    """Puts answers out in order, each once."""

    def __init__(self, first: int, waiting: Waiting) -> None:
        self._order = Order(first)
        self._waiting = waiting

    def show(self, answers: Iterable[Answer]) -> None:
        """A reader that does not read holds this up: a signal has to end it."""
        for answer in answers:
            for ready in self._order.add(answer):
                with self._waiting():
                    sink.write(ready.line)


def ask_all(
    asks: Iterable[Ask],
    server: Running,
    slots: int,
    keep: Callable[[Answer, Total], None],
    waiting: Waiting,
) -> Total:
    """Asks, ``slots`` prompts at a time, and hands over each answer as it comes.

    Raises GoneError or TuningError where the server fails; what was handed over is good.
    """
    total, start = Total(), time.monotonic()

    def work(ask: Ask) -> Answer:
        return complete(server.client, ask)

    try:
        for _, answer in in_flight(asks, work, slots, waiting):
            total = total.plus(answer, time.monotonic() - start)
            keep(answer, total)
    except (BrokenError, ValueError) as trouble:
        raise server.check(trouble) from trouble
    return total


def complete(client: Client, ask: Ask) -> Answer:
    """The answer to one prompt. Raises BrokenError where none came, ValueError for a reply
    that is none.

    A server that ends may say no to what it would have answered: only one that is in order
    behind it is believed.
    """
    for attempt in range(_TRIES):
        try:
            return from_reply(ask, client.complete(ask.body()))
        except RefusedError as refusal:
            if refusal.status in (401, 403):
                raise BrokenError(f"it does not take our key: {refusal.reason}") from refusal
            if not client.ready():
                raise BrokenError(refusal.reason) from refusal
            if refusal.status < 500 or attempt + 1 == _TRIES:
                return from_refusal(ask, refusal.reason)
    raise AssertionError("the last try returns")
