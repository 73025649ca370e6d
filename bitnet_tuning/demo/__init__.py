"""Where the built-in demo model's files are: absolute paths, nothing is read.

README.md in this folder says what the model is and how it was made.
"""

from __future__ import annotations

import os.path

_FOLDER = os.path.dirname(os.path.realpath(__file__))

TQ2_0 = os.path.join(_FOLDER, "demo-tq2_0.gguf")
"""The model for mainline llama.cpp and the embedded engine."""

I2_S = os.path.join(_FOLDER, "demo-i2_s.gguf")
"""The same weights for bitnet.cpp, in the order that published i2_s files have."""

EXPECTED = os.path.join(_FOLDER, "expected.json")
"""Prompts with the exact text that greedy decoding must add to them."""
