"""Several requests at a time, each in a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

POLL_SECONDS = 0.25
"""Only Windows needs it: elsewhere a signal ends the wait."""


def in_flight(
    jobs: Iterable[Job],
    work: Callable[[Job], Result],
    width: int,
    waiting: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Iterator[tuple[Job, Result]]:
    """Jobs with their results as they come, at most ``width`` at work at a time.

    What ``work`` raises is raised here, and no further job is begun; nor is one once the
    iterator is closed. ``waiting`` surrounds each wait, the only place where a signal needs
    to be obeyed.
    """
    todo = list(jobs)
    rest = iter(todo)
    done: queue.SimpleQueue[tuple[Job, Result] | BaseException] = queue.SimpleQueue()
    lock, halt = threading.Lock(), threading.Event()

    def take() -> Iterator[Job]:
        while not halt.is_set():
            with lock:
                job = next(rest, None)
            if job is None:
                return
            yield job

    def labour() -> None:
        try:
            for job in take():
                done.put((job, work(job)))
        except BaseException as error:
            done.put(error)

    for _ in range(min(width, len(todo))):
        threading.Thread(target=labour, daemon=True).start()
    try:
        for _ in todo:
            with waiting():
                found = _next(done)
            if isinstance(found, BaseException):
                raise found
            yield found
    finally:
        halt.set()


def _next(done: queue.SimpleQueue[Result]) -> Result:
    while True:
        try:
            return done.get(timeout=POLL_SECONDS)
        except queue.Empty:
            continue
