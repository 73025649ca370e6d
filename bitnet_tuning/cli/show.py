"""Print a plan instead of running it, and the outcomes of checks."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence

from bitnet_tuning.console import aligned, painted, printable, text_width
from bitnet_tuning.machine.root import format_list
from bitnet_tuning.plan.facts import Facts, Plan


def plan_facts(facts: Facts, plan: Plan) -> dict[str, object]:
    """Return the plan as ``--json`` prints it. Other programs rely on the names and values."""
    setting = plan.setting
    return {
        "command": list(plan.command),
        "env": dict(setting.env),
        "cpus": None if setting.cpus is None else format_list(setting.cpus),
        "threads": setting.threads,
        "threads_batch": setting.threads_batch,
        "batch": plan.batch,
        "ubatch": setting.ubatch,
        "engine": facts.engine.path,
        "model": facts.model.path,
        "reasons": plan.reasons,
    }


def show_plan(facts: Facts, plan: Plan, as_json: bool) -> None:
    """Print the plan as JSON, or as a shell command on stdout with the reasons on stderr."""
    if sys.stdout is None:  # it is closed
        return
    if as_json:
        print(json.dumps(plan_facts(facts, plan), indent=2), flush=True)
        return
    # A prompt may contain bytes that are not valid UTF-8: they are written as they were read.
    sys.stdout.buffer.write(os.fsencode(shell_line(plan)) + b"\n")
    sys.stdout.flush()
    with contextlib.suppress(OSError):
        print(aligned(_rows(plan.reasons), text_width()), file=sys.stderr, flush=True)


def _rows(reasons: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return fields and reasons, the most important first, none twice or without a choice here."""
    fields: dict[str, str] = {}  # by their reasons
    first: dict[str, str] = {}  # by the part of a reason that follows the value
    for field in dict.fromkeys(("threads", "cpus", "model", "engine", *reasons)):
        reason = reasons.get(field, "")
        value, _, why = reason.partition(": ")
        if reason in fields:
            fields[reason] += f", {field}"
        elif reason and value != "nothing to choose":
            same = first.setdefault(why or reason, field)
            fields[reason if same == field else f"{value}: as {same}"] = field
    return [(f"  {field}", reason) for reason, field in fields.items()]


def shell_line(plan: Plan) -> str:
    """Return the plan as a command for a POSIX shell."""
    setting = plan.setting
    words = [f"{name}={shlex.quote(value)}" for name, value in setting.env]
    if setting.cpus is not None:
        words += ["taskset", "-c", format_list(setting.cpus)]
    if setting.nice:
        words += ["nice", "-n", str(setting.nice)]
    return " ".join([*words, shlex.join(plan.command)])


_WORDS = {"red": "FAIL BAD", "yellow": "SKIP SLOW WARN", "cyan": "HINT ?", "green": "PASS ok"}
_COLOURS = {word: colour for colour, words in _WORDS.items() for word in words.split()}


def outcomes(rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Return rows in columns, with colours on a terminal for the words above at the start. They are
    folded at a ``width``, by default only on a terminal: other programs get whole lines."""
    if width is None and sys.stdout is not None and sys.stdout.isatty():
        width = text_width()
    pattern = f"(?m)^({'|'.join(map(re.escape, _COLOURS))})(?= )"
    text = printable(aligned(rows, width))
    return re.sub(pattern, lambda word: painted(word[0], _COLOURS[word[0]]), text)
