"""Read the header of a GGUF model file without loading the model.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. PyPI's ``gguf`` is not used:
its reader refuses i2_s (tensor type 36), hangs on some damaged files and imports numpy.
"""

from __future__ import annotations

import mmap
import os
import struct
from math import prod

from bitnet_tuning.errors import MissingError
from bitnet_tuning.model.parts import make_parts
from bitnet_tuning.model.types import ModelFile, TensorInfo, TypeShare, tensor_bytes, type_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Metadata = dict[str, "Value | None"]

MAGIC = b"GGUF"
"""First bytes of every GGUF file."""

_SCALARS = dict(zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True))
"""The ``struct`` module's letter for each scalar type of metadata values."""
_STRING, _ARRAY = 8, 9
_MIN_PAIR = 8 + 4 + 1
_MIN_TENSOR = 8 + 4 + 4 + 8
"""Bytes that an entry of metadata and a tensor's description take at least."""
_MAX_NESTING = 4

# Limits for counts that are wrong but would fit into a large file: following them would take
# minutes. Real models have some thousand tensors and half a million merges of tokens.
_MOST_TENSORS = _MOST_PAIRS = 1 << 16
_MOST_STRINGS = _MOST_ARRAYS = 1 << 22
_LONGEST_NAME = (1 << 16) - 1
"""Longest key in bytes, as the format defines it."""
_KEPT = 1 << 10
"""Bytes of a string that are kept; every string that is used is shorter."""
_MOST_WEIGHTS = (1 << 63) - 1
"""Most weights of a tensor: ggml counts them in a signed 64-bit number."""

_CUT_HEADER = "is truncated: it ends in the middle of its header"

Value = int | float | str | bool


class _CorruptError(Exception):
    """The file is not a whole GGUF model; the text says why, as the rest of a sentence."""


def read_model(path: str) -> ModelFile:
    """Return the facts in a file's header. Raise MissingError if the file does not exist, cannot
    be read, is not a GGUF file, is damaged, or is shorter than its header says."""
    return _model_facts(path, *_read(path))


def read_tensors(path: str) -> tuple[TensorInfo, ...]:
    """Return the tensors of a file in its order; raise MissingError as ``read_model`` does."""
    return _read(path)[2]


def _read(path: str) -> tuple[int, Metadata, tuple[TensorInfo, ...]]:
    try:
        _check_file(path)
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return len(data), *_parse(data)
    except OSError as error:
        raise MissingError(
            f"cannot read the model {path}: {error.strerror or error}",
            "check its permissions, or name another file with -m",
        ) from error
    except _CorruptError as error:
        raise MissingError(
            f"{path} {error}", "name another file with -m, or download or convert this one again"
        ) from error


def _check_file(path: str) -> None:
    remedy = "name a GGUF file with -m or in BITNET_MODEL"
    if not os.path.exists(path):
        raise MissingError(f"no such model file: {path}", remedy)
    if not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "not a regular file"
        raise MissingError(f"the model {path} is {kind}", remedy)
    if os.path.getsize(path) == 0:
        raise _CorruptError("is empty")


class _Reader:
    """A position in the mapped file that never moves past its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0
        self.end = len(data)

    def skip(self, count: int) -> int:
        """Move on by ``count`` bytes and return the position before."""
        start = self.at
        if count > self.end - start:
            raise _CorruptError(_CUT_HEADER)
        self.at = start + count
        return start

    def number(self, form: str) -> int:
        size = struct.calcsize("<" + form)
        return int(struct.unpack_from("<" + form, self.data, self.skip(size))[0])

    def count(self, what: str, smallest: int, most: int | None = None) -> int:
        """Read a 64-bit count of things that take at least ``smallest`` bytes each."""
        count = self.number("Q")
        if count * smallest > self.end - self.at:
            raise _CorruptError(
                f"is truncated or damaged: its header claims {count} {what}, "
                "more than the file can hold"
            )
        if most is not None and count > most:
            raise _CorruptError(f"is damaged: it claims {count} {what}; the limit is {most}")
        return count

    def name(self, what: str) -> str:
        start = self.skip(self.count(f"bytes in a {what}", 1, _LONGEST_NAME))
        return self.data[start : self.at].decode("utf-8", "replace")

    def text(self) -> str:
        """Read a string and return its beginning."""
        start = self.skip(self.count("bytes in a string", 1))
        return self.data[start : min(self.at, start + _KEPT)].decode("utf-8", "replace")


def _parse(data: mmap.mmap) -> tuple[Metadata, tuple[TensorInfo, ...]]:
    reader = _Reader(data)
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise _CorruptError(
            f"is not a GGUF file: it begins with {_shown(data[: len(MAGIC)])}, not 'GGUF'"
        )
    reader.skip(len(MAGIC))
    _check_version(reader.number("I"))
    tensors = reader.count("tensors", _MIN_TENSOR, _MOST_TENSORS)
    pairs = reader.count("metadata entries", _MIN_PAIR, _MOST_PAIRS)
    metadata = dict(_pair(reader) for _ in range(pairs))
    relative = [_tensor(reader) for _ in range(tensors)]
    if not relative:
        raise _CorruptError("is not a model: it has no tensors")
    if not metadata.get("general.architecture"):
        raise _CorruptError("is damaged: its header does not name an architecture")
    alignment = _integer(metadata.get("general.alignment")) or 32
    start = -(-reader.at // alignment) * alignment
    infos = tuple(info._replace(offset=start + info.offset) for info in relative)
    _check_length(infos, reader.end)
    return metadata, infos


def _shown(data: bytes) -> str:
    """Return bytes as text if they are printable ASCII, else in hexadecimal."""
    text = data.decode("ascii", "replace")
    return f"'{text}'" if text.isascii() and text.isprintable() else f"the bytes {data.hex(' ')}"


def _check_version(version: int) -> None:
    if version in (2, 3):
        return
    # The format has no mark for the byte order (docs/gguf.md), but a swapped version shows it.
    if version in (2 << 24, 3 << 24):
        raise _CorruptError("is a big-endian GGUF file, which only big-endian machines can use")
    raise _CorruptError(f"has version {version} of the GGUF format; versions 2 and 3 are known")


def _pair(reader: _Reader) -> tuple[str, Value | None]:
    key = reader.name("key")
    return key, _value(reader, reader.number("I"), 0)


def _value(reader: _Reader, kind: int, depth: int) -> Value | None:
    """Read a scalar or a string; of an array, return the length."""
    if kind == _STRING:
        return reader.text()
    if kind == _ARRAY:
        return _array_length(reader, depth)
    if kind not in _SCALARS:
        raise _CorruptError(f"is damaged: its metadata has a value of unknown type {kind}")
    form = "<" + _SCALARS[kind]
    (value,) = struct.unpack_from(form, reader.data, reader.skip(struct.calcsize(form)))
    return value if isinstance(value, int | float) else None


def _array_length(reader: _Reader, depth: int) -> int:
    kind = reader.number("I")
    if kind in _SCALARS:
        width = struct.calcsize(_SCALARS[kind])
        length = reader.count("array entries", width)
        reader.skip(length * width)
    elif kind == _STRING:
        length = reader.count("strings", 8, _MOST_STRINGS)
        _skip_strings(reader, length)
    elif kind == _ARRAY and depth < _MAX_NESTING:
        length = reader.count("arrays", 12, _MOST_ARRAYS)
        for _ in range(length):
            _array_length(reader, depth + 1)
    else:
        raise _CorruptError(f"is damaged: its metadata has an array of unknown type {kind}")
    return length


def _skip_strings(reader: _Reader, count: int) -> None:
    # A vocabulary and its merges are 400,000 strings: a bare loop takes a fraction of the time
    # that the reader's methods would.
    unpack, data, at, end = struct.Struct("<Q").unpack_from, reader.data, reader.at, reader.end
    for _ in range(count):
        if at + 8 > end:
            raise _CorruptError(_CUT_HEADER)
        at += 8 + unpack(data, at)[0]
    reader.skip(at - reader.at)


def _tensor(reader: _Reader) -> TensorInfo:
    name = reader.name("tensor's name")
    dimensions = reader.number("I")
    if dimensions > 8:
        raise _CorruptError(f"is damaged: a tensor has {dimensions} dimensions")
    shape = tuple(reader.number("Q") for _ in range(dimensions))
    if prod(shape) > _MOST_WEIGHTS:
        raise _CorruptError(f"is damaged: a tensor claims {prod(shape)} weights")
    return TensorInfo(name, reader.number("I"), shape, reader.number("Q"))


def _check_length(infos: tuple[TensorInfo, ...], size: int) -> None:
    needed = max(info.offset + tensor_bytes(info.kind, info.weights) for info in infos)
    if needed > size:
        # Not in MiB: sometimes a few bytes lack.
        raise _CorruptError(f"is truncated: it has {size} of {needed} bytes")


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
"""Keys of the numbers that are used, without the architecture's name before them."""


def _model_facts(
    path: str, size: int, metadata: Metadata, infos: tuple[TensorInfo, ...]
) -> ModelFile:
    file_type = _integer(metadata.get("general.file_type"))
    architecture = str(metadata["general.architecture"])
    stated = {key: _integer(metadata.get(f"{architecture}.{key}")) for key in _STATED}
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
        vocabulary=stated["vocab_size"] or _integer(metadata.get("tokenizer.ggml.tokens")),
        chat_template="tokenizer.chat_template" in metadata,
        heads=stated["attention.head_count"],
        kv_width=_kv_width(stated),
        parts=make_parts(infos, file_type),
    )


def _kv_width(stated: dict[str, int | None]) -> int | None:
    """Return the values that the KV cache of a layer holds for each token."""
    heads, length = stated["attention.head_count"], stated["embedding_length"]
    if not heads or not length:
        return None
    # Several heads share keys and values if there are fewer of these. The count may be a list with
    # one number per layer, of which ``_value`` returns the length: then take that of the heads.
    shared = min(stated["attention.head_count_kv"] or heads, heads)
    lengths = (stated[f"attention.{part}_length"] for part in ("key", "value"))
    return shared * sum(given or length // heads for given in lengths)


def _integer(value: Value | None) -> int | None:
    return int(value) if isinstance(value, int) else None


def _shares(infos: Sequence[TensorInfo], file_type: int | None) -> tuple[TypeShare, ...]:
    shares: dict[str, TypeShare] = {}
    for info in infos:
        name = type_name(info.kind, file_type)
        share = shares.get(name, TypeShare(name, 0, 0))
        shares[name] = TypeShare(name, share.tensors + 1, share.weights + info.weights)
    return tuple(sorted(shares.values(), key=lambda share: -share.weights))


def _dominant(infos: Sequence[TensorInfo], file_type: int | None) -> str:
    """Return the name of the type of most weights in the layers."""
    # Not of the whole model: a small model's embedding outweighs its ternary weights.
    layers = [info for info in infos if info.name.startswith("blk.")] or infos
    return _shares(layers, file_type)[0].name
