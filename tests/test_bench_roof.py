"""Bytes of weights per token, and the limit that memory bandwidth sets."""

from __future__ import annotations

import pytest

from bitnet_tuning import demo
from bitnet_tuning.bench.bandwidth import AbsentError, Bandwidth
from bitnet_tuning.bench.limits import bytes_per_token, roof
from bitnet_tuning.model.gguf import TensorInfo, read_tensors

F32, F16, Q8_0, I2_S, UNKNOWN = 0, 1, 8, 36, 38


def tensor(name: str, kind: int, *shape: int) -> TensorInfo:
    return TensorInfo(name, kind, shape, 0)


EMBEDDING = tensor("token_embd.weight", F16, 64, 1000)
LAYER = (
    tensor("blk.0.attn_norm.weight", F32, 64),
    tensor("blk.0.ffn_up.weight", I2_S, 64, 256),
)
LAYER_BYTES = 64 * 4 + 64 * 256 // 4 + 32


def test_a_token_reads_one_row_of_the_token_table() -> None:
    output = tensor("output.weight", Q8_0, 64, 1000)
    expected = 64 * 2 + LAYER_BYTES + 1000 * 64 // 32 * 34
    assert bytes_per_token((EMBEDDING, *LAYER, output)) == expected


def test_a_tied_token_table_is_the_output_matrix() -> None:
    assert bytes_per_token((EMBEDDING, *LAYER)) == 1000 * 64 * 2 + LAYER_BYTES


def test_other_tables_are_looked_up_even_in_a_tied_model() -> None:
    position = tensor("position_embd.weight", F32, 64, 512)
    norm = tensor("token_embd_norm.weight", F32, 64)
    more = bytes_per_token((EMBEDDING, *LAYER, position, norm))
    assert more == 1000 * 64 * 2 + LAYER_BYTES + 64 * 4 + 64 * 4


def test_models_with_experts_have_no_figure() -> None:
    experts = tensor("blk.0.ffn_up_exps.weight", F16, 64, 128, 8)
    assert bytes_per_token((EMBEDDING, *LAYER, experts)) is None


def test_a_type_of_unknown_size() -> None:
    assert bytes_per_token((EMBEDDING, tensor("blk.0.ffn_up.weight", UNKNOWN, 64, 64))) is None


def test_no_tensors() -> None:
    assert bytes_per_token(()) is None


def test_all_of_the_demo_model_is_read() -> None:
    # Its embeddings are tied, so the token table is the output matrix as well.
    tensors = read_tensors(demo.I2_S)
    end = max(info.offset for info in tensors)
    size = bytes_per_token(tensors)
    assert isinstance(size, int)
    assert 0.9 * (end - tensors[0].offset) < size < 1.1 * end


def memory(rate: float, at_least: bool = False) -> Bandwidth:
    return Bandwidth(rate, 2, (rate,), at_least)


def test_share_and_limit_follow_from_bandwidth_and_speed() -> None:
    found = roof(memory(34e9), 10**9, (1.0, 27.0, 28.0))
    assert found.share == pytest.approx(27 / 34)
    assert found.limit_tokens_per_second == 34.0


@pytest.mark.parametrize(("read", "speeds", "why"), [(None, (2.0,), "bytes"), (9, (), "not meas")])
def test_without_figures_there_is_no_roof(
    read: int | None, speeds: tuple[float, ...], why: str
) -> None:
    with pytest.raises(AbsentError, match=why):
        roof(memory(34e9), read, speeds)


@pytest.mark.parametrize(
    ("bandwidth", "speed", "at_least", "sentence"),
    [
        (34e9, 27.0, False, "generation reads 27 GB/s of 34 GB/s: 79 % of what memory allows"),
        (
            34e9,
            27.0,
            True,
            "generation reads 27 GB/s of at least 34 GB/s: at most 79 % of what memory allows",
        ),
        (
            123.4e9,
            0.5,
            False,
            "generation reads 0.5 GB/s of 123 GB/s: less than 1 % of what memory allows",
        ),
        (27e9, 27.0, False, "generation reads 27 GB/s of 27 GB/s: 100 % of what memory allows"),
    ],
)
def test_the_sentence_tells_the_share(
    bandwidth: float, speed: float, at_least: bool, sentence: str
) -> None:
    assert roof(memory(bandwidth, at_least), 10**9, (speed,)).words == sentence


@pytest.mark.parametrize(("at_least", "why"), [(False, "slower while"), (True, "is faster than")])
def test_a_speed_beyond_memory_is_explained(at_least: bool, why: str) -> None:
    sentence = roof(memory(34e9, at_least), 10**9, (41.0,)).words
    assert sentence.startswith(
        "generation reads 41 GB/s, more than the 34 GB/s measured from memory: part of"
    )
    assert why in sentence
