"""From the metadata and tensors of a GGUF header to what is known of a model; pure."""

from __future__ import annotations

from bitnet_tuning.ggml_types import ModelFile, TypeShare, type_name
from bitnet_tuning.records import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bitnet_tuning.gguf import TensorInfo, Value

_PARTS = ("key", "value")
_STATED = (
    "context_length",
    "block_count",
    "embedding_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
)
"""Numbers of a header that are kept, behind the architecture's name."""


def model_facts(
    path: str,
    size: int,
    metadata: dict[str, Value | None],
    infos: tuple[TensorInfo, ...],
) -> ModelFile:
    file_type = integer(metadata.get("general.file_type"))
    architecture = str(metadata["general.architecture"])
    stated = {key: integer(metadata.get(f"{architecture}.{key}")) for key in _STATED}
    return ModelFile(
        path=path,
        size=size,
        architecture=architecture,
        name=str(metadata.get("general.name") or path.replace("\\", "/").rpartition("/")[2]),
        quantization=_dominant(infos, file_type),
        types=_shares(infos, file_type),
        context_length=stated["context_length"],
        layers=stated["block_count"],
        embedding_length=stated["embedding_length"],
        vocabulary=stated["vocab_size"] or integer(metadata.get("tokenizer.ggml.tokens")),
        chat_template="tokenizer.chat_template" in metadata,
        heads=stated["attention.head_count"],
        kv_width=_kv_width(stated),
    )


def _kv_width(stated: dict[str, int | None]) -> int | None:
    """Heads share keys and values where there are fewer of these; a list of counts, one for
    each layer, is taken for as many as there are heads."""
    heads, length = stated["attention.head_count"], stated["embedding_length"]
    if not heads or not length:
        return None
    shared = min(stated["attention.head_count_kv"] or heads, heads)
    key, value = (stated[f"attention.{part}_length"] or length // heads for part in _PARTS)
    return shared * (key + value)


def integer(value: Value | None) -> int | None:
    return int(value) if isinstance(value, int) else None


def _shares(infos: Sequence[TensorInfo], file_type: int | None) -> tuple[TypeShare, ...]:
    shares: dict[str, TypeShare] = {}
    for info in infos:
        name = type_name(info.kind, file_type)
        share = shares.get(name, TypeShare(name, 0, 0))
        shares[name] = TypeShare(name, share.tensors + 1, share.weights + info.weights)
    return tuple(sorted(shares.values(), key=lambda share: -share.weights))


def _dominant(infos: Sequence[TensorInfo], file_type: int | None) -> str:
    """Of the layers only: a small model's embedding outweighs its ternary weights."""
    layers = [info for info in infos if info.name.startswith("blk.")] or infos
    return _shares(layers, file_type)[0].name
