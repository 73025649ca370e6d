"""Which parts of a plan took effect in a running engine; pure."""

from __future__ import annotations

from bitnet_tuning.machine.clock import read_governor
from bitnet_tuning.machine.process import Family, read_received
from bitnet_tuning.machine.root import Root, format_list
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.openmp import WAITING_BY_USER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from bitnet_tuning.machine.process import Received
    from bitnet_tuning.plan.facts import Plan


MEBIBYTE = 1 << 20

LOCKED_SHARE = 0.9
"""Of the model's file that is locked at least where locking acts: only the tensors are, not
the header with the vocabulary, which was 2 % of the files seen."""

WAIT_POLICY = (*WAITING_BY_USER, "GOMP_SPINCOUNT")

_LOWEST_NICE = -20

_STEADY = 2

_GROWTH = 1.02
"""While tokens are generated memory still grows by some pages."""


class Aim(NamedTuple):
    """What is wanted of a run, besides its plan."""

    model_size: int
    """Bytes."""
    niceness: int
    """Of the launcher, to which the plan's is added."""
    governor: str | None = None
    """None: whatever it is."""


class Effect(NamedTuple):
    """One part of a plan, and what came of it."""

    name: str
    wanted: str | None
    """None where nothing was asked for."""
    seen: str | None
    """None where nothing was seen."""
    acted: bool | None
    """None where that cannot be told."""


def asks_huge(plan: Plan) -> bool:
    """Whether huge pages are worth to be counted. glibc asks the kernel for them where its
    tunables say so."""
    return "hugetlb" in plan.env.get("GLIBC_TUNABLES", "")


def asks_nodes(plan: Plan) -> bool:
    """Whether it is worth to be counted on which nodes the memory lies."""
    return plan.numa is not None or wanted_nodes(plan) is not None


def wanted_nodes(plan: Plan) -> frozenset[int] | None:
    """Nodes on which memory is to lie; None where the plan names none."""
    return plan.interleave if plan.node is None else frozenset((plan.node,))


class Seen(NamedTuple):
    """What was seen of an engine in several looks."""

    received: Received
    governor: str | None = None
    """Of the CPUs that it was to run on."""
    steady: int = 0
    """Looks in a row in which its memory was no larger than before."""

    def loaded(self, model_size: int) -> bool:
        """Whether the model surely was in memory. A small one takes less than a program has
        at its start. As looks become seldom, two steady ones are half of the time so far."""
        resident = self.received.resident
        return self.steady >= _STEADY and resident is not None and resident >= model_size


def best(before: Seen | None, now: Received, governor: str | None = None) -> Seen:
    """What to go by. A script may have been seen before the engine that it starts; memory is
    locked, and filled, only once the model is loaded."""
    if before is None:
        return Seen(now, governor)
    kept = before.received
    fewer = len(now.cpus) < len(kept.cpus)
    if now.process != kept.process:
        return before._replace(governor=governor) if fewer else Seen(now, governor)
    grown = (now.resident or 0) > _GROWTH * (kept.resident or 0)
    return Seen(_merged(kept, now, fewer), governor, 0 if grown else before.steady + 1)


def _merged(before: Received, now: Received, fewer: bool) -> Received:
    """The later look, or where ``fewer`` threads were left in it the one before, with the
    most that there ever was of memory."""
    before_is_larger = sum(before.nodes.values()) > sum(now.nodes.values())
    return (before if fewer else now)._replace(
        resident=_larger(now.resident, before.resident),
        locked=_larger(now.locked, before.locked),
        huge=_larger(now.huge, before.huge),
        nodes=before.nodes if before_is_larger else now.nodes,
    )


def _larger(one: int | None, other: int | None) -> int | None:
    return max((size for size in (one, other) if size is not None), default=None)


def effects_of(plan: Plan, aim: Aim, seen: Seen) -> tuple[Effect, ...]:
    received, loaded = seen.received, seen.loaded(aim.model_size)
    waiting = {key: text for key, text in plan.env.items() if key in WAIT_POLICY}
    others = {key: text for key, text in plan.env.items() if key not in WAIT_POLICY}
    return (
        _cpus(plan.cpus, received),
        _priority(plan.nice, aim.niceness, received),
        _locked(aim.model_size if plan.mlock else None, received, loaded),
        _variables("wait policy", waiting, received, WAIT_POLICY),
        _variables("environment", others, received),
        _huge(asks_huge(plan), received, loaded),
        _nodes(wanted_nodes(plan), received),
        _governor(aim.governor, seen.governor),
    )


def _cpus(wanted: frozenset[int] | None, seen: Received) -> Effect:
    """OpenMP binds each thread to a part of what was asked for, which is as it should be."""
    found = frozenset[int]().union(*seen.cpus)
    return Effect(
        "CPUs",
        format_list(wanted) if wanted else None,
        f"{format_list(found)} ({_count(len(seen.cpus), 'thread')})" if found else None,
        found <= wanted if wanted and found else None,
    )


def _priority(added: int, launcher: int, seen: Received) -> Effect:
    wanted = max(_LOWEST_NICE, launcher + added) if added else None
    return Effect(
        "priority",
        None if wanted is None else f"niceness {wanted}",
        f"niceness {_listed(seen.niceness)}" if seen.niceness else None,
        None if wanted is None or not seen.niceness else max(seen.niceness) <= wanted,
    )


def _locked(wanted: int | None, seen: Received, loaded: bool) -> Effect:
    acted = None
    if wanted is not None and seen.locked is not None:
        acted = seen.locked >= LOCKED_SHARE * wanted or (False if loaded else None)
    limit = seen.lock_limit.size if seen.lock_limit else None
    shown = None if seen.locked is None else _size(seen.locked)
    if shown and acted is False and limit is not None:
        shown += f", the limit is {_size(limit)} (ulimit -l)"
    if shown and wanted is not None and acted is None:
        shown += ", maybe before the model was loaded"
    return Effect("locked memory", None if wanted is None else _size(wanted), shown, acted)


def _variables(
    name: str, wanted: dict[str, str], seen: Received, related: Iterable[str] = ()
) -> Effect:
    """``related`` are shown where nothing is wanted: the user may have set them."""
    if seen.variables is None:
        return Effect(name, _pairs(wanted) or None, None, None)
    found = {key: seen.variables.get(key) for key in (wanted or related)}
    return Effect(
        name,
        _pairs(wanted) or None,
        _pairs({key: text for key, text in found.items() if text is not None}) or "nothing set",
        found == wanted if wanted else None,
    )


def _huge(wanted: bool, seen: Received, loaded: bool) -> Effect:
    known = wanted and seen.huge is not None
    return Effect(
        "huge pages",
        "some" if wanted else None,
        None if seen.huge is None else _size(seen.huge),
        (bool(seen.huge) or (False if loaded else None)) if known else None,
    )


def _nodes(wanted: frozenset[int] | None, seen: Received) -> Effect:
    """``wanted`` are the nodes that the memory is to lie on. What other programs had read
    of the model before lies where it was, so that most of it will do."""
    total = sum(seen.nodes.values())
    inside = sum(size for node, size in seen.nodes.items() if wanted and node in wanted)
    shown = ", ".join(f"node {node}: {_size(seen.nodes[node])}" for node in sorted(seen.nodes))
    return Effect(
        "memory nodes",
        format_list(wanted) if wanted else None,
        shown or None,
        inside > total / 2 if wanted and total else None,
    )


def _governor(wanted: str | None, seen: str | None) -> Effect:
    return Effect("governor", wanted, seen, seen == wanted if wanted and seen else None)


def table(effects: Iterable[Effect]) -> tuple[str, ...]:
    """A line for each, aligned."""
    rows = [(effect.name, _state(effect), _text(effect)) for effect in effects]
    names, states = (max(len(row[column]) for row in rows) for column in (0, 1))
    return tuple(f"{name:<{names}}  {state:<{states}}  {text}" for name, state, text in rows)


def missed(effects: Iterable[Effect]) -> tuple[str, ...]:
    """A line for each that was asked for and did not act."""
    return tuple(
        f"{effect.name} did not act: {_text(effect)}" for effect in effects if effect.acted is False
    )


def _state(effect: Effect) -> str:
    if effect.wanted is None:
        return "not asked"
    return {True: "acted", False: "did not act", None: "not seen"}[effect.acted]


def _text(effect: Effect) -> str:
    if effect.wanted is None or effect.wanted == effect.seen:
        return effect.seen or "-"
    return f"wanted {effect.wanted}, seen {effect.seen or 'nothing'}"


def _size(size: int) -> str:
    return f"{size / MEBIBYTE:.0f} MiB"


def _pairs(variables: dict[str, str]) -> str:
    return " ".join(f"{key}={text}" for key, text in variables.items())


def _listed(values: Iterable[int]) -> str:
    return ", ".join(str(value) for value in sorted(set(values)))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


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
