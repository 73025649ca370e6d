"""The report of a run: the CPU governor, and the speeds that the engine printed."""

from __future__ import annotations

from bitnet_tuning.engine.probe import parse_timings, rate_text
from bitnet_tuning.launch.start import Outcome
from bitnet_tuning.machine.detect import SET_PERFORMANCE
from bitnet_tuning.machine.host import Host
from bitnet_tuning.plan.facts import Request


def governor_line(host: Host) -> str:
    """Return the CPU governor, and the command that changes it if it may lower the clock."""
    if host.governor == "performance":
        return "governor performance"
    if host.governor:
        return f"governor {host.governor} may lower the clock; to change it: {SET_PERFORMANCE}"
    if host.wsl:
        return "governor not visible: under WSL, Windows' power mode sets the clock"
    return "governor not visible here (a virtual machine, or no frequency control)"


def stats_line(outcome: Outcome, request: Request) -> str:
    """Return the speeds that the engine printed, and the time to the first token."""
    prompt, generation = parse_timings(outcome.log.decode("utf-8", "replace"))
    figures = f"prompt {rate_text(prompt)}; generation {rate_text(generation)}"
    if prompt is None and generation is None:
        figures = "the engine printed no timings"
    first = "not seen"
    if outcome.first_token is not None:
        first = f"after {outcome.first_token:.2f} s"
    elif request.chat or request.prompt_file is not None:
        first = "not measured"
    return f"{figures}; first token {first}"
