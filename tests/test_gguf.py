"""Reading the headers of model files, whole and damaged ones."""

from __future__ import annotations

import os
import random
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bitnet_tuning import demo
from bitnet_tuning.errors import MissingError
from bitnet_tuning.model import types
from bitnet_tuning.model.gguf import read_model, read_tensors
from bitnet_tuning.model.types import ModelFile, Part, TypeShare
from tests.gguf_files import (
    ARRAY,
    F64,
    FORMS,
    STRING,
    U32,
    Tensor,
    Typed,
    gguf_header,
    tensor_size,
    write_bitnet,
    write_gguf,
)

HUGE = 1 << 60
ONE = Tensor("blk.0.w", (256,), "f32")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def refusal(path: Path) -> str:
    with pytest.raises(MissingError) as caught:
        read_model(str(path))
    assert str(path) in caught.value.cause
    assert caught.value.remedy
    return caught.value.cause


def refusal_of(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return refusal(path)


@contextmanager
def little_memory(limit: int = 5 << 20) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


# Whole files


def test_the_facts_of_a_bitnet_model_are_read(path: Path) -> None:
    model = read_model(str(write_bitnet(path)))
    assert model == ModelFile(
        path=str(path),
        size=path.stat().st_size,
        architecture="bitnet-b1.58",
        name="small",
        quantization="i2_s",
        types=(
            TypeShare("f16", 1, 256 * 32000),
            TypeShare("i2_s", 2, 2 * 256 * 1024),
            TypeShare("f32", 2, 512),
        ),
        context_length=4096,
        layers=2,
        embedding_length=256,
        vocabulary=32000,
        chat_template=False,
        heads=None,
        kv_width=None,
        parts=(
            Part("ternary", "i2_s", 2 * 256 * 1024, 2 * (65536 + 32), 2 * (65536 + 32)),
            Part("embedding", "f16", 256 * 32000, 512 * 32000, 512 * 32000),
            Part("other", "f32", 512, 2048, 2048),
        ),
    )


def test_the_kv_cache_takes_shared_heads_and_stated_lengths_into_account(path: Path) -> None:
    def width(**stated: int) -> int | None:
        named = {f"bitnet-b1.58.attention.{key}": value for key, value in stated.items()}
        return read_model(str(write_bitnet(path, **named))).kv_width  # type: ignore[arg-type]

    assert width(head_count=8, head_count_kv=2) == 2 * (32 + 32)
    assert width(head_count=8, head_count_kv=2, key_length=64, value_length=16) == 2 * (64 + 16)
    assert width(head_count=8) == 2 * 256
    assert width(head_count=8, head_count_kv=30) == 2 * 256


@pytest.mark.parametrize("kind", ["i2_s", "tq1_0", "tq2_0", "tl1", "tl2"])
def test_the_layers_decide_the_quantization_though_the_embedding_outweighs_them(
    path: Path, kind: str
) -> None:
    assert read_model(str(write_bitnet(path, kind))).quantization == kind


@pytest.mark.parametrize("file_type", [38, None])
def test_an_mxfp4_model_is_not_taken_for_tl2(path: Path, file_type: int | None) -> None:
    """llama.cpp's MXFP4 has bitnet.cpp's number of TL2; only the file's type tells them apart."""
    facts = {} if file_type is None else {"general.file_type": file_type}
    write_gguf(path, facts, [("blk.0.w", (64, 64), "mxfp4")])
    assert read_model(str(path)).quantization == "type 39"


def test_names_and_sizes_of_types_are_those_of_the_gguf_package() -> None:
    """It does not know i2_s."""
    constants = pytest.importorskip("gguf.constants")
    known = 0
    for number, (block, size) in constants.GGML_QUANT_SIZES.items():
        if found := types.tensor_bytes(int(number), 1024 * block):
            assert found == 1024 * size, number
            assert types.type_name(int(number), None) == number.name.lower()
            known += 1
    assert known >= 15
    assert types.tensor_bytes(36, 1024) == 1024 // 4 + 32
    assert types.tensor_bytes(999, 1024) == 0


def test_a_file_of_the_gguf_package_is_read(path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    numpy = pytest.importorskip("numpy")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("reference")
    writer.add_context_length(2048)
    writer.add_block_count(3)
    writer.add_token_list(["a", "b", "c"])
    writer.add_chat_template("{{ messages }}")
    writer.add_tensor("blk.0.ffn_up.weight", numpy.zeros((8, 32), numpy.float16))
    writer.add_tensor("output.weight", numpy.zeros((3, 32), numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = read_model(str(path))
    assert (model.architecture, model.name, model.quantization) == ("llama", "reference", "f16")
    assert (model.context_length, model.layers, model.vocabulary) == (2048, 3, 3)
    assert model.chat_template
    assert model.size == path.stat().st_size
    placed = [
        (each.name, each.tensor_type, tuple(each.shape), each.data_offset)
        for each in gguf.GGUFReader(path).tensors
    ]
    assert [tuple(each) for each in read_tensors(str(path))] == placed


@pytest.mark.parametrize(("file", "kind"), [(demo.I2_S, "i2_s"), (demo.TQ2_0, "tq2_0")])
def test_the_demo_model_is_read(file: str, kind: str) -> None:
    model = read_model(file)
    assert (model.quantization, model.layers) == (kind, 3)


def test_metadata_may_have_every_type_of_value(path: Path) -> None:
    values: dict[str, object] = {f"x.{kind}": Typed(kind, 1) for kind in FORMS}
    values |= {"x.text": "\u00e4" * 100, "x.empty": "", "x.list": [1, 2], "x.names": ["a", "", "b"]}
    values |= {"x.none": [], "x.flags": [True, False]}
    values["bitnet-b1.58.context_length"] = 77
    assert read_model(str(write_gguf(path, values))).context_length == 77


def test_the_vocabulary_is_counted_if_its_size_is_not_stated(path: Path) -> None:
    write_gguf(path, {"tokenizer.ggml.tokens": ["a", "b", "c"], "tokenizer.chat_template": "x"})
    model = read_model(str(path))
    assert (model.vocabulary, model.chat_template) == (3, True)


def test_numbers_that_are_not_stated_are_none(path: Path) -> None:
    model = read_model(str(write_gguf(path)))
    assert model.name == "model.gguf"
    assert {model.context_length, model.layers, model.embedding_length, model.vocabulary} == {None}


def test_numbers_of_a_wrong_type_are_none(path: Path) -> None:
    write_gguf(
        path,
        {
            "bitnet-b1.58.context_length": "many",
            "bitnet-b1.58.block_count": 2.5,
            "general.file_type": Typed(F64, float("nan")),
        },
    )
    model = read_model(str(path))
    assert (model.context_length, model.layers) == (None, None)


@pytest.mark.parametrize("alignment", [1, 8, 32, 64, 4096])
def test_an_alignment_may_be_any_power_of_two(path: Path, alignment: int) -> None:
    items = [("general.architecture", "x"), ("general.alignment", alignment)]
    path.write_bytes(gguf_header(items, [ONE]) + bytes(8192))
    assert read_tensors(str(path))[0].offset % alignment == 0


def test_keys_and_names_need_not_be_utf_8(path: Path) -> None:
    items: list[tuple[str | bytes, object]] = [(b"\xff\xfe\x00", 1), ("x", 2)]
    items += [("general.architecture", "x"), ("general.name", b"\xc3(")]
    path.write_bytes(gguf_header(items, [ONE]) + bytes(2048))
    assert read_model(str(path)).name == "\ufffd("


def test_names_do_not_carry_commands_to_the_terminal(path: Path) -> None:
    name = read_model(str(write_gguf(path, {"general.name": "a\x1b[2Jb\nc"}))).name
    assert name == "a\ufffd[2Jb\ufffdc"


def test_version_2_is_read(path: Path) -> None:
    path.write_bytes(gguf_header([("general.architecture", "x")], [ONE], version=2) + bytes(2048))
    assert read_model(str(path)).architecture == "x"


def test_a_tensor_without_dimensions_may_end_the_file(path: Path) -> None:
    data = gguf_header([("general.architecture", "llama")], [Tensor("s", (), "f32")])
    path.write_bytes(data + bytes(-len(data) % 32) + bytes(4))
    assert read_model(str(path)).types == (TypeShare("f32", 1, 1),)


def test_a_link_to_a_model_is_followed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(write_gguf(path))
    assert read_model(str(tmp_path / "link")).architecture == "bitnet-b1.58"


def test_a_files_name_need_not_be_utf_8(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.gguf"
    try:
        with open(name, "wb"):
            pass
    except OSError:
        pytest.skip("the file system wants text")
    write_gguf(os.fsdecode(name))
    assert read_model(os.fsdecode(name)).name == "\udcff.gguf"


# Files that are not models


def holding(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def with_header(**form: Any) -> Callable[[Path], object]:
    """A file with one tensor; ``items`` are its metadata."""
    items = form.pop("items", [("general.architecture", "x")])
    return holding(gguf_header(items, [ONE], **form) + bytes(2048))


FAR = gguf_header([("general.architecture", "x")], [ONE])[:-8] + struct.pack("<Q", (1 << 64) - 32)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no such model file"),
        (lambda path: path.symlink_to("nowhere"), "no such model file"),
        (lambda path: path.touch(), "is empty"),
        (lambda path: path.mkdir(), "is a folder"),
        (os.mkfifo, "is not a regular file"),
        (holding(b"Entry not found\n"), "is not a GGUF file: it begins with 'Entry not found'"),
        (holding(b"GGML" + bytes(100)), "is not a GGUF file: it begins with 'GGML'"),
        (holding(b"\x7fELF"), "is not a GGUF file: it begins with the bytes 7f 45 4c 46"),
        (holding(b"\0"), "is not a GGUF file: it begins with the bytes 00"),
        (with_header(order=">"), "is a big-endian GGUF file"),
        (with_header(version=1), "has version 1 of the GGUF format"),
        (with_header(version=0xFFFFFFFF), "has version 4294967295 of the GGUF format"),
        (with_header(items=[]), "does not name an architecture"),
        (with_header(items=[("general.architecture", "")]), "does not name an architecture"),
        (holding(gguf_header([("general.architecture", "x")])), "has no tensors"),
        (holding(FAR + bytes(2048)), "is truncated"),
    ],
)
def test_a_file_that_is_not_a_model_is_refused_with_the_reason(
    path: Path, make: Callable[[Path], object], words: str
) -> None:
    make(path)
    assert words in refusal(path)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "\ud800", ""])
def test_a_name_that_no_file_can_have_is_refused(name: str) -> None:
    with pytest.raises(MissingError):
        read_model(name)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_a_file_without_read_permission_is_refused(path: Path) -> None:
    write_gguf(path).chmod(0)
    assert "cannot read" in refusal(path)


def test_a_file_that_ends_anywhere_in_its_header_is_truncated(path: Path) -> None:
    items = [("general.architecture", "x"), ("a", [1, 2]), ("b", ["x", "y"]), ("c", 1.5)]
    data = gguf_header(items, [ONE, Tensor("blk.1.w", (256,), "f32")])
    for length in range(1, len(data)):
        cause = refusal_of(path, data[:length])
        assert "truncated" in cause or "more than the file can hold" in cause, length


def test_a_file_that_lacks_one_byte_of_its_weights_is_truncated(path: Path) -> None:
    write_bitnet(path)
    whole = path.stat().st_size
    os.truncate(path, whole - 1)
    assert f"is truncated: it has {whole - 1} of {whole} bytes" in refusal(path)


@pytest.mark.parametrize("kind", ["i2_s", "tq2_0", "tq1_0", "q6_k", "f16"])
def test_the_weights_of_each_type_must_be_complete(path: Path, kind: str) -> None:
    tensor = Tensor("blk.0.w", (256, 128), kind)
    write_gguf(path, tensors=[tensor])
    read_model(str(path))
    os.truncate(path, path.stat().st_size - tensor_size(tensor) // 2)
    assert "truncated" in refusal(path)


# Headers with wrong numbers


def counts(tensors: int, pairs: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs)


def a_pair(kind: int, content: bytes) -> bytes:
    return counts(1, 1) + struct.pack("<Q1sI", 1, b"k", kind) + content


@pytest.mark.parametrize("claim", [HUGE, (1 << 64) - 1, 1 << 40])
@pytest.mark.parametrize(
    "form",
    [
        pytest.param(lambda n: counts(n, 0), id="tensors"),
        pytest.param(lambda n: counts(1, n), id="pairs"),
        pytest.param(lambda n: counts(1, 1) + struct.pack("<Q", n), id="key"),
        pytest.param(lambda n: a_pair(STRING, struct.pack("<Q", n)), id="string"),
        pytest.param(lambda n: a_pair(ARRAY, struct.pack("<IQ", U32, n)), id="numbers"),
        pytest.param(lambda n: a_pair(ARRAY, struct.pack("<IQ", STRING, n)), id="strings"),
        pytest.param(
            lambda n: a_pair(ARRAY, struct.pack("<IQQ", STRING, 1, n)), id="string in an array"
        ),
        pytest.param(lambda n: counts(1, 0) + struct.pack("<Q", n), id="name"),
    ],
)
def test_a_count_that_exceeds_the_file_is_refused_in_little_memory(
    path: Path, form: object, claim: int
) -> None:
    assert callable(form)
    data = form(claim) + bytes(4096)
    with little_memory():
        cause = refusal_of(path, data)
    assert "more than the file can hold" in cause or "truncated" in cause


def test_a_header_that_no_model_has_is_refused_in_little_memory(path: Path) -> None:
    items = [("general.architecture", "x"), ("long", "")]
    header = gguf_header(items, [Tensor("s", (), "f32")])
    at = header.index(b"long") + len(b"long") + 4

    def write(length: int) -> Path:
        with path.open("wb") as file:
            file.write(header[:at] + struct.pack("<Q", length))
            file.seek(length, os.SEEK_CUR)
            file.write(header[at + 8 :])
            file.truncate(300 << 20)
        return path

    with little_memory():
        assert read_model(str(write(30 << 20))).types == (TypeShare("f32", 1, 1),)
        assert "its header would take more than 40 MiB" in refusal(write(250 << 20))


def test_a_key_of_more_than_65535_bytes_is_refused(path: Path) -> None:
    path.write_bytes(gguf_header([("k" * 70_000, 1)], [ONE]) + bytes(4096))
    with little_memory():
        assert "key" in refusal(path)


@pytest.mark.parametrize(
    "data",
    [
        counts(1 << 22, 0),
        counts(1, 1 << 22),
        a_pair(ARRAY, struct.pack("<IQ", STRING, 1 << 26)),
        a_pair(ARRAY, struct.pack("<IQ", STRING, 1 << 20)),
        counts(1 << 14, 0),
        counts(1, 1 << 12),
    ],
)
def test_a_large_count_in_a_large_file_of_zeros_is_refused(path: Path, data: bytes) -> None:
    """Interrupted downloads may have their full length; following the count would take minutes."""
    path.write_bytes(data)
    os.truncate(path, 1 << 30)
    with little_memory():
        refusal(path)


@pytest.mark.parametrize("shape", [(HUGE, HUGE), ((1 << 63), 2), ((1 << 64) - 1, (1 << 64) - 1)])
@pytest.mark.parametrize("kind", ["f32", "i2_s", 999])
def test_dimensions_that_overflow_are_refused(
    path: Path, shape: tuple[int, ...], kind: str | int
) -> None:
    header = gguf_header([("general.architecture", "x")], [Tensor("blk.0.w", shape, kind)])
    assert "tensor 'blk.0.w' claims" in refusal_of(path, header + bytes(4096))


@pytest.mark.parametrize("dimensions", [5, 1000, 0xFFFFFFFF])
def test_too_many_dimensions_are_refused(path: Path, dimensions: int) -> None:
    data = counts(1, 0) + struct.pack("<Q1sI", 1, b"t", dimensions) + bytes(4096)
    with little_memory():
        assert f"{dimensions} dimensions" in refusal_of(path, data)


@pytest.mark.parametrize("kind", [13, 99, 0xFFFFFFFF])
def test_values_of_an_unknown_type_are_refused(path: Path, kind: int) -> None:
    assert f"unknown type {kind}" in refusal_of(path, a_pair(kind, bytes(99)))
    inner = struct.pack("<IQ", kind, 1)
    assert f"unknown type {kind}" in refusal_of(path, a_pair(ARRAY, inner + bytes(99)))


def test_changed_bytes_are_read_or_refused_but_never_crash_the_reader(path: Path) -> None:
    items = [
        ("general.architecture", "x"),
        ("x.block_count", 3),
        ("general.file_type", 40),
        ("tokenizer.ggml.tokens", ["a", "b"]),
        ("x.list", [1, 2, 3]),
    ]
    data = gguf_header(items, [ONE, Tensor("blk.1.w", (256, 2), "i2_s")])
    chance = random.Random(3)
    refused = 0
    for _ in range(600):
        changed = bytearray(data + bytes(1400))
        for _ in range(chance.randrange(1, 5)):
            at = chance.randrange(len(data))
            changed[at] = chance.choice((0, 1, 8, 9, 36, 127, 255, chance.randrange(256)))
        path.write_bytes(changed)
        try:
            assert read_model(str(path)).types
        except MissingError:
            refused += 1
    assert 50 < refused < 550
