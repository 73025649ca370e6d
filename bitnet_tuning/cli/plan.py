"""The command `plan`: print what would be run, and why."""

from __future__ import annotations

from bitnet_tuning.cli.arguments import Parser, add_root, add_run
from bitnet_tuning.cli.run import run_options, run_request


def run(arguments: list[str]) -> int:
    request, options = run_options(make_parser(), arguments, stand_in="PROMPT")
    return run_request(request, options, options.root)


def make_parser() -> Parser:
    about = "Print the command that a run would start, and the reason for every part of it."
    form = "[options of a run] [-- flags of the engine]"
    parser = Parser("plan", form, "", "-t 4 -n 256 --json", description=about)
    parser.set_defaults(dry_run=True, output=None, quiet=False, resume=False, stats=None)
    add_root(parser, "plan for the machine whose sys and proc are in this folder (default: /)")
    add_run(parser, plans=True)
    return parser
