"""Ask the server all prompts, several at a time, and count what it answers."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import TypeVar

from bitnet_tuning.serve.answers import Answer, from_refusal, from_reply
from bitnet_tuning.serve.client import BrokenError, RefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.serve.client import Client
    from bitnet_tuning.serve.prompts import Prompt
    from bitnet_tuning.serve.server import Running, Waiting


Job = TypeVar("Job")
Result = TypeVar("Result")

_POLL_SECONDS = 0.25
"""Only Windows needs it: elsewhere a signal ends the wait."""

_TRIES = 2
"""Attempts for a prompt that makes the server fail without ending it."""

TIMINGS = ("prompt_n", "prompt_ms", "predicted_n", "predicted_ms")
"""Of the server's timings, those that are summed: tokens and milliseconds."""


class Totals:
    """What this run has received so far; ``seconds`` from its start to the last answer."""

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
    """Ask the prompts, ``slots`` at a time, and pass each answer to ``keep`` as it comes.

    Raise GoneError or TuningError if the server fails; the answers passed on by then are good.
    """
    totals = Totals()
    try:
        for answer in in_flight(prompts, lambda each: ask(server.client, each), slots, waiting):
            totals.add(answer)
            keep(answer, totals)
    except (BrokenError, ValueError) as trouble:
        raise server.check(trouble) from trouble
    return totals


def ask(client: Client, prompt: Prompt) -> Answer:
    """Return the answer to one prompt.

    Raise BrokenError if none came, ValueError for a reply that is not a completion. A server
    that is about to end may refuse what it would have answered, so a refusal counts only if the
    server is in order after it.
    """
    for attempt in range(_TRIES):
        try:
            return from_reply(prompt, client.complete(prompt.body()))
        except RefusedError as refusal:
            if refusal.status in (401, 403):
                raise BrokenError(f"it does not take our key: {refusal.reason}") from refusal
            if not client.ready():
                raise BrokenError(refusal.reason) from refusal
            if refusal.status < 500 or attempt + 1 == _TRIES:
                return from_refusal(prompt, refusal.reason)
    raise AssertionError("the last try returns")


def in_flight(
    jobs: Iterable[Job],
    work: Callable[[Job], Result],
    width: int,
    waiting: Waiting = nullcontext,
) -> Iterator[Result]:
    """Yield the results of the jobs as they come, with at most ``width`` at work at a time.

    What ``work`` raises is raised here, and no further job begins; nor does one once the
    iterator is closed. ``waiting`` surrounds each wait, the only place where a signal needs
    to be obeyed.
    """
    todo = list(jobs)
    rest = iter(todo)
    done: queue.SimpleQueue[tuple[Result] | BaseException] = queue.SimpleQueue()
    lock, halt = threading.Lock(), threading.Event()

    def labour() -> None:
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
        # Daemons: a request that never ends must not keep the program from its end.
        threading.Thread(target=labour, daemon=True).start()
    try:
        for _ in todo:
            with waiting():
                found = _next(done)
            if isinstance(found, BaseException):
                raise found
            yield found[0]
    finally:
        halt.set()


def _next(done: queue.SimpleQueue[Result]) -> Result:
    while True:
        try:
            return done.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            continue
