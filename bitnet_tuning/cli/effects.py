"""Performance mode's look at the running engine, and what is said of it."""

from __future__ import annotations

import os

from bitnet_tuning.console import say
from bitnet_tuning.machine.clock import PERFORMANCE
from bitnet_tuning.machine.process import shows_programs
from bitnet_tuning.machine.root import Root
from bitnet_tuning.prepare import Prepared
from bitnet_tuning.verify.effects import Aim, Observer, effects_of, missed, table

UNSEEN = "what took effect is not known: only Linux shows what a running engine has received"
TOO_SOON = "what took effect is not known: the engine ended too soon to be looked at"


def observer_of(prepared: Prepared, root: str) -> Observer | None:
    """None where a running program cannot be looked at."""
    if not shows_programs(Root()):
        return None
    host, plan = prepared.host, prepared.plan
    return Observer(Root(root), plan.cpus or host.allowed, plan)


def say_effects(
    observer: Observer | None, prepared: Prepared, set_governor: bool, quiet: bool, all_of_it: bool
) -> None:
    """All effects, or only what did not act; that not even where it is to be ``quiet``."""
    if observer is None or observer.seen is None:
        if all_of_it:
            say(UNSEEN if observer is None else TOO_SOON)
        return
    effects = effects_of(prepared.plan, _aim(prepared, set_governor), observer.seen)
    lines = table(effects) if all_of_it else () if quiet else missed(effects)
    for line in lines:
        say(line)


def _aim(prepared: Prepared, set_governor: bool) -> Aim:
    return Aim(
        model_size=prepared.choice.model.size,
        niceness=os.getpriority(os.PRIO_PROCESS, 0),
        governor=PERFORMANCE if set_governor else None,
    )
