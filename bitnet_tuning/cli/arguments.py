"""Flags that several programs share, their checks, and the request that they make."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

from bitnet_tuning.console import columns
from bitnet_tuning.errors import MissingError, UsageError
from bitnet_tuning.plan.facts import Request
from bitnet_tuning.plan.memory import AUTO, WAYS
from bitnet_tuning.plan.setting import MOST_THREADS_ENGINE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


LARGEST_CONTEXT = 1 << 24
"""Tokens; the longest context of any published model is 10 million."""

MOST_SLOTS = 256
"""llama.cpp's own limit (LLAMA_MAX_SEQ); that of its first generations is 64."""

_INT32 = (1 << 31) - 1
_INFINITE = float("inf")
_MARK = "\0"
"""Stands before a prompt on its way through argparse; no command line can hold it."""


# argparse looks for translations of its headings, though Python has none: for that it imports
# locale, and a start takes a millisecond longer.
argparse._ = str  # type: ignore[attr-defined]


class Parser(argparse.ArgumentParser):
    """Errors in one line that names the flag, by the one error boundary."""

    def _get_formatter(self) -> argparse.HelpFormatter:
        """argparse makes one for every flag added; left to find the width by itself, it
        imports shutil and with it three compression libraries, a tenth of the start."""
        return argparse.HelpFormatter(prog=self.prog, width=columns() - 2)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"{self.prog} --help lists the flags")


def split_extra(arguments: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """Return our own arguments, and what follows ``--`` for the engine.

    A prompt may look like a flag (``-p -x``), so it is tied to its own one; behind a mark,
    since the argparse of many a Python drops a value ``--`` even so.
    """
    ours: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            break
        if argument in ("-p", "--prompt"):
            prompt = next(rest, None)
            ours.append("--prompt" if prompt is None else f"--prompt={_MARK}{prompt}")
        elif argument.startswith("--prompt="):
            ours.append(argument.replace("=", f"={_MARK}", 1))
        else:
            ours.append(argument)
    return ours, tuple(rest)


def integer(low: int, high: int = _INT32) -> Callable[[str], int]:
    """Return an argparse type: a whole number from ``low`` to ``high``."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.removeprefix("-").isdecimal() and len(text) < 20):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not between {low} and {high}")
        return value

    return parse


def number(low: float, high: float = _INFINITE) -> Callable[[str], float]:
    """Return an argparse type: a finite number from ``low`` to ``high``."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low <= value <= high or value == _INFINITE:  # NaN is not between either
            limits = f"{low:g} or more" if high == _INFINITE else f"between {low:g} and {high:g}"
            raise argparse.ArgumentTypeError(f"{text} is not a finite number, {limits}")
        return value

    return parse


def prompt(text: str) -> str:
    """Check a prompt, as an argparse type, and take the mark of ``split_extra`` off it."""
    text = text.removeprefix(_MARK)
    if not text:
        raise argparse.ArgumentTypeError("the prompt is empty")
    return text


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add the flag that names the engine."""
    parser.add_argument(
        "--engine", metavar="PATH", help="llama-cli, a folder that holds it, or `embedded`"
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the flag that names the model."""
    parser.add_argument("-m", "--model", metavar="FILE", help="model file (GGUF)")


def add_no_profile(parser: argparse.ArgumentParser) -> None:
    """Add the flag that leaves measured profiles out; stored as ``profile``."""
    parser.add_argument(
        "--no-profile", dest="profile", action="store_false", help="ignore saved measurements"
    )


def add_run(parser: argparse.ArgumentParser, prompt_required: bool) -> None:
    """Add the flags of bitnet.cpp's own run_inference.py, and those that all runs have.

    The name that a flag is stored under, here and in ``add_optimized``, is a field of Request
    wherever there is one.
    """
    add = parser.add_argument
    add_model(parser)
    add("-n", "--n-predict", type=integer(-2), default=128, metavar="N", help="tokens to generate")
    add("-p", "--prompt", type=prompt, required=prompt_required, help="text to continue")
    add(
        *("-t", "--threads"),
        type=integer(0, MOST_THREADS_ENGINE),
        default=0,
        metavar="N",
        help="threads; 0: chosen automatically (default)",
    )
    add(
        *("-c", "--ctx-size"),
        type=integer(0, LARGEST_CONTEXT),
        default=2048,
        metavar="N",
        help="context size in tokens",
    )
    add(
        *("-temp", "--temperature"),
        type=number(0),
        default=0.8,
        metavar="T",
        help="sampling temperature",
    )
    add(
        *("-cnv", "--conversation"),
        dest="chat",
        action="store_true",
        help="chat; the prompt is the system prompt",
    )
    add_engine(parser)
    add_no_profile(parser)
    add("--dry-run", action="store_true", help="print the command and the reasons; run nothing")
    add("--json", action="store_true", help="with --dry-run: print the plan as JSON")


def root_folder(text: str) -> str:
    """Check a folder, as an argparse type; raise MissingError for what is none."""
    if not os.path.isdir(text):
        raise MissingError(f"no such folder: {text}", "name one that holds sys and proc")
    return text


def add_root(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the flag that names the folder of another machine's facts."""
    parser.add_argument("--root", type=root_folder, default="/", metavar="DIR", help=what)


def add_optimized(parser: argparse.ArgumentParser) -> None:
    """Add what run_inference_optimized.py takes beyond that."""
    add = parser.add_argument
    add("-f", "--file", dest="prompt_file", metavar="FILE", help="read the prompt from a file")
    add("--top-k", type=integer(0), metavar="K", help="sample from the K likeliest tokens; 0: all")
    add(
        "--top-p",
        type=number(0, 1),
        metavar="P",
        help="sample from those that make up probability P",
    )
    add(
        "--min-p",
        type=number(0, 1),
        metavar="P",
        help="sample from those at least P times as likely as the best",
    )
    add("--repeat-penalty", type=number(0), metavar="X", help="penalty for repeating; 1 is none")
    add("--seed", type=integer(-1, (1 << 32) - 1), metavar="N", help="random seed; -1 for any")
    threads = integer(1, MOST_THREADS_ENGINE)
    add("-tb", "--threads-batch", type=threads, metavar="N", help="threads for the prompt")
    add("--max-threads", type=threads, metavar="N", help="most threads to choose (12)")
    add("-b", "--batch-size", dest="batch", type=integer(1), metavar="N", help="logical batch")
    add("-ub", "--ubatch-size", dest="ubatch", type=integer(1), metavar="N", help="micro-batch")
    add(
        "--performance-mode",
        dest="performance",
        action="store_true",
        help="all that costs something else: spinning threads, fixed CPUs, priority, locked memory",
    )
    add(
        "--memory",
        choices=WAYS,
        default=AUTO,
        help="how the model gets into memory; huge: copied, in huge pages (auto: mapped, or as "
        "was measured best)",
    )
    add("--quiet", action="store_true", help="hide the engine's log unless it fails")
    add("--stats", action="store_true", help="speeds and time to first token after the run")
    add("--prompts", metavar="FILE", help="answer many prompts: JSON lines in, JSON lines out")
    add(
        *("-o", "--output"),
        metavar="FILE",
        help="with --prompts: write each answer to this file as soon as it is complete",
    )
    add("--resume", action="store_true", help="with -o: answer only what the file lacks")
    add(
        "--slots",
        type=integer(1, MOST_SLOTS),
        metavar="N",
        help="with --prompts: how many to answer at a time (1 with temperature 0 or a seed, "
        "else at most 4)",
    )


def read_request(parser: Parser, arguments: list[str]) -> tuple[Request, argparse.Namespace]:
    """Parse the command line of a run; raise UsageError."""
    ours, extra = split_extra(arguments)
    options = parser.parse_args(ours)
    if options.json and not options.dry_run:
        raise UsageError("--json shows the plan and goes with --dry-run", "add --dry-run")
    fields = {name: value for name, value in vars(options).items() if name in Request._fields}
    return Request(**fields, extra=extra), options
