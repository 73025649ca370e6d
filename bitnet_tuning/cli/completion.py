"""The command ``completion``: print what completes our commands, as shtab made it from the parsers
(``python3 tools/completions.py``)."""

from __future__ import annotations

import os

from bitnet_tuning.cli.arguments import Parser
from bitnet_tuning.store.state import read_file


def run(arguments: list[str]) -> int:
    shell = make_parser().parse_args(arguments).shell
    path = os.path.join(os.path.dirname(os.path.dirname(__file__)), "completions", shell)
    print(read_file(path, "the completions", "install bitnet-tuning again").decode(), end="")
    return 0


def make_parser() -> Parser:
    about = "Print what completes commands and flags in a shell; its first line says how to use it."
    parser = Parser("completion", "SHELL", "bash", "zsh", description=about)
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh"), help="bash or zsh")
    return parser
