"""``python3 -m bitnet_tuning plan``: what would be run, and why."""

from __future__ import annotations

import os

from bitnet_tuning.cli.arguments import Parser
from bitnet_tuning.cli.inference import prepare
from bitnet_tuning.cli.run_optimized import optimized_request
from bitnet_tuning.cli.show import show_plan
from bitnet_tuning.errors import MissingError


def run(arguments: list[str]) -> int:
    parser = Parser(prog="bitnet_tuning plan", description="Show the plan for a run; run nothing.")
    parser.add_argument("--root", default="/", metavar="DIR", help="plan for this folder's machine")
    request, options = optimized_request(parser, arguments, stand_in="PROMPT")
    if not os.path.isdir(options.root):
        raise MissingError(f"no such folder: {options.root}", "name one that holds sys and proc")
    show_plan(prepare(request, options.root).plan, options.json)
    return 0
