"""What the parts of a model take, and what each token reads of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from bitnet_tuning import demo
from bitnet_tuning.model.gguf import read_model, read_tensors
from bitnet_tuning.model.types import (
    Part,
    TensorInfo,
    bytes_per_token,
    is_wide,
    make_parts,
    output_matrix,
    possible_gain,
    slimmed,
)

F32, F16, Q8_0, I2_S, UNKNOWN = 0, 1, 8, 36, 38


def tensor(name: str, kind: int, *shape: int) -> TensorInfo:
    return TensorInfo(name, kind, shape, 0)


def read_by(tensors: Sequence[TensorInfo]) -> int | None:
    return bytes_per_token(make_parts(tensors, None))


EMBEDDING = tensor("token_embd.weight", F16, 64, 1000)
LAYER = (
    tensor("blk.0.attn_norm.weight", F32, 64),
    tensor("blk.0.ffn_up.weight", I2_S, 64, 256),
)
LAYER_BYTES = 64 * 4 + 64 * 256 // 4 + 32


def test_a_token_reads_one_row_of_the_token_table() -> None:
    output = tensor("output.weight", Q8_0, 64, 1000)
    expected = 64 * 2 + LAYER_BYTES + 1000 * 64 // 32 * 34
    assert read_by((EMBEDDING, *LAYER, output)) == expected


def test_a_tied_token_table_is_the_output_matrix() -> None:
    assert read_by((EMBEDDING, *LAYER)) == 1000 * 64 * 2 + LAYER_BYTES


def test_other_tables_are_looked_up_even_in_a_tied_model() -> None:
    position = tensor("position_embd.weight", F32, 64, 512)
    norm = tensor("token_embd_norm.weight", F32, 64)
    more = read_by((EMBEDDING, *LAYER, position, norm))
    assert more == 1000 * 64 * 2 + LAYER_BYTES + 64 * 4 + 64 * 4


def test_models_with_experts_have_no_figure() -> None:
    experts = tensor("blk.0.ffn_up_exps.weight", F16, 64, 128, 8)
    assert read_by((EMBEDDING, *LAYER, experts)) is None


def test_a_type_of_unknown_size() -> None:
    assert read_by((EMBEDDING, tensor("blk.0.ffn_up.weight", UNKNOWN, 64, 64))) is None


def test_no_tensors() -> None:
    assert read_by(()) is None


def test_all_of_the_demo_model_is_read() -> None:
    # Its embeddings are tied, so the token table is the output matrix as well.
    tensors = read_tensors(demo.I2_S)
    end = max(info.offset for info in tensors)
    size = read_by(tensors)
    assert isinstance(size, int)
    assert 0.9 * (end - tensors[0].offset) < size < 1.1 * end


def test_the_parts_of_a_tied_model() -> None:
    parts = make_parts((EMBEDDING, *LAYER), None)
    ternary = 64 * 256 // 4 + 32
    assert parts == (
        Part("ternary", "i2_s", 64 * 256, ternary, ternary),
        Part("embedding", "f16", 64000, 128000, 128000),
        Part("other", "f32", 64, 256, 256),
    )
    assert output_matrix(parts) == parts[1]


def test_an_untied_model_reads_its_output_matrix_and_one_row_of_its_embedding() -> None:
    parts = make_parts((EMBEDDING, *LAYER, tensor("output.weight", F32, 64, 1000)), None)
    named = {part.name: part for part in parts}
    assert (named["embedding"].size, named["embedding"].read) == (128000, 128)
    assert (named["output"].size, named["output"].read) == (256000, 256000)
    assert output_matrix(parts) == named["output"]


def test_a_part_lists_all_its_types() -> None:
    (other,) = make_parts((tensor("a", F32, 64), tensor("b", F16, 64)), None)
    assert other.type == "f32/f16"


def test_only_embedding_and_output_matrix_become_smaller() -> None:
    parts = make_parts((EMBEDDING, *LAYER, tensor("output.weight", F32, 64, 1000)), None)
    ternary, embedding, output, other = slimmed(parts, "q6_k")
    assert (ternary, other) == (parts[0], parts[3])
    assert (embedding.type, embedding.size, embedding.read) == ("q6_k", 52500, 52)
    assert (output.type, output.size, output.read) == ("q6_k", 52500, 52500)
    assert slimmed(slimmed(parts, "q6_k"), "f16") == slimmed(parts, "q6_k")


def test_the_possible_gain_of_the_published_shape(tmp_path: Path) -> None:
    """BitNet b1.58 2B4T: 1,178 MB a token, 790 with the embedding in q6_k."""
    tensors = (
        tensor("token_embd.weight", F16, 2560, 128256),
        tensor("blk.0.ffn_up.weight", I2_S, 2560, 2084044800 // 2560),
        tensor("output_norm.weight", F32, 440320),
    )
    demo_model = read_model(demo.I2_S)
    model = demo_model._replace(parts=make_parts(tensors, None))
    assert bytes_per_token(model.parts) == pytest.approx(1_179_500_000, rel=0.001)
    assert possible_gain(model) == pytest.approx(1.49, abs=0.005)
    wider = model._replace(parts=make_parts((tensors[0]._replace(kind=F32), *tensors[1:]), None))
    assert possible_gain(wider) == pytest.approx(2.32, abs=0.01)
    assert is_wide(model) and is_wide(wider)
    slim = model._replace(parts=slimmed(model.parts, "q6_k"))
    assert (possible_gain(slim), is_wide(slim)) == (1.0, False)


def test_a_model_without_known_sizes_has_no_gain() -> None:
    model = read_model(demo.I2_S)._replace(parts=())
    assert (possible_gain(model), is_wide(model)) == (None, False)
