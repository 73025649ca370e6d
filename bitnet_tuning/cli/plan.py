"""The command `plan`: print what would be run, and why."""

from __future__ import annotations

from bitnet_tuning.cli.arguments import Parser, add_root
from bitnet_tuning.cli.run import run_options, run_request


def run(arguments: list[str]) -> int:
    """Print the plan of the run that the arguments ask for."""
    about = "Print the command that a run would start, and the reason for every part of it."
    parser = Parser("plan", description=about)
    parser.set_defaults(dry_run=True)
    add_root(parser, "plan for the machine whose sys and proc are in this folder (default: /)")
    request, options = run_options(parser, arguments, stand_in="PROMPT")
    return run_request(request, options, options.root)
