"""run_inference_optimized.py: performance mode, sampling flags, figures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from bitnet_tuning.cli.arguments import Parser, add_optimized, add_run, read_request
from bitnet_tuning.console import guarded, say
from bitnet_tuning.engine.probe import Speed, parse_timings
from bitnet_tuning.errors import UsageError
from bitnet_tuning.launch.program import Outcome
from bitnet_tuning.machine.clock import SET_PERFORMANCE
from bitnet_tuning.machine.host import Host
from bitnet_tuning.plan.facts import Request
from bitnet_tuning.prepare import execute, prepare


def main(arguments: Sequence[str] | None = None, root: str = "/") -> int:
    """``root`` is the folder that holds the machine's ``sys`` and ``proc``."""
    return guarded(lambda words: _run(words, root), arguments)


def optimized_request(
    parser: Parser, arguments: list[str], stand_in: str | None = None
) -> tuple[Request, argparse.Namespace]:
    """Add the flags to ``parser`` and read them; raise UsageError. A ``stand_in`` takes the
    place of a prompt that is not given."""
    add_run(parser, prompt_required=False)
    add_optimized(parser)
    request, options = read_request(parser, arguments)
    check_prompts(options)
    if request.prompt is not None and request.prompt_file is not None:
        raise UsageError("argument -f/--file: not together with -p/--prompt")
    is_given = request.prompt is not None or request.prompt_file is not None or options.prompts
    if not is_given and not request.chat:
        if stand_in is None:
            raise UsageError("argument -p/--prompt: a prompt is needed", "give one with -p or -f")
        request = request._replace(prompt=stand_in)
    return request, options


def check_prompts(options: argparse.Namespace) -> None:
    """Raise UsageError for what does not go with ``--prompts``, or not without."""
    if options.prompts is None:
        ours = (
            ("-o/--output", options.output is not None),
            ("--resume", options.resume),
            ("--slots", options.slots is not None),
        )
        for flag, is_given in ours:
            if is_given:
                raise UsageError(f"argument {flag}: only together with --prompts")
        return
    others = (
        ("-p/--prompt", options.prompt is not None),
        ("-f/--file", options.prompt_file is not None),
        ("-cnv/--conversation", options.chat),
    )
    for flag, is_given in others:
        if is_given:
            raise UsageError(f"argument {flag}: not together with --prompts")
    if not options.prompts:
        raise UsageError("argument --prompts: the name of the file is empty")
    if options.resume and not options.output:
        raise UsageError(
            "argument --resume: needs -o FILE, the file of answers to go on with",
            "answers that went to standard output cannot be resumed",
        )


def _run(arguments: list[str], root: str) -> int:
    parser = Parser(description="Run a prompt with bitnet.cpp, with every knob within reach.")
    request, options = optimized_request(parser, arguments)
    if options.prompts:
        from bitnet_tuning.cli.prompts import run_prompts  # noqa: PLC0415 (a run has none)

        return run_prompts(request, options, root)
    facts, plan = prepare(request, root)
    if options.dry_run:
        from bitnet_tuning.cli.show import show_plan  # noqa: PLC0415 (most runs show none)

        show_plan(facts, plan, options.json)
        return 0
    if not options.quiet:
        say(f"threads {plan.reasons['threads']}")
        say(governor_line(facts.host))
    outcome = execute(request, facts, plan, quiet=options.quiet, keep_log=options.stats)
    if options.stats:
        say(stats_line(outcome, request))
    return outcome.code


def governor_line(host: Host) -> str:
    """Return the governor, and what to do where it may hold the clock down."""
    if host.governor == "performance":
        return "governor performance"
    if host.governor:
        return f"governor {host.governor} may hold the clock down; `{SET_PERFORMANCE}` changes it"
    if host.wsl:
        return "governor not visible: under WSL, Windows' power mode decides"
    return "governor not visible here (a virtual machine, or no frequency control)"


def stats_line(outcome: Outcome, request: Request) -> str:
    """Return the engine's own figures, and our clock's for the first token."""
    timings = parse_timings(outcome.log.decode("utf-8", "replace"))
    if timings.prompt is None and timings.generation is None:
        return f"the engine printed no timings; {_first_token(outcome.first_token, request)}"
    parts = [
        _speed("prompt", timings.prompt),
        _speed("generation", timings.generation),
        _first_token(outcome.first_token, request),
    ]
    return "; ".join(parts)


def _speed(phase: str, speed: Speed | None) -> str:
    if speed is None or speed.rate is None:
        return f"{phase} not measured"
    return f"{phase} {speed.rate:.1f} tokens/s ({speed.tokens} tokens)"


def _first_token(seconds: float | None, request: Request) -> str:
    if seconds is not None:
        return f"first token after {seconds:.2f} s"
    if request.chat:
        return "first token not measured in a chat"
    return "first token not seen" if request.prompt_file is None else "first token not measured"
