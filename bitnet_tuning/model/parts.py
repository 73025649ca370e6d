"""Sum up what a model's tensors take in the file, and what each generated token reads of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bitnet_tuning.console import size_text, word
from bitnet_tuning.model import types
from bitnet_tuning.model.types import EMBEDDING, OUTPUT, TERNARY, ModelFile, Part, TensorInfo

SLIM = "q6_k"
"""Type to which an embedding is made smaller if the user names none and it fits."""

GENTLE = (SLIM, "q8_0", "f16")
"""Types that lose little by Microsoft's perplexities (see ``slim.py``), the smallest first."""

WIDE = ("f32", "f16", "bf16")
"""Types of an embedding that is worth making smaller."""

MEASURED = "measured elsewhere: ×1.3–1.5 (BitNet b1.58 2B-4T, from f16)"
"""What is known of the gain of q6_k."""

TOKENS, MATRIX = "token_embd.weight", "output.weight"
"""Names of the tensors that hold the token embedding and the output matrix."""

_LOOKED_UP = (TOKENS, "position_embd.weight", "token_types.weight", "per_layer_token_embd.weight")
"""Tensors of which a token reads a single row; names from llama.cpp's src/llama-arch.cpp."""
_EXPERTS = ("_exps.weight", "_exps.bias")


def make_parts(tensors: Sequence[TensorInfo], file_type: int | None) -> tuple[Part, ...]:
    """Return the parts of a model: its ternary weights, the token embedding, the output matrix if
    it has one of its own, and all other tensors. Parts without tensors are left out."""
    # Without an output.weight the embeddings are tied: the token table is also the output matrix
    # and is read whole.
    tied = all(info.name != MATRIX for info in tensors)
    groups: dict[str, list[TensorInfo]] = {"ternary": [], EMBEDDING: [], OUTPUT: [], "other": []}
    for info in tensors:
        named = {TOKENS: EMBEDDING, MATRIX: OUTPUT}.get(info.name)
        ternary = types.type_name(info.kind, file_type) in TERNARY
        groups[named or ("ternary" if ternary else "other")].append(info)
    return tuple(_part(name, group, tied, file_type) for name, group in groups.items() if group)


def _part(name: str, group: Sequence[TensorInfo], tied: bool, file_type: int | None) -> Part:
    sizes = [types.tensor_bytes(info.kind, info.weights) for info in group]
    reads = [types.tensor_bytes(info.kind, _weights_read(info, tied)) for info in group]
    # Of experts, a token reads only some.
    known = all(reads) and not any(info.name.endswith(_EXPERTS) for info in group)
    kinds = dict.fromkeys(types.type_name(info.kind, file_type) for info in group)
    weights = sum(info.weights for info in group)
    return Part(name, "/".join(kinds), weights, sum(sizes), sum(reads) if known else None)


def _weights_read(info: TensorInfo, tied: bool) -> int:
    one_row = info.name in _LOOKED_UP and not (tied and info.name == TOKENS)
    return info.shape[0] if one_row and info.shape else info.weights


def bytes_per_token(parts: Iterable[Part]) -> int | None:
    """Return the bytes of weights read for one generated token, without the KV cache, which grows
    with the text. Return None if a type's size is unknown, and with experts, of which a token
    reads only some."""
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
    made = []
    for part in parts:
        size = types.tensor_bytes(types.NUMBERS[kind], part.weights)
        if part.name in (EMBEDDING, OUTPUT) and size < part.size:
            read = None if part.read is None else part.read * size // part.size
            made.append(part._replace(type=kind, size=size, read=read))
        else:
            made.append(part)
    return tuple(made)


def fits(model: ModelFile, kind: str) -> bool:
    """Return whether the rows of a model's embedding hold whole blocks of the type ``kind``."""
    return (model.embedding_length or 0) % types.block_weights(types.NUMBERS[kind]) == 0


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
    """Return whether a file is, by its header, the same model with a smaller embedding or output
    matrix."""

    def facts(each: ModelFile) -> list[object]:
        changed = (EMBEDDING, OUTPUT)
        rest = [(part.name, part.weights) if part.name in changed else part for part in each.parts]
        return [each.architecture, each.layers, each.vocabulary, rest]

    # A file that does not state its model's name has that of the file.
    is_named = copy.name == model.name or copy.path.endswith(copy.name)
    sizes = (sum(part.size for part in each.parts) for each in (copy, model))
    return is_named and facts(copy) == facts(model) and next(sizes) < next(sizes)


def is_wide(model: ModelFile) -> bool:
    """Return whether every generated token of a ternary model reads an unquantized embedding or
    output matrix."""
    matrix = output_matrix(model.parts)
    return matrix is not None and matrix.type in WIDE and model.quantization in TERNARY


def gain_text(model: ModelFile, measured: bool = True) -> str | None:
    """Return the type of the matrix that every token reads whole, the bytes that a token reads in
    all, and what a smaller type would gain: an upper bound, and with ``measured`` what others
    measured if they did for these types. None if the model has no such matrix."""
    matrix, total = output_matrix(model.parts), bytes_per_token(model.parts)
    if matrix is None:
        return None
    text = f"{matrix.type} {'output matrix' if matrix.name == OUTPUT else matrix.name}"
    if total:
        text += f", {size_text(total)} read per token"
    if is_wide(model):
        gain = possible_gain(model)
        text += f" (in {slim_type(model)} {f'up to ×{gain:.2f} as fast' if gain else 'faster'})"
        if measured and (matrix.type, slim_type(model)) == ("f16", SLIM):
            text += f"; {MEASURED}"
    return text


def slim_advice(model: ModelFile, copies: Sequence[ModelFile]) -> str:
    """Return what to do about a wide embedding: to run the first slim copy, or to make one."""
    if copies:
        run = f"python3 run_inference.py -m {word(copies[0].path)}"
        return f"run the copy with a smaller embedding: {run}"
    if len(types.part_paths(model.path)) > 1:
        return f"merge its files first: llama-gguf-split --merge {word(model.path)} OUT.gguf"
    return f"make a smaller copy: python3 -m bitnet_tuning model slim {word(model.path)}"
