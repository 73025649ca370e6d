"""How much memory a run takes at most."""

from __future__ import annotations

import pytest

from bitnet_tuning.console import MEBIBYTE
from bitnet_tuning.plan.memory import cache_bytes, fits, need_of, sum_text
from tests.test_plan import MODEL

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
def test_the_sums_are_what_bitnet_cpp_reports(
    context: int, ubatch: int | None, cache: float, buffers: float
) -> None:
    """Figures from its log, with a model of this shape."""
    need = need_of(BITNET_2B, context, ubatch)
    assert need.cache / MEBIBYTE == pytest.approx(cache, abs=0.05)
    assert need.buffers / MEBIBYTE == pytest.approx(buffers, abs=0.05)
    assert need.total == need.model + need.cache + need.buffers


def test_long_contexts_have_wider_buffers() -> None:
    assert need_of(BITNET_2B, 32768, 512).buffers > 2 * need_of(BITNET_2B, 2048, 512).buffers


def test_a_model_that_says_little_counts_as_one_without_shared_heads() -> None:
    bare = BITNET_2B._replace(kv_width=None)
    assert cache_bytes(bare, 1) == 30 * 2 * 2560 * 2
    assert cache_bytes(bare._replace(layers=None), 1) == 0


def test_the_sum_in_words() -> None:
    text = sum_text(need_of(BITNET_2B, 2048, 64), 4096 * MEBIBYTE)
    assert text == "model 1125 + cache 150 + buffers 32 = 1307 MiB; available: 4096 MiB"
    assert "not known" in sum_text(need_of(BITNET_2B, 2048, 64), None)


def test_what_fits() -> None:
    need = need_of(BITNET_2B, 2048, 64)
    assert fits(need, need.total * 2, 0.5)
    assert not fits(need, need.total * 2 - 2, 0.5)
    assert not fits(need, None, 0.5)
