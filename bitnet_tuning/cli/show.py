"""TODO."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import textwrap

from bitnet_tuning.cli.arguments import columns
from bitnet_tuning.machine.root import format_list
from bitnet_tuning.plan.facts import Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any


def plan_facts(plan: Plan) -> dict[str, Any]:
    """What other programs may rely on."""
    return {
        "command": list(plan.command),
        "env": plan.env,
        "cpus": None if plan.cpus is None else format_list(plan.cpus),
        "threads": plan.threads,
        "threads_batch": plan.threads_batch,
        "batch": plan.batch,
        "ubatch": plan.ubatch,
        "engine": plan.engine,
        "model": plan.model,
        "reasons": plan.reasons,
    }


def show_plan(plan: Plan, as_json: bool) -> None:
    """JSON, or a line for a shell on stdout with the reasons on stderr."""
    if sys.stdout is None:  # closed: nobody wants to see it
        return
    if as_json:
        print(json.dumps(plan_facts(plan), indent=2), flush=True)
        return
    # A prompt may hold bytes that no encoding has; they go out as they came in.
    sys.stdout.buffer.write(os.fsencode(shell_line(plan)) + b"\n")
    sys.stdout.flush()
    with contextlib.suppress(OSError):
        print(reasons_text(plan.reasons), file=sys.stderr, flush=True)


def reasons_text(reasons: dict[str, str]) -> str:
    """A paragraph per field, as wide as the terminal."""
    width = max(len(field) for field in reasons) + 2
    line = max(40 + width, min(100, columns()))
    return "\n".join(
        textwrap.fill(
            reason,
            line,
            initial_indent=f"  {field:{width}}",
            subsequent_indent=" " * (width + 2),
            break_long_words=False,
            break_on_hyphens=False,
        )
        for field, reason in reasons.items()
    )


def shell_line(plan: Plan) -> str:
    """A command that can be pasted into a POSIX shell."""
    words = [f"{name}={shlex.quote(value)}" for name, value in plan.env.items()]
    if plan.cpus is not None:
        words += ["taskset", "-c", format_list(plan.cpus)]
    if plan.nice:
        words += ["nice", "-n", str(plan.nice)]
    return " ".join([*words, shlex.join(plan.command)])


def shown(plan: Plan, options: argparse.Namespace) -> bool:
    """Whether only the plan was asked for; it is printed then."""
    if not options.dry_run:
        return False

    show_plan(plan, options.json)
    return True
