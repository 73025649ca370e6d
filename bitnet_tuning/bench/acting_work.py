"""What an engine did while it was looked at: which of its threads worked, and where; pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from bitnet_tuning.host.running import Process, Thread

ALWAYS_SHARE = 0.75
"""Of the time that the busiest thread ran or waited for its CPU: who has so much hardly ever
sleeps, and computes or spins, however busy its CPU is with other programs."""

OFTEN_SHARE, RAN_SHARE = 0.5, 0.4
"""Enough as well, where a runtime lets its threads sleep: of that time, and of the time that
the busiest one ran. Measured so were threads that compute at 0.58 and 0.6, and one that only
passes text on, behind a worker on the same CPU, at 0.48 and 0.18."""

LEAST_SECONDS = 0.06
"""That the busiest thread must have run, or nothing can be told: more than a small model
takes to load."""

LEAST_LOOKS = 5
"""From which something is told, so that one at a start or an end does not decide."""

Look = tuple["Process", ...]


class Worker(NamedTuple):
    """What one thread did."""

    ran: float
    """Seconds."""
    waited: float
    """Seconds in which its CPU was busy with something else."""
    cpus: frozenset[int] | None
    """Those that it might use, most of the time; None where that is not known."""

    @property
    def wanted(self) -> float:
        """Seconds in which it would have run."""
        return self.ran + self.waited


class Work(NamedTuple):
    """What was seen of the process that computed. Both groups: the busiest first."""

    process: int
    variables: Mapping[str, str]
    workers: tuple[Worker, ...]
    """Threads that computed."""
    others: tuple[Worker, ...]


def work_of(looks: Sequence[Look]) -> Work | None:
    """From the second half of the looks at the process that computes: before that a model
    is loaded, by one thread. None where too little was done while somebody looked."""
    computes = _busiest(process for look in looks for process in look)
    later = computes[len(computes) // 2 :]
    threads = sorted(_threads(later), key=lambda thread: thread.wanted, reverse=True)
    ran = max((thread.ran for thread in threads), default=0.0)
    if ran < LEAST_SECONDS or len(later) < LEAST_LOOKS:
        return None
    workers = _workers(threads)
    return Work(
        later[0].id,
        later[0].variables,  # at its end a process has none any more
        tuple(threads[index] for index in workers),
        tuple(thread for index, thread in enumerate(threads) if index not in workers),
    )


def _workers(threads: Sequence[Worker]) -> list[int]:
    """Which of the threads, the busiest first, computed."""
    most, ran = threads[0].wanted, max(thread.ran for thread in threads)
    return [
        index
        for index, thread in enumerate(threads)
        if thread.wanted >= ALWAYS_SHARE * most
        or (thread.wanted >= OFTEN_SHARE * most and thread.ran >= RAN_SHARE * ran)
    ]


def _busiest(seen: Iterable[Process]) -> Sequence[Process]:
    """All looks at the process that ran most: a script that started the engine only waits
    for it."""
    looks: dict[int, list[Process]] = defaultdict(list)
    for process in seen:
        looks[process.id].append(process)
    return max(looks.values(), default=[], key=lambda one: sum(each.ran for each in _threads(one)))


def _threads(looks: Sequence[Process]) -> list[Worker]:
    """What every thread did from the first to the last look."""
    states: dict[int, list[Thread]] = defaultdict(list)
    for process in looks:
        for thread in process.threads:
            states[thread.id].append(thread)
    return [_worker(each) for each in states.values()]


def _worker(states: Sequence[Thread]) -> Worker:
    first, last = states[0], states[-1]
    # The CPUs of most looks: at its end a runtime may free its threads once more.
    cpus = Counter(state.cpus for state in states).most_common(1)[0][0]
    return Worker(last.ran - first.ran, last.waited - first.waited, cpus)
