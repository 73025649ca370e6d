"""Run a prompt, a chat or many prompts, with everything that is not asked chosen automatically."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from bitnet_tuning.cli.arguments import Parser, add_run, read_request
from bitnet_tuning.console import at_terminal, guarded
from bitnet_tuning.errors import UsageError
from bitnet_tuning.plan.facts import Request
from bitnet_tuning.prepare import execute, prepare


def main(arguments: Sequence[str] | None = None, root: str = "/", report: bool = False) -> int:
    """Run the program. ``root`` is the folder that contains the machine's ``sys`` and ``proc``.
    With ``report``, the governor is printed before the run and statistics after it."""
    return guarded(lambda words: run(words, root, report), arguments)


def run(arguments: list[str], root: str = "/", report: bool = False) -> int:
    request, options = run_options(make_parser(), arguments)
    return run_request(request, options, root, report)


def make_parser() -> Parser:
    parser = Parser(
        "run",
        "-p TEXT [options] [-- flags of the engine]",
        '-p "How many threads should I use?"',
        '-cnv -p "You are a helpful assistant."',
        "-p - -n 256 -temp 0 < prompt.txt",
        description="Run a prompt with bitnet.cpp, with the threads, environment and flags that "
        "suit this machine.",
    )
    parser.exits = "the engine's own, 128+N after signal N"
    add_run(parser)
    return parser


def run_options(
    parser: Parser, arguments: list[str], stand_in: str | None = None
) -> tuple[Request, argparse.Namespace]:
    """Return what the arguments ask for, and all options. Raise TuningError. If no prompt is given,
    ``stand_in`` is used instead; None makes that an error."""
    request, options = read_request(parser, arguments)
    _check_prompts(options)
    if request.prompt is not None and request.prompt_file is not None:
        raise UsageError("argument -f/--file: not allowed with -p/--prompt")
    is_given = request.prompt is not None or request.prompt_file is not None or options.prompts
    if not is_given and not request.chat:
        if stand_in is None:
            remedy = "give one with -p or -f; `-p -` reads it from standard input"
            raise UsageError("argument -p/--prompt: a prompt is needed", remedy)
        request = request._replace(prompt=stand_in)
    if request.prompt == "-" or request.prompt_file is not None:
        from bitnet_tuning.cli.input import with_prompt  # noqa: PLC0415 (most prompts are words)

        request = with_prompt(request, runs=not options.dry_run)
    return request, options


def _check_prompts(options: argparse.Namespace) -> None:
    """Raise UsageError for flags that ``--prompts`` excludes, or that need it."""
    many = options.prompts is not None
    flags = {"-o/--output": options.output, "--resume": options.resume, "--slots": options.slots}
    what = "needs --prompts FILE"
    if many:
        flags = {"-p/--prompt": options.prompt, "-f/--file": options.prompt_file}
        flags["-cnv/--conversation"] = options.chat
        flags["--stats json"] = options.stats == "json"
        what = "not allowed with --prompts"
    for flag, given in flags.items():
        if given not in (None, False):
            raise UsageError(f"argument {flag}: {what}")
    if many and not options.prompts:
        raise UsageError("argument --prompts: the file name is empty")
    if many and options.resume and not options.output:
        cause = "argument --resume: needs -o FILE with the answers of the earlier run"
        remedy = "a run that printed its answers to standard output cannot be resumed"
        raise UsageError(cause, remedy)


def run_request(
    request: Request, options: argparse.Namespace, root: str, report: bool = False
) -> int:
    """Run the request, or print its plan for a dry run; return the exit code. Raise TuningError."""
    if options.prompts:
        from bitnet_tuning.cli.prompts import run_prompts  # noqa: PLC0415 (few runs have prompts)

        options.stats = options.stats or (report and not options.quiet)
        return run_prompts(request, options, root)
    facts, plan = prepare(request, root)
    if options.dry_run:
        from bitnet_tuning.cli.show import show_plan  # noqa: PLC0415 (most runs print none)

        show_plan(facts, plan, options.json)
        return 0
    report = report and not options.quiet
    if not (at_terminal() or options.stats or report):
        return execute(request, facts, plan, hidden=options.quiet).code
    from bitnet_tuning.cli.stats import run_reported  # noqa: PLC0415 (not in plain runs)

    return run_reported(request, facts, plan, options, report)
