"""``python3 -m bitnet_tuning doctor``: what keeps this machine from its speed."""

from __future__ import annotations

import argparse
import json

from bitnet_tuning.cli.arguments import Parser, add_root
from bitnet_tuning.cli.doctor_facts import Inquiry, gather
from bitnet_tuning.cli.doctor_table import show
from bitnet_tuning.doctor.examine import examine
from bitnet_tuning.doctor.finding import as_json, exit_code

_ABOUT = (
    "Judge every knob that speed depends on, and say what to do. Nothing is changed and "
    "nothing needs root: commands that change something are only printed. "
    "Exit code: 0 good, 1 something is bad, 2 warnings with --strict."
)


def run(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    # A recorded machine is not this one, whose engine a self-test would run.
    selftest = options.root == "/" if options.selftest is None else options.selftest
    findings = examine(gather(Inquiry(options.root, options.engine, options.model, selftest)))
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
    add("--engine", metavar="PATH", help="llama-cli, a folder that holds it, or `embedded`")
    add("-m", "--model", metavar="FILE", help="model file")
    return parser
