"""``python3 -m bitnet_tuning doctor``: what keeps this machine from its speed."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence

from bitnet_tuning.cli.arguments import Parser, add_engine, add_model, add_root, columns
from bitnet_tuning.doctor import examine
from bitnet_tuning.doctor.case import BAD, GOOD, UNKNOWN, WARN, Finding, as_json, exit_code, summary
from bitnet_tuning.doctor.gather import gather

_ABOUT = (
    "Judge every knob that speed depends on, and say what to do. Nothing is changed and "
    "nothing needs root: commands that change something are only printed. "
    "Exit code: 0 good, 1 something is bad, 2 warnings with --strict."
)


def run(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    # A recorded machine is not this one, whose engine a self-test would run.
    selftest = options.root == "/" if options.selftest is None else options.selftest
    findings = examine(gather(options.root, options.engine, options.model, selftest))
    if options.json:
        print(json.dumps(as_json(findings, options.strict), indent=2))
    else:
        show(findings)
    return exit_code(findings, options.strict)


def _parser() -> Parser:
    parser = Parser(prog="bitnet_tuning doctor", description=_ABOUT)
    add = parser.add_argument
    add(
        "--json",
        action="store_true",
        help="print JSON: `findings`, each with name, state (good, warn, bad, unknown), text, "
        "advice, source; `summary` with the number of each state, exit_code, text",
    )
    add_root(parser, "judge this folder's machine; engine and model only where they are named")
    add("--strict", action="store_true", help="exit with 2 where there are warnings")
    add(
        "--selftest",
        action=argparse.BooleanOptionalAction,
        help="run the self-test, some seconds (default: yes, but with --root no)",
    )
    add_engine(parser)
    add_model(parser)
    return parser


_WORDS = {BAD: "BAD", WARN: "WARN", UNKNOWN: "?", GOOD: "ok"}
_STYLES = {BAD: "bold red", WARN: "yellow", UNKNOWN: "cyan", GOOD: "green"}
_NARROWEST, _WIDEST = 60, 120


def show(findings: Sequence[Finding]) -> None:
    """To standard output. ``rich`` colours it where it is installed, unless NO_COLOR is set."""
    if sys.stdout is None:  # closed: nobody wants to see it
        return
    if not (sys.stdout.isatty() and _show_table(findings)):
        print(as_text(findings))


def details(finding: Finding) -> list[str]:
    """What was found, what to do, and for what is not good where that is known from."""
    lines = [finding.text]
    if finding.advice:
        lines.append(f"-> {finding.advice}")
    if finding.state != GOOD:
        lines.append(f"({finding.source})")
    return lines


def as_text(findings: Sequence[Finding]) -> str:
    """A paragraph per finding, as wide as the terminal; the summary last."""
    names = max((len(finding.name) for finding in findings), default=0)
    width = max(_NARROWEST, min(_WIDEST, columns()))
    lines = []
    for finding in findings:
        begin = f"{_WORDS[finding.state]:4}  {finding.name:{names}}  "
        for text in details(finding):
            lines += textwrap.wrap(
                text,
                width,
                initial_indent=begin,
                subsequent_indent=" " * len(begin),
                break_long_words=False,
                break_on_hyphens=False,
            )
            begin = " " * len(begin)
    return "\n".join([*lines, "", summary(findings)])


def _show_table(findings: Sequence[Finding]) -> bool:
    """False without rich."""
    try:
        from rich import box  # noqa: PLC0415
        from rich.console import Console  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415
    except ImportError:
        return False
    table = Table(box=box.SIMPLE, pad_edge=False)
    for name in ("", "check", "finding"):
        table.add_column(name, overflow="fold", no_wrap=name == "check")
    for finding in findings:
        style = _STYLES[finding.state]
        text = Text("\n".join(details(finding)))
        table.add_row(Text(_WORDS[finding.state], style=style), finding.name, text)
    console = Console(highlight=False)
    console.print(table)
    console.print(summary(findings), markup=False, soft_wrap=True)
    return True
