"""ggml's tensor types, the facts in a model's header, and what its tensors take in the file and in
each generated token. Nothing here reads a file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from bitnet_tuning.console import command, size_text, word
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
    """What the tensors take in the file and in each token; see ``make_parts``."""


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


SLIM = "q6_k"
"""Type to which an embedding is made smaller if the user names none and it fits."""

GENTLE = (SLIM, "q8_0", "f16")
"""Types that lose little by Microsoft's perplexities (see ``slim.py``), the smallest first."""

WIDE = ("f32", "f16", "bf16")
"""Types of an embedding that is worth making smaller."""

TOKENS, MATRIX = "token_embd.weight", "output.weight"
"""Names of the tensors that hold the token embedding and the output matrix."""

_LOOKED_UP = (TOKENS, "position_embd.weight", "token_types.weight", "per_layer_token_embd.weight")
"""Tensors of which a token reads a single row; names from llama.cpp's src/llama-arch.cpp."""
_EXPERTS = ("_exps.weight", "_exps.bias")


def make_parts(tensors: Sequence[TensorInfo], file_type: int | None) -> tuple[Part, ...]:
    """Return the parts of a model: its ternary weights, the token embedding, the output matrix if
    it has one of its own, and all other tensors. Parts without tensors are left out."""
    # Without an output.weight, the token table is also the output matrix, and read whole.
    tied = all(info.name != MATRIX for info in tensors)
    groups: dict[str, list[TensorInfo]] = {"ternary": [], EMBEDDING: [], OUTPUT: [], "other": []}
    for info in tensors:
        named = {TOKENS: EMBEDDING, MATRIX: OUTPUT}.get(info.name)
        ternary = type_name(info.kind, file_type) in TERNARY
        groups[named or ("ternary" if ternary else "other")].append(info)
    return tuple(_part(name, group, tied, file_type) for name, group in groups.items() if group)


def _part(name: str, group: Sequence[TensorInfo], tied: bool, file_type: int | None) -> Part:
    sizes = [tensor_bytes(info.kind, info.weights) for info in group]
    reads = [tensor_bytes(info.kind, _weights_read(info, tied)) for info in group]
    # Of experts, a token reads only some.
    known = all(reads) and not any(info.name.endswith(_EXPERTS) for info in group)
    kinds = dict.fromkeys(type_name(info.kind, file_type) for info in group)
    weights = sum(info.weights for info in group)
    return Part(name, "/".join(kinds), weights, sum(sizes), sum(reads) if known else None)


def _weights_read(info: TensorInfo, tied: bool) -> int:
    one_row = info.name in _LOOKED_UP and not (tied and info.name == TOKENS)
    return info.shape[0] if one_row and info.shape else info.weights


def bytes_per_token(parts: Iterable[Part]) -> int | None:
    """Return the bytes of weights read for one generated token, without the KV cache, which grows
    with the text. None if a type's size is unknown, and with experts, of which few are read."""
    reads = [part.read for part in parts]
    return None if None in reads else sum(filter(None, reads)) or None


def output_matrix(parts: Iterable[Part]) -> Part | None:
    """Return the matrix that turns a state into logits and is read whole for every token: the
    output matrix, or the token embedding that serves as one. None if the model has neither."""
    named = {part.name: part for part in parts}
    return named.get(OUTPUT) or named.get(EMBEDDING)


def slimmed(parts: Iterable[Part], kind: str) -> tuple[Part, ...]:
    """Return the parts with embedding and output matrix in the type named ``kind``, whose size
    must be known; one that would not become smaller stays."""

    def smaller(part: Part) -> Part:
        size = tensor_bytes(NUMBERS[kind], part.weights)
        if part.name not in (EMBEDDING, OUTPUT) or size >= part.size:
            return part
        read = None if part.read is None else part.read * size // part.size
        return part._replace(type=kind, size=size, read=read)

    return tuple(map(smaller, parts))


def fits(model: ModelFile, kind: str) -> bool:
    """Return whether the rows of a model's embedding hold whole blocks of the type ``kind``."""
    return (model.embedding_length or 0) % block_weights(NUMBERS[kind]) == 0


def slim_type(model: ModelFile) -> str:
    """Return the type to which a model's embedding is made smaller if the user names none."""
    return next(kind for kind in GENTLE if fits(model, kind))


def bound(before: Iterable[Part], after: Iterable[Part]) -> float | None:
    """Return the upper bound, from the bytes read per token, of the ratio of the speeds of token
    generation ``after`` and ``before``. None if it is not known."""
    read, reads = bytes_per_token(before), bytes_per_token(after)
    return read / reads if read and reads else None


def possible_gain(model: ModelFile) -> float | None:
    """Return the ``bound`` for a slim copy of a model."""
    return bound(model.parts, slimmed(model.parts, slim_type(model)))


def is_copy(copy: ModelFile, model: ModelFile) -> bool:
    """Return whether a file is, by its header, a smaller copy: only embedding and output differ."""

    def facts(each: ModelFile) -> list[object]:
        changed = (EMBEDDING, OUTPUT)
        rest = [(part.name, part.weights) if part.name in changed else part for part in each.parts]
        return [each.architecture, each.layers, each.vocabulary, rest]

    # A file that does not state its model's name has that of the file.
    is_named = copy.name == model.name or copy.path.endswith(copy.name)
    sizes = (sum(part.size for part in each.parts) for each in (copy, model))
    return is_named and facts(copy) == facts(model) and next(sizes) < next(sizes)


def is_wide(model: ModelFile) -> bool:
    """Return whether each token of a ternary model reads an unquantized matrix for its output."""
    matrix = output_matrix(model.parts)
    return matrix is not None and matrix.type in WIDE and model.quantization in TERNARY


def gain_text(model: ModelFile) -> str | None:
    """Return which share of the bytes read per token is the matrix that every token reads whole,
    and at most how much faster a copy in a smaller type is. None without such a matrix."""
    matrix, total = output_matrix(model.parts), bytes_per_token(model.parts)
    if matrix is None:
        return None
    name = f"the {matrix.type} {'output matrix' if matrix.name == OUTPUT else matrix.name}"
    text = f"each token reads {name}"
    if total and matrix.read:
        share = f"{100 * matrix.read / total:.0f} % of the {size_text(total)}"
        text = f"{share} that each token reads is {name}"
    if is_wide(model):
        gain = possible_gain(model)
        faster = f"up to ×{gain:.2f} as fast" if gain else "faster"
        text += f"; a copy with {slim_type(model)} is {faster}"
    return text


def slim_advice(model: ModelFile, copies: Sequence[ModelFile]) -> str:
    """Return what to do about a wide embedding: to run the first slim copy, or to make one."""
    if copies:
        run = f"{command('run')} -m {word(copies[0].path)}"
        return f"run the copy with a smaller embedding: {run}"
    if len(part_paths(model.path)) > 1:
        return f"merge its files first: llama-gguf-split --merge {word(model.path)} OUT.gguf"
    return f"make a smaller copy: {command('model')} slim {word(model.path)}"
