"""``python3 -m bitnet_tuning plan``: what would be run, and why."""

from __future__ import annotations

from bitnet_tuning.cli.arguments import Parser, add_root
from bitnet_tuning.cli.run_optimized import optimized_request
from bitnet_tuning.cli.show import show_plan
from bitnet_tuning.prepare import prepare


def run(arguments: list[str]) -> int:
    parser = Parser(prog="bitnet_tuning plan", description="Show the plan for a run; run nothing.")
    parser.set_defaults(dry_run=True)
    add_root(parser, "plan for this folder's machine")
    request, options = optimized_request(parser, arguments, stand_in="PROMPT")
    if options.prompts:
        from bitnet_tuning.cli.prompts import run_prompts  # noqa: PLC0415 (most plans have none)

        return run_prompts(request, options, options.root)
    show_plan(*prepare(request, options.root), options.json)
    return 0
