"""run_inference.py: upstream's flags, the threads chosen automatically."""

from __future__ import annotations

from collections.abc import Sequence

from bitnet_tuning.cli.arguments import Parser, add_run, read_request
from bitnet_tuning.console import guarded
from bitnet_tuning.prepare import execute, prepare


def main(arguments: Sequence[str] | None = None) -> int:
    return guarded(_run, arguments)


def _run(arguments: list[str]) -> int:
    parser = Parser(description="Run a prompt with bitnet.cpp, at the speed this machine has.")
    add_run(parser, prompt_required=True)
    request, options = read_request(parser, arguments)
    facts, plan = prepare(request)
    if options.dry_run:
        from bitnet_tuning.cli.show import show_plan  # noqa: PLC0415 (most runs show none)

        show_plan(facts, plan, options.json)
        return 0
    return execute(request, facts, plan).code
