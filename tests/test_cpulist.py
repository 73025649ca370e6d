"""CPU lists and masks as the kernel writes them."""

from __future__ import annotations

import random

import pytest

from bitnet_tuning.machine.root import MAX_CPU, format_list, parse_list, parse_mask


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("", set()),
        ("\n", set()),
        ("0", {0}),
        ("0-3,8", {0, 1, 2, 3, 8}),
        ("0,1,2", {0, 1, 2}),
        (" 0-1 , 4 \n", {0, 1, 4}),
        ("5-5", {5}),
        ("0-1,1-2", {0, 1, 2}),
        ("252-255,300", {252, 253, 254, 255, 300}),
    ],
)
def test_a_list_is_read(text: str, cpus: set[int]) -> None:
    assert parse_list(text) == cpus


@pytest.mark.parametrize(
    "text", ["x", "0-", "-3", "3-1", "0-1-2", "1.5", "0;1", "0x1", f"0-{MAX_CPU}", "9" * 5000]
)
def test_an_invalid_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_list(text)


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0", set()),
        ("1", {0}),
        ("f", {0, 1, 2, 3}),
        ("00000000,00001c07", {0, 1, 2, 10, 11, 12}),
        ("00000001,00000000,80000000", {31, 64}),
        ("ffffffff,ffffffff,ffffffff\n", set(range(96))),
    ],
)
def test_a_mask_is_read(text: str, cpus: set[int]) -> None:
    assert parse_mask(text) == cpus


@pytest.mark.parametrize("text", ["", "g", "-1", "1,,2", "0-3", "1," + "0," * 3000 + "0"])
def test_an_invalid_mask_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_mask(text)


@pytest.mark.parametrize(
    ("cpus", "text"),
    [([], ""), ([3], "3"), ([8, 0, 1, 2, 3], "0-3,8"), ([0, 2, 4], "0,2,4"), ([1, 1, 2], "1-2")],
)
def test_a_list_is_written_with_ranges(cpus: list[int], text: str) -> None:
    assert format_list(cpus) == text


def test_a_set_survives_the_way_to_text_and_back() -> None:
    chance = random.Random(1)
    for size in range(60):
        cpus = frozenset(chance.sample(range(chance.choice((64, 1024))), size))
        assert parse_list(format_list(cpus)) == cpus
        assert parse_mask(hex(sum(1 << cpu for cpu in cpus))) == cpus


def test_any_text_is_a_set_or_a_value_error() -> None:
    chance = random.Random(2)
    for _ in range(500):
        text = "".join(chance.choices("0123456789-, \nax", k=chance.randrange(12)))
        for parse in (parse_list, parse_mask):
            try:
                assert all(0 <= cpu < MAX_CPU for cpu in parse(text))
            except ValueError:
                pass
