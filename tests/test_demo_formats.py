"""The demo model's files: their ternary formats, and what expected.json promises."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bitnet_tuning import demo

np = pytest.importorskip("numpy")
gguf = pytest.importorskip("gguf")

from tools import ternary  # noqa: E402
from tools.demo_model import stored  # noqa: E402

SHAPES = [(1, 256), (3, 256), (256, 768), (8, 1024)]
FORMATS = {
    "tq2_0": (ternary.pack_tq2_0, ternary.unpack_tq2_0),
    "i2_s": (ternary.pack_i2_s, ternary.unpack_i2_s),
}
MEGABYTE = 1000**2


def random_weights(shape: tuple[int, int]) -> ternary.Ternary:
    weights: ternary.Ternary = np.random.default_rng(1).integers(-1, 2, shape, np.int8)
    return weights


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FORMATS)
def test_unpacking_undoes_packing(name: str, shape: tuple[int, int]) -> None:
    pack, unpack = FORMATS[name]
    weights = random_weights(shape)
    unpacked, scale = unpack(pack(weights, 0.015625))
    assert np.array_equal(unpacked.reshape(shape), weights)
    assert scale == 0.015625


def test_an_i2_s_block_has_its_known_bytes() -> None:
    """Zero is the digit 1, so that four zeros are 0b01010101."""
    weights = np.zeros(128, np.int8)
    weights[[0, 32, 64, 96]] = 1, -1, 1, -1  # byte 0, highest bits first: 2, 0, 2, 0
    weights[127] = 1  # byte 31, lowest bits: 2
    data = ternary.pack_i2_s(weights, 1.5).tobytes()
    assert data[:32] == bytes([0b10001000] + [0b01010101] * 30 + [0b01010110])
    assert data[32:] == b"\x00\x00\xc0\x3f" + bytes(28)  # 1.5 as a little-endian float32
    assert np.array_equal(ternary.unpack_i2_s(np.frombuffer(data, np.uint8))[0], weights)


def test_i2_s_blocks_follow_one_another() -> None:
    weights = np.zeros(256, np.int8)
    weights[128 + 1] = -1  # second block, byte 1, highest bits: 0
    data = ternary.pack_i2_s(weights, 1.0).tobytes()
    assert data[:64] == bytes([0b01010101] * 33 + [0b00010101] + [0b01010101] * 30)


def test_a_tq2_0_block_has_its_known_bytes() -> None:
    """It has two halves of 128 weights, each in 32 bytes, lowest bits first."""
    weights = np.zeros(256, np.int8)
    weights[[0, 32, 64, 96]] = 1, -1, 1, -1  # byte 0, lowest bits first: 2, 0, 2, 0
    weights[128] = -1  # byte 32, lowest bits: 0
    weights[255] = 1  # byte 63, highest bits: 2
    data = ternary.pack_tq2_0(weights, 1.5).tobytes()
    first, second = bytes([0b00100010] + [0x55] * 31), bytes([0b01010100] + [0x55] * 30)
    assert data == first + second + bytes([0b10010101]) + b"\x00\x3e"  # 1.5 in float16
    assert np.array_equal(ternary.unpack_tq2_0(np.frombuffer(data, np.uint8))[0], weights)


def test_tq2_0_agrees_with_the_gguf_package() -> None:
    weights = random_weights((4, 512))
    floats = weights.astype(np.float32) * np.float32(0.25)
    packed = ternary.pack_tq2_0(weights, 0.25)
    kind = gguf.GGMLQuantizationType.TQ2_0
    assert np.array_equal(gguf.quants.quantize(floats, kind).reshape(-1), packed)
    assert np.array_equal(gguf.quants.dequantize(packed.reshape(4, -1), kind), floats)


@pytest.mark.parametrize("pack", [ternary.pack_tq2_0, ternary.pack_i2_s])
@pytest.mark.parametrize("bad", [np.zeros(100, np.int8), np.full(256, 2, np.int8)])
def test_packing_refuses_incomplete_blocks_and_other_weights(
    pack: Any, bad: ternary.Ternary
) -> None:
    with pytest.raises(ValueError, match=r"whole blocks|ternary weight"):
        pack(bad, 1.0)


def test_tq2_0_refuses_a_scale_that_float16_cannot_hold() -> None:
    with pytest.raises(ValueError, match="float16"):
        ternary.pack_tq2_0(np.zeros(256, np.int8), 0.1)


def test_tq2_0_refuses_to_unpack_blocks_of_different_scales() -> None:
    blocks = [ternary.pack_tq2_0(np.zeros(256, np.int8), scale) for scale in (1.0, 0.5)]
    with pytest.raises(ValueError, match="different scales"):
        ternary.unpack_tq2_0(np.concatenate(blocks))


def test_both_files_hold_the_same_tensors() -> None:
    i2_s = stored.read_tensors(demo.I2_S)
    tensors = gguf.GGUFReader(demo.TQ2_0).tensors
    assert [tensor.name for tensor in tensors] == list(i2_s)
    for tensor in tensors:
        floats = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(np.asarray(floats, np.float32), i2_s[tensor.name]), tensor.name


@pytest.mark.parametrize("name", ["Q8_0", "Q5_0", "Q4_0"])
def test_a_smaller_embedding_is_read_as_floats(name: str, tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType[name]
    floats = np.random.default_rng(1).normal(size=(6, 256)).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor("token_embd.weight", gguf.quants.quantize(floats, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (read,) = stored.read_tensors(str(tmp_path / "model.gguf")).values()
    step = np.abs(floats).max() / {"Q8_0": 127, "Q5_0": 16, "Q4_0": 8}[name]
    assert read.shape == floats.shape
    assert 0 < np.abs(read - floats).max() <= step


def test_the_loss_of_a_copy_is_measured_against_the_original() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("tokenizers")
    from tools.demo_model import corpus, evaluate, network, vocabulary  # noqa: PLC0415 (torch)

    guide = read_guide()
    words = vocabulary.learn_vocabulary(guide, 1024)
    original, other = (evaluate.Engine(demo.I2_S, network.Shape(1024), words) for _ in range(2))
    docs = corpus.documents(guide)[:3]
    whole, answers = (evaluate.documents(words, docs, answers=only) for only in (False, True))
    same = evaluate.loss(other, original, answers)
    assert (same.rise, same.divergence, same.change) == ((0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0))
    assert same.margin > 3
    assert same.perplexity < 1.001 < evaluate.loss(other, original, whole).perplexity < 1.2
    # The first norm undoes this, the output does not.
    other.weights[network.EMBEDDING] *= 1.5
    changed = evaluate.loss(other, original, whole)
    assert changed.change[1] > changed.change[0] > 1
    assert changed.divergence[2] > changed.divergence[0] > 0


def test_chunks_are_those_of_llama_perplexity() -> None:
    """It printed 2.5599 for the i2_s file and -c 64; engines differ in rounding."""
    pytest.importorskip("torch")
    pytest.importorskip("tokenizers")
    from tools.demo_model import evaluate, network, vocabulary  # noqa: PLC0415 (torch)

    words = vocabulary.learn_vocabulary(read_guide(), 1024)
    original = evaluate.Engine(demo.I2_S, network.Shape(1024), words)
    found = evaluate.loss(original, original, evaluate.chunks(words, read_guide(), 64))
    assert found.tokens == 45 * 31
    assert found.perplexity == pytest.approx(2.56, abs=0.01)


def test_the_layers_matrices_are_ternary() -> None:
    for name, values in stored.read_tensors(demo.I2_S).items():
        if name.startswith("blk.") and "norm" not in name:
            assert values.shape[1] % ternary.TQ2_0_BLOCK == 0
            assert len(np.unique(values)) == 3, name


@pytest.mark.parametrize("path", [demo.TQ2_0, demo.I2_S])
def test_files_are_small_enough_to_ship(path: str) -> None:
    assert os.path.getsize(path) < 2 * MEGABYTE


def read_guide() -> str:
    with open(os.path.join(os.path.dirname(demo.I2_S), "guide.txt"), encoding="ascii") as file:
        return file.read()


def read_expected() -> dict[str, Any]:
    with open(demo.EXPECTED, encoding="ascii") as file:
        expected: dict[str, Any] = json.load(file)
    return expected


def test_expected_json_has_its_fields() -> None:
    expected = read_expected()
    assert expected["schema"] == 1
    assert expected["model"] == "bitnet-tuning-demo"
    assert 5 <= len(expected["cases"]) <= 8
    types = {"prompt": str, "text": str, "tokens": int, "margin": float, "prompt_tokens": int}
    for case in expected["cases"]:
        assert {key: type(value) for key, value in case.items()} == types
        assert case["text"]


def test_expected_texts_come_from_the_guide() -> None:
    guide = read_guide()
    for case in read_expected()["cases"]:
        assert case["prompt"] + case["text"] in guide


def test_expected_margins_leave_room_for_rounding() -> None:
    """Engines differ in rounding, which changes the demo model's logits by well under 1."""
    assert min(case["margin"] for case in read_expected()["cases"]) > 3


def test_expected_covers_prompts_of_several_batches() -> None:
    lengths = [case["prompt_tokens"] for case in read_expected()["cases"]]
    assert any(64 < length <= 128 for length in lengths)
    assert any(length > 128 for length in lengths)


def test_the_guide_fits_a_terminal() -> None:
    guide = read_guide()
    assert guide.endswith("\n")
    assert not guide.endswith("\n\n")
    assert max(map(len, guide.splitlines())) <= 76
