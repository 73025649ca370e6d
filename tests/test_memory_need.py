"""The estimated memory of a run."""

from __future__ import annotations

import pytest

from bitnet_tuning.console import MEBIBYTE
from bitnet_tuning.plan.memory import fits, least_tokens, need_of, sum_text
from tests.profile_samples import MODEL

BITNET_2B = MODEL._replace(size=1125 * MEBIBYTE, heads=20, kv_width=2 * 640)


@pytest.mark.parametrize(
    ("context", "ubatch", "cache", "buffers"),
    [
        (2048, None, 150.0, 255.5),
        (2048, 64, 150.0, 31.9),
        (4096, 512, 300.0, 255.5),
        (0, 512, 300.0, 255.5),  # the model's own length
    ],
)
def test_the_estimate_equals_what_bitnet_cpp_reports(
    context: int, ubatch: int | None, cache: float, buffers: float
) -> None:
    """The expected figures are from the log of a run with such a model."""
    need = need_of(BITNET_2B, context, ubatch)
    assert need.cache / MEBIBYTE == pytest.approx(cache, abs=0.05)
    assert need.buffers / MEBIBYTE == pytest.approx(buffers, abs=0.05)
    assert need.total == need.model + need.cache + need.buffers


def test_long_contexts_have_wider_buffers() -> None:
    assert need_of(BITNET_2B, 32768, 512).buffers > 2 * need_of(BITNET_2B, 2048, 512).buffers


def test_unstated_attention_heads_count_as_not_shared() -> None:
    bare = BITNET_2B._replace(kv_width=None)
    assert need_of(bare, 1, None).cache == 30 * 2 * 2560 * 2
    assert need_of(bare._replace(layers=None), 1, None).cache == 0


def test_the_sum_is_shown_in_mebibytes() -> None:
    text = sum_text(need_of(BITNET_2B, 2048, 64), 4096 * MEBIBYTE)
    assert (
        text == "model 1.1 GiB + KV cache 150 MiB + buffers 31.9 MiB = 1.3 GiB; available: 4.0 GiB"
    )
    assert sum_text(need_of(BITNET_2B, 2048, 64), None).endswith("; available: unknown")


def test_a_share_of_the_memory_must_hold_the_sum() -> None:
    need = need_of(BITNET_2B, 2048, 64)
    assert fits(need, need.total * 2, 0.5)
    assert not fits(need, need.total * 2 - 2, 0.5)
    assert not fits(need, None, 0.5)


@pytest.mark.parametrize(
    ("prompt", "least"),
    [
        (b"one two\nthree", 3),
        (b"x" * 1280, 10),
        (b" " * 1280, 0),
        (b"", 0),
        (b"\xff " * 7, 7),
    ],
)
def test_a_prompt_has_at_least_a_token_for_each_word_and_for_each_128_bytes(
    prompt: bytes, least: int
) -> None:
    assert least_tokens(prompt) == least
