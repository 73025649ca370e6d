"""BitNet b1.58 with llama's architecture: functions of a dictionary of tensors, named as in GGUF.

Every matrix except the embedding is ternary: W ~ scale * {-1, 0, +1} with scale = mean |W|. Every
input of such a matrix is rounded to 8 bits, absmax per token (Ma et al., 2024, arXiv:2402.17764).
Gradients ignore the rounding. Rotary positions rotate neighbouring pairs (2i, 2i + 1), the order of
GGUF's llama architecture.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

EMBEDDING = "token_embd.weight"
OUTPUT_NORM = "output_norm.weight"


class Shape(NamedTuple):
    """Sizes of the network. `context` is the one in the file; training sequences were shorter."""

    vocab: int
    hidden: int = 256
    feed_forward: int = 768
    layers: int = 3
    heads: int = 4
    context: int = 2048
    epsilon: float = 1e-5
    rope_base: float = 10000.0

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Return the ternary matrices: names, and (outputs, inputs)."""
        square, up = (self.hidden, self.hidden), (self.feed_forward, self.hidden)
        parts = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), square)
        parts |= {"ffn_gate": up, "ffn_up": up, "ffn_down": (self.hidden, self.feed_forward)}
        return {f"blk.{i}.{p}.weight": parts[p] for i in range(self.layers) for p in parts}

    def norms(self) -> list[str]:
        parts = ("attn_norm", "ffn_norm")
        return [f"blk.{i}.{p}.weight" for i in range(self.layers) for p in parts] + [OUTPUT_NORM]


def new_parameters(shape: Shape, seed: int) -> dict[str, Tensor]:
    """Return random float parameters; each step derives the ternary weights from them."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {EMBEDDING: (shape.vocab, shape.hidden), **shape.matrices()}
    parameters = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    for name, (_, inputs) in sizes.items():
        parameters[name] *= 0.05 if name == EMBEDDING else 1 / math.sqrt(inputs)
    parameters |= {name: torch.ones(shape.hidden) for name in shape.norms()}
    return {name: value.requires_grad_() for name, value in parameters.items()}


def ternary_parts(weight: Tensor) -> tuple[Tensor, float]:
    """Return the matrix as values of -1, 0, +1 and a scale, exact in float16 as TQ2_0 needs it."""
    scale = float(weight.detach().abs().mean().half())
    return (weight / scale).round().clamp(-1, 1), scale


def quantised(parameters: dict[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    """Return the parameters with an engine's rounding; gradients pass on to the floats."""
    seen = dict(parameters)
    for name in shape.matrices():
        digits, scale = ternary_parts(parameters[name].detach())
        seen[name] = _straight_through(parameters[name], digits * scale)
    embedding = parameters[EMBEDDING]
    seen[EMBEDDING] = _straight_through(embedding, embedding.detach().half().float())
    return seen


def logits(weights: dict[str, Tensor], shape: Shape, tokens: Tensor) -> Tensor:
    """Return logits of shape (batch, length, vocab) for token ids of shape (batch, length)."""
    rotation = _rotation(shape, tokens.shape[1])
    x = functional.embedding(tokens, weights[EMBEDDING])
    for i in range(shape.layers):
        block = {name: weights[f"blk.{i}.{name}.weight"] for name in _BLOCK}
        x = x + _attention(block, shape, _norm(x, block["attn_norm"], shape), rotation)
        x = x + _feed_forward(block, _norm(x, block["ffn_norm"], shape))
    return functional.linear(_norm(x, weights[OUTPUT_NORM], shape), weights[EMBEDDING])


_BLOCK = (
    *("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output"),
    *("ffn_norm", "ffn_gate", "ffn_up", "ffn_down"),
)


def _straight_through(value: Tensor, rounded: Tensor) -> Tensor:
    return value + (rounded - value).detach()


def _eight_bits(x: Tensor) -> Tensor:
    """Round each token's vector to 255 levels, with the clamp of bitnet.cpp's i2_s code."""
    step = x.detach().abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127
    return _straight_through(x, (x.detach() / step).round() * step)


def _norm(x: Tensor, gain: Tensor, shape: Shape) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + shape.epsilon) * gain


def _rotation(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of the rotations, both of shape (length, head_dim / 2)."""
    exponents = torch.arange(0, shape.head_dim, 2) / shape.head_dim
    angles = torch.outer(torch.arange(length).float(), shape.rope_base**-exponents)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotation
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def _attention(
    block: dict[str, Tensor], shape: Shape, x: Tensor, rotation: tuple[Tensor, Tensor]
) -> Tensor:
    batch, length, _ = x.shape
    x = _eight_bits(x)
    query, key, value = (
        functional.linear(x, block[name])
        .view(batch, length, shape.heads, shape.head_dim)
        .transpose(1, 2)
        for name in ("attn_q", "attn_k", "attn_v")
    )
    mixed = functional.scaled_dot_product_attention(
        _rotate(query, rotation), _rotate(key, rotation), value, is_causal=True
    )
    joined = mixed.transpose(1, 2).reshape(batch, length, shape.hidden)
    return functional.linear(_eight_bits(joined), block["attn_output"])


def _feed_forward(block: dict[str, Tensor], x: Tensor) -> Tensor:
    x = _eight_bits(x)
    gated = functional.silu(functional.linear(x, block["ffn_gate"])) * functional.linear(
        x, block["ffn_up"]
    )
    return functional.linear(_eight_bits(gated), block["ffn_down"])
