"""Looking at what a running engine has received, again and again: some of it comes only once
the model is loaded."""

from __future__ import annotations

from bitnet_tuning.effects import best
from bitnet_tuning.host.power import read_governor
from bitnet_tuning.host.received import Received, read_received
from bitnet_tuning.host.root import Root
from bitnet_tuning.host.running import Family


class Observer:
    """What was seen so far of one engine."""

    def __init__(self, machine: Root, cpus: frozenset[int], nodes: bool) -> None:
        """``machine`` is where the governor of ``cpus`` is read; ``nodes`` says whether to
        see on which nodes the memory lies."""
        self.received: Received | None = None
        self.governor: str | None = None
        self._machine = machine
        self._cpus = cpus
        self._nodes = nodes
        self._live = Root()
        self._family: Family | None = None

    def look(self, process: int) -> None:
        """``process`` is what the launcher started: the engine, or a script around it."""
        if self._family is None:
            self._family = Family(self._live, process)
        received = read_received(self._live, self._family, self._nodes)
        if received is not None:
            self.received = best(self.received, received)
            self.governor = read_governor(self._machine, self._cpus)
