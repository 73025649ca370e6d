"""Tokens per joule, from the energy counters of the processor packages."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

from bitnet_tuning.bench.absent import Absent
from bitnet_tuning.errors import TuningError
from bitnet_tuning.host.energy import Domain, counter_file, read_counter, read_domains
from bitnet_tuning.host.root import Root

REPEATS = 3
SHORT, LONG = 16, 80
"""Tokens: the difference must stand out from the load time's scatter, at little cost."""

NOTE = "energy of the whole processor, so that of other processes counts too; without memory"
"""What the figures include, for people."""


class Energy(NamedTuple):
    """Of generation alone: loading and the prompt cancel out."""

    median: float
    """Tokens per joule."""
    low: float
    high: float
    samples: tuple[float, ...]
    tokens: int
    """By how many tokens the two runs of a sample differ."""


class EnergyMeter:
    """Joules that all packages together have used since the meter was made."""

    def __init__(self, root: Root, domains: tuple[Domain, ...]) -> None:
        self._root, self._domains = root, domains
        self._start = self._counters()

    def _counters(self) -> dict[Domain, int | None]:
        return {domain: read_counter(self._root, domain) for domain in self._domains}

    def joules(self) -> float | None:
        """None where a counter cannot be read any more.

        One that wrapped counts on, once: at 65 kJ, the span of common processors, that is
        five minutes at 200 W.
        """
        total = 0
        for domain, now in self._counters().items():
            used = _used(self._start[domain], now, domain.span)
            if used is None:
                return None
            total += used
        return total / 1e6


def _used(before: int | None, now: int | None, span: int | None) -> int | None:
    """Microjoules."""
    if before is None or now is None:
        return None
    if now >= before:
        return now - before
    return now - before + span if span is not None and span >= before else None


def find_domains(root: Root) -> tuple[Domain, ...] | Absent:
    """The packages' counters, all of them readable, or why not."""
    domains = read_domains(root)
    if not domains:
        return Absent("this machine shows no energy counters (RAPL)")
    hidden = [domain for domain in domains if read_counter(root, domain) is None]
    if hidden:
        files = " ".join(f"/{counter_file(domain)}" for domain in hidden)
        return Absent(f"only root may read the energy counters: sudo chmod a+r {files}")
    return domains


def tokens_per_joule(
    run: Callable[[int], None], root: Root | None = None, repeats: int = REPEATS
) -> Energy | Absent:
    """Generates SHORT and LONG tokens by turns and compares what both took.

    ``run`` starts the engine, generates so many tokens and waits for its end; where it
    raises TuningError, the figure is absent for that reason.
    """
    root = root or Root()
    domains = find_domains(root)
    if isinstance(domains, Absent):
        return domains
    try:
        extra = [_extra_joules(run, root, domains) for _ in range(repeats)]
    except TuningError as error:
        return Absent(f"the run for the energy failed: {error.cause}")
    return _energy([joules for joules in extra if joules is not None])


def _extra_joules(
    run: Callable[[int], None], root: Root, domains: tuple[Domain, ...]
) -> float | None:
    """What the long run took more than the short one."""
    used: list[float | None] = []
    for tokens in (SHORT, LONG):
        meter = EnergyMeter(root, domains)
        run(tokens)
        used.append(meter.joules())
    short, long = used
    return None if short is None or long is None else long - short


def _energy(extra: list[float]) -> Energy | Absent:
    if not extra:
        return Absent("the energy counters stopped being readable")
    if min(extra) <= 0:
        return Absent("a longer run took no more energy: other load hides it, try a quieter time")
    tokens = LONG - SHORT
    samples = tuple(tokens / joules for joules in extra)
    return Energy(median(samples), min(samples), max(samples), samples, tokens)


def as_json(energy: Energy) -> dict[str, Any]:
    """Tokens per joule."""
    facts = energy._asdict()
    facts["samples"] = list(energy.samples)
    return facts
