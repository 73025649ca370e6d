"""ggml's tensor types, and the facts in a model's header; pure."""

from __future__ import annotations

from bitnet_tuning.namedtuple import NamedTuple

I2_S = "i2_s"
"""bitnet.cpp's own ternary type, which mainline llama.cpp does not have."""

TERNARY = (I2_S, "tq1_0", "tq2_0")
"""The tensor types of ternary weights."""

_TYPES = {
    0: ("f32", 1, 4),
    1: ("f16", 1, 2),
    2: ("q4_0", 32, 18),
    3: ("q4_1", 32, 20),
    6: ("q5_0", 32, 22),
    7: ("q5_1", 32, 24),
    8: ("q8_0", 32, 34),
    10: ("q2_k", 256, 84),
    11: ("q3_k", 256, 110),
    12: ("q4_k", 256, 144),
    13: ("q5_k", 256, 176),
    14: ("q6_k", 256, 210),
    20: ("iq4_nl", 32, 18),
    23: ("iq4_xs", 256, 136),
    30: ("bf16", 1, 2),
    34: ("tq1_0", 256, 54),
    35: ("tq2_0", 256, 66),
    36: (I2_S, 4, 1),
}
"""Tensor type -> name, weights per block, bytes per block (ggml.h, ggml-common.h)."""

_I2_S_TRAILER = 32
"""Bytes behind an i2_s tensor: its one scale, padded."""


class TypeShare(NamedTuple):
    """The part of a model that is of one tensor type."""

    name: str
    tensors: int
    weights: int


class ModelFile(NamedTuple):
    """The facts in a model's header. Counts that it does not state are None."""

    path: str
    size: int
    """Bytes of the file."""
    architecture: str
    name: str
    quantization: str
    """The tensor type that holds most weights of the layers, such as ``i2_s``."""
    types: tuple[TypeShare, ...]
    context_length: int | None
    layers: int | None
    embedding_length: int | None
    vocabulary: int | None
    chat_template: bool
    heads: int | None = None
    """Attention heads."""
    kv_width: int | None = None
    """Numbers kept of one token in one layer: all heads' keys and values."""


def tensor_bytes(kind: int, weights: int) -> int:
    """Return the bytes that a tensor takes; 0 for a type whose size is not known here."""
    name, block, size = _TYPES.get(kind, ("", 1, 0))
    return weights // block * size + (_I2_S_TRAILER if name == I2_S else 0)


def type_name(kind: int, file_type: int | None) -> str:
    """Return a tensor type's name. 38 and 39 are tl1 and tl2 in bitnet.cpp, another type and
    mxfp4 in llama.cpp; the file type (tl1 38, tl2 39, there mxfp4 38) tells them apart."""
    if (kind, file_type) in ((38, 38), (39, 39)):
        return "tl1" if kind == 38 else "tl2"
    return _TYPES[kind][0] if kind in _TYPES else f"type {kind}"
