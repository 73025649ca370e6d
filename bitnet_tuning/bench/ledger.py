"""What a search was told, and what follows from it at once; pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import fsum

from bitnet_tuning.bench import stats
from bitnet_tuning.bench.asks import DEFAULT, Limits
from bitnet_tuning.bench.failure import NO_END
from bitnet_tuning.bench.race import Fit, fit
from bitnet_tuning.bench.rounds import Round, value
from bitnet_tuning.bench.stats import Estimate

FAILURES = 2
"""So many, and a setting is out. One alone may be the machine's fault."""


class Ledger:
    """All rounds and checks so far. Everything else is computed from them."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.rounds: list[Round] = []
        self.checks: dict[str, str | None] = {}
        self._failures: dict[str, list[str]] = defaultdict(list)
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._fit: tuple[int, Fit] | None = None

    def add(self, told: Round) -> None:
        self.rounds.append(told)
        for run in told.runs:
            self._seconds[run.setting].append(run.seconds)
            if run.problem is not None:
                self._failures[run.setting].append(run.problem)

    def problem(self, name: str) -> str | None:
        """Why a setting is out, or None."""
        wrong = self.checks.get(name)
        if wrong is not None:
            return wrong
        failures = self._failures[name]
        # Once is enough: each that hung costs minutes.
        hangs = [each for each in failures if each.startswith(NO_END)]
        return (hangs or failures)[-1] if hangs or len(failures) >= FAILURES else None

    def good(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if self.problem(name) is None]

    @property
    def spent(self) -> float:
        """Seconds of the budget."""
        return self.rounds[-1].elapsed if self.rounds else 0.0

    def cost(self, order: Sequence[str]) -> float:
        """Seconds that a round of these will take; 0 before anything ran."""
        every = [second for each in self._seconds.values() for second in each]
        if not every:
            return 0.0
        between = max(1.0, self.spent / fsum(every)) if fsum(every) else 1.0
        usual = fsum(every) / len(every)
        return between * fsum(self._usual(name, usual) for name in order)

    def _usual(self, name: str, otherwise: float) -> float:
        seconds = self._seconds.get(name)
        return fsum(seconds) / len(seconds) if seconds else otherwise

    def affords(self, order: Sequence[str], share: float = 1.0) -> bool:
        """Whether a round of these ends within that share of the budget."""
        return self.spent + self.cost(order) <= share * self.limits.budget

    def fit(self) -> Fit:
        """Scores from all rounds."""
        if self._fit is None or self._fit[0] != len(self.rounds):
            self._fit = len(self.rounds), fit(self.rounds, self.limits.objective)
        return self._fit[1]

    def ratios(self, name: str, reference: str = DEFAULT, since: int = 0) -> list[float]:
        """Paired by round, from the rounds whose index is ``since`` or later."""
        return stats.ratios(self.rounds[since:], name, reference, self.limits.objective)

    def floor(self, count: int, level: float = stats.FLOOR_LEVEL) -> float | None:
        """The noise floor for a comparison over ``count`` rounds."""
        pairs = stats.itself(self.rounds, DEFAULT, self.limits.objective)
        return stats.floor(pairs, count, level)

    def noise(self) -> Estimate | None:
        """The default against itself."""
        return stats.noise(self.rounds, DEFAULT, self.limits.objective)

    def paired(self, name: str, reference: str = DEFAULT) -> int:
        """Rounds that have both."""
        return len(self.ratios(name, reference))

    def measured(self, name: str) -> int:
        """Good runs."""
        runs = (run for each in self.rounds for run in each.runs if run.setting == name)
        return sum(1 for run in runs if value(run, self.limits.objective))
