"""What stands around an answer: how the engine runs, and afterwards how fast it was."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

from bitnet_tuning import demo
from bitnet_tuning.console import at_terminal, command, counted, say, tell
from bitnet_tuning.engine.probe import parse_timings
from bitnet_tuning.launch.start import Outcome
from bitnet_tuning.machine.detect import SET_PERFORMANCE
from bitnet_tuning.machine.host import Host
from bitnet_tuning.plan.facts import Facts, Plan, Request
from bitnet_tuning.plan.setting import SAVED, Setting
from bitnet_tuning.plan.threads import asked_threads
from bitnet_tuning.prepare import execute, finish

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LONG = 150
"""Tokens with which a text may have moved earlier messages out of a terminal of 24 lines."""


def run_reported(
    request: Request, facts: Facts, plan: Plan, options: argparse.Namespace, report: bool
) -> int:
    """Run the engine, with lines on stderr around its output: on a terminal, and where ``--stats``
    or a ``report`` asks for them. Return the exit code."""
    watched = at_terminal() and not options.quiet
    say(*(before(request, facts, plan) if watched else ()))
    if report:
        say(None if watched else f"threads {plan.reasons['threads']}", governor_line(facts.host))
    hidden = options.quiet or (watched and not options.verbose)
    outcome = execute(request, facts, plan, hidden, watched or report or bool(options.stats))
    found, ended_well = figures(outcome, request, facts, plan), outcome.code in (0, 130)
    if options.stats == "json":
        import json  # noqa: PLC0415 (seldom)

        rounded = {name: round(n, 3) if isinstance(n, float) else n for name, n in found.items()}
        tell(json.dumps(rounded))
    elif options.stats or report or (watched and ended_well):
        no_figures = None if watched and not options.stats else "the engine printed no timings"
        say(stats_line(found) or no_figures)
    length = (found["prompt_tokens"] or _LONG) + (found["tokens"] or 0)
    if watched and ended_well and (request.chat or options.verbose or length >= _LONG):
        say(*(f"as before: {each}" for each in plan.warnings))
    return finish(facts, outcome.code, options.quiet)


def before(request: Request, facts: Facts, plan: Plan) -> Iterator[str]:
    """Yield how the engine runs, and what a user at a terminal should know of this run."""
    threads, model = plan.setting.threads, facts.model
    asked = asked_threads(request.threads, facts.environ)
    how = f"{counted(threads, 'thread')}{f' (set by {asked.by})' if asked else ''}"
    how += f" {_place(plan.setting, facts.host)}"
    if facts.profile:
        is_used = plan.reasons["threads"].startswith(f"{threads}: {SAVED}")
        how += ", as measured here" if is_used else ""
    folder, file = os.path.split(os.path.abspath(model.path))
    # The converters of BitNet name files ggml-model-i2_s.gguf, in a folder with the model's name.
    name = file.removesuffix(".gguf").replace("ggml-model-", f"{os.path.basename(folder)} ")
    name += "" if model.quantization in name.lower() else f" {model.quantization}"
    yield f"{how}, {name} (--dry-run explains)"
    if os.path.realpath(model.path) in demo.MODELS:
        real = f"`{command('model')} get` fetches a real one"
        yield f"the demo model knows one text, a guide to running BitNet on a CPU; {real}"
    if request.chat and not facts.engine.completion:  # else the engine says it
        end = "" if os.name == "nt" and not facts.engine.embedded else ", as Ctrl-D does"
        yield f"Ctrl-C stops an answer; at an empty prompt it ends the chat{end}"


def _place(setting: Setting, host: Host) -> str:
    """Return on which cores the threads of a setting run."""
    if host.quota_binds:
        return f"within the quota of {counted(host.quota or 0, 'CPU')}"
    mask = setting.cpus or host.allowed
    kind, end = "core" if host.topology_known and not host.cores_hidden else "CPU", ""
    if mask == host.allowed:
        end = "" if mask == host.online else " that this process may use"
    elif host.hybrid and mask == host.hybrid.performance_cpus & host.allowed:
        kind = "performance core"
    elif node := next((each for each in host.nodes if each.cpus & host.allowed == mask), None):
        end = f" of NUMA node {node.id}"
    else:
        mask = host.allowed
    every, used = host.cores_in(mask), min(setting.threads, host.cores_in(setting.cpus))
    some = "" if used == every else f"{used} of "
    return f"on {some}the {counted(every, kind) if every > 1 else kind}{end}"


def governor_line(host: Host) -> str:
    """Return the CPU governor, and the command that changes it if it may lower the clock."""
    if host.governor == "performance":
        return "governor performance"
    if host.governor:
        return f"governor {host.governor} may lower the clock; to change it: {SET_PERFORMANCE}"
    if host.wsl:
        return "governor not visible: under WSL, Windows' power mode sets the clock"
    return "governor not visible here (a virtual machine, or no frequency control)"


def figures(outcome: Outcome, request: Request, facts: Facts, plan: Plan) -> dict[str, Any]:
    """Return the figures of a run, by the names that ``--stats json`` prints; None for what the
    engine did not print. Speeds are in tokens/s."""
    prompt, generation = parse_timings(outcome.log.decode("utf-8", "replace"))
    # The first token comes from the last step of the prompt, and llama.cpp counts other steps, at
    # least one (llama_perf_context_print).
    extra = 0 if request.chat or (generation and not generation.milliseconds) else 1
    return {
        "prompt_tokens": prompt and prompt.tokens,
        "prompt_tokens_per_second": prompt and prompt.rate,
        "tokens": generation and generation.tokens + extra,
        "tokens_per_second": generation and generation.rate,
        "first_token_seconds": outcome.first_token,
        "threads": plan.setting.threads,
        "engine": facts.engine.path,
        "model": facts.model.path,
        "exit_code": outcome.code,
    }


def stats_line(found: dict[str, Any]) -> str:
    """Return those figures that are known as one line; nothing for a number of tokens alone."""
    rate, prompt = found["tokens_per_second"], found["prompt_tokens_per_second"]
    first, tokens = found["first_token_seconds"], found["tokens"]
    parts = (
        rate and f"{rate:.{int(rate < 100)}f} tokens/s",
        prompt and f"prompt {prompt:.0f} tokens/s",
        first and f"first token after {first:.{1 + (first < 0.1)}f} s",
        tokens and counted(tokens, "token"),
    )
    return ", ".join(filter(None, parts)) if any(parts[:-1]) else ""
