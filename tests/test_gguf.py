"""Headers of model files: whole ones, and each way to be none."""

from __future__ import annotations

import os
import random
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bitnet_tuning import demo
from bitnet_tuning.errors import MissingError
from bitnet_tuning.model import types
from bitnet_tuning.model.gguf import read_model, read_tensors
from bitnet_tuning.model.types import ModelFile, TypeShare
from tests.gguf_files import (
    ARRAY,
    F64,
    FORMS,
    I32,
    STRING,
    U8,
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
    """Why ``path`` is refused."""
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


def test_a_bitnet_model(path: Path) -> None:
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
    )


def test_the_width_of_the_cache(path: Path) -> None:
    """Heads that share keys and values, stated lengths, and none of it."""

    def width(**stated: int) -> int | None:
        named = {f"bitnet-b1.58.attention.{key}": value for key, value in stated.items()}
        return read_model(str(write_bitnet(path, **named))).kv_width  # type: ignore[arg-type]

    assert width(head_count=8, head_count_kv=2) == 2 * (32 + 32)
    assert width(head_count=8, head_count_kv=2, key_length=64, value_length=16) == 2 * (64 + 16)
    assert width(head_count=8) == 2 * 256
    assert width(head_count=8, head_count_kv=30) == 2 * 256


@pytest.mark.parametrize("kind", ["i2_s", "tq1_0", "tq2_0", "tl1", "tl2"])
def test_the_layers_say_what_a_model_is(path: Path, kind: str) -> None:
    """The embedding outweighs them."""
    assert read_model(str(write_bitnet(path, kind))).quantization == kind


@pytest.mark.parametrize(
    ("number", "file_type", "name"),
    [
        (36, 40, "i2_s"),
        (36, None, "i2_s"),
        (38, 38, "tl1"),
        (39, 39, "tl2"),
        (35, 37, "tq2_0"),
        (14, None, "q6_k"),
    ],
)
def test_types_by_number(number: int, file_type: int | None, name: str) -> None:
    assert types.type_name(number, file_type) == name


@pytest.mark.parametrize(("number", "file_type"), [(39, 38), (38, 39), (39, None), (38, None)])
def test_mxfp4_is_not_tl2(number: int, file_type: int | None) -> None:
    """llama.cpp's mxfp4 files have tensors of type 39, and 38 as the file's type."""
    assert types.type_name(number, file_type) not in ("tl1", "tl2")


def test_an_mxfp4_model(path: Path) -> None:
    write_gguf(path, {"general.file_type": 38}, [("blk.0.w", (64, 64), "mxfp4")])
    assert read_model(str(path)).quantization not in ("tl1", "tl2", "i2_s")


def test_sizes_are_those_of_the_reference() -> None:
    """Against the tables of the ``gguf`` package, which does not know i2_s."""
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


def test_a_file_of_the_reference_writer(path: Path) -> None:
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
def test_the_demo_model(file: str, kind: str) -> None:
    if not os.path.exists(file):
        pytest.skip("the demo model is not here")
    model = read_model(file)
    assert model.quantization == kind
    assert model.layers


def test_every_type_of_value_is_passed_over(path: Path) -> None:
    values: dict[str, object] = {f"x.{kind}": Typed(kind, 1) for kind in FORMS}
    values |= {"x.text": "\u00e4" * 100, "x.empty": "", "x.list": [1, 2], "x.names": ["a", "", "b"]}
    values |= {"x.deep": [[1, 2], [], [3]], "x.none": [], "x.flags": [True, False]}
    values["bitnet-b1.58.context_length"] = 77
    assert read_model(str(write_gguf(path, values))).context_length == 77


def test_a_vocabulary_without_its_size(path: Path) -> None:
    write_gguf(path, {"tokenizer.ggml.tokens": ["a", "b", "c"], "tokenizer.chat_template": "x"})
    model = read_model(str(path))
    assert (model.vocabulary, model.chat_template) == (3, True)


def test_what_is_not_stated_is_none(path: Path) -> None:
    model = read_model(str(write_gguf(path)))
    assert model.name == "model.gguf"
    assert {model.context_length, model.layers, model.embedding_length, model.vocabulary} == {None}


def test_facts_of_the_wrong_type_are_none(path: Path) -> None:
    write_gguf(
        path,
        {
            "bitnet-b1.58.context_length": "many",
            "bitnet-b1.58.block_count": 2.5,
            "general.alignment": "wide",
            "general.file_type": Typed(F64, float("nan")),
        },
    )
    model = read_model(str(path))
    assert (model.context_length, model.layers) == (None, None)


@pytest.mark.parametrize("alignment", [0, Typed(I32, -32), Typed(U8, 8), 64])
def test_strange_alignments(path: Path, alignment: object) -> None:
    items = [("general.architecture", "x"), ("general.alignment", alignment)]
    path.write_bytes(gguf_header(items, [ONE]) + bytes(2048))
    assert read_model(str(path)).quantization == "f32"


def test_keys_and_names_that_are_not_text(path: Path) -> None:
    items: list[tuple[str | bytes, object]] = [(b"\xff\xfe\x00", 1), ("x", 2)]
    items += [("general.architecture", "x"), ("general.name", b"\xc3(")]
    path.write_bytes(gguf_header(items, [ONE]) + bytes(2048))
    assert read_model(str(path)).name == "\ufffd("


def test_duplicate_keys(path: Path) -> None:
    """An engine will refuse the file; here it is enough not to fail."""
    items = [("general.architecture", "x"), ("x.block_count", 1), ("x.block_count", 2)]
    path.write_bytes(gguf_header(items, [ONE]) + bytes(2048))
    assert read_model(str(path)).layers in (1, 2)


def test_version_2(path: Path) -> None:
    path.write_bytes(gguf_header([("general.architecture", "x")], [ONE], version=2) + bytes(2048))
    assert read_model(str(path)).architecture == "x"


def test_a_scalar_tensor_at_the_end(path: Path) -> None:
    data = gguf_header([("general.architecture", "llama")], [Tensor("s", (), "f32")])
    path.write_bytes(data + bytes(-len(data) % 32) + bytes(4))
    assert read_model(str(path)).types == (TypeShare("f32", 1, 1),)


def test_a_link_to_a_model(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(write_gguf(path))
    assert read_model(str(tmp_path / "link")).architecture == "bitnet-b1.58"


def test_a_name_that_is_not_text(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.gguf"
    try:
        with open(name, "wb"):
            pass
    except OSError:
        pytest.skip("the file system wants text")
    write_gguf(os.fsdecode(name))
    assert read_model(os.fsdecode(name)).name == "\udcff.gguf"


# Each way to be no model


def test_absent(path: Path) -> None:
    assert "no such model file" in refusal(path)


def test_a_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")
    assert "no such model file" in refusal(path)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "\ud800"])
def test_impossible_names(name: str) -> None:
    with pytest.raises(MissingError):
        read_model(name)


def test_empty(path: Path) -> None:
    path.touch()
    assert "is empty" in refusal(path)


def test_a_folder(path: Path) -> None:
    path.mkdir()
    assert "is a folder" in refusal(path)


def test_no_regular_file(path: Path) -> None:
    os.mkfifo(path)
    assert "no regular file" in refusal(path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_unreadable(path: Path) -> None:
    write_gguf(path).chmod(0)
    assert "cannot read" in refusal(path)


@pytest.mark.parametrize(
    "data", [b"GGML" + bytes(100), b"<!DOCTYPE html>", b"version https://git", b"\0"]
)
def test_something_else(path: Path, data: bytes) -> None:
    assert "not b'GGUF'" in refusal_of(path, data)


def test_big_endian(path: Path) -> None:
    data = gguf_header([("general.architecture", "x")], [ONE], order=">")
    assert "big-endian" in refusal_of(path, data + bytes(2048))


@pytest.mark.parametrize("version", [0, 1, 4, 0xFFFFFFFF])
def test_unknown_versions(path: Path, version: int) -> None:
    assert f"version is {version}" in refusal_of(path, gguf_header(version=version) + bytes(99))


@pytest.mark.parametrize("items", [[], [("general.name", "x")], [("general.architecture", "")]])
def test_no_architecture(path: Path, items: list[tuple[str | bytes, object]]) -> None:
    assert "architecture" in refusal_of(path, gguf_header(items, [ONE]) + bytes(2048))


def test_no_tensors(path: Path) -> None:
    assert "no tensors" in refusal_of(path, gguf_header([("general.architecture", "x")]))


def test_truncated_anywhere_in_the_header(path: Path) -> None:
    items = [("general.architecture", "x"), ("a", [1, 2]), ("b", ["x", "y"]), ("c", [[1.5]])]
    data = gguf_header(items, [ONE, ONE])
    for length in range(1, len(data)):
        cause = refusal_of(path, data[:length])
        assert "truncated" in cause or "more than the file can hold" in cause, length


def test_truncated_in_the_weights(path: Path) -> None:
    write_bitnet(path)
    whole = path.stat().st_size
    # The last tensor's end need not be padded; a byte less than it is too little.
    os.truncate(path, whole - 1)
    assert f"truncated: {whole - 1} bytes of {whole}" in refusal(path)


@pytest.mark.parametrize("kind", ["i2_s", "tq2_0", "tq1_0", "q6_k", "f16"])
def test_truncated_in_the_weights_of_each_type(path: Path, kind: str) -> None:
    tensor = Tensor("blk.0.w", (256, 128), kind)
    write_gguf(path, tensors=[tensor])
    read_model(str(path))
    os.truncate(path, path.stat().st_size - tensor_size(tensor) // 2)
    assert "truncated" in refusal(path)


def test_an_offset_far_away(path: Path) -> None:
    data = bytearray(gguf_header([("general.architecture", "llama")], [ONE]))
    data[-8:] = struct.pack("<Q", (1 << 64) - 32)
    assert "truncated" in refusal_of(path, bytes(data) + bytes(2048))


# Lies


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
        pytest.param(lambda n: a_pair(ARRAY, struct.pack("<IQ", ARRAY, n)), id="arrays"),
        pytest.param(
            lambda n: a_pair(ARRAY, struct.pack("<IQQ", STRING, 1, n)), id="string in an array"
        ),
        pytest.param(lambda n: counts(1, 0) + struct.pack("<Q", n), id="name"),
    ],
)
def test_a_claim_of_more_than_there_is(path: Path, form: object, claim: int) -> None:
    assert callable(form)
    data = form(claim) + bytes(4096)
    with little_memory():
        cause = refusal_of(path, data)
    assert "more than the file can hold" in cause or "truncated" in cause


def test_a_claim_that_a_large_file_could_hold(path: Path) -> None:
    """A string of most of a file of 300 MB is passed over, not read."""
    items = [("general.architecture", "x"), ("long", "")]
    header = gguf_header(items, [Tensor("s", (), "f32")])
    at = header.index(b"long") + len(b"long") + 4
    with path.open("wb") as file:
        file.write(header[:at] + struct.pack("<Q", 250 << 20))
        file.seek(250 << 20, os.SEEK_CUR)
        file.write(header[at + 8 :])
        file.truncate(300 << 20)
    with little_memory():
        assert read_model(str(path)).types == (TypeShare("f32", 1, 1),)


def test_a_key_longer_than_the_format_allows(path: Path) -> None:
    """At most 65535 bytes."""
    path.write_bytes(gguf_header([("k" * 70_000, 1)], [ONE]) + bytes(4096))
    with little_memory():
        assert "key" in refusal(path)


@pytest.mark.parametrize(
    "data",
    [
        counts(1 << 22, 0),
        counts(1, 1 << 22),
        a_pair(ARRAY, struct.pack("<IQ", STRING, 1 << 26)),
        a_pair(ARRAY, struct.pack("<IQ", ARRAY, 1 << 26)),
    ],
)
def test_many_claims_in_a_file_of_zeros(path: Path, data: bytes) -> None:
    """A download that was given its full length but not its content: each would take
    minutes to follow."""
    path.write_bytes(data)
    os.truncate(path, 1 << 30)
    with little_memory():
        refusal(path)


@pytest.mark.parametrize("shape", [(HUGE, HUGE), ((1 << 63), 2), ((1 << 64) - 1, (1 << 64) - 1)])
@pytest.mark.parametrize("kind", ["f32", "i2_s", 999])
def test_dimensions_that_overflow(path: Path, shape: tuple[int, ...], kind: str | int) -> None:
    header = gguf_header([("general.architecture", "x")], [Tensor("blk.0.w", shape, kind)])
    assert "a tensor claims" in refusal_of(path, header + bytes(4096))


@pytest.mark.parametrize("dimensions", [9, 1000, 0xFFFFFFFF])
def test_too_many_dimensions(path: Path, dimensions: int) -> None:
    data = counts(1, 0) + struct.pack("<Q1sI", 1, b"t", dimensions) + bytes(4096)
    with little_memory():
        assert f"{dimensions} dimensions" in refusal_of(path, data)


@pytest.mark.parametrize("depth", [10, 5000])
def test_arrays_in_arrays(path: Path, depth: int) -> None:
    nested = struct.pack("<IQ", ARRAY, 1) * depth + struct.pack("<IQ", U32, 0)
    assert "array" in refusal_of(path, a_pair(ARRAY, nested) + bytes(4096))


@pytest.mark.parametrize("kind", [13, 99, 0xFFFFFFFF])
def test_unknown_types_of_value(path: Path, kind: int) -> None:
    assert f"unknown type {kind}" in refusal_of(path, a_pair(kind, bytes(99)))
    inner = struct.pack("<IQ", kind, 1)
    assert f"unknown type {kind}" in refusal_of(path, a_pair(ARRAY, inner + bytes(99)))


def test_changed_bytes_are_read_or_refused(path: Path) -> None:
    """Nothing but MissingError, whatever the bytes."""
    items = [
        ("general.architecture", "x"),
        ("x.block_count", 3),
        ("general.file_type", 40),
        ("tokenizer.ggml.tokens", ["a", "b"]),
        ("x.deep", [[1, 2], [3]]),
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
