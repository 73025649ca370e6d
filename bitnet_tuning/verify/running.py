"""Runs an engine as a plan has it, and looks at it while it generates."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from bitnet_tuning.launch.death import failure
from bitnet_tuning.launch.run import capture
from bitnet_tuning.machine.process import Family, shows_programs
from bitnet_tuning.machine.root import Root
from bitnet_tuning.plan.request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.machine.process import Process, Thread
    from bitnet_tuning.model.types import ModelFile
    from bitnet_tuning.plan.facts import Plan


PROMPT = "How many threads"

WATCHED_SECONDS = 1.5
"""That the generation is to last."""

FEWEST, MOST = 24, 1500
"""Tokens of it."""

CONTEXT = 2048

TOO_SOON = "the engine ended too soon to be looked at"

SECONDS = 120.0
"""After these the run counts as hung. It is made once the model is in memory."""


class Watched(NamedTuple):
    """A run that was looked at."""

    work: Work | None
    """None where nothing could be seen."""
    log: str
    """The engine's stderr."""
    problem: str | None = None
    """Why the run failed, or why nothing could be seen of it."""
    failed: bool = False


def watched_request(rate: float, model: ModelFile, flags: frozenset[str], seed: int) -> Request:
    """A generation that lasts, at ``rate`` tokens/s.

    A text that the model knows by heart would end too early, and not every engine can be
    kept from ending it. So each token is drawn from the 40 likeliest, nearly all alike.
    """
    context = min(CONTEXT, model.context_length or CONTEXT)
    wanted = max(FEWEST, min(MOST, round(rate * WATCHED_SECONDS)))
    return Request(
        prompt=PROMPT,
        n_predict=max(1, min(wanted, context - 4 * len(PROMPT.split()))),
        ctx_size=context,
        temperature=50.0,
        top_k=40,
        top_p=1.0,
        min_p=0.0,
        seed=seed,
        extra=("--ignore-eos",) if "--ignore-eos" in flags else (),
    )


def watch(plan: Plan, root: Root, seconds: float = SECONDS) -> Watched:
    """Runs the plan's command, as a launcher would."""
    eyes = _Eyes(root)
    done = capture(plan.command, plan.env, seconds, cpus=plan.cpus, nice=plan.nice, watch=eyes.look)
    wrong = failure(done, seconds)
    if wrong:
        return Watched(None, done.stderr, wrong, failed=True)
    work = work_of(eyes.looks)
    if work is not None:
        return Watched(work, done.stderr)
    if any(eyes.looks) or shows_programs(root):
        return Watched(None, done.stderr, TOO_SOON)
    return Watched(None, done.stderr, "only Linux shows the threads of a running engine")


class _Eyes:
    """All that was seen of one program, oldest first."""

    def __init__(self, root: Root) -> None:
        self.looks: list[Look] = []
        self._root = root
        self._family: Family | None = None

    def look(self, process: int) -> None:
        if self._family is None:
            self._family = Family(self._root, process)
        self.looks.append(self._family.look())


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
