"""The slots that were measured for this host, engine and model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from bitnet_tuning.bench.stats import Estimate
from bitnet_tuning.cpulist import format_list
from bitnet_tuning.engine import identity
from bitnet_tuning.profile import fingerprint, key_of
from bitnet_tuning.prompts.slots import Decision
from bitnet_tuning.state import ABSENT

if TYPE_CHECKING:
    from bitnet_tuning.command import Plan
    from bitnet_tuning.ggml_types import ModelFile
    from bitnet_tuning.host import Host
    from bitnet_tuning.prompts.command import Server
    from bitnet_tuning.prompts.measure import Measured
    from bitnet_tuning.state import Shape, State

KIND = "slots"
_SHAPE: Shape = {
    "server": list,
    "slots": int,
    "gain": (list, ABSENT),
    "rounds": int,
    "differing": list,
}


def slots_key(host: Host, server: Server, model: ModelFile, plan: Plan) -> str:
    """With the threads: fewer of them are busy sooner."""
    cpus = None if plan.cpus is None else format_list(plan.cpus)
    kind = key_of(fingerprint(host), server.path, model)
    return json.dumps([kind, plan.threads, plan.threads_batch, cpus])


def load_slots(state: State, key: str, server: Server) -> Decision | None:
    """None as well for another build of the server."""
    record = state.load(KIND, key, _SHAPE)
    if record is None or record["server"] != identity(server.path) or record["slots"] < 1:
        return None
    try:
        gain = _gain(record["gain"], record["rounds"])
        return Decision(record["slots"], gain, tuple(map(int, record["differing"])))
    except (TypeError, ValueError):
        return None


def _gain(ends: list[float] | None, rounds: int) -> Estimate | None:
    if ends is None:
        return None
    middle, low, high = map(float, ends)
    return Estimate(middle, low, high, rounds)


def store_slots(state: State, key: str, server: Server, found: Measured) -> None:
    """Nothing where nothing was decided, or not all was tried."""
    decision = found.decision
    if decision is None or not found.is_full:
        return
    gain = decision.gain and [decision.gain.median, decision.gain.low, decision.gain.high]
    record = {
        "server": identity(server.path),
        "slots": decision.slots,
        "gain": gain,
        "rounds": found.rounds,
        "differing": list(decision.differing),
    }
    state.store(KIND, key, record)
