"""The sizes of runs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_tuning.bench.comparison import Sizes
from bitnet_tuning.bench.runner import PHASE_SECONDS, choose_sizes


def test_a_laptop_gets_short_runs() -> None:
    assert choose_sizes(100, 25, 4096) == Sizes(32, 8, 2)


def test_a_fast_machine_gets_longer_ones_and_more_samples() -> None:
    assert choose_sizes(2000, 200, 4096) == Sizes(512, 64, 2)
    assert choose_sizes(50_000, 8000, 4096) == Sizes(512, 128, 5)


def test_a_slow_machine_generates_a_minimum_of_tokens() -> None:
    assert choose_sizes(4, 1, 4096) == Sizes(16, 4, 1)


def test_sizes_that_the_user_names_are_used_as_they_are() -> None:
    assert choose_sizes(100, 25, 4096, n_prompt=1024, n_gen=3)[:2] == (1024, 3)
    assert choose_sizes(100, 25, 64, n_prompt=60, n_gen=60)[:2] == (60, 60)


def test_a_small_context_is_not_exceeded() -> None:
    sizes = choose_sizes(50_000, 8000, 128)
    assert sizes[:2] == (64, 32)


@given(st.floats(0.01, 1e6), st.floats(0.01, 1e6))
def test_any_speed_gives_usable_sizes(prompt: float, generation: float) -> None:
    sizes = choose_sizes(prompt, generation, None)
    assert 16 <= sizes.n_prompt <= 512
    assert 4 <= sizes.n_gen <= 128
    assert 1 <= sizes.repetitions <= 5
    if sizes.n_gen > 4:
        assert sizes.n_gen / generation <= PHASE_SECONDS * (1 + 1e-9)


@pytest.mark.parametrize("rate", [10.0, 30.0, 90.0])
def test_more_speed_never_means_fewer_tokens(rate: float) -> None:
    assert choose_sizes(rate * 2, rate * 2, None).n_gen >= choose_sizes(rate, rate, None).n_gen
