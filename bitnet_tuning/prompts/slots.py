"""How many prompts at a time: what is tried, and what the figures say; pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from bitnet_tuning.bench.statistics import VERDICT_ROUNDS, Estimate, ratio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from bitnet_tuning.prompts.asks import Ask


LEVELS = (1, 2, 4, 8)
"""Prompts at a time that are compared. Each doubles the KV cache."""

WORTH = 1.05
"""A level beats a smaller one where its whole interval lies beyond this: slots cost memory."""

UNMEASURED = 4
"""Slots where nothing was measured: on two cores four at a time were 1.7 times as fast as
one, eight no faster than four (2B i2_s model)."""

PAYS_PROMPTS, PAYS_TOKENS = 8, 512
"""A measurement is worth its half minute for so many prompts with so many tokens."""

ROUNDS = VERDICT_ROUNDS

Speeds = Mapping[int, float]
"""A round: tokens/s by level."""


class Decision(NamedTuple):
    """What was found."""

    slots: int
    gain: Estimate | None
    """Over one at a time; None where that is what was found."""


class Finding(NamedTuple):
    """What a measurement comes to."""

    free: Decision
    """For texts that chance has a part in."""
    same: Decision
    """For texts that are to be the same again: without the levels in ``differing``."""
    differing: tuple[int, ...]
    """Levels at which a greedy text came out otherwise than alone: sums are rounded in
    another order there, which decides where two tokens are nearly as likely."""

    def decision(self, repeatable: bool) -> Decision:
        return self.same if repeatable else self.free

    def words(self, repeatable: bool) -> str:
        """For people: ``4 slots: ×1.9 (1.7–2.1) over one at a time``."""
        gain = self.decision(repeatable).gain
        if gain is not None:
            return (
                f"{self.decision(repeatable).slots} slots: ×{gain.median:.1f} "
                f"({gain.low:.1f}–{gain.high:.1f}) over one at a time"
            )
        changes = repeatable and self.free.gain is not None
        why = "greedy texts came out otherwise" if changes else "it was not faster"
        return f"1 slot: with more at a time {why}"


def levels_up_to(most: int) -> tuple[int, ...]:
    return tuple(level for level in LEVELS if level <= most)


def pays(asks: Iterable[Ask], tokens_if_open: int = 128) -> bool:
    """Whether these prompts are worth a measurement."""
    lengths = [ask.n_predict if ask.n_predict >= 0 else tokens_if_open for ask in asks]
    return len(lengths) >= PAYS_PROMPTS and sum(lengths) >= PAYS_TOKENS


def tokens_for(
    levels: Sequence[int], seconds: float, budget: float, least: int, most: int
) -> int | None:
    """Tokens for each answer so that ``ROUNDS`` rounds of these levels, and each prompt alone
    before, stay within ``budget`` seconds even if nothing is gained by asking more at a
    time. ``seconds`` is what one token takes alone, its share of the prompt included. None
    below ``least``; never more than ``most``."""
    requests = ROUNDS * sum(levels) + max(levels)
    found = int(budget / (requests * seconds)) if seconds > 0 else most
    return None if found < least else min(found, most)


def repeatable(asks: Iterable[Ask]) -> bool:
    """Whether somebody may want one of these answers to be the same again."""
    return any(ask.temperature == 0 or ask.seed not in (None, -1) for ask in asks)


def find(rounds: Sequence[Speeds], out: Collection[int]) -> Finding | None:
    """None from too few rounds.

    Where one at a time is in ``out`` itself, its texts change with what the server's other
    slots hold from before: a server with one slot is the only one that is left then.
    """
    free = decide(rounds)
    if free is None:
        return None
    higher = {level for each in rounds for level in each if level > 1}
    differing = higher if 1 in out else set(out)
    same = decide(rounds, differing)
    return None if same is None else Finding(free, same, tuple(sorted(differing)))


def decide(rounds: Sequence[Speeds], out: Collection[int] = ()) -> Decision | None:
    """The smallest level that no higher one beats clearly; None from too few rounds.
    Levels in ``out`` do not count."""
    levels = sorted({level for each in rounds for level in each} - set(out))
    if levels[:1] != [1]:
        return None
    if levels == [1]:
        return Decision(1, None)
    if len(rounds) < ROUNDS:
        return None
    for level in levels:
        if not any(_gain(rounds, high, level).low > WORTH for high in levels if high > level):
            gain = _gain(rounds, level, 1) if level > 1 else None
            return Decision(level, gain)
    raise AssertionError("nothing is higher than the highest")


def _gain(rounds: Sequence[Speeds], high: int, low: int) -> Estimate:
    return ratio([each[high] / each[low] for each in rounds if high in each and low in each])
