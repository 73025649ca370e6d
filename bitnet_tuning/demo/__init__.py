"""Paths of the built-in demo model's files. README.md in this folder describes the model."""

from __future__ import annotations

import os.path

_FOLDER = os.path.dirname(os.path.realpath(__file__))

TQ2_0 = os.path.join(_FOLDER, "demo-tq2_0.gguf")
"""The model file for mainline llama.cpp and the embedded engine."""

I2_S = os.path.join(_FOLDER, "demo-i2_s.gguf")
"""The model file for bitnet.cpp: the same weights, in the layout of published i2_s files."""

MODELS = (TQ2_0, I2_S)

EXPECTED = os.path.join(_FOLDER, "expected.json")
"""Prompts, and the exact text with which greedy decoding must continue each."""


def right_model(i2_s: bool | None) -> str:
    """Return the path of the demo model for an engine with this ``Engine.i2_s``."""
    return TQ2_0 if i2_s is False else I2_S
