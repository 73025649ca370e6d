"""How much memory a run takes at most, and in which way its model is read; pure.

The sums hold for bitnet.cpp with the 2B model to the megabyte: 1125 MiB of model, 150 MiB of
cache for 2048 tokens, 255.5 MiB of buffers with a micro-batch of 512, 31.9 with one of 64.
"""

from __future__ import annotations

from bitnet_tuning.records import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from bitnet_tuning.ggml_types import ModelFile

MEBIBYTE = 1 << 20

DEFAULT_UBATCH = 512
"""llama.cpp's own micro-batch, in tokens."""

_F32 = 4
_UNSTATED_CONTEXT = 4096
"""Tokens, for a model that does not state its length and a request that leaves it to it."""


class Need(NamedTuple):
    """Bytes."""

    model: int
    cache: int
    """Keys and values of a full context."""
    buffers: int
    """For one micro-batch."""

    @property
    def total(self) -> int:
        return self.model + self.cache + self.buffers


def need_of(model: ModelFile, ctx_size: int, ubatch: int | None, sequences: int = 1) -> Need:
    """For a context of ``ctx_size`` tokens (0: the model's own) in each of ``sequences``."""
    context = sequences * (ctx_size or model.context_length or _UNSTATED_CONTEXT)
    return Need(model.size, cache_bytes(model, context), buffer_bytes(model, context, ubatch))


def cache_bytes(model: ModelFile, tokens: int) -> int:
    """Of the keys and values of so many tokens, in F16. Without a word on its attention heads
    a model counts as one without shared ones, which takes most."""
    width = model.kv_width or 2 * (model.embedding_length or 0)
    return tokens * (model.layers or 0) * width * 2


def buffer_bytes(model: ModelFile, context: int, ubatch: int | None) -> int:
    """The widest results of a step: logits, or every head's weights over the context."""
    widest = max(model.vocabulary or 0, (model.heads or 0) * context)
    return _F32 * (ubatch or DEFAULT_UBATCH) * (widest + (model.embedding_length or 0))


def sum_text(need: Need, available: int | None) -> str:
    """The sum, and what it is held against, for people."""
    parts = (("model", need.model), ("cache", need.cache), ("buffers", need.buffers))
    terms = " + ".join(f"{name} {_mebibytes(size)}" for name, size in parts)
    held = "not known" if available is None else f"{_mebibytes(available)} MiB"
    return f"{terms} = {_mebibytes(need.total)} MiB; available: {held}"


def fits(need: Need, available: int | None, share: float) -> bool:
    """Whether the sum takes at most ``share`` of what is available, which must be known."""
    return available is not None and need.total <= share * available


def _mebibytes(size: int) -> int:
    return -(-size // MEBIBYTE)
