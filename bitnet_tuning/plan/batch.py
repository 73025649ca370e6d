"""How many tokens of a prompt are computed at once; pure.

A micro-batch that holds the whole prompt computes it as a larger one would, token for token:
only buffers get smaller. One that cuts the prompt may round differently, so it comes from a
measurement, which compares greedy texts, or from want of memory, and is said.
"""

from __future__ import annotations

from bitnet_tuning.console import MEBIBYTE
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.memory import DEFAULT_UBATCH, Need, fits, need_of, sum_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.model.types import ModelFile
    from bitnet_tuning.plan.request import Request


DEFAULT_BATCH = 2048
"""llama.cpp's own logical batch, in tokens."""

LEAST_UBATCH = 64
"""Tokens. llama.cpp pads a context's mask to 32 (GGML_KQ_MASK_PAD), in some releases to 64,
and refuses or enlarges batches below that."""

BYTES_PER_TOKEN = 4.0
"""Of English text with a vocabulary of a hundred thousand or more; for the estimate that is
shown. What is decided rests on the bound of one byte."""

_SPECIAL = 8
"""Tokens that a template or the model's beginning may add, at most."""

_SHARE = 0.9
"""Of the available memory, which a run should stay below."""


class Batch(NamedTuple):
    """A decision, in tokens; None leaves it to the engine."""

    batch: int | None
    ubatch: int | None
    reason: str
    ubatch_reason: str
    warnings: tuple[str, ...] = ()


def choose_batch(
    request: Request,
    model: ModelFile,
    prompt_bytes: int | None,
    available: int | None,
    has_flag: bool = True,
) -> Batch:
    """``prompt_bytes`` is None where the prompt's length is not known before the start, as in
    a chat; ``available`` is memory in bytes; ``has_flag`` says that the engine has -ub."""
    if request.batch or request.ubatch or not has_flag:
        return _as_asked(request, has_flag)
    bound = None if prompt_bytes is None else prompt_bytes + _SPECIAL
    if bound is not None and bound <= DEFAULT_UBATCH // 2:
        size = max(LEAST_UBATCH, 1 << (bound - 1).bit_length())
        saved = need_of(model, 0, DEFAULT_UBATCH).buffers - need_of(model, 0, size).buffers
        why = (
            f"{size}: the prompt of {prompt_bytes} bytes (about {estimate(prompt_bytes or 0)} "
            f"tokens) fits in it whole; its buffers are {saved // MEBIBYTE} MiB smaller"
        )
        return Batch(size, size, why, why)
    return _long(request, model, prompt_bytes, available)


def prompt_bytes(request: Request, file_bytes: int | None) -> int | None:
    """How long the prompt is, whose file has ``file_bytes``; None where that is not known
    before the start."""
    if request.chat:
        return None
    if request.prompt_file is not None:
        return file_bytes
    prompt = request.prompt
    return None if prompt is None else len(prompt.encode("utf-8", "surrogateescape"))


def estimate(prompt_bytes: int) -> int:
    """How many tokens a text of so many bytes is likely to have, without its vocabulary."""
    return max(1, round(prompt_bytes / BYTES_PER_TOKEN))


def logical(ubatch: int | None) -> int | None:
    """The logical batch that a micro-batch needs: engines cut it down to theirs."""
    return ubatch if ubatch is not None and ubatch > DEFAULT_BATCH else None


def _as_asked(request: Request, has_flag: bool) -> Batch:
    default = "the engine's own default"
    if not has_flag:
        default += ": it has no flag for it"
    return Batch(
        request.batch,
        request.ubatch,
        "as --batch-size says" if request.batch else default,
        "as --ubatch-size says" if request.ubatch else default,
    )


def _long(
    request: Request, model: ModelFile, prompt_bytes: int | None, available: int | None
) -> Batch:
    """The engine's own sizes, or smaller ones where memory is short. A mapped model does not
    count: its pages give way."""
    usual = _held(model, request, DEFAULT_UBATCH)
    if available is None or fits(usual, available, _SHARE):
        why = "the engine's own default"
        if prompt_bytes is None:
            why += ": the prompt's length is not known before it starts"
        else:
            why += f": the prompt has about {estimate(prompt_bytes)} tokens"
        return Batch(None, None, why, why)
    size = _that_fits(request, model, available)
    why = f"{size}, for want of memory: {sum_text(_held(model, request, size), available)}"
    warning = f"micro-batch {size} instead of {DEFAULT_UBATCH} for want of memory"
    return Batch(size, size, why, why, (f"{warning}: long prompts take longer",))


def _that_fits(request: Request, model: ModelFile, available: int) -> int:
    """The largest that leaves room, or the smallest at all."""
    size = DEFAULT_UBATCH // 2
    while size > LEAST_UBATCH and not fits(_held(model, request, size), available, _SHARE):
        size //= 2
    return size


def _held(model: ModelFile, request: Request, ubatch: int) -> Need:
    return need_of(model, request.ctx_size, ubatch)._replace(model=0)
