"""Parse a command line as llama.cpp does, with the flags that all programs here share. argparse
cannot: llama.cpp takes any argument after a flag as its value (``-p -foo``, ``-n -1``), has flags
of several letters after one dash (``-ngl``) and exits with 1 after a usage error."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from bitnet_tuning.errors import TuningError
from bitnet_tuning.machine.detect import read_mask
from bitnet_tuning.machine.root import Root

_NOUNS: dict[object, str] = {int: "whole number", float: "number"}
"""What the texts of flags should be, by the function that converts them."""


class CliFlag(NamedTuple):
    """A flag and the option that it sets. A flag without a value sets False if its name begins
    with ``-no-`` or ``--no-``, else True."""

    spec: str
    """Its names and, for a flag with a value, a placeholder."""
    field: str
    """The option; "" for a flag that is accepted and ignored."""
    help: str
    convert: Callable[[str], Any] | Mapping[str, Any] = str
    """How to make the value of the text: a function, or the value of each text that is allowed."""
    least: float = float("-inf")

    def value(self, text: str) -> Any:
        """Return the value in a text. Raise ValueError, which says what is wrong with it."""
        if isinstance(self.convert, Mapping):
            if text not in self.convert:
                raise ValueError(f"'{text}' is not one of {', '.join(self.convert)}")
            return self.convert[text]
        try:
            value = self.convert(text)
        except ValueError:
            noun = _NOUNS.get(self.convert, "usable text")
            raise ValueError(f"'{text}' is not a {noun}") from None
        if self.convert is int and value < self.least:
            raise ValueError(f"must be at least {self.least}")
        return value


def parse(argv: Sequence[str], table: Sequence[CliFlag]) -> dict[str, Any]:
    """Return the options that ``argv`` sets; the last occurrence of a flag counts. Raise
    TuningError for an unknown flag and for a missing or unusable value."""
    names = ((name.rstrip(","), flag) for flag in table for name in flag.spec.split())
    by_name = {name: flag for name, flag in names if name.startswith("-")}
    options: dict[str, Any] = {}
    words = list(reversed(argv))
    while words:
        word = words.pop()
        name = word.replace("_", "-") if word.startswith("--") else word
        flag = by_name.get(name)
        if flag is None:
            raise TuningError(f"invalid argument: {word}")
        try:
            if flag.spec.split()[-1].startswith("-"):
                options[flag.field] = not name.startswith(("-no-", "--no-"))
            elif words:
                options[flag.field] = flag.value(words.pop())
            else:
                raise ValueError("expected value for argument")
        except ValueError as error:
            raise TuningError(f'error while handling argument "{word}": {error}') from None
    options.pop("", None)
    return options


def from_file(path: str) -> bytes:
    """Return a prompt file's bytes without one newline at the end, like llama.cpp's --file. Raise
    TuningError if the file cannot be read."""
    try:
        return Path(path).read_bytes().removesuffix(b"\n")
    except OSError as error:
        raise TuningError(f"failed to open file '{path}': {error.strerror}") from None


def render(title: str, table: Sequence[CliFlag]) -> str:
    """Return the help text, with one line for each flag, in llama.cpp's layout."""
    lines = [title, "", "----- flags -----", ""]
    for flag in table:
        short, comma, rest = flag.spec.partition(", ")
        spec = f"{short + comma:<7}{rest}" if comma else short
        lines.append(f"{spec:<39} {flag.help}")
    return "\n".join(lines) + "\n"


Options = SimpleNamespace
"""The options that a program's flags set. Sizes are in tokens. A value is None, which leaves it to
llama.cpp, where neither a flag nor ``LOADING`` nor the program's ``defaults`` has one."""

LOADING = {"model": "", "context": 4096, "batch": 2048, "ubatch": 512, "chat_template": ""}
"""How a model is loaded by default."""


class LookAlike(NamedTuple):
    """A program of the embedded engine, with the flags of a program of llama.cpp."""

    title: str
    """First line of its help."""
    flags: tuple[CliFlag, ...]
    defaults: Mapping[str, Any]
    """Options that are not None without a flag, besides ``LOADING``."""
    run: Callable[[Options], None]
    """Function that does the work."""

    def parse(self, argv: Sequence[str]) -> Options:
        """Return the options that ``argv`` sets; raise TuningError as ``flags.parse`` does."""
        unset = {flag.field: None for flag in (*LOAD_FLAGS, *self.flags)}
        options = Options(**unset | LOADING | {**self.defaults, **parse(argv, self.flags)})
        # Like llama.cpp, replace thread counts below 1.
        if (options.threads or 0) < 1:
            options.threads = len(read_mask(Root())) or os.cpu_count() or 1
        if (options.threads_batch or 0) < 1:
            options.threads_batch = options.threads
        return options


_FLASH = {"on": True, "off": False, "auto": None, "1": True, "0": False}
_NUMA = {kind: kind for kind in ("distribute", "isolate", "numactl")}

LOAD_FLAGS = (
    CliFlag("-h, --help", "help", "print this text and exit"),
    CliFlag("--version", "version", "print the versions and exit"),
    CliFlag("-m, --model FNAME", "model", "model file (GGUF)"),
    CliFlag("-c, --ctx-size N", "context", "tokens of context (default: 4096; 0: model's)", int),
    CliFlag("-t, --threads N", "threads", "threads (default: CPUs this process may use)", int),
    CliFlag("-tb, --threads-batch N", "threads_batch", "threads for prompts (default: -t)", int),
    CliFlag("-b, --batch-size N", "batch", "logical batch size (default: 2048)", int),
    CliFlag("-ub, --ubatch-size N", "ubatch", "physical batch size (default: 512)", int),
    CliFlag("--mmap, --no-mmap", "mmap", "map the model file into memory, or copy it"),
    CliFlag("--mlock", "mlock", "keep the model in RAM"),
    CliFlag("-fa, --flash-attn MODE", "flash", "on, off or auto (default)", _FLASH),
    CliFlag("--numa TYPE", "numa", "distribute, isolate or numactl", _NUMA),
    CliFlag("-ngl, --gpu-layers, --n-gpu-layers N", "", "accepted; everything runs on the CPU"),
)
