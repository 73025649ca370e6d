"""The program bitnet-tuning, and the doors of the others. What they need is imported when they are
called, so that Ctrl-C ends them without a traceback from the start."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

if not __package__:  # `python3 FOLDER/bitnet_tuning`: Python has put the package itself on the path
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))

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
    return int(_load("console").guarded(_dispatch, arguments))


def _load(name: str) -> ModuleType:
    """Import one of our modules; Ctrl-C meanwhile exits with 130, without a traceback."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # it is not ignored
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    try:
        # Unlike import_module, this needs no import of importlib.
        return __import__(f"bitnet_tuning.{name}", fromlist=["main"])
    finally:
        signal.signal(signal.SIGINT, before)


def _door(name: str) -> Callable[[], int]:
    return lambda: int(_load(f"cli.{name}").main())


run, run_optimized = _door("run"), _door("run_optimized")
benchmark, test_optimizations = _door("benchmark"), _door("test_optimizations")


def _dispatch(arguments: list[str]) -> int:
    from bitnet_tuning.console import command  # noqa: PLC0415 (as above)
    from bitnet_tuning.errors import UsageError  # noqa: PLC0415

    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [f"  {name:10}{text}" for name, (_, text) in COMMANDS.items()]
        print("\n".join([f"usage: {command('COMMAND')} [--help]", "", "commands:", *lines]))
        return 0 if arguments else 2
    if arguments[0] not in COMMANDS:
        raise UsageError(f"unknown command: {arguments[0]}", f"commands: {', '.join(COMMANDS)}")
    return int(_load(f"cli.{COMMANDS[arguments[0]][0]}").run(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main())
