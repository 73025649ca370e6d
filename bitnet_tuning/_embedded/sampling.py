"""The part of a request that says how tokens are chosen."""

from __future__ import annotations

from typing import Any

from bitnet_tuning._embedded.options import Options

# What the options are called in a request to llama.cpp's server.
_NAMES = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "repeat_penalty",
    "repeat_last_n": "repeat_last_n",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}


def request(options: Options) -> dict[str, Any]:
    """Length and sampling; what was not asked for stays as llama.cpp has it."""
    asked = {
        name: value
        for field, name in _NAMES.items()
        if (value := getattr(options, field)) is not None
    }
    # The server has no "until the context is full": any negative number means both.
    asked["n_predict"] = max(options.n_predict, -1)
    if options.seed is not None:
        asked["seed"] = options.seed & 0xFFFFFFFF
    if options.ignore_eos:
        asked["ignore_eos"] = True
    return asked
