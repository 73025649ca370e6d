"""Print a plan instead of running it, and the outcomes of checks."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence

from bitnet_tuning.console import aligned, painted, text_width
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
    """Return fields and reasons, the most important first, none twice or without a choice here: in
    one row what has the same reason (``threads``, ``2, mmap off: measured``)."""
    fields: dict[str, dict[str, list[str]]] = {}  # by reasons without values, and by values
    for field in dict.fromkeys(("threads", "cpus", "model", "engine", *reasons)):
        value, colon, why = reasons.get(field, "").partition(": ")
        if value and value != "nothing to choose":
            alike = fields.setdefault(colon + why or value, {})
            alike.setdefault(value, []).append(field)
    rows = []
    for why, alike in fields.items():
        (value, names), *others = alike.items()
        more = [f", {' and '.join(also)} {theirs}" for theirs, also in others]
        rows.append((f"  {', '.join(names)}", "".join([value, *more, why if why != value else ""])))
    return rows


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
    text = aligned(rows, width)
    return re.sub(pattern, lambda word: painted(word[0], _COLOURS[word[0]]), text)
