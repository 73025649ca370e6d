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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    return int(_load("console").guarded(_load("cli.commands").dispatch, arguments))


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


def _door(name: str, **options: bool) -> Callable[[], int]:
    return lambda: int(_load(f"cli.{name}").main(**options))


run, run_optimized = _door("run"), _door("run", report=True)
benchmark, test_optimizations = _door("benchmark"), _door("test_optimizations")


if __name__ == "__main__":
    sys.exit(main())
