"""What a build was configured for, read from its folder: for an engine that cannot say it."""

from __future__ import annotations

import json
import os
import re

from bitnet_tuning.isa import of_compiler, ordered

_CACHE = "CMakeCache.txt"
_COMMANDS = "compile_commands.json"
_LARGEST = 1 << 25
"""Bytes of either file that are read; llama.cpp's have some hundred thousand."""

_LEVELS = 3
"""Folders above the program: build/bin/Release/llama-cli lies three below the checkout."""

_KERNELS = ("ggml.c", "ggml-cpu.c", "ggml-cpu.cpp", "ggml-quants.c")
"""Sources that are compiled with the flags of the kernels."""

_OPTION = re.compile(r"^GGML_([A-Z0-9_]+):[A-Z]+=(?:ON|TRUE|YES|1)\s*$", re.MULTILINE | re.I)
_FLAGS = re.compile(r"^CMAKE_(?:C|CXX)_FLAGS:[A-Z]+=(.*)$", re.MULTILINE)


def configured_isa(cli: str) -> frozenset[str]:
    """The instruction sets that the build of ``cli`` needs, in llama.cpp's names; empty where
    its folder does not say, as for -march=native."""
    folder = _folder(os.path.realpath(cli))
    if folder is None:
        return frozenset()
    return _compiled(os.path.join(folder, _COMMANDS)) or _cached(os.path.join(folder, _CACHE))


def _folder(program: str) -> str | None:
    folder = program
    for _ in range(_LEVELS):
        folder = os.path.dirname(folder)
        if os.path.isfile(os.path.join(folder, _CACHE)):
            return folder
    return None


def _compiled(path: str) -> frozenset[str]:
    """From the very commands that compiled the kernels."""
    try:
        entries = json.loads(_read(path))
        for entry in entries:
            if re.split(r"[/\\]", entry["file"])[-1] in _KERNELS:
                return of_compiler(entry.get("arguments") or entry["command"].split())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass  # another generator's, or damaged: the cache will do
    return frozenset()


def _cached(path: str) -> frozenset[str]:
    text = _read(path)
    flags = [word for line in _FLAGS.findall(text) for word in line.split()]
    return of_compiler(flags) | set(ordered(_OPTION.findall(text)))


def _read(path: str) -> str:
    """Empty where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(_LARGEST)
    except OSError:
        return ""
