"""Files that stand in place of a model, malformed headers, and models in parts."""

from __future__ import annotations

import gzip
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from bitnet_tuning.errors import MissingError
from bitnet_tuning.model.find import choose_model, know
from bitnet_tuning.model.gguf import read_model, read_tensors
from bitnet_tuning.store.state import State
from tests.gguf_files import (
    ARRAY,
    F32,
    I32,
    STRING,
    U8,
    U32,
    U64,
    Tensor,
    Typed,
    gguf_header,
    write_bitnet,
    write_gguf,
    write_split,
)
from tests.test_gguf import a_pair, counts, little_memory


def refused(path: Path) -> MissingError:
    """Return the error for a file: it names the file, has a remedy, and each is one line."""
    with pytest.raises(MissingError) as caught:
        read_model(str(path))
    error = caught.value
    assert error.cause.startswith(f"{path} ")
    assert error.remedy
    assert "\n" not in error.cause + error.remedy
    return error


# Malformed headers: those of llama.cpp's tests/test-gguf.cpp, and those that crashed, hung or
# filled the memory of llama.cpp, gguf-py, gguf-tools and ollama (CVE-2024-21802, -21825, -21836,
# -23496, -23605, CVE-2026-33298; llama.cpp pull requests 18586, 19856, 24263, 25596 and 27188).

TOP = 1 << 63
ALL = (1 << 64) - 1
NAMED = ("general.architecture", "x")
ONE = Tensor("blk.0.w", (256,), "f32")


def entry(kind: int, content: bytes) -> bytes:
    return a_pair(kind, content) + bytes(512)


def array(kind: int, length: int, content: bytes = b"") -> bytes:
    return entry(ARRAY, struct.pack("<IQ", kind, length) + content)


def stating(*items: tuple[str | bytes, object]) -> bytes:
    return gguf_header([NAMED, *items], [ONE]) + bytes(2048)


def aligned(value: object) -> bytes:
    return stating(("general.alignment", value))


def a_tensor(
    shape: Iterable[int], kind: int = 0, offset: int = 0, name: bytes = b"w", dimensions: int = -1
) -> bytes:
    shape = tuple(shape)
    number = len(shape) if dimensions < 0 else dimensions
    form = struct.pack(f"<I{len(shape)}QIQ", number, *shape, kind, offset)
    return struct.pack("<Q", len(name)) + name + form


def model(*tensors: bytes, size: int = 4096) -> bytes:
    header = gguf_header([NAMED])
    return (
        header[:8] + struct.pack("<Q", len(tensors)) + header[16:] + b"".join(tensors) + bytes(size)
    )


MALFORMED = {
    "2^64 - 1 tensors": (counts(ALL, 1) + bytes(64), f"claims {ALL} tensors"),
    "2^63 tensors": (counts(TOP, 0) + bytes(64), f"claims {TOP} tensors"),
    "2^64 - 1 entries": (counts(1, ALL) + bytes(64), f"claims {ALL} metadata entries"),
    "entries whose product with a size wraps": (
        counts(1, ALL // 56 + 2) + bytes(64),
        "metadata entries, more than the file can hold",
    ),
    "no tensors": (gguf_header([NAMED]), "has no tensors"),
    "an architecture that is a number": (
        gguf_header([("general.architecture", 5)], [ONE]) + bytes(2048),
        "does not name an architecture",
    ),
    "version 0": (b"GGUF" + struct.pack("<IQQ", 0, 1, 0), "has version 0"),
    "version 4": (b"GGUF" + struct.pack("<IQQ", 4, 1, 0), "has version 4"),
    "a key of 2^64 - 1 bytes": (
        counts(1, 1) + struct.pack("<Q", ALL) + bytes(64),
        f"claims {ALL} bytes in a key",
    ),
    "a key past the end": (
        counts(1, 1) + struct.pack("<Q", 1000) + bytes(64),
        "claims 1000 bytes in a key",
    ),
    "an empty key": (stating(("", 1)), "it has an empty key"),
    "a repeated key": (stating(("a", 1), ("a", 2)), "several metadata entries named 'a'"),
    "a value of type 13": (entry(13, bytes(64)), "unknown type 13"),
    "a value of type -1": (entry(0xFFFFFFFF, bytes(64)), "unknown type 4294967295"),
    "a string of 2^64 - 1 bytes": (
        entry(STRING, struct.pack("<Q", ALL)),
        f"claims {ALL} bytes in a string",
    ),
    "a string of 2^63 bytes": (
        entry(STRING, struct.pack("<Q", TOP)),
        f"claims {TOP} bytes in a string",
    ),
    "a string past the end": (
        entry(STRING, struct.pack("<Q", 1000)),
        "claims 1000 bytes in a string",
    ),
    "an array of 2^63 numbers": (array(U8, TOP), f"claims {TOP} array entries"),
    "an array of 2^62 numbers whose size wraps": (array(U32, 1 << 62), f"claims {1 << 62} array"),
    "an array of 2^61 + 1 numbers whose size wraps": (array(U64, (1 << 61) + 1), "array entries"),
    "an array of 2^30 numbers past the end": (array(F32, 1 << 30), "claims 1073741824 array"),
    "an array of 2^63 strings": (array(STRING, TOP), f"claims {TOP} strings"),
    "an array of 2^60 strings whose size wraps": (array(STRING, 1 << 60), "strings, more than"),
    "an array with a string of 2^64 - 9 bytes": (
        array(STRING, 2, struct.pack("<Q", ALL - 8)),
        "ends in the middle of its header",
    ),
    "an array with a string past the end": (
        array(STRING, 1, struct.pack("<Q", 1000)),
        "ends in the middle of its header",
    ),
    "an array of type 13": (array(13, 1), "array of unknown type 13"),
    "an array of type -1": (array(0xFFFFFFFF, 1), "array of unknown type 4294967295"),
    "an array of 2^63 arrays": (array(ARRAY, TOP), "array of arrays"),
    "arrays 5,000 deep": (
        array(ARRAY, 1, struct.pack("<IQ", ARRAY, 1) * 5000),
        "array of arrays",
    ),
    "an alignment of 0": (aligned(0), "alignment of 0 bytes"),
    "an alignment of 13": (aligned(13), "alignment of 13 bytes"),
    "an alignment of 0x80000000": (aligned(0x80000000), "alignment of 2147483648 bytes"),
    "an alignment of type i32": (aligned(Typed(I32, -32)), "alignment has the type 5, not 4"),
    "an alignment that is a text": (aligned("32"), "alignment has the type 8, not 4"),
    "an empty tensor's name": (model(a_tensor([32], name=b"")), "it has an empty tensor's name"),
    "a tensor's name of 64 bytes": (model(a_tensor([32], name=b"n" * 64)), "the limit is 63"),
    "a tensor's name of 2^64 - 1 bytes": (
        model(struct.pack("<Q", ALL)),
        f"claims {ALL} bytes in a tensor's name",
    ),
    "two tensors of the same name": (
        model(a_tensor([32]), a_tensor([32], offset=128)),
        "several tensors named 'w'",
    ),
    "5 dimensions": (model(a_tensor([1] * 5)), "tensor 'w' has 5 dimensions"),
    "2^32 - 1 dimensions": (
        model(a_tensor([1], dimensions=0xFFFFFFFF)),
        "tensor 'w' has 4294967295 dimensions",
    ),
    "a dimension of 0": (model(a_tensor([256, 0])), "'w' has a dimension of 0"),
    "a dimension of 0 in an i2_s tensor": (model(a_tensor([0, 256], 36)), "a dimension of 0"),
    "a negative dimension": (model(a_tensor([ALL])), f"'w' claims {ALL} weights"),
    "dimensions whose product wraps to 0": (
        model(a_tensor([1 << 32, 1 << 32])),
        f"'w' claims {1 << 64} weights",
    ),
    "dimensions whose product wraps to 2^24": (
        model(a_tensor([4, (1 << 42) + 1, 1 << 22])),
        f"'w' claims {(1 << 66) + (1 << 24)} weights",
    ),
    "weights whose size in bytes wraps": (
        model(a_tensor([4, (1 << 30) - 1, (1 << 30) + 1])),
        "is truncated: it has",
    ),
    "two tensors whose sizes together wrap": (
        model(a_tensor([TOP - 64], 36), a_tensor([TOP - 64], 36, TOP - 64, b"v")),
        "is truncated: it has",
    ),
    "a tensor of type -1": (model(a_tensor([32], 0xFFFFFFFF)), "of unknown type 4294967295"),
    "a row that is no whole number of blocks": (
        model(a_tensor([100], 14)),
        "has rows of 100 weights, no multiple of 256",
    ),
    "an offset that is not aligned": (
        model(a_tensor([32], offset=4)),
        "begins at byte 4, no multiple of the alignment 32",
    ),
    "an offset of 2^64 - 32": (model(a_tensor([32], offset=ALL - 31)), "is truncated: it has"),
    "a tensor past the end": (model(a_tensor([4096])), "is truncated: it has"),
    "two tensors in the same place": (
        model(a_tensor([32]), a_tensor([32], name=b"v")),
        "begins in another one",
    ),
    "a name that commands the terminal": (
        model(a_tensor([0], name=b"\x1b[2J\n")),
        "tensor '\ufffd[2J\ufffd' has a dimension of 0",
    ),
}


@pytest.mark.parametrize(("data", "words"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_header_is_refused_with_its_cause_in_little_memory(
    tmp_path: Path, data: bytes, words: str
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with little_memory(1 << 20):
        error = refused(path)
    assert words in error.cause


# What stands in place of a model

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1187801280\n"
SAFETENSORS = struct.pack("<Q", 64) + b'{"w":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'


@pytest.mark.parametrize(
    ("data", "words", "remedy"),
    [
        (POINTER, "is not a model but a Git LFS pointer", "git lfs pull"),
        (b"<!doctype html>\n<html>", "a web page, such as a login or an error page", "/resolve/"),
        (b"\xef\xbb\xbf\r\n  <html>", "a web page", "/resolve/"),
        (b'<?xml version="1.0"?><Error>', "it begins with '<?xml version=\"1.0\"?><Error>'", ""),
        (b'{"error":"Invalid token"}', "JSON text", "/resolve/"),
        (b'{"error":"Invalid token"}', 'it begins with \'{"error":"Invalid token"}\'', ""),
        (SAFETENSORS, "a safetensors file", "setup_env.py"),
        (b"<" + SAFETENSORS[1:], "a safetensors file", "setup_env.py"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "a PyTorch checkpoint", "setup_env.py"),
        (gzip.compress(b"GGUF", mtime=0), "an archive", "unpack it"),
        (b"\x28\xb5\x2f\xfd" + bytes(9), "an archive", "unpack it"),
        (bytes(4096), "zeros, as an interrupted download leaves them", "download"),
    ],
)
def test_what_stands_in_place_of_a_model_is_named(
    tmp_path: Path, data: bytes, words: str, remedy: str
) -> None:
    path = tmp_path / "ggml-model-i2_s.gguf"
    path.write_bytes(data)
    error = refused(path)
    assert words in error.cause
    assert remedy in error.remedy


def test_a_checkpoint_in_a_zip_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    assert "a PyTorch checkpoint or a zip archive: it begins with 'PK'" in refused(path).cause


@pytest.mark.parametrize("end", [".part", ".crdownload", ".incomplete"])
def test_a_file_that_is_being_downloaded_is_named(tmp_path: Path, end: str) -> None:
    """Firefox leaves an empty file under the right name beside the one that grows."""
    whole = write_bitnet(tmp_path / "whole.gguf")
    partial = tmp_path / f"model.gguf{end}"
    partial.write_bytes(whole.read_bytes()[:1000])
    assert f"its download is not finished ({end})" in refused(partial).cause
    empty = tmp_path / "model.gguf"
    empty.touch()
    assert f"is empty; its download is not finished ({end})" in refused(empty).cause


def test_a_file_of_full_length_that_aria2_has_not_finished_is_named(tmp_path: Path) -> None:
    path = write_bitnet(tmp_path / "model.gguf")
    log = tmp_path / "model.gguf.aria2"
    log.touch()
    assert "is not complete; its download is not finished (.aria2)" in refused(path).cause
    log.unlink()
    read_model(str(path))


# Models in parts


@pytest.mark.parametrize("numbers", [(2, 2), (0, 1, 3), (4, 0)])
def test_a_model_in_parts_is_read_like_the_whole(tmp_path: Path, numbers: list[int]) -> None:
    (whole,) = write_split(tmp_path / "whole", [4])
    first, *others = parts = write_split(tmp_path / "model", numbers)
    assert len(others) == len(numbers) - 1
    one, several = read_model(str(whole)), read_model(str(first))
    assert several.size == sum(part.stat().st_size for part in parts)
    assert (several.types, several.parts) == (one.types, one.parts)
    tensors = read_tensors(str(first))
    assert [each[:3] for each in tensors] == [each[:3] for each in read_tensors(str(whole))]
    # The first tensor of each part that has one lies behind the header of that part.
    end = 0
    for part, tensor in zip(parts, (0, numbers[0]), strict=False):
        if tensor < 4 and numbers[parts.index(part)]:
            assert end < tensors[tensor].offset < end + 2048
        end += part.stat().st_size


def test_another_part_than_the_first_names_the_first(tmp_path: Path) -> None:
    first, second, _ = write_split(tmp_path / "model", (2, 1, 1))
    error = refused(second)
    assert "is part 2 of 3 of a model; an engine starts from the first" in error.cause
    assert error.remedy == f"name with -m {first}"


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    first, _, third = write_split(tmp_path / "model", (2, 1, 1))
    third.unlink()
    error = refused(first)
    assert f"is part 1 of 3 of a model, but {third} is missing" in error.cause
    assert "download all" in error.remedy


def test_an_unusable_part_is_named(tmp_path: Path) -> None:
    first, second, _ = write_split(tmp_path / "model", (2, 1, 1))
    second.write_bytes(POINTER)
    with pytest.raises(MissingError, match="a Git LFS pointer") as caught:
        read_model(str(first))
    assert caught.value.cause.startswith(f"{second} is not a model")


def test_a_part_under_another_name_names_the_right_one(tmp_path: Path) -> None:
    first, _ = write_split(tmp_path / "model", (2, 2))
    renamed = first.rename(tmp_path / "model.gguf")
    error = refused(renamed)
    assert "is part 1 of 2 of a model" in error.cause
    assert "-00001-of-00002.gguf" in error.remedy


@pytest.mark.parametrize(
    ("numbers", "stated", "words"),
    [
        ((2, 1), {}, "its parts have 3 of 4 tensors"),
        ((2, 2), {"split__count": (1 << 64) - 1}, f"is part 1 of {(1 << 64) - 1} of a model"),
        ((2, 2), {"split__no": (1 << 64) - 1}, f"is part {1 << 64} of 2 of a model"),
        ((2, 2), {"general__architecture": ""}, "does not name an architecture"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(
    tmp_path: Path, numbers: list[int], stated: dict[str, object], words: str
) -> None:
    assert words in refused(write_split(tmp_path / "model", numbers, **stated)[0]).cause


def test_a_tensor_that_two_parts_have_is_refused(tmp_path: Path) -> None:
    first, second = write_split(tmp_path / "model", (2, 2))
    second.write_bytes(first.read_bytes())
    assert "several tensors named 'token_embd.weight'" in refused(first).cause


def test_a_whole_model_may_have_the_name_of_a_part(tmp_path: Path) -> None:
    assert read_model(str(write_gguf(tmp_path / "model-00001-of-00002.gguf"))).layers is None


def test_what_is_known_of_a_model_in_parts_ends_when_a_part_changes(tmp_path: Path) -> None:
    first, second = write_split(tmp_path / "model", (2, 2))
    state = State(str(tmp_path / "state"))
    assert know(str(first), state) == know(str(first), state)
    second.unlink()
    with pytest.raises(MissingError, match="is missing"):
        know(str(first), state)


def test_a_wrong_file_is_named_where_no_model_is_found(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    pointer = tmp_path / "models" / "ggml-model-i2_s.gguf"
    pointer.write_bytes(POINTER)
    with pytest.raises(MissingError, match="found no model") as caught:
        choose_model(None, {}, (str(tmp_path),), False, State(str(tmp_path / "state")))
    assert f"; {pointer} is not a model but a Git LFS pointer" in caught.value.cause


def test_of_a_model_in_parts_only_the_first_is_found(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    first, *_ = write_split(tmp_path / "models" / "model", (2, 1, 1))
    state = State(str(tmp_path / "state"))
    assert choose_model(None, {}, (str(tmp_path),), False, state).model.path == str(first)
