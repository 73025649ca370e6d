"""The limit that memory bandwidth sets."""

from __future__ import annotations

import pytest

from bitnet_tuning.bench.bandwidth import AbsentError, Bandwidth
from bitnet_tuning.bench.limits import roof


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
