"""Tell what limits a speed, refuse one that memory forbids, and measure the energy per token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import ceil
from statistics import median

from bitnet_tuning.bench.bandwidth import AbsentError, Bandwidth, measure_bandwidth
from bitnet_tuning.bench.results import Part
from bitnet_tuning.console import counted
from bitnet_tuning.errors import TuningError
from bitnet_tuning.machine.conditions import Meanwhile
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.load import QUIET
from bitnet_tuning.machine.root import Root
from bitnet_tuning.machine.sensors import read_counter, read_domains
from bitnet_tuning.machine.topology import read_last_level_caches
from bitnet_tuning.machine.warnings import THROTTLED_SHARE
from bitnet_tuning.namedtuple import NamedTuple

EXCESS = 1.15
"""Factor by which a speed may exceed what memory was seen to allow."""

HIDDEN_CACHE = 64 << 20
"""Bytes that the caches are taken to hold at least: virtual machines may hide the last level."""


class Ceiling:
    """The best bandwidth of this machine's memory that was seen so far."""

    def __init__(self, host: Host, root: Root | None = None) -> None:
        self._host, self._root = host, root or Root()
        self._again = 2
        """How often it may still be measured again, because a speed seems impossible."""
        self.found: Bandwidth | None = None
        self.reason: str | None = None
        """Why it is not known; None if it is, or was not looked for."""

    def look(self) -> None:
        """Measure the bandwidth with all usable CPUs, in about a second; keep the best result."""
        usable = len(self._host.allowed)
        try:
            new = measure_bandwidth(min(usable, ceil(self._host.quota or usable)), self._host)
        except AbsentError as why:
            self.reason = self.reason or str(why)
            return
        if self.found is None or max(new.samples) > max(self.found.samples):
            self.found = new

    def objection(
        self, read: int | None, speed: float, cpus: frozenset[int] | None = None
    ) -> str | None:
        """Return why generation cannot have a speed, in tokens/s, if it reads so many bytes per
        token with these CPUs (None: all); None if nothing speaks against it. What the last-level
        caches can hold need not come from memory. Other programs may have used memory, too, when
        its bandwidth was measured, so it is measured again first."""
        caches = sum(read_last_level_caches(self._root, cpus or self._host.allowed))
        needed = speed * ((read or 0) - max(HIDDEN_CACHE, caches))
        if needed > 0 and not self.found and not self.reason:
            self.look()
        while (found := self.found) and needed > EXCESS * (most := max(found.samples)):
            if found.reader_limits:
                return None
            if not self._again:
                rate = f"{speed:.3g}" if speed < 1e6 else f"{speed:.0f}"
                needs = f"{rate} tokens/s would read {_rate(speed * (read or 0))}"
                return f"{needs}, but this memory delivers {_rate(most)} at most"
            self._again -= 1
            self.look()
        return None


class Roof(NamedTuple):
    """The speed of token generation next to the limit that memory sets (the roofline model)."""

    share: float
    """Share of the bandwidth that generation uses; above 1 if caches help."""
    limit_tokens_per_second: float
    words: str


def roof(found: Bandwidth, read: int | None, speeds: Sequence[float]) -> Roof:
    """Compare measured speeds of token generation, in tokens/s, with what memory allows. Raise
    AbsentError if they or the bytes ``read`` per token are not known. To generate a token, an
    engine reads every weight once, so it generates at most bandwidth / bytes per token, unless
    weights stay in the caches."""
    if not speeds:
        raise AbsentError("generation was not measured")
    if read is None:
        raise AbsentError("the bytes per token are not known")
    achieved, at_least = read * median(speeds), found.reader_limits
    share = achieved / found.median
    reads, allowed = _rate(achieved), _rate(found.median)
    if share > 1:
        memory = "is faster than could be measured" if at_least else "was slower while measured"
        words = (
            f"generation reads {reads}, more than the {allowed} measured from memory: part of the "
            f"model stays in caches, or memory {memory}"
        )
    else:
        percent = "less than 1 %" if share < 0.01 else f"{100 * share:.0f} %"
        if at_least:
            percent, allowed = f"at most {percent}", f"at least {allowed}"
        words = f"generation reads {reads} of {allowed}: {percent} of what memory allows"
    return Roof(share, found.median / read, words)


def _rate(rate: float) -> str:
    # Bandwidth is given in GB/s (10**9 bytes), as in data sheets of memory.
    return f"{rate / 1e9:.3g} GB/s"


MEMORY_LIMITS, KERNELS_LIMIT, WAITING_LIMITS = 0.7, 0.5, 1.3
"""Share of the bandwidth from which memory counts as a limit; share of a perfect gain by the last
threads from which the kernels do; and factor by which a token's CPU time grows if threads wait."""


def limiting(
    roof: Part,
    seconds: Mapping[int, float],
    costs: Mapping[int, float],
    meanwhile: Meanwhile | None,
) -> Iterator[str]:
    """Yield sentences on what limits generation, as far as measurements tell. ``seconds`` and
    ``costs`` are wall and CPU time of a token in seconds, by number of threads up to the best."""
    facts, found = roof.facts or {}, list[str]()
    if said := facts.get("words", roof.reason):
        yield f"Memory: {said}"
    share = facts.get("share")
    by_memory = isinstance(share, float) and share >= MEMORY_LIMITS
    if len(seconds) > 1 and not by_memory:
        fewer, threads = sorted(seconds)[-2:]
        took, takes = seconds[fewer], seconds[threads]
        if (took / takes - 1) / (threads / fewer - 1) > KERNELS_LIMIT:
            found.append(
                f"Kernels: a token takes {_ms(took)} with {fewer} and {_ms(takes)} with {threads} "
                "threads; more cores would help"
            )
    if costs and (cost := costs[max(costs)]) > WAITING_LIMITS * (alone := costs[min(costs)]):
        found.append(
            f"Waiting: a token costs {_ms(alone)} of CPU time with {min(costs)} and {_ms(cost)} "
            f"with {max(costs)} threads, which wait for each other or for memory in "
            f"{100 * (1 - alone / cost):.0f} % of it"
        )
    found += [f"{name}: {cause}" for name, cause, _ in disturbances(meanwhile)]
    unknown = "Limit: none of memory, kernels, waiting, neighbours and quota stands out"
    yield from found or ([] if by_memory else [unknown])


def disturbances(meanwhile: Meanwhile | None) -> Iterator[tuple[str, str, str]]:
    """Yield what else slowed a measurement down: its name, a sentence, and what to do about it."""
    if meanwhile is None:
        return
    if (others := meanwhile.other_load_cpus or 0.0) > QUIET:
        cause = f"other programs took {counted(float(f'{others:.2g}'), 'CPU')} on average meanwhile"
        yield "Neighbours", cause, "close them"
    paused, periods = meanwhile.quota_throttled_periods, meanwhile.quota_periods
    if paused > THROTTLED_SHARE * periods:
        cause = f"the CPU quota paused the engine in {paused} of {periods} periods"
        yield "Quota", cause, "raise it"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


REPEATS = 3
"""Number of samples of the energy."""
SHORT, LONG = 16, 80
"""Tokens of a sample's two runs: more apart than the energy for loading varies, yet quick."""


class Energy(NamedTuple):
    """Tokens per joule of generation alone: loading and the prompt cancel out."""

    median: float
    samples: tuple[float, ...]
    tokens: int
    """Number of tokens by which the two runs of a sample differ."""
    words: str


def tokens_per_joule(run: Callable[[int], None], root: Root | None = None) -> Energy:
    """Generate SHORT and LONG tokens in turn and divide the extra tokens by the extra energy.
    ``run`` starts the engine, generates that many tokens and waits for its end. Raise AbsentError
    if it raises TuningError, or if the machine does not tell the energy."""
    root = root or Root()
    domains = read_domains(root)
    if not domains:
        raise AbsentError("this machine shows no energy counters (RAPL)")
    if hidden := [domain for domain in domains if read_counter(root, domain) is None]:
        files = " ".join(f"/{domain.file}" for domain in hidden)
        cause = f"only root may read the energy counters; allow it: sudo chmod a+r {files}"
        raise AbsentError(cause)

    def joules(tokens: int) -> float:
        before, used = [read_counter(root, each) for each in domains], 0
        run(tokens)
        for domain, then in zip(domains, before, strict=True):
            now = read_counter(root, domain)
            # A counter may wrap around once: the 65 kJ of common ones last five minutes at 200 W.
            if now is not None and then is not None and now < then <= (domain.span or 0):
                now += domain.span or 0
            if now is None or then is None or now < then:
                raise AbsentError("the energy counters can no longer be read")
            used += now - then
        return used / 1e6

    try:
        extra = [-joules(SHORT) + joules(LONG) for _ in range(REPEATS)]
    except TuningError as error:
        raise AbsentError(f"energy could not be measured: {error.cause}") from error
    if min(extra) <= 0:
        why = "the energy of a longer run could not be told from that of other programs; close them"
        raise AbsentError(why)
    tokens = LONG - SHORT
    samples = tuple(tokens / joules for joules in extra)
    middle = median(samples)
    words = (
        f"{middle:.3g} tokens per joule ({min(samples):.3g}–{max(samples):.3g}); energy of the "
        "whole processor, other processes included, without memory"
    )
    return Energy(middle, samples, tokens, words)
