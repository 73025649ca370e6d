"""``python3 -m bitnet_tuning doctor``: find what slows this machine down."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from bitnet_tuning.cli.arguments import Parser, add_engine, add_model, add_root
from bitnet_tuning.console import aligned, text_width
from bitnet_tuning.doctor import examine
from bitnet_tuning.doctor.case import BAD, GOOD, UNKNOWN, WARN, Finding, summary
from bitnet_tuning.doctor.gather import gather

_ABOUT = (
    "Check everything that speed depends on and print what to do about it, the worst finding "
    "first. Nothing is changed, and root is not needed. Exit code: 0 if nothing is bad, 1 if "
    "something is bad, 2 for warnings with --strict."
)


def run(arguments: list[str]) -> int:
    parser = Parser(prog="python3 -m bitnet_tuning doctor", description=_ABOUT)
    add = parser.add_argument
    what = (
        "print JSON: `findings`, each with name, state (good, warn, bad, unknown), text, advice "
        "and source; and `summary` with the number of findings in each state, exit_code and text"
    )
    add("--json", action="store_true", help=what)
    what = "check a machine recorded in this folder, and only the engine and model you name"
    add_root(parser, what)
    add("--strict", action="store_true", help="exit with 2 if there are warnings")
    what = "leave out the self-test, which takes some seconds, as --root does"
    add("--no-selftest", dest="selftest", action="store_false", help=what)
    add_engine(parser)
    add_model(parser)
    options = parser.parse_args(arguments)
    findings = examine(gather(options.root, options.engine, options.model, options.selftest))
    found = summary(findings, options.strict)
    if options.json:
        every = [finding._asdict() for finding in findings]
        print(json.dumps({"findings": every, "summary": found}, indent=2))
    else:
        show(findings)
    return int(found["exit_code"])


_WORDS = {BAD: "BAD", WARN: "WARN", UNKNOWN: "?", GOOD: "ok"}
_STYLES = {BAD: "bold red", WARN: "yellow", UNKNOWN: "cyan", GOOD: "green"}


def show(findings: Sequence[Finding]) -> None:
    """Print a paragraph for each finding to stdout, and the summary."""
    rows = []
    for each in findings:
        advice = f"\n-> {each.advice}" if each.advice else ""
        source = "" if each.state == GOOD else f"\n(source: {each.source})"
        rows.append((_WORDS[each.state], each.name, f"{each.text}{advice}{source}"))
    text = aligned(rows, text_width())
    try:
        from rich.console import Console  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415
    except ImportError:
        print(text)
    else:
        shown = Text(text)
        for state, word in _WORDS.items():
            shown.highlight_regex(rf"(?m)^{re.escape(word)}(?= )", _STYLES[state])
        Console(soft_wrap=True).print(shown)
    print(f"\n{summary(findings)['text']}")
