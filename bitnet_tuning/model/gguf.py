"""Read the header of a GGUF model file without loading the model. The format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. PyPI's ``gguf`` is not used: its reader
refuses i2_s (tensor type 36), hangs on some damaged files and imports numpy."""

from __future__ import annotations

import mmap
import os
import struct
from collections import Counter
from itertools import pairwise, takewhile

from bitnet_tuning.console import command
from bitnet_tuning.errors import MissingError
from bitnet_tuning.model import types
from bitnet_tuning.model.types import ModelFile, TensorInfo, TypeShare, make_parts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    Metadata = dict[str, "Value | None"]

MAGIC = b"GGUF"
"""First bytes of every GGUF file."""

_SCALARS = dict(zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True))
"""The ``struct`` module's letter for each scalar type of metadata values."""
_U32, _STRING, _ARRAY = 4, 8, 9
_MIN_PAIR = 8 + 4 + 1
_MIN_TENSOR = 8 + 4 + 4 + 8
"""Bytes that an entry of metadata and a tensor's description take at least."""
_MOST_DIMENSIONS, _LONGEST_TENSOR_NAME = 4, 63
"""Limits of ggml (GGML_MAX_DIMS, GGML_MAX_NAME): its loader refuses a file that exceeds them."""

_MOST_TENSORS, _MOST_PAIRS, _MOST_STRINGS, _MOST_TYPES = 1 << 14, 1 << 12, 1 << 20, 1 << 16
"""Limits for counts that are wrong but would fit into a large file: following them would take
minutes. Real models have some thousand tensors and half a million merges of tokens."""
_LONGEST_NAME = (1 << 16) - 1
"""Longest key in bytes, as the format defines it."""
_LONGEST_HEADER = 40 << 20
"""Bytes that are mapped; the longest headers, with 260,000 tokens and their merges, take 16 MB."""
_KEPT = 1 << 10
"""Bytes of a string that are kept; every string that is used is shorter."""
_MOST_WEIGHTS = (1 << 63) - 1
"""Most weights of a tensor: ggml counts them in a signed 64-bit number."""

_CUT_HEADER = "is truncated: it ends in the middle of its header"
_LONG_HEADER = f"is damaged: its header would take more than {_LONGEST_HEADER >> 20} MiB"

Value = int | float | str | bool

_AGAIN = "name another file with -m, or download or convert this one again"
_FILE_ITSELF = "download the file itself; on Hugging Face, from /resolve/ instead of /blob/"
_CONVERT = "name a GGUF file, or convert this model with setup_env.py of bitnet.cpp"
_STAND_INS = (
    (8, b'{"', "a safetensors file", _CONVERT),
    (0, b"version https://git-lfs", "a Git LFS pointer", "run in its folder: git lfs pull"),
    (0, b"<", "a web page, such as a login or an error page", _FILE_ITSELF),
    (0, b"{", "JSON text, such as a server's error message", _FILE_ITSELF),
    (0, (b"PK\3\4", b"\x80\2"), "a PyTorch checkpoint or a zip archive", _CONVERT),
    (0, (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"), "an archive", "unpack it first"),
    (0, bytes(4), "zeros, as an interrupted download leaves them", _AGAIN),
)
"""What people have in place of a model: bytes at an offset, what they show, and the remedy."""
_UNFINISHED = (".aria2", ".part", ".partial", ".crdownload", ".download", ".incomplete")
"""What programs append to a file's name while they download it (aria2: to that of its log, beside
a file that may have its full length already)."""


class _CorruptError(Exception):
    """The file is not a whole GGUF model; the text says why, as the rest of a sentence."""

    def __init__(self, cause: str, remedy: str = _AGAIN) -> None:
        super().__init__(cause)
        self.remedy = remedy


def read_model(path: str) -> ModelFile:
    """Return the facts in a file's header; of a split model, those of all its parts. Raise
    MissingError if the file does not exist, cannot be read, is not a GGUF file, is damaged, is
    shorter than its header says, or is not the first part of a split model that is complete."""
    return _model_facts(path, *_read(path))


def read_tensors(path: str) -> tuple[TensorInfo, ...]:
    """Return the tensors of a file in its order; raise MissingError as ``read_model`` does."""
    return _read(path)[2]


def read_metadata(path: str) -> dict[str, bytes]:
    """Return the metadata of a file that ``read_model`` accepts, each value as its bytes."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reader, found = _Reader(data, len(data)), {}
        reader.skip(len(MAGIC) + 4 + 8)
        for _ in range(reader.number("Q")):
            key, start = reader.text("key"), reader.at
            _value(reader, reader.number("I"))
            found[key] = data[start : reader.at]
        return found


def _read(path: str) -> tuple[int, Metadata, tuple[TensorInfo, ...]]:
    at = path
    try:
        size, metadata, infos = _read_file(path)
        for at in _further_parts(path, metadata):
            more, _, others = _read_file(at)
            infos += tuple(info._replace(offset=size + info.offset) for info in others)
            size += more
        at = path
        if not infos:
            raise _CorruptError("is not a model: it has no tensors")
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str) or not architecture:
            raise _CorruptError("is damaged: its header does not name an architecture")
        stated = _integer(metadata.get("split.tensors.count"))
        if metadata.get("split.count") and stated not in (None, len(infos)):
            raise _CorruptError(f"is damaged: its parts have {len(infos)} of {stated} tensors")
        _check_unique("tensors", [info.name for info in infos])
        return size, metadata, infos
    except OSError as error:
        cause = f"cannot read the model {at}: {error.strerror or error}"
        remedy = "check its permissions, or name another file with -m"
        raise MissingError(cause, remedy) from error
    except _CorruptError as error:
        marks = [mark for mark in _UNFINISHED if at.endswith(mark) or os.path.exists(at + mark)]
        note = f"; its download is not finished ({marks[0]})" if marks else ""
        raise MissingError(f"{at} {error}{note}", error.remedy) from error


def _read_file(path: str) -> tuple[int, Metadata, tuple[TensorInfo, ...]]:
    remedy = "name a GGUF file with -m or in BITNET_MODEL"
    if not os.path.exists(path):
        remedy += f", or download one: {command('model')} get"
        raise MissingError(f"no such model file: {path}", remedy)
    if not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "not a regular file"
        raise MissingError(f"the model {path} is {kind}", remedy)
    if (size := os.path.getsize(path)) == 0:
        raise _CorruptError("is empty")
    if os.path.exists(path + _UNFINISHED[0]):
        raise _CorruptError("is not complete")
    end = min(size, _LONGEST_HEADER)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), end, access=mmap.ACCESS_READ) as data:
        return size, *_parse(_Reader(data, size))


def _further_parts(path: str, metadata: Metadata) -> list[str]:
    """Return the paths of the other parts of a split model, which llama.cpp finds by their names;
    raise _CorruptError if ``path`` is not the first, or if one is missing."""
    number, count = (_integer(metadata.get(f"split.{key}")) or 0 for key in ("no", "count"))
    if count < 2:
        return []
    paths, this = types.part_paths(path), f"is part {number + 1} of {count} of a model"
    if number or len(paths) != count or paths[0] != path:
        first = paths[0] if len(paths) == count else f"the file named *-00001-of-{count:05d}.gguf"
        raise _CorruptError(f"{this}; an engine starts from the first", f"name with -m {first}")
    if missing := next((part for part in paths if not os.path.exists(part)), None):
        raise _CorruptError(f"{this}, but {missing} is missing", "download all parts")
    return paths[1:]


def _check_unique(what: str, names: list[str]) -> None:
    if len(set(names)) < len(names):
        name = Counter(names).most_common(1)[0][0]
        raise _CorruptError(f"is damaged: it has several {what} named {name!r}")


class _Reader:
    """A position in the beginning of a file that never moves past what is mapped of it."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self.data, self.size = data, size
        self.at, self.end = 0, len(data)

    def skip(self, count: int) -> int:
        """Move on by ``count`` bytes and return the position before."""
        start = self.at
        if count > self.end - start:
            raise _CorruptError(_CUT_HEADER if self.end == self.size else _LONG_HEADER)
        self.at = start + count
        return start

    def number(self, form: str) -> Any:
        """Read a number, or a truth value, in a form of the ``struct`` module."""
        start = self.skip(struct.calcsize("<" + form))
        return struct.unpack_from("<" + form, self.data, start)[0]

    def count(self, what: str, smallest: int, most: int | None = None) -> int:
        """Read a 64-bit count of things that take at least ``smallest`` bytes each."""
        count: int = self.number("Q")
        if count * smallest > self.size - self.at:
            claims = f"its header claims {count} {what}, more than the file can hold"
            raise _CorruptError(f"is truncated or damaged: {claims}")
        if most is not None and count > most:
            raise _CorruptError(f"is damaged: it claims {count} {what}; the limit is {most}")
        return count

    def text(self, what: str = "string", most: int | None = None) -> str:
        """Read a string and return its beginning, without what a terminal would obey."""
        start = self.skip(self.count(f"bytes in a {what}", 1, most))
        if most and start == self.at:
            raise _CorruptError(f"is damaged: it has an empty {what}")
        text = self.data[start : min(self.at, start + _KEPT)].decode("utf-8", "replace")
        return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def _parse(reader: _Reader) -> tuple[Metadata, tuple[TensorInfo, ...]]:
    if reader.data[: len(MAGIC)] != MAGIC[: reader.size]:
        raise _stand_in(reader.data[:512])
    reader.skip(len(MAGIC))
    version = reader.number("I")
    # The format has no mark for the byte order (docs/gguf.md), but a swapped version shows it.
    if version in (2 << 24, 3 << 24):
        raise _CorruptError("is a big-endian GGUF file, which only big-endian machines can use")
    if version not in (2, 3):
        raise _CorruptError(f"has version {version} of the GGUF format; versions 2 and 3 are known")
    tensors = reader.count("tensors", _MIN_TENSOR, _MOST_TENSORS)
    pairs = reader.count("metadata entries", _MIN_PAIR, _MOST_PAIRS)
    entries = [_pair(reader) for _ in range(pairs)]
    _check_unique("metadata entries", [key for key, _ in entries])
    metadata = dict(entries)
    alignment = _integer(metadata.get("general.alignment", 32)) or 0
    if not 0 < alignment <= reader.size or alignment & (alignment - 1):
        raise _CorruptError(f"is damaged: it cannot have an alignment of {alignment} bytes")
    relative = [_tensor(reader, alignment) for _ in range(tensors)]
    start = -(-reader.at // alignment) * alignment
    infos = tuple(info._replace(offset=start + info.offset) for info in relative)
    ends = [info.offset + types.tensor_bytes(info.kind, info.weights) for info in infos]
    if max(ends, default=0) > reader.size:
        # Not in MiB: sometimes a few bytes lack.
        raise _CorruptError(f"is truncated: it has {reader.size} of {max(ends)} bytes")
    places = sorted(zip((info.offset for info in infos), ends, infos, strict=True))
    for (_, end, _), (start, _, info) in pairwise(places):
        if end > start:
            raise _CorruptError(f"is damaged: tensor {info.name!r} begins in another one")
    return metadata, infos


def _stand_in(data: bytes) -> _CorruptError:
    """Return the error for a file that begins with ``data`` and is no GGUF file."""
    text = data.lstrip(b"\xef\xbb\xbf \t\r\n")
    line = "".join(takewhile(str.isprintable, text[:60].decode("ascii", "surrogateescape")))
    shown = f"'{line}'" if line else f"the bytes {data[:4].hex(' ')}"
    for at, mark, what, remedy in _STAND_INS:
        if (data if at else text).startswith(mark, at):
            return _CorruptError(f"is not a model but {what}: it begins with {shown}", remedy)
    return _CorruptError(f"is not a GGUF file: it begins with {shown}, not 'GGUF'")


def _pair(reader: _Reader) -> tuple[str, Value | None]:
    key = reader.text("key", _LONGEST_NAME)
    kind = reader.number("I")
    if key == "general.alignment" and kind != _U32:
        raise _CorruptError(f"is damaged: its alignment has the type {kind}, not {_U32} (u32)")
    return key, _value(reader, kind)


def _value(reader: _Reader, kind: int) -> Value | None:
    """Read a scalar or a string; of an array, return the length."""
    if kind == _STRING:
        return reader.text()
    if kind == _ARRAY:
        return _array_length(reader)
    if kind not in _SCALARS:
        raise _CorruptError(f"is damaged: its metadata has a value of unknown type {kind}")
    value: Value = reader.number(_SCALARS[kind])
    return value


def _array_length(reader: _Reader) -> int:
    kind = reader.number("I")
    if kind in _SCALARS:
        width = struct.calcsize(_SCALARS[kind])
        length = reader.count("array entries", width)
        reader.skip(length * width)
        return length
    if kind != _STRING:
        of = "arrays" if kind == _ARRAY else f"unknown type {kind}"
        raise _CorruptError(f"is damaged: its metadata has an array of {of}")
    length = reader.count("strings", 8, _MOST_STRINGS)
    # A vocabulary and its merges are 400,000 strings: a bare loop takes a fraction of the time
    # that the reader's methods would.
    unpack, data, at, end = struct.Struct("<Q").unpack_from, reader.data, reader.at, reader.end
    for _ in range(length):
        if at + 8 > end:
            at += 8
            break
        at += 8 + unpack(data, at)[0]
    reader.skip(at - reader.at)
    return length


def _tensor(reader: _Reader, alignment: int) -> TensorInfo:
    name = reader.text("tensor's name", _LONGEST_TENSOR_NAME)
    dimensions = reader.number("I")
    if dimensions > _MOST_DIMENSIONS:
        raise _CorruptError(f"is damaged: tensor {name!r} has {dimensions} dimensions")
    shape = tuple(reader.number("Q") for _ in range(dimensions))
    info = TensorInfo(name, reader.number("I"), shape, reader.number("Q"))
    if 0 in shape:
        wrong = "has a dimension of 0"
    elif info.weights > _MOST_WEIGHTS:
        wrong = f"claims {info.weights} weights"
    elif info.kind >= _MOST_TYPES:
        wrong = f"is of unknown type {info.kind}"
    elif shape and shape[0] % types.block_weights(info.kind):
        wrong = f"has rows of {shape[0]} weights, no multiple of {types.block_weights(info.kind)}"
    elif info.offset % alignment:
        wrong = f"begins at byte {info.offset}, no multiple of the alignment {alignment}"
    else:
        return info
    raise _CorruptError(f"is damaged: tensor {name!r} {wrong}")


def _model_facts(
    path: str, size: int, metadata: Metadata, infos: tuple[TensorInfo, ...]
) -> ModelFile:
    file_type = _integer(metadata.get("general.file_type"))
    architecture = str(metadata["general.architecture"])

    def stated(key: str) -> int | None:
        return _integer(metadata.get(f"{architecture}.{key}"))

    # Not the whole model decides: a small one's embedding outweighs its ternary weights.
    layers = [info for info in infos if info.name.startswith("blk.")] or infos
    return ModelFile(
        path=path,
        size=size,
        architecture=architecture,
        name=str(metadata.get("general.name") or path.replace("\\", "/").rpartition("/")[2]),
        quantization=_shares(layers, file_type)[0].name,
        types=_shares(infos, file_type),
        context_length=stated("context_length"),
        layers=stated("block_count"),
        embedding_length=stated("embedding_length"),
        vocabulary=stated("vocab_size") or _integer(metadata.get("tokenizer.ggml.tokens")),
        chat_template="tokenizer.chat_template" in metadata,
        heads=stated("attention.head_count"),
        kv_width=_kv_width(stated),
        parts=make_parts(infos, file_type),
    )


def _kv_width(stated: Callable[[str], int | None]) -> int | None:
    """Return the values that the KV cache of a layer holds for each token."""
    heads, length = stated("attention.head_count"), stated("embedding_length")
    if not heads or not length:
        return None
    # Several heads share keys and values if there are fewer of these. The count may be a list with
    # one number per layer, of which ``_value`` returns the length: then take that of the heads.
    shared = min(stated("attention.head_count_kv") or heads, heads)
    lengths = (stated(f"attention.{part}_length") for part in ("key", "value"))
    return shared * sum(given or length // heads for given in lengths)


def _integer(value: Value | None) -> int | None:
    return int(value) if isinstance(value, int) else None


def _shares(infos: Sequence[TensorInfo], file_type: int | None) -> tuple[TypeShare, ...]:
    shares: dict[str, TypeShare] = {}
    for info in infos:
        name = types.type_name(info.kind, file_type)
        share = shares.get(name, TypeShare(name, 0, 0))
        shares[name] = TypeShare(name, share.tensors + 1, share.weights + info.weights)
    return tuple(sorted(shares.values(), key=lambda share: -share.weights))
