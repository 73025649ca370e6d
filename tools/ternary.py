"""Pack and unpack matrices of -1, 0 and +1 as two GGUF tensor types, TQ2_0 and I2_S.

Both use two bits per weight: 0, 1 and 2 stand for -1, 0 and +1. They differ in the order of the
weights and in the place of the scale:

========  =====================  ============================  ===================================
type      weights per block      weight j of a block           scale
========  =====================  ============================  ===================================
TQ2_0     256 in 64 + 2 bytes    byte 32 * (j // 128) + j % 32  float16 after each block's 64 bytes
                                 at bit 2 * (j % 128 // 32)
I2_S      128 in 32 bytes        byte j % 32                   one float32 after the whole tensor,
                                 at bit 6 - 2 * (j // 32)      in a trailer of 32 bytes
========  =====================  ============================  ===================================

Sources: ``dequantize_row_tq2_0`` in llama.cpp's ggml-quants.c, ``quantize_i2_s`` in bitnet.cpp's
ggml-bitnet-mad.cpp. Of its two orders, this is the one of its x86 code and of the published models.
"""

import numpy as np
import numpy.typing as npt

Ternary = npt.NDArray[np.int8]
Packed = npt.NDArray[np.uint8]

TQ2_0_BLOCK = 256
TQ2_0_BLOCK_BYTES = 66
I2_S_BLOCK = 128
I2_S_TRAILER_BYTES = 32

# The axis of length 4 runs over the weights that share a byte.
_TQ2_0_SHIFTS = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
_I2_S_SHIFTS = np.array([6, 4, 2, 0], np.uint8).reshape(1, 4, 1)


def pack_tq2_0(weights: Ternary, scale: float) -> Packed:
    """Return the bytes of a TQ2_0 tensor, an array of shape (weights.size / 256 * 66,).

    Raise ValueError unless the weights are whole blocks of -1, 0, +1 and float16 can represent
    the scale exactly.
    """
    half = np.float16(scale)
    if float(half) != scale:
        raise ValueError(f"the scale {scale} is not exact in float16, as TQ2_0 stores it")
    digits = _digits(weights, TQ2_0_BLOCK).reshape(-1, 2, 4, 32)
    blocks = digits.shape[0]
    quads = np.bitwise_or.reduce(digits << _TQ2_0_SHIFTS, axis=2).reshape(blocks, 64)
    scales = np.full(blocks, half, "<f2").view(np.uint8).reshape(blocks, 2)
    return np.hstack([quads, scales]).reshape(-1)


def unpack_tq2_0(data: Packed) -> tuple[Ternary, float]:
    """Return the weights as a flat array, and the scale. Raise ValueError if the scales differ."""
    blocks = data.reshape(-1, TQ2_0_BLOCK_BYTES)
    scales = np.ascontiguousarray(blocks[:, 64:]).view("<f2").reshape(-1)
    if np.any(scales != scales[0]):
        raise ValueError("the blocks of this tensor have different scales")
    quads = blocks[:, :64].reshape(-1, 2, 1, 32)
    return _weights(quads >> _TQ2_0_SHIFTS), float(scales[0])


def pack_i2_s(weights: Ternary, scale: float) -> Packed:
    """Return the bytes of an I2_S tensor, an array of shape (weights.size / 4 + 32,).

    The scale is rounded to float32. Raise ValueError unless the weights are whole blocks of -1,
    0, +1.
    """
    digits = _digits(weights, I2_S_BLOCK).reshape(-1, 4, 32)
    quads = np.bitwise_or.reduce(digits << _I2_S_SHIFTS, axis=1).reshape(-1)
    trailer = np.zeros(I2_S_TRAILER_BYTES, np.uint8)
    trailer[:4] = np.array([scale], "<f4").view(np.uint8)
    return np.concatenate([quads, trailer])


def unpack_i2_s(data: Packed) -> tuple[Ternary, float]:
    """Return the weights of an I2_S tensor as a flat array, and the scale."""
    quads, trailer = data[:-I2_S_TRAILER_BYTES], data[-I2_S_TRAILER_BYTES:]
    scale = float(np.ascontiguousarray(trailer[:4]).view("<f4")[0])
    return _weights(quads.reshape(-1, 1, 32) >> _I2_S_SHIFTS), scale


def _digits(weights: Ternary, block: int) -> Packed:
    """Return 0, 1, 2 for -1, 0, +1. Raise ValueError for other weights and for partial blocks."""
    if weights.size % block:
        raise ValueError(f"{weights.size} weights are not whole blocks of {block}")
    if weights.size and (weights.min() < -1 or weights.max() > 1):
        raise ValueError("a ternary weight must be -1, 0 or +1")
    return (weights.reshape(-1) + 1).astype(np.uint8)


def _weights(shifted: Packed) -> Ternary:
    return ((shifted & 3).astype(np.int8) - 1).reshape(-1)
