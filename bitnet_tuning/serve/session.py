"""Send the prompts to the server, several at a time, and add up its answers."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from typing import TypeVar

from bitnet_tuning.serve.prompts import Answer, Prompt, from_refusal, from_reply
from bitnet_tuning.serve.server import BrokenError, Client, RefusedError, Running, Waiting

Job = TypeVar("Job")
Result = TypeVar("Result")

_POLL_SECONDS = 0.25
"""Longest uninterrupted wait: on Windows, Ctrl-C does not end a wait for a lock."""

_TRIES = 2
"""Attempts for a prompt that the server answers with an HTTP error of 500 or above."""

TIMINGS = ("prompt_n", "prompt_ms", "predicted_n", "predicted_ms")
"""Timings of the server that are added up, in tokens and milliseconds."""


class Totals:
    """Sums over the answers so far; ``seconds`` is the time from the start to the last one."""

    def __init__(self) -> None:
        self.prompts = 0
        self.tokens = 0
        self.seconds = 0.0
        self.timings: Counter[str] = Counter()
        self._start = time.monotonic()

    def add(self, answer: Answer) -> None:
        self.prompts += 1
        self.tokens += int(answer.facts.get("tokens", 0))
        self.seconds = time.monotonic() - self._start
        for name in TIMINGS:
            self.timings[name] += (answer.timings or {}).get(name) or 0


def ask_all(
    prompts: Iterable[Prompt],
    server: Running,
    slots: int,
    keep: Callable[[Answer, Totals], None],
    waiting: Waiting,
) -> Totals:
    """Send the prompts, ``slots`` at a time, and pass each answer to ``keep``. Raise GoneError or
    TuningError if the server fails; the answers until then are valid."""
    totals = Totals()
    try:
        for answer in in_flight(prompts, lambda each: ask(server.client, each), slots, waiting):
            totals.add(answer)
            keep(answer, totals)
    except (BrokenError, ValueError) as trouble:
        raise server.check(trouble) from trouble
    return totals


def ask(client: Client, prompt: Prompt) -> Answer:
    """Return the answer to a prompt. Raise BrokenError without one, ValueError for another."""
    for attempt in range(_TRIES):
        try:
            return from_reply(prompt, client.complete(prompt.body()))
        except RefusedError as refusal:
            if refusal.status in (401, 403):
                raise BrokenError(f"it rejects the API key: {refusal.reason}") from refusal
            # A server that is about to end may refuse any prompt.
            if not client.ready():
                raise BrokenError(refusal.reason) from refusal
            if refusal.status < 500 or attempt + 1 == _TRIES:
                return from_refusal(prompt, refusal.reason)
    raise AssertionError("the last attempt returns")


def in_flight(
    jobs: Iterable[Job], work: Callable[[Job], Result], width: int, waiting: Waiting = nullcontext
) -> Iterator[Result]:
    """Yield the results of ``work(job)`` in the order of completion, ``width`` jobs at a time.
    Raise what ``work`` raises. No job starts after that, nor after the iterator is closed.
    ``waiting()`` is the context of each wait, in which signals are handled."""
    todo = list(jobs)
    rest = iter(todo)
    done: queue.SimpleQueue[tuple[Result] | BaseException] = queue.SimpleQueue()
    lock, halt = threading.Lock(), threading.Event()

    def process_jobs() -> None:
        try:
            while not halt.is_set():
                with lock:
                    job = next(rest, None)
                if job is None:
                    return
                done.put((work(job),))
        except BaseException as error:
            done.put(error)

    for _ in range(min(width, len(todo))):
        # As daemons, so that a request without a reply does not keep the program from exiting.
        threading.Thread(target=process_jobs, daemon=True).start()
    try:
        for _ in todo:
            found = None
            while found is None:
                with waiting(), suppress(queue.Empty):
                    found = done.get(timeout=_POLL_SECONDS)
            if isinstance(found, BaseException):
                raise found
            yield found[0]
    finally:
        halt.set()
