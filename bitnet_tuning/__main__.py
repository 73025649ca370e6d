"""The program bitnet-tuning. A command is imported only when it is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

if not __package__:  # `python3 FOLDER/bitnet_tuning`: Python has put the package itself on the path
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))

from bitnet_tuning.console import command, guarded
from bitnet_tuning.errors import UsageError

COMMANDS = {
    "run": ("run", "run a prompt, a chat or many prompts"),
    "bench": ("benchmark", "find the fastest settings for this machine, and save them"),
    "test": ("test_optimizations", "check that every optimisation takes effect"),
    "doctor": ("doctor", "find what slows this machine down, and what to do about it"),
    "selftest": ("selftest", "check that an engine generates the right text"),
    "model": ("model", "show what a model file costs per token, download or improve it"),
    "plan": ("plan", "print what would be run, and why"),
    "host": ("host", "print what is known about this machine"),
    "profile": ("profile", "list, show, remove, export or import saved settings"),
    "env": ("env", "print what bitnet-env.sh exports to a shell, and why"),
}
"""Name of a command: its module in ``cli``, and what it does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    return guarded(_dispatch, arguments)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [f"  {name:10}{text}" for name, (_, text) in COMMANDS.items()]
        print("\n".join([f"usage: {command('COMMAND')} [--help]", "", "commands:", *lines]))
        return 0 if arguments else 2
    if arguments[0] not in COMMANDS:
        raise UsageError(f"unknown command: {arguments[0]}", f"commands: {', '.join(COMMANDS)}")
    module = import_module(f"bitnet_tuning.cli.{COMMANDS[arguments[0]][0]}")
    return int(module.run(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main())
