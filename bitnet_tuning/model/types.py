"""ggml's tensor types, and the facts in a model's header. Nothing here reads a file."""

from __future__ import annotations

import re

from bitnet_tuning.namedtuple import NamedTuple

I2_S = "i2_s"
"""Name of bitnet.cpp's own ternary type, which mainline llama.cpp does not have."""

TERNARY = (I2_S, "tq1_0", "tq2_0")
"""Names of the types of ternary weights."""

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
    # bitnet.cpp only; llama.cpp once used 36 for IQ4_NL_4_4.
    36: (I2_S, 4, 1),
}
"""Name, weights per block and bytes per block by the number of a type (ggml.h, ggml-common.h)."""

_I2_S_TRAILER = 32
"""Bytes after the weights of an i2_s tensor: its scale and padding (bitnet.cpp's ggml_nbytes)."""


EMBEDDING, OUTPUT = "embedding", "output"
"""Names of the parts of a model that ``model slim`` makes smaller."""


class TensorInfo(NamedTuple):
    """The place and the form of a tensor in a model file."""

    name: str
    kind: int
    """ggml's number of the tensor's type."""
    shape: tuple[int, ...]
    """Sizes of the dimensions, the contiguous one first, as in the file."""
    offset: int
    """Bytes from the start of the file to the tensor; of a split model, of its parts end to end."""

    @property
    def weights(self) -> int:
        count = 1
        for size in self.shape:  # importing math would cost every run 0.3 ms
            count *= size
        return count


class Part(NamedTuple):
    """Tensors of a model that belong together."""

    name: str
    """``ternary``, ``embedding``, ``output`` or ``other``."""
    type: str
    """Name of the tensors' type; several are separated by slashes."""
    weights: int
    size: int
    """Bytes in the file."""
    read: int | None
    """Bytes read for one generated token; None if that is not known."""


class TypeShare(NamedTuple):
    """The number of tensors of one type in a model, and of the weights in them."""

    name: str
    tensors: int
    weights: int


class ModelFile(NamedTuple):
    """The facts in a model's header; None for numbers that it does not state."""

    path: str
    size: int
    """Size in bytes of the file, or of all parts of a split model."""
    architecture: str
    name: str
    quantization: str
    """Name of the tensor type of most weights in the layers, such as ``i2_s``."""
    types: tuple[TypeShare, ...]
    """All types in the file, the one with most weights first."""
    context_length: int | None
    """Longest context in tokens."""
    layers: int | None
    embedding_length: int | None
    vocabulary: int | None
    """Number of different tokens."""
    chat_template: bool
    """Whether the file has a chat template."""
    heads: int | None = None
    """Number of attention heads."""
    kv_width: int | None = None
    """Values in the KV cache for one token in one layer, keys and values of all heads."""
    parts: tuple[Part, ...] = ()
    """What the tensors take in the file and in each token; see ``model/parts.py``."""


def tensor_bytes(kind: int, weights: int) -> int:
    """Return the size of a tensor in bytes; 0 for a type whose size is not known here."""
    name, block, size = _TYPES.get(kind, ("", 1, 0))
    return weights // block * size + (_I2_S_TRAILER if name == I2_S else 0)


def block_weights(kind: int) -> int:
    """Return the number of weights of which a row must be a multiple; 1 if it is not known here."""
    return _TYPES.get(kind, ("", 1, 0))[1]


def part_paths(path: str) -> list[str]:
    """Return the paths of all parts of a split model, of which ``path`` is one by its name, as
    llama_split_path of llama.cpp forms them; for any other path, that alone."""
    parts = re.fullmatch(r"(?s)(.*-)\d{5}(-of-)(\d{5})(\.gguf)", path) if "-of-" in path else None
    if not parts:
        return [path]
    stem, of, count, end = parts.groups()
    return [f"{stem}{each:05d}{of}{count}{end}" for each in range(1, int(count) + 1)]


NUMBERS = {name: number for number, (name, _, _) in _TYPES.items()}
"""ggml's numbers of the types that are known here, by their names."""


def type_name(kind: int, file_type: int | None) -> str:
    """Return the name of a tensor type; ``file_type`` is the model's ``general.file_type``."""
    # In bitnet.cpp, type 38 is TL1 and 39 is TL2, and the file types are the same. In llama.cpp,
    # 38 is unused and 39 is MXFP4, with file type 38 (ggml.h and llama.h of both).
    if (kind, file_type) in ((38, 38), (39, 39)):
        return "tl1" if kind == 38 else "tl2"
    return _TYPES[kind][0] if kind in _TYPES else f"type {kind}"
