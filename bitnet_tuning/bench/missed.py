"""What a search had no time for: where the default stays, that is no verdict on it; pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import log

from bitnet_tuning.bench import stats
from bitnet_tuning.bench.asks import DEFAULT
from bitnet_tuning.bench.ledger import Ledger
from bitnet_tuning.setting import Change

WORTH = log(1.02)
"""Gains below this are not worth a second look: where noise is low it would take hours to
tell them."""

Stacks = Mapping[str, Sequence[Change]]
"""The changes that make each setting, by its name; none for the default."""


def missed(
    ledger: Ledger, stacks: Stacks, ranked: Sequence[str], left: Callable[[str], float]
) -> str | None:
    """In words, or None where nothing was missed. ``ranked`` are the settings that are ahead
    of the default, ``left`` tells for how many rounds of one there is still time."""
    untried = _untried(ledger, stacks)
    if untried:
        return f"The time was too short to try {', '.join(untried)}"
    if not any(stacks.values()):
        return "No other setting was tried"
    found = ledger.fit()
    for name in ranked:
        gap, error = found.gap(name, DEFAULT), found.error(name, DEFAULT)
        is_ahead = gap > WORTH and (gap > error or found.spread is None)
        if is_ahead and left(name) < stats.VERDICT_ROUNDS:
            return f"{name} looked faster, but no time was left to confirm it"
    return None


def _untried(ledger: Ledger, stacks: Stacks) -> list[str]:
    """Names of changes that no setting had which ran."""
    ran = [stack for name, stack in stacks.items() if ledger.measured(name) or ledger.problem(name)]
    tried = [change for stack in ran for change in stack]
    named = (stack[-1] for stack in stacks.values() if stack)
    return list(dict.fromkeys(change.name for change in named if change not in tried))
