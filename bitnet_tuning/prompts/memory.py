"""How many slots fit in memory; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitnet_tuning.ggml_types import ModelFile

SHARE = 0.9
"""Of the available memory that model and caches may take; the rest is for buffers."""


def kv_bytes_per_token(model: ModelFile) -> int | None:
    """Bytes of KV cache for a token, at most: K and V of every layer in 16 bits, as if all
    heads were KV heads. None where the header does not say."""
    if model.layers is None or model.embedding_length is None:
        return None
    return 2 * model.layers * model.embedding_length * 2


def fitting_slots(model: ModelFile, context: int, available: int | None) -> int | None:
    """Slots of ``context`` tokens for which ``available`` bytes suffice beside the model, at
    least 1; None where nothing is known."""
    each = kv_bytes_per_token(model)
    if not each or available is None:
        return None
    return max(1, int((SHARE * available - model.size) // (each * context)))
