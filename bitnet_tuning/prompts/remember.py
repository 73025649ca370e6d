"""The slots that were measured for this host, engine and model."""

from __future__ import annotations

import json
from typing import Any

from bitnet_tuning.bench.statistics import Estimate
from bitnet_tuning.machine.host import fingerprint
from bitnet_tuning.machine.root import format_list
from bitnet_tuning.prompts.command import Seats, server_command
from bitnet_tuning.prompts.slots import Decision, Finding
from bitnet_tuning.store.state import identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.machine.host import Host
    from bitnet_tuning.plan.facts import Plan
    from bitnet_tuning.plan.request import Request
    from bitnet_tuning.prompts.command import Server
    from bitnet_tuning.prompts.measure import Measured
    from bitnet_tuning.store.state import Shape, State


KIND = "slots"
_SHAPE: Shape = {"files": list, "free": list, "same": list, "differing": list}


def slots_key(host: Host, server: Server, plan: Plan, request: Request, most: int) -> str:
    """All that decides: the host, the model and each flag in the command line, the CPUs,
    the environment, and how many slots come into question."""
    cpus = None if plan.cpus is None else format_list(plan.cpus)
    command = server_command(plan, request, server, Seats(1, 0), 0)
    return json.dumps([fingerprint(host), command, cpus, plan.env, most], sort_keys=True)


def load_slots(state: State, key: str, server: Server, model: str) -> Finding | None:
    """None as well for another build of the server, or another model in the file's place."""
    record = state.load(KIND, key, _SHAPE)
    try:
        if record is None or record["files"] != _files(server, model):
            return None
        differing = tuple(map(int, record["differing"]))
        return Finding(_decision(record["free"]), _decision(record["same"]), differing)
    except (OSError, TypeError, ValueError):
        return None


def _files(server: Server, model: str) -> list[list[object]]:
    return [identity(path) for path in (*server.files, model)]


def _decision(fields: list[Any]) -> Decision:
    slots, gain = fields
    if not isinstance(slots, int) or slots < 1:
        raise ValueError(slots)
    if gain is None:
        return Decision(slots, None)
    middle, low, high, count = gain
    return Decision(slots, Estimate(float(middle), float(low), float(high), int(count)))


def store_slots(state: State, key: str, server: Server, model: str, found: Measured) -> None:
    """Nothing where nothing was found, or not all was tried."""
    finding = found.finding
    if finding is None or not found.is_full:
        return
    record = {
        "files": _files(server, model),
        "free": finding.free,
        "same": finding.same,
        "differing": finding.differing,
    }
    state.store(KIND, key, record)
