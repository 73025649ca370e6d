"""Starts an engine with one setting, and says how long it may take."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from bitnet_tuning.bench.by_cli import check_cli
from bitnet_tuning.bench.measure import stale
from bitnet_tuning.launch import Captured, capture
from bitnet_tuning.plan import Facts, apply_setting, make_plan

if TYPE_CHECKING:
    from bitnet_tuning.engine import Engine
    from bitnet_tuning.ggml_types import ModelFile
    from bitnet_tuning.host import Host
    from bitnet_tuning.request import Request
    from bitnet_tuning.setting import Setting

TRIES = 3
"""Runs of a cli where the end of what it prints may be lost. llama-completion of late 2026
loses it now and then (llama.cpp issue 22142: its log thread is not waited for)."""


class Place(NamedTuple):
    """What is measured, and where."""

    host: Host
    engine: Engine
    model: ModelFile


class Patience(NamedTuple):
    """How long a process may take before it counts as hung, in seconds."""

    first: float = 120.0
    """Before the default has run: a model may come from a slow disk."""
    least: float = 20.0
    factor: float = 8.0
    """Afterwards, times what the default took. Rare disturbances of a shared machine
    reach a factor of five."""

    def after(self, longest: float | None) -> float:
        """``longest`` is the longest run of the default, None before there is one."""
        return self.first if longest is None else max(self.least, self.factor * longest)


def run_setting(setting: Setting, argv: tuple[str, ...], seconds: float) -> Captured:
    """A program with the setting's environment, CPUs and niceness."""
    unset = stale(setting, os.environ)
    variables = dict(setting.env)
    return capture(argv, variables, seconds, unset=unset, cpus=setting.cpus, nice=setting.nice)


def run_cli(place: Place, setting: Setting, request: Request, seconds: float) -> Captured:
    """The engine's cli with the setting. Raises UnsupportedError where engine and model
    cannot work together, and for a knob that the cli does not have."""
    check_cli(setting, place.engine.flags)
    facts = Facts(*place, "measured", os.environ)
    plan = apply_setting(make_plan(request, facts), setting, request, facts)
    return run_setting(setting, plan.command, seconds)
