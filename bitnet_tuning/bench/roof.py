"""How near a speed is to what memory allows; pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from bitnet_tuning.bench.absent import Absent
from bitnet_tuning.ggml_types import tensor_bytes

if TYPE_CHECKING:
    from bitnet_tuning.gguf import TensorInfo

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


def bytes_per_token(
    tensors: Sequence[TensorInfo], experts: tuple[int, int] | None = None
) -> int | Absent:
    """Bytes of weights that one generated token needs; the cache of earlier tokens, which
    grows with the text, is not among them.

    Every tensor counts whole, lookup tables one row. Without an ``output.weight`` the
    token table is the output matrix as well and is read whole. ``experts`` are those used
    for a token and all there are.
    """
    tied = all(info.name != _OUTPUT for info in tensors)
    total = 0
    for info in tensors:
        size = tensor_bytes(info.kind, _weights_read(info, tied))
        if size == 0:
            return Absent(f"the size of tensor type {info.kind} ({info.name}) is not known here")
        if info.name.endswith(_EXPERTS):
            if experts is None:
                return Absent(f"a token needs only some of the experts in {info.name}")
            size = size * experts[0] // experts[1]
        total += size
    return total or Absent("the model file lists no tensors")


def _weights_read(info: TensorInfo, tied: bool) -> int:
    one_row = info.name in _LOOKED_UP and not (tied and info.name == _TOKENS)
    return info.shape[0] if one_row and info.shape else info.weights


def words(roof: Roof, at_least: bool = False) -> str:
    """One sentence for people. ``at_least``: the bandwidth is only a lower bound."""
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
