"""``python3 -m bitnet_tuning selftest``: run known texts and print PASS or FAIL for each."""

from __future__ import annotations

import json
import os
from typing import Any

from bitnet_tuning.cli.arguments import Parser, add_engine
from bitnet_tuning.console import say
from bitnet_tuning.launch.failure import shorten
from bitnet_tuning.machine.detect import read_host
from bitnet_tuning.prepare import find_engine
from bitnet_tuning.store.state import State, default_folder
from bitnet_tuning.verify.selftest import Report, Result, first_difference, run_selftest

_SHOWN = 60
"""Characters shown of a text from where it differs."""


def run(arguments: list[str]) -> int:
    parser = Parser(
        prog="bitnet_tuning selftest",
        description="Run the demo model through an engine and compare the texts.",
    )
    add_engine(parser)
    parser.add_argument("--model", metavar="FILE", help="another file of the demo model")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    state = State(default_folder(os.environ))
    engine = find_engine(options.engine, state)
    if state.warning:
        say(f"warning: {state.warning}")
    report = run_selftest(engine, read_host(), options.model)
    print(json.dumps(report_facts(report), indent=2) if options.json else as_text(report))
    return 0 if report.passed else 1


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
    lines = [f"engine {report.engine}", f"model  {report.model}"]
    for result in report.results:
        lines += _result_lines(result)
    verdict = "PASS" if report.passed else "FAIL"
    total = len(report.results)
    lines.append(f"{verdict}: {report.right} of {total} runs gave the expected text")
    if report.diagnosis:
        lines.append(f"likely cause: {report.diagnosis}")
    return "\n".join(lines)


def _result_lines(result: Result) -> list[str]:
    title = shorten(result.case.prompt, 32)
    line = f"{'PASS' if result.passed else 'FAIL'}  {title:32}  {result.variant}"
    if result.passed:
        return [line]
    if result.problem:
        return [line, f"      {result.problem}"]
    texts = result.case.text.strip(), result.got.strip()
    at = first_difference(*texts)
    expected, got = (shorten(text[at:], _SHOWN) for text in texts)
    return [
        f"{line}  (differs from character {at})",
        f"      expected {expected!r}",
        f"      got      {got!r}",
    ]
