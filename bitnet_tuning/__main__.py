"""``python3 -m bitnet_tuning COMMAND``. A command is imported only when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from bitnet_tuning.console import guarded
from bitnet_tuning.errors import UsageError

COMMANDS = {
    "host": "print what is known about this machine",
    "plan": "print what would be run, and why",
    "doctor": "find what slows this machine down, and what to do about it",
    "selftest": "check that an engine generates the right text",
    "env": "print what bitnet-env.sh exports to a shell, and why",
    "model": "show what a model file costs per token, and improve it",
    "profile": "list, show, remove, export or import saved tunings",
}

_USAGE = "usage: python3 -m bitnet_tuning COMMAND [--help]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    return guarded(_dispatch, arguments)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [f"  {name:10}{text}" for name, text in COMMANDS.items()]
        print("\n".join([_USAGE, "", "commands:", *lines]))
        return 0 if arguments else 2
    if arguments[0] not in COMMANDS:
        raise UsageError(f"unknown command: {arguments[0]}", f"commands: {', '.join(COMMANDS)}")
    return int(import_module(f"bitnet_tuning.cli.{arguments[0]}").run(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main())
