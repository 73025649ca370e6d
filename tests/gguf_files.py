"""Write GGUF files with whole headers and holes in place of weights.

``write_gguf`` and ``write_bitnet`` write whole files; ``gguf_header`` returns the bytes of a header
for tests that damage them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
"""Types of metadata values."""

FORMS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?"}
FORMS |= {U64: "Q", I64: "q", F64: "d"}

TYPES = {
    "f32": (0, 1, 4),
    "f16": (1, 1, 2),
    "q4_0": (2, 32, 18),
    "q8_0": (8, 32, 34),
    "q6_k": (14, 256, 210),
    "tq1_0": (34, 256, 54),
    "tq2_0": (35, 256, 66),
    "i2_s": (36, 4, 1),
    "tl1": (38, 4, 1),
    "tl2": (39, 4, 1),
    "mxfp4": (39, 32, 17),
}
"""Number, weights per block and bytes per block. The sizes of tl1 and tl2 are approximate: they
depend on the shape."""

I2_S_TRAILER = 32
ALIGNMENT = 32


class Typed(NamedTuple):
    """A metadata value with its GGUF type, where Python's type does not imply it."""

    kind: int
    value: Any


class Tensor(NamedTuple):
    name: str
    shape: tuple[int, ...]
    kind: str | int


def write_gguf(
    path: Path | str,
    metadata: Mapping[str, object] | None = None,
    tensors: Sequence[tuple[str, tuple[int, ...], str | int]] = (("blk.0.w", (256, 4), "f32"),),
) -> Path:
    """Write a model file of its full length whose weights are a hole that takes no space.

    A value in ``metadata`` is a str, bool, int, float, a list of those, or ``Typed``; an
    architecture is added if there is none. A tensor is (name, shape, type), the type a name in
    ``TYPES`` or a number.
    """
    items = {"general.architecture": "bitnet-b1.58", **(metadata or {})}
    header = gguf_header(items.items(), [Tensor(*tensor) for tensor in tensors])
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(_aligned(len(header)) + sum(tensor_size(Tensor(*each)) for each in tensors))
    return Path(path)


def write_bitnet(
    path: Path | str,
    kind: str = "i2_s",
    embedding: str = "f16",
    output: str | None = None,
    **metadata: object,
) -> Path:
    """Write a small BitNet model: ternary layers, and an embedding that outweighs them. With
    ``output``, it has an output matrix of that type."""
    file_types = {"i2_s": 40, "tq1_0": 36, "tq2_0": 37, "tl1": 38, "tl2": 39}
    facts = {
        "general.name": "small",
        "general.file_type": file_types[kind],
        "bitnet-b1.58.context_length": 4096,
        "bitnet-b1.58.block_count": 2,
        "bitnet-b1.58.embedding_length": 256,
        "bitnet-b1.58.vocab_size": 32000,
        **{key.replace("__", "."): value for key, value in metadata.items()},
    }
    layers = [(f"blk.{layer}.ffn_up.weight", (256, 1024), kind) for layer in range(2)]
    norms = [(f"blk.{layer}.attn_norm.weight", (256,), "f32") for layer in range(2)]
    tables = [("token_embd.weight", (256, 32000), embedding)]
    if output is not None:
        tables.append(("output.weight", (256, 32000), output))
    return write_gguf(path, facts, [*tables, *layers, *norms])


def write_split(stem: Path | str, counts: Sequence[int], **stated: object) -> list[Path]:
    """Write a BitNet model of four tensors in parts with that many tensors each, as
    llama-gguf-split does. ``stated`` are facts of the first part that differ; return the paths."""
    layers = [(f"blk.{layer}.ffn_up.weight", (256, 1024), "i2_s") for layer in range(3)]
    tensors = [("token_embd.weight", (256, 32000), "f16"), *layers]
    paths = []
    for number, count in enumerate(counts):
        facts: dict[str, object] = {
            "general.architecture": "bitnet-b1.58",
            "general.file_type": 40,
            "split.no": Typed(U16, number),
            "split.count": Typed(U16, len(counts)),
            "split.tensors.count": Typed(I32, len(tensors)),
        }
        if number == 0:
            facts |= {key.replace("__", "."): value for key, value in stated.items()}
        path = Path(f"{stem}-{number + 1:05d}-of-{len(counts):05d}.gguf")
        at = sum(counts[:number])
        paths.append(write_gguf(path, facts, tensors[at : at + count]))
    return paths


def gguf_header(
    metadata: Iterable[tuple[str | bytes, object]] = (),
    tensors: Sequence[Tensor] = (),
    *,
    version: int = 3,
    order: str = "<",
) -> bytes:
    """Return the bytes before the weights. ``order`` is "<" or ">"; keys may repeat."""
    metadata = list(metadata)
    parts = [b"GGUF", struct.pack(f"{order}IQQ", version, len(tensors), len(metadata))]
    for key, value in metadata:
        parts += [_string(key, order), _value(value, order)]
    offset = 0
    for tensor in tensors:
        shape = struct.pack(f"{order}I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        placed = struct.pack(f"{order}IQ", _number(tensor.kind), offset)
        parts += [_string(tensor.name, order), shape, placed]
        offset += tensor_size(tensor)
    return b"".join(parts)


def tensor_size(tensor: Tensor) -> int:
    """Return the bytes up to the next tensor; a type given as a number takes one per weight."""
    weights = prod(tensor.shape)
    if isinstance(tensor.kind, int):
        return _aligned(weights)
    _, block, size = TYPES[tensor.kind]
    return _aligned(weights // block * size + (I2_S_TRAILER if tensor.kind == "i2_s" else 0))


def _number(kind: str | int) -> int:
    return kind if isinstance(kind, int) else TYPES[kind][0]


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _string(text: object, order: str) -> bytes:
    data = text if isinstance(text, bytes) else str(text).encode()
    return struct.pack(f"{order}Q", len(data)) + data


def _value(value: object, order: str) -> bytes:
    typed = value if isinstance(value, Typed) else Typed(_kind(value), value)
    return struct.pack(f"{order}I", typed.kind) + _content(typed, order)


def _content(typed: Typed, order: str) -> bytes:
    if typed.kind == STRING:
        return _string(typed.value, order)
    if typed.kind == ARRAY:
        kind = _kind(typed.value[0]) if typed.value else U32
        entries = (_content(Typed(kind, entry), order) for entry in typed.value)
        return struct.pack(f"{order}IQ", kind, len(typed.value)) + b"".join(entries)
    return struct.pack(order + FORMS[typed.kind], typed.value)


def _kind(value: object) -> int:
    for python, kind in ((bool, BOOL), (float, F32), ((str, bytes), STRING), (list, ARRAY)):
        if isinstance(value, python):
            return kind
    assert isinstance(value, int)
    if 0 <= value < 1 << 32:
        return U32
    return U64 if value >= 0 else I64
