"""How many slots fit in memory; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitnet_tuning.memory_need import cache_bytes, need_of

if TYPE_CHECKING:
    from bitnet_tuning.ggml_types import ModelFile

SHARE = 0.9
"""Of the available memory that model, caches and buffers may take."""


def fitting_slots(
    model: ModelFile, context: int, ubatch: int | None, available: int | None
) -> int | None:
    """Slots of ``context`` tokens for which ``available`` bytes suffice beside the model, at
    least 1; None where nothing is known."""
    each = cache_bytes(model, context)
    if not each or available is None:
        return None
    beside = need_of(model, context, ubatch)
    return max(1, int((SHARE * available - beside.model - beside.buffers) // each))
