#!/usr/bin/env python3
"""Write the completions that ``bitnet-tuning completion`` prints, with shtab, from the parsers.

python3 tools/completions.py
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import shtab

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bitnet_tuning.cli.commands import COMMANDS, module_of
from bitnet_tuning.console import NAME

FOLDER = Path(__file__).resolve().parent.parent / "bitnet_tuning" / "completions"

SHELLS = {"bash": "~/.bashrc", "zsh": "~/.zshrc, below compinit"}
"""Where each shell reads its settings."""

DOORS = {
    "bitnet-run": "run",
    "bitnet-run-optimized": "run",
    "bitnet-benchmark": "bench",
    "bitnet-test-optimizations": "test",
}
"""Programs that are a command of bitnet-tuning, which completes them."""

DOOR = {
    "bash": """\
{function}() {{
  COMP_WORDS=({program} {command} "${{COMP_WORDS[@]:1}}")
  COMP_CWORD=$((COMP_CWORD + 1))
  _shtab_bitnet_tuning
}}
complete -o bashdefault -F {function} {door}
""",
    "zsh": """\
{function}() {{
  words=({program} {command} "${{words[@]:1}}")
  (( CURRENT++ ))
  _shtab_bitnet_tuning
}}
compdef {function} {door}
""",
}


def whole_parser() -> argparse.ArgumentParser:
    """Return a parser of the whole program, whose subcommands are the commands."""
    parser = argparse.ArgumentParser(prog=NAME)
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command")
    for name, (_, about) in COMMANDS.items():
        commands.add_parser(name, help=about)
        commands.choices[name] = module_of(name).make_parser()
        name_files(commands.choices[name])
    return parser


def name_files(parser: argparse.ArgumentParser) -> None:
    """Tell shtab which values are files or folders: their metavar says so."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                name_files(each)
        elif action.choices:
            action.choices = list(action.choices)  # shtab takes a dict for one of subcommands
        elif action.metavar in ("FILE", "PATH", "OUT", ("A", "B")):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar == "DIR":
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]


def completions(shell: str) -> str:
    """Return the completions of all programs for a shell."""
    text = shtab.complete(whole_parser(), shell=shell).rstrip() + "\n"
    for door, command in DOORS.items():
        function = f"_shtab_{door.replace('-', '_')}"
        text += DOOR[shell].format(function=function, program=NAME, command=command, door=door)
    # shtab's own instructions are for a file that is copied by hand.
    text = re.sub(r"(?ms)^# Usage:.*?^# See also: [^\n]*\n", "", text, count=1)
    lines = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).splitlines()
    install = f'put `eval "$({NAME} completion {shell})"` into {SHELLS[shell]}'
    lines.insert(1 if lines[0].startswith("#compdef") else 0, f"# to install: {install}")
    return "\n".join(lines) + "\n"


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    for shell in SHELLS:
        (FOLDER / shell).write_text(completions(shell), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
