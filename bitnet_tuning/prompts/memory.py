"""How many slots fit in memory; pure."""

from __future__ import annotations

from bitnet_tuning.plan.memory import cache_bytes, need_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.model.types import ModelFile


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
