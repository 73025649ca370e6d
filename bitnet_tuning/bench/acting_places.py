"""Whether every thread can have a core of its own; pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitnet_tuning.host import Core


def crowded(
    masks: Sequence[frozenset[int]], cores: Sequence[Core], permitted: frozenset[int]
) -> int:
    """How many threads must share a core although another one is permitted. Threads may use
    the CPUs of their ``masks``; more threads than permitted cores have to share anyway."""
    usable = [core.cpus for core in cores if core.cpus & permitted]
    taken: dict[int, int] = {}
    housed = sum(_house(thread, masks, usable, taken, set()) for thread in range(len(masks)))
    return min(len(masks), len(usable)) - housed


def _house(
    thread: int,
    masks: Sequence[frozenset[int]],
    cores: Sequence[frozenset[int]],
    taken: dict[int, int],
    tried: set[int],
) -> bool:
    """Finds a core for the thread; whoever has it moves on where he can (Kuhn's algorithm
    for bipartite matching). ``taken`` says which thread has a core."""
    for index, cpus in enumerate(cores):
        if index in tried or not cpus & masks[thread]:
            continue
        tried.add(index)
        if index not in taken or _house(taken[index], masks, cores, taken, tried):
            taken[index] = thread
            return True
    return False
