"""Looking at what a running engine has received, again and again: some of it comes only once
the model is loaded."""

from __future__ import annotations

from bitnet_tuning.effects import Seen, asks_huge, asks_nodes, best
from bitnet_tuning.host.power import read_governor
from bitnet_tuning.host.received import read_received
from bitnet_tuning.host.root import Root
from bitnet_tuning.host.running import Family
from bitnet_tuning.records import TYPE_CHECKING

if TYPE_CHECKING:
    from bitnet_tuning.command import Plan


class Observer:
    """What was seen so far of one engine."""

    def __init__(self, machine: Root, cpus: frozenset[int], plan: Plan) -> None:
        """``machine`` is where the governor of ``cpus`` is read."""
        self.seen: Seen | None = None
        self._machine = machine
        self._cpus = cpus
        self._plan = plan
        self._live = Root()
        self._family: Family | None = None

    def look(self, process: int) -> None:
        """``process`` is what the launcher started: the engine, or a script around it."""
        if self._family is None:
            self._family = Family(self._live, process)
        received = read_received(
            self._live, self._family, huge=asks_huge(self._plan), nodes=asks_nodes(self._plan)
        )
        if received is not None:
            self.seen = best(self.seen, received, read_governor(self._machine, self._cpus))
