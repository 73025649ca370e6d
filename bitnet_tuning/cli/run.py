"""run_inference.py: bitnet.cpp's own flags, with everything else chosen automatically."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bitnet_tuning.cli.arguments import Parser, add_optimized, add_run, read_request, split_extra
from bitnet_tuning.console import guarded, say
from bitnet_tuning.errors import UsageError
from bitnet_tuning.model.find import slim_hint
from bitnet_tuning.plan.facts import Facts, Plan, Request
from bitnet_tuning.prepare import execute, prepare
from bitnet_tuning.store.state import State


def main(arguments: Sequence[str] | None = None) -> int:
    return guarded(_run, arguments)


def _run(arguments: list[str]) -> int:
    parser = Parser(
        description="Run a prompt with bitnet.cpp, with the threads, environment and flags that "
        "suit this machine."
    )
    add_run(parser, prompt_required=True)
    try:
        request, options = read_request(parser, arguments)
    except UsageError as error:
        raise _better(error, parser, arguments) from error
    prepared = planned(request, options)
    return 0 if prepared is None else finish(prepared[0], execute(request, *prepared).code)


def _better(error: UsageError, parser: Parser, arguments: list[str]) -> UsageError:
    """Return an error that names the script for flags that only run_inference_optimized.py has."""
    other = Parser()
    add_optimized(other)
    words = [word.partition("=")[0] for word in split_extra(arguments)[0]]
    flags = [word for word in words if word in other._option_string_actions]
    if not flags:
        return error
    script = "run_inference_optimized.py" if parser.prog.endswith(".py") else "bitnet-run-optimized"
    what = f"{parser.prog} has no {' and no '.join(flags)}"
    return UsageError(what, f"use {script}, which has all flags of {parser.prog} and more")


def planned(
    request: Request, options: argparse.Namespace, root: str = "/"
) -> tuple[Facts, Plan] | None:
    """Prepare a run. For a dry run, print the plan and return None. Raise TuningError."""
    facts, plan = prepare(request, root)
    if not options.dry_run:
        return facts, plan
    from bitnet_tuning.cli.show import show_plan  # noqa: PLC0415 (most runs print none)

    show_plan(facts, plan, options.json)
    return None


def finish(facts: Facts, code: int, quiet: bool = False) -> int:
    """Return the exit code. After a good run, print on a terminal what a smaller embedding would
    gain, unless the user knows."""
    if not (code or quiet or sys.stderr is None) and sys.stderr.isatty():
        say(slim_hint(facts.model, State()))
    return code
