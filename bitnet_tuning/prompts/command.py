"""The server's command line; pure."""

from __future__ import annotations

from typing import NamedTuple

from bitnet_tuning.plan.command import batch_flags, memory_policy, tuned_flags

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.model.types import ModelFile
    from bitnet_tuning.plan.facts import Plan
    from bitnet_tuning.plan.request import Request


LOOPBACK = "127.0.0.1"

CONTEXT = 2048
"""Tokens, where the model's own length is asked for and it states none."""


class Server(NamedTuple):
    """The engine's server and what its help lists."""

    program: tuple[str, ...]
    path: str
    flags: frozenset[str]
    flash_takes_value: bool
    files: tuple[str, ...] = ()
    """The server's own and those of its engine."""

    @property
    def knows_keys(self) -> bool:
        return "--api-key" in self.flags


class Seats(NamedTuple):
    """How many prompts are answered at a time, and what room each has."""

    slots: int
    context: int
    """Tokens for each."""


def context_of(request: Request, model: ModelFile) -> int:
    """Tokens of context for each prompt: as much as a run of its own has."""
    return request.ctx_size or model.context_length or CONTEXT


def server_command(
    plan: Plan, request: Request, server: Server, seats: Seats, port: int
) -> tuple[str, ...]:
    """llama.cpp parts ``-c`` evenly among the slots. A prompt that does not fit is refused,
    not cut: hence no context shift, which the first generation has switched on."""
    flags = server.flags
    wanted = ("-cb", "--no-context-shift")
    command = [
        *memory_policy(plan.node, plan.interleave),
        *server.program,
        *("-m", plan.model),
        *("-t", str(plan.threads)),
        *("-tb", str(plan.threads_batch)),
        *("-ngl", "0"),
        *("-c", str(seats.slots * seats.context)),
        *("-np", str(seats.slots)),
        *(flag for flag in wanted if flag in flags),
        *batch_flags(plan),
        *tuned_flags(plan, flags, server.flash_takes_value),
        *("--host", LOOPBACK),
        *("--port", str(port)),
        *request.extra,
    ]
    return tuple(command)
