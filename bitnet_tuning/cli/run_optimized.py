"""run_inference_optimized.py: adds sampling flags, performance mode, statistics and --prompts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from bitnet_tuning.cli.arguments import Parser, add_optimized, add_run, read_request
from bitnet_tuning.cli.run import finish, planned
from bitnet_tuning.console import guarded, say
from bitnet_tuning.engine.probe import parse_timings, rate_text
from bitnet_tuning.errors import UsageError
from bitnet_tuning.launch.start import Outcome
from bitnet_tuning.machine.detect import SET_PERFORMANCE
from bitnet_tuning.machine.host import Host
from bitnet_tuning.plan.facts import Request
from bitnet_tuning.prepare import execute


def main(arguments: Sequence[str] | None = None, root: str = "/") -> int:
    """Run the program. ``root`` is the folder that contains the machine's ``sys`` and ``proc``."""
    return guarded(lambda words: _run(words, root), arguments)


def _run(arguments: list[str], root: str) -> int:
    parser = Parser(
        description="Run prompts with bitnet.cpp as run_inference.py does, with control over "
        "sampling, batches, memory and priority, statistics, and many prompts at once."
    )
    return run_request(*optimized_request(parser, arguments), root)


def optimized_request(
    parser: Parser, arguments: list[str], stand_in: str | None = None
) -> tuple[Request, argparse.Namespace]:
    """Add the flags to ``parser`` and parse them. Raise UsageError.

    If no prompt is given, ``stand_in`` is used instead; None makes that an error.
    """
    add_run(parser, prompt_required=False)
    add_optimized(parser)
    request, options = read_request(parser, arguments)
    _check_prompts(options)
    if request.prompt is not None and request.prompt_file is not None:
        raise UsageError("argument -f/--file: not allowed with -p/--prompt")
    is_given = request.prompt is not None or request.prompt_file is not None or options.prompts
    if not is_given and not request.chat:
        if stand_in is None:
            raise UsageError("argument -p/--prompt: a prompt is needed", "give one with -p or -f")
        request = request._replace(prompt=stand_in)
    return request, options


def _check_prompts(options: argparse.Namespace) -> None:
    """Raise UsageError for flags that ``--prompts`` excludes, or that need it."""
    many = options.prompts is not None
    flags = {"-o/--output": options.output, "--resume": options.resume, "--slots": options.slots}
    what = "needs --prompts FILE"
    if many:
        flags = {"-p/--prompt": options.prompt, "-f/--file": options.prompt_file}
        flags["-cnv/--conversation"] = options.chat
        what = "not allowed with --prompts"
    for flag, given in flags.items():
        if given not in (None, False):
            raise UsageError(f"argument {flag}: {what}")
    if many and not options.prompts:
        raise UsageError("argument --prompts: the file name is empty")
    if many and options.resume and not options.output:
        raise UsageError(
            "argument --resume: needs -o FILE with the answers of the earlier run",
            "a run that printed its answers to standard output cannot be resumed",
        )


def run_request(request: Request, options: argparse.Namespace, root: str) -> int:
    """Run the request, or print its plan for a dry run; return the exit code. Raise TuningError."""
    if options.prompts:
        from bitnet_tuning.cli.prompts import run_prompts  # noqa: PLC0415 (few runs have prompts)

        return run_prompts(request, options, root)
    prepared = planned(request, options, root)
    if prepared is None:
        return 0
    facts, plan = prepared
    if not options.quiet:
        say(f"threads {plan.reasons['threads']}")
        say(governor_line(facts.host))
    outcome = execute(request, facts, plan, quiet=options.quiet, keep_log=options.stats)
    if options.stats:
        say(stats_line(outcome, request))
    return finish(facts, outcome.code, options.quiet)


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
