"""run_inference.py: upstream's flags, the threads found by itself."""

from __future__ import annotations

from collections.abc import Sequence

from bitnet_tuning.cli.arguments import Parser, add_ours, add_upstream, split_extra, to_request
from bitnet_tuning.cli.show import shown
from bitnet_tuning.console import guarded
from bitnet_tuning.prepare import execute, prepare


def main(arguments: Sequence[str] | None = None) -> int:
    return guarded(_run, arguments)


def _run(arguments: list[str]) -> int:
    parser = Parser(description="Run a prompt with bitnet.cpp, at the speed this machine has.")
    add_upstream(parser, prompt_required=True)
    add_ours(parser)
    ours, extra = split_extra(arguments)
    options = parser.parse_args(ours)
    prepared = prepare(to_request(options, extra))
    return 0 if shown(prepared.plan, options) else execute(prepared).code
