"""Run an engine as planned and observe its working threads, their CPUs, and the kernel's grants."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from bitnet_tuning.launch.background import capture
from bitnet_tuning.launch.failure import failure
from bitnet_tuning.machine.process import Family, Process, Thread, shows_programs
from bitnet_tuning.machine.root import Root
from bitnet_tuning.model.types import ModelFile
from bitnet_tuning.plan.facts import Plan, Request

Seen = TypeVar("Seen", Process, Thread)

PROMPT = "How many threads"

WATCHED_SECONDS = 1.5
"""Seconds that the generation should take."""

FEWEST, MOST = 12, 1500
"""Fewest and most tokens to generate."""

CONTEXT = 2048
"""Context size in tokens, unless the model's own is smaller."""

SECONDS = 120.0
"""Seconds after which a run counts as hung. An earlier run has loaded the model into memory."""

COUNT_SHARE = 0.1
"""Share of the time that the kernel may spend on counting pages."""

ALWAYS_SHARE = 0.75
"""A thread computes or spins if it ran, or waited for a CPU, for at least this share of the time of
the thread that did so longest. How busy its CPU is with other programs does not matter."""

OFTEN_SHARE, RAN_SHARE = 0.5, 0.4
"""Shares of that time, and of the time that the busiest thread ran, from which a thread computes
where the runtime lets threads sleep. Measured: threads that compute 0.58 and 0.6; a thread that
only passes text on, on the CPU of one that computes, 0.48 and 0.18."""

LEAST_SECONDS = 0.06
"""CPU seconds that the busiest thread must have run: more than a small model takes to load."""

LEAST_LOOKS = 5
"""Fewest snapshots that show which threads compute: one at a start or an end must not decide."""

GROWTH = 1.02
"""Factor by which memory may still grow while tokens are generated."""

TOO_SOON = "the run was too short to observe the engine"
"""Reason of a line for which a run ended before its threads could be told apart."""


class Watched(NamedTuple):
    """What was observed of one run."""

    log: str
    problem: str | None = None
    """Why the run failed, or why nothing could be observed."""
    failed: bool = False
    process: Process | None = None
    """The process that computed, with the most memory that it had; None if it was not observed."""
    workers: tuple[Thread, ...] = ()
    """Threads that computed, the busiest first."""
    steady: bool = False
    """Whether its memory did not grow any more, because the model was loaded."""


def watched_request(
    rate: float, model: ModelFile, flags: frozenset[str], seed: int, performance: bool
) -> Request:
    """Return a request for a generation that takes about WATCHED_SECONDS at ``rate`` tokens/s.
    ``flags`` are those that the engine has; another ``seed`` gives another text."""
    context = min(CONTEXT, model.context_length or CONTEXT)
    wanted = max(FEWEST, min(MOST, round(rate * WATCHED_SECONDS)))
    return Request(
        prompt=PROMPT,
        n_predict=max(1, min(wanted, context - 4 * len(PROMPT.split()))),
        ctx_size=context,
        # The demo model would end a text that it knows by heart too early, and not every engine
        # has --ignore-eos: so draw each token from the 40 likeliest, with nearly equal chances.
        temperature=50.0,
        top_k=40,
        top_p=1.0,
        min_p=0.0,
        seed=seed,
        performance=performance,
        extra=("--ignore-eos",) if "--ignore-eos" in flags else (),
    )


def watch(plan: Plan, root: Root, huge: bool, nodes: bool) -> Watched:
    """Run and observe the plan's command; ``huge`` and ``nodes`` count pages (``Family.look``)."""
    setting, looks = plan.setting, list[tuple[Process, ...]]()
    families: dict[int, Family] = {}
    count_at = 0.0

    def look(process: int) -> None:
        nonlocal count_at
        family = families.setdefault(process, Family(root, process))
        started = time.monotonic()
        counts = started >= count_at
        looks.append(family.look(huge and counts, nodes and counts))
        if counts:
            ended = time.monotonic()
            count_at = ended + (ended - started) / COUNT_SHARE

    how = setting.variables, SECONDS
    done = capture(plan.command, *how, cpus=setting.cpus, nice=setting.nice, watch=look)
    if wrong := failure(done, SECONDS):
        return Watched(done.stderr, wrong, failed=True)
    if not any(looks) and not shows_programs(root):
        return Watched(done.stderr, "only Linux shows the threads of a running engine")
    return summed_up(looks)._replace(log=done.stderr)


def summed_up(looks: Sequence[tuple[Process, ...]]) -> Watched:
    """Return what the process that computes did; ``process`` is None if too little was observed.
    Each look is a tuple of all processes that the run consisted of at one moment."""
    # A script that starts the engine only waits.
    computes = max(
        _by_id(process for look in looks for process in look),
        default=[],
        key=lambda seen: sum(thread.ran for thread in _threads(seen)),
    )
    later = computes[len(computes) // 2 :]  # in the first half, one thread loads the model
    threads = sorted(_threads(later), key=lambda thread: thread.wanted, reverse=True)
    ran = max((thread.ran for thread in threads), default=0.0)
    if ran < LEAST_SECONDS or len(later) < LEAST_LOOKS:
        return Watched("", TOO_SOON)
    most = threads[0].wanted
    workers = tuple(
        thread
        for thread in threads
        if thread.wanted >= ALWAYS_SHARE * most
        or (thread.wanted >= OFTEN_SHARE * most and thread.ran >= RAN_SHARE * ran)
    )
    sizes = [look.resident for look in later if look.resident is not None]
    steady = bool(sizes) and max(sizes) <= GROWTH * sizes[len(sizes) // 2]
    # Of its memory, the most that any look shows.
    held = [look.nodes for look in computes if look.nodes is not None]
    amounts = ((look.resident, look.locked, look.huge) for look in computes)
    known = ([size for size in each if size is not None] for each in zip(*amounts, strict=True))
    resident, locked, huge = (max(each, default=None) for each in known)
    nodes = max(held, default=None, key=lambda each: sum(each.values()))
    process = later[0]  # one that exits has no environment any more
    process = process._replace(resident=resident, locked=locked, huge=huge, nodes=nodes)
    return Watched("", process=process, workers=workers, steady=steady)


def _threads(looks: Sequence[Process]) -> list[Thread]:
    """Return each thread with the time that it ran and waited between its first and last look."""
    found = []
    for states in _by_id(thread for process in looks for thread in process.threads):
        first, last = states[0], states[-1]
        # The CPUs in most looks: when it ends, a runtime may unbind its threads.
        cpus = Counter(state.cpus for state in states).most_common(1)[0][0]
        ran, waited = last.ran - first.ran, last.waited - first.waited
        found.append(last._replace(ran=ran, waited=waited, cpus=cpus))
    return found


def _by_id(seen: Iterable[Seen]) -> list[list[Seen]]:
    found: dict[int, list[Seen]] = defaultdict(list)
    for each in seen:
        found[each.id].append(each)
    return list(found.values())
