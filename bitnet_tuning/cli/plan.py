"""``python3 -m bitnet_tuning plan``: print what would be run, and why."""

from __future__ import annotations

from bitnet_tuning.cli.arguments import Parser, add_root
from bitnet_tuning.cli.run_optimized import optimized_request, run_request


def run(arguments: list[str]) -> int:
    about = "Print the command that a run would start, and the reason for every part of it."
    parser = Parser(prog="python3 -m bitnet_tuning plan", description=about)
    parser.set_defaults(dry_run=True)
    add_root(parser, "plan for the machine whose sys and proc are in this folder (default: /)")
    request, options = optimized_request(parser, arguments, stand_in="PROMPT")
    return run_request(request, options, options.root)
