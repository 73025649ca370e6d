"""``python3 -m bitnet_tuning doctor``: find what slows this machine down."""

from __future__ import annotations

import json
from collections.abc import Sequence

from bitnet_tuning.cli.arguments import Parser, add_engine, add_root
from bitnet_tuning.cli.show import outcomes
from bitnet_tuning.console import aligned, counted, text_width
from bitnet_tuning.doctor import examine
from bitnet_tuning.doctor.case import BAD, GOOD, UNKNOWN, WARN, Finding, summary
from bitnet_tuning.doctor.gather import gather

_ABOUT = (
    "Check everything that speed depends on and print what to do about it, the worst finding "
    "last. Nothing is changed, and root is not needed."
)


def run(arguments: list[str]) -> int:
    options = make_parser().parse_args(arguments)
    findings = examine(gather(options.root, options.engine, options.model, options.selftest))
    found = summary(findings, options.strict)
    if options.json:
        every = [finding._asdict() for finding in findings]
        print(json.dumps({"findings": every, "summary": found}, indent=2))
    else:
        show(findings, options.verbose)
    return int(found["exit_code"])


def make_parser() -> Parser:
    parser = Parser("doctor", description=_ABOUT)
    parser.exits = "0 nothing bad, 1 something bad (such as no engine), "
    parser.exits += "2 wrong usage, or warnings with --strict"
    add = parser.add_argument
    what = (
        "print JSON: `findings`, each with name, state (good, warn, bad, unknown), text, advice "
        "and source; and `summary` with the number of findings in each state, exit_code and text"
    )
    add("--json", action="store_true", help=what)
    what = "print what is fine, too, and what each check rests on"
    add("-v", "--verbose", action="store_true", help=what)
    what = "check a machine recorded in this folder, and only the engine and model you name"
    add_root(parser, what)
    add("--strict", action="store_true", help="exit with 2 if there are warnings")
    what = "leave out the self-test, which takes some seconds, as --root does"
    add("--no-selftest", dest="selftest", action="store_false", help=what)
    add_engine(parser, model=True)
    return parser


_WORDS = {BAD: "BAD", WARN: "WARN", UNKNOWN: "?", GOOD: "ok"}


def show(findings: Sequence[Finding], verbose: bool = False) -> None:
    """Print a paragraph for each finding to stdout, the worst last, where a terminal stops, and
    what is fine only if ``verbose``; then how many findings of each kind there are."""
    rows, width = [], text_width()
    for each in findings[::-1]:
        advice = f"\n-> {each.advice}" if each.advice else ""
        if len(advice) + len("WARN  ") > width:  # a command in a line of its own can be copied
            advice = ":\n".join(advice.rsplit(": ", 1))
        source = f"\n(source: {each.source})" if verbose and each.state != GOOD else ""
        if verbose or each.state != GOOD:
            rows.append((_WORDS[each.state], f"{each.name}: {each.text}{advice}{source}"))
    found = summary(findings)
    warnings, fine = counted(found[WARN], "warning"), counted(found[GOOD], "check")
    kinds = ((BAD, f"{found[BAD]} bad"), (WARN, warnings), (UNKNOWN, f"{found[UNKNOWN]} unknown"))
    problems = ", ".join(text for state, text in kinds if found[state])
    fine += f" {'is' if found[GOOD] == 1 else 'are'} fine{'' if verbose else ' (-v shows them)'}"
    closing = aligned([[f"{problems}; {fine}" if problems else fine]], width)
    print(*filter(None, (outcomes(rows, width), closing)), sep="\n\n")
