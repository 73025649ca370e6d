"""What performance mode asks for beyond a plan: things that cost others something; pure."""

from __future__ import annotations

from bitnet_tuning.openmp import ACTIVE, NONE, binds_itself, waits_by_user
from bitnet_tuning.parts import Boost
from bitnet_tuning.placement import chosen_cores
from bitnet_tuning.records import TYPE_CHECKING

if TYPE_CHECKING:
    from bitnet_tuning.command import Facts
    from bitnet_tuning.parts import Placement

PERFORMANCE_NICE = -5
"""Niceness asked for in performance mode: before ordinary work, behind the kernel's own."""

EAGER_POLL = 100
"""The highest level of --poll: threads never sleep while they wait."""


def choose_boost(facts: Facts, threads: int, placement: Placement, flags: frozenset[str]) -> Boost:
    """``threads`` is the largest number that runs at once."""
    nice, said, warnings = _priority(facts)
    waiting, poll, why = _waiting(facts, threads, flags)
    cpus, cpus_reason = _affinity(facts, threads, placement)
    return Boost(nice, waiting, poll, cpus, f"{said}; {why}", cpus_reason, warnings)


def _priority(facts: Facts) -> tuple[int, str, tuple[str, ...]]:
    lowest = facts.privileges.lowest_nice if facts.privileges else 0
    if lowest <= PERFORMANCE_NICE:
        return PERFORMANCE_NICE, f"niceness {PERFORMANCE_NICE:+d} where the kernel grants it", ()
    warning = "priority is not raised: that needs root or a nice limit (ulimit -e)"
    return 0, "ordinary priority", (warning,)


def _waiting(
    facts: Facts, threads: int, flags: frozenset[str]
) -> tuple[dict[str, str], int | None, str]:
    """Spinning threads use up a quota, and keep each other from CPUs that they share."""
    host, runtime = facts.host, facts.engine.openmp
    chosen = waits_by_user(facts.environ)
    if chosen:
        return {}, None, f"how threads wait is yours: you set {', '.join(chosen)}"
    if host.quota_stops(threads):
        return {}, None, "threads may sleep while they wait: spinning would use up the CPU quota"
    if threads > len(host.allowed):
        return {}, None, "threads may sleep while they wait: they are more than the CPUs"
    if runtime in ACTIVE:
        name, value = ACTIVE[runtime]
        return {name: value}, None, f"{name}={value}: threads spin while they wait"
    if runtime == NONE and "--poll" in flags:
        return {}, EAGER_POLL, f"--poll {EAGER_POLL}: threads spin while they wait"
    return {}, None, "how threads wait is left to the engine: its runtime is not known"


def _affinity(
    facts: Facts, threads: int, placement: Placement
) -> tuple[frozenset[int] | None, str]:
    host = facts.host
    if placement.cpus is not None or placement.numa is not None:
        return None, ""
    if binds_itself(facts.environ):
        return None, "not bound: you chose places for the threads yourself"
    if host.quota_binds:
        return None, "not bound: others under a quota might be bound to the same CPUs"
    cores = len(host.allowed_cores)
    which = f"the {threads} chosen cores" if threads < cores else "the cores that may be used"
    return chosen_cores(host, threads), f"bound to {which} (performance mode)"
