"""The commands of the program, and the one that a mistaken word was probably meant for."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from bitnet_tuning.console import ADDRESS, aligned, command, text_width
from bitnet_tuning.console import word as quoted
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
    "completion": ("completion", "print what completes these commands in bash or zsh"),
}
"""Name of a command: its module in ``cli``, and what it does."""


def dispatch(arguments: list[str]) -> int:
    """Run a command and return its exit code. Raise TuningError."""
    name, *rest = arguments or ["help"]
    if asks := name in ("help", "-h", "--help"):
        rest = [each for each in rest if each not in ("-h", "--help")]
    if asks and not rest:
        lines = aligned([(f"  {each}", text) for each, (_, text) in COMMANDS.items()], text_width())
        print(f"usage: {command('COMMAND')} [options]", "", "commands:", lines, "", sep="\n")
        print(f"{command('help')} COMMAND says more about one.", ADDRESS, sep="\n")
        return 0 if arguments else 2
    if name in ("-V", "--version"):
        name, rest = "run", ["--version"]
    if asks:
        name, rest = rest[0], ["--help"]
    if name not in COMMANDS:
        found = nearest(name, [*COMMANDS, "--version", "--help"])
        remedy = f"did you mean {command(found)}?" if found else f"{command('help')} lists all"
        raise UsageError(f"unknown command: {name}", remedy)
    return int(module_of(name).run(rest))


def module_of(name: str) -> Any:
    """Return the module of a command, which has ``run`` and ``make_parser``."""
    return import_module(f"bitnet_tuning.cli.{COMMANDS[name][0]}")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the known word that is most like another one; "" if none is."""
    from difflib import get_close_matches  # noqa: PLC0415 (a user's mistake)

    return next(iter(get_close_matches(word, list(known), 1)), "")


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    """Return the flags of a parser and of its subcommands."""
    flags = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            flags = flags.union(*map(flags_of, action.choices.values()))
    return flags


def unknown_word(parser: argparse.ArgumentParser, word: str) -> UsageError:
    """Return the error for a word that a parser does not know, with what was probably meant."""
    flag, own = word.partition("=")[0], flags_of(parser)
    every = {command(name): flags_of(module_of(name).make_parser()) for name in COMMANDS}
    found = nearest(flag, own.union(*every.values()))
    remedy = "flags of the engine follow --; " if "--n-predict" in own else ""
    if not flag.startswith("-"):
        advice = "put a text of several words in quotes"
        if "--prompt" in own:
            advice = f"a prompt goes after -p, in quotes: {parser.prog} -p {quoted(word)}"
        return UsageError(f"unexpected argument: {word}", advice)
    if found in own:
        remedy = f"did you mean {found}? "
    elif found:
        is_it = "it is a flag" if found == flag else f"did you mean {found}, a flag"
        takers = ", ".join([name for name, flags in every.items() if found in flags][:3])
        return UsageError(f"unknown flag: {flag}", f"{is_it} of: {takers}")
    return UsageError(f"unknown flag: {flag}", f"{remedy}--help lists all flags")
