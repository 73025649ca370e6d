"""What can go wrong in the embedded engine, with llama.cpp's exit code for it: 1."""

from __future__ import annotations

from bitnet_tuning.errors import TuningError


class EngineError(TuningError):
    """The engine cannot go on: a wrong flag, an unusable model, a refused request."""


class ContextFullError(EngineError):
    """A prompt is longer than the context that it was given."""
