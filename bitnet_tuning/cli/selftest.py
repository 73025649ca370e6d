"""``python3 -m bitnet_tuning selftest``: run known texts and print PASS or FAIL for each."""

from __future__ import annotations

import json
from typing import Any

from bitnet_tuning.cli.arguments import Parser, add_engine, expanded
from bitnet_tuning.cli.show import outcomes
from bitnet_tuning.console import say
from bitnet_tuning.errors import UnsupportedError
from bitnet_tuning.launch.failure import shorten
from bitnet_tuning.machine.detect import read_host
from bitnet_tuning.prepare import crowded_host, find_engine
from bitnet_tuning.store.state import State
from bitnet_tuning.verify.selftest import Report, Result, first_difference, run_selftest

_VERDICTS = {True: "PASS", False: "FAIL", None: "SLOW"}

_SHOWN = 44
"""Number of characters to show of a text, from the first one that differs."""


def run(arguments: list[str]) -> int:
    options = make_parser().parse_args(arguments)
    state = State()
    engine = find_engine(options.engine, state)
    say(state.warning and f"warning: {state.warning}")
    host = crowded_host(read_host(), engine, state)
    report = run_selftest(engine, host, options.model)
    print(json.dumps(report_facts(report), indent=2) if options.json else as_text(report))
    return {True: 0, False: 1, None: UnsupportedError.exit_code}[report.passed]


def make_parser() -> Parser:
    parser = Parser(
        "selftest",
        description="Run the demo model, which knows some texts by heart, and compare what the "
        "engine prints.",
    )
    parser.exits = "0 all texts right, 1 one wrong, 2 wrong usage, 3 something missing, "
    parser.exits += "4 not possible here, or some runs did not end in time"
    add_engine(parser)
    what = "use another file of the demo model"
    parser.add_argument("--model", type=expanded, metavar="FILE", help=what)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def report_facts(report: Report) -> dict[str, Any]:
    return {
        "engine": report.engine,
        "model": report.model,
        "passed": report.passed,
        "cause": report.diagnosis,
        "cases": [
            {
                "prompt": result.case.prompt,
                **result.variant._asdict(),
                "passed": result.passed,
                "expected": result.case.text,
                "got": result.got,
                "problem": result.problem,
            }
            for result in report.results
        ],
    }


def as_text(report: Report) -> str:
    """Return the cause of a failure, a paragraph for each run, failed ones first, the verdict."""
    verdict, rows = _VERDICTS[report.passed], sorted(map(_row, report.results))
    label = "" if report.passed is None else "likely cause: "
    why = [(verdict, f"{label}{report.cause}\n{report.remedy or ''}".strip())]
    lines = [f"engine {report.engine}", f"model  {report.model}"]
    lines += [outcomes(why)] if report.cause else []
    closing = (verdict, f"{report.right} of {len(rows)} runs gave the expected text")
    return "\n".join([*lines, outcomes(rows), outcomes([closing])])


def _row(result: Result) -> tuple[str, str]:
    title = f"{shorten(result.case.prompt, 32)} ({result.variant})"
    if result.passed:
        return "PASS", title
    texts = result.case.text.strip(), result.got.strip()
    at = first_difference(*texts)
    expected, got = (shorten(text[at:], _SHOWN) or "nothing" for text in texts)
    differs = f"differs from character {at + 1} on:\nexpected  {expected}\ngot       {got}"
    return _VERDICTS[result.passed], f"{title}: {result.problem or differs}"
