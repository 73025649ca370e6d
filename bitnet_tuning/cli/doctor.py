"""``python3 -m bitnet_tuning doctor``: what keeps this machine from its speed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from bitnet_tuning.cli.arguments import Parser, add_engine, add_model, add_root
from bitnet_tuning.console import print_table
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


def show(findings: Sequence[Finding]) -> None:
    """Print a paragraph per finding to stdout; the summary last."""
    if sys.stdout is None:  # closed: nobody wants to see it
        return
    rows = [(_WORDS[each.state], each.name, "\n".join(details(each))) for each in findings]
    print_table(rows, styles=[_STYLES[each.state] for each in findings])
    print(f"\n{summary(findings)}")


def details(finding: Finding) -> list[str]:
    """Return what was found, what to do, and for what is not good where that is known from."""
    lines = [finding.text]
    if finding.advice:
        lines.append(f"-> {finding.advice}")
    if finding.state != GOOD:
        lines.append(f"({finding.source})")
    return lines
