"""Tell how near a speed is to what memory allows, and what it costs in energy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from bitnet_tuning.bench.bandwidth import Absent
from bitnet_tuning.errors import TuningError
from bitnet_tuning.machine.root import Root
from bitnet_tuning.machine.sensors import Domain, counter_file, read_counter, read_domains
from bitnet_tuning.model.types import tensor_bytes
from bitnet_tuning.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.model.gguf import TensorInfo


GB = 10**9

_TOKENS = "token_embd.weight"
_OUTPUT = "output.weight"
_LOOKED_UP = (_TOKENS, "position_embd.weight", "token_types.weight", "per_layer_token_embd.weight")
"""Tables of which a token needs one row (names of llama.cpp's llama-arch.cpp)."""
_EXPERTS = ("_exps.weight", "_exps.bias")

_BEYOND = "caches hold a part of the model, or memory was slower while it was measured"
_BEYOND_LOWER = "caches hold a part of the model, or memory gives more than could be measured"


class Roof(NamedTuple):
    """A speed of token generation against the memory's.

    To generate a token, an engine reads every weight once; so the memory's read bandwidth
    sets a limit, unless the weights stay in the caches.
    """

    bandwidth: float
    """Bytes per second that can be read with as many threads."""
    bytes_per_token: int
    tokens_per_second: float

    @property
    def achieved(self) -> float:
        """Bytes of weights per second."""
        return self.bytes_per_token * self.tokens_per_second

    @property
    def share(self) -> float:
        """Of the bandwidth; above 1 where caches give a part of it."""
        return self.achieved / self.bandwidth

    @property
    def limit(self) -> float:
        """tokens/s that memory allows."""
        return self.bandwidth / self.bytes_per_token


def bytes_per_token(tensors: Sequence[TensorInfo]) -> int | Absent:
    """Return the bytes of weights that one generated token needs; the cache of earlier tokens,
    which grows with the text, is not among them.

    Every tensor counts whole, lookup tables one row. Without an ``output.weight`` the
    token table is the output matrix as well and is read whole.
    """
    tied = all(info.name != _OUTPUT for info in tensors)
    total = 0
    for info in tensors:
        size = tensor_bytes(info.kind, _weights_read(info, tied))
        if size == 0:
            return Absent(f"the size of tensor type {info.kind} ({info.name}) is not known here")
        if info.name.endswith(_EXPERTS):
            return Absent(f"a token needs only some of the experts in {info.name}")
        total += size
    return total or Absent("the model file lists no tensors")


def _weights_read(info: TensorInfo, tied: bool) -> int:
    one_row = info.name in _LOOKED_UP and not (tied and info.name == _TOKENS)
    return info.shape[0] if one_row and info.shape else info.weights


def words(roof: Roof, at_least: bool = False) -> str:
    """Return a sentence for people. ``at_least``: the bandwidth is only a lower bound."""
    achieved, most = _gigabytes(roof.achieved), _gigabytes(roof.bandwidth)
    if roof.share > 1:
        why = _BEYOND_LOWER if at_least else _BEYOND
        return f"{achieved}/s, more than the {most}/s measured of memory: {why}"
    share = _percent(roof.share)
    if at_least:
        return f"{achieved}/s of at least {most}/s: {share} of what memory allows, or less"
    return f"{achieved}/s of {most}/s: {share} of what memory allows"


def _percent(share: float) -> str:
    return "less than 1 %" if share < 0.01 else f"{100 * share:.0f} %"


def _gigabytes(size: float) -> str:
    return f"{size / GB:.3g} GB"


def as_json(roof: Roof) -> dict[str, Any]:
    return {
        "bandwidth_bytes_per_second": roof.bandwidth,
        "bytes_per_token": roof.bytes_per_token,
        "tokens_per_second": roof.tokens_per_second,
        "achieved_bytes_per_second": roof.achieved,
        "share": roof.share,
        "limit_tokens_per_second": roof.limit,
    }


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
    """Counts the joules that all packages together have used since the meter was made."""

    def __init__(self, root: Root, domains: tuple[Domain, ...]) -> None:
        self._root, self._domains = root, domains
        self._start = self._counters()

    def _counters(self) -> dict[Domain, int | None]:
        return {domain: read_counter(self._root, domain) for domain in self._domains}

    def joules(self) -> float | None:
        """Return the joules; None where a counter cannot be read any more.

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
    """Return microjoules."""
    if before is None or now is None:
        return None
    if now >= before:
        return now - before
    return now - before + span if span is not None and span >= before else None


def find_domains(root: Root) -> tuple[Domain, ...] | Absent:
    """Return the packages' counters, all of them readable, or why not."""
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
    """Generate SHORT and LONG tokens by turns and compare what both took.

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
    """Return what the long run took more than the short one."""
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
