"""How many prompts are answered at a time here, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

from bitnet_tuning.console import say
from bitnet_tuning.prompts.client import BrokenError, RefusedError
from bitnet_tuning.prompts.command import Seats
from bitnet_tuning.prompts.measure import CONTEXT, Measured, measure
from bitnet_tuning.prompts.memory import fitting_slots
from bitnet_tuning.prompts.remember import load_slots, slots_key, store_slots
from bitnet_tuning.prompts.slots import LEVELS, UNMEASURED, Finding, levels_up_to, pays, repeatable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.machine.host import Host
    from bitnet_tuning.model.types import ModelFile
    from bitnet_tuning.plan.facts import Plan
    from bitnet_tuning.plan.request import Request
    from bitnet_tuning.prompts.asks import Ask
    from bitnet_tuning.prompts.command import Server
    from bitnet_tuning.prompts.server import Running, Waiting
    from bitnet_tuning.store.state import State


Start = Callable[[Seats], AbstractContextManager["Running"]]


class Choice(NamedTuple):
    slots: int
    reason: str


class Subject(NamedTuple):
    """What is to answer, and where."""

    host: Host
    server: Server
    model: ModelFile
    plan: Plan
    request: Request
    context: int
    """Tokens for each slot."""
    state: State

    @property
    def fitting(self) -> int | None:
        """Slots that memory has room for; None where that is not known."""
        ubatch, available = self.plan.ubatch, self.host.memory.available
        return fitting_slots(self.model, self.context, ubatch, available)

    @property
    def most(self) -> int:
        """The highest level that comes into question."""
        return levels_up_to(min(LEVELS[-1], self.fitting or LEVELS[-1]))[-1]

    @property
    def key(self) -> str:
        return slots_key(self.host, self.server, self.plan, self.request, self.most)


def choose(
    asked: int | None,
    asks: Sequence[Ask],
    subject: Subject,
    start: Start,
    *,
    waiting: Waiting,
    note: Callable[[str], None],
) -> Choice:
    """What was asked for, else what was measured; where that is not known and these prompts
    are worth it, it is measured now. ``note`` is told what goes on."""
    choice = choose_unmeasured(asked, asks, subject)
    if asked is not None or _remembered(subject) or not pays(asks) or subject.most == 1:
        return choice
    note(f"measuring how many prompts at a time are fastest here, up to {subject.most}")
    with start(Seats(subject.most, min(CONTEXT, subject.context))) as server:
        try:
            found = measure(server.client.complete, subject.most, waiting)
        except RefusedError as refusal:
            note(f"slots were not measured: the server said {refusal.reason}")
            return choice
        except BrokenError as trouble:
            raise server.check(trouble) from trouble
    store_slots(subject.state, subject.key, subject.server, subject.plan.model, found)
    return _measured_now(found, repeatable(asks), note) or choice


def _measured_now(found: Measured, to_be_same: bool, note: Callable[[str], None]) -> Choice | None:
    if found.finding is None:
        note(f"no decision within {found.seconds:.0f} s: too slow, or too noisy")
        return None
    for level in found.finding.differing:
        out = " are out:" if to_be_same else ":"
        note(f"{level} slots{out} greedy texts came out otherwise than one at a time")
    words = f"{found.finding.words(to_be_same)}, measured now"
    return Choice(found.finding.decision(to_be_same).slots, words)


def choose_unmeasured(asked: int | None, asks: Sequence[Ask], subject: Subject) -> Choice:
    """Without a measurement of this moment."""
    fitting = subject.fitting
    if asked is not None:
        if fitting is not None and asked > fitting:
            say(f"warning: {asked} slots may not fit in memory, {fitting} would")
        return Choice(asked, f"{_count(asked)}, as --slots says")
    found = _remembered(subject)
    if found is not None:
        to_be_same = repeatable(asks)
        words = f"{found.words(to_be_same)}, measured before"
        return _at_most(found.decision(to_be_same).slots, len(asks), words)
    if repeatable(asks):
        why = "nothing was measured, and greedy or seeded answers are to be as alone"
        return Choice(1, f"1 slot: {why} (--slots N answers more at a time)")
    slots = min(UNMEASURED, subject.most)
    return _at_most(slots, len(asks), f"{_count(slots)}: a cautious guess, nothing was measured")


def _remembered(subject: Subject) -> Finding | None:
    return load_slots(subject.state, subject.key, subject.server, subject.plan.model)


def _count(slots: int) -> str:
    return "1 slot" if slots == 1 else f"{slots} slots"


def _at_most(slots: int, prompts: int, reason: str) -> Choice:
    if prompts < slots:
        return Choice(max(1, prompts), f"{reason}; no more than there are prompts")
    return Choice(slots, reason)
