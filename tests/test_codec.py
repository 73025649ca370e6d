"""Conversion of records to JSON and back, and their JSON schema."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.store.codec import (
    LATER,
    Annotated,
    Count,
    DamagedError,
    Moment,
    Record,
    Some,
    Text,
    Via,
    from_json,
    to_json,
)
from tools.results_schema import schema_of


class Point(NamedTuple):
    """A place."""

    x: int
    count: float  # type: ignore[assignment]  # hides a method that records do not need


Named = Annotated[
    Point, Record(Point, names={"count": "y"}, texts={"words": lambda p: f"at {p.x}"})
]
Letter = Annotated[str, {"enum": ["a", "b"]}]
Small = Annotated[int, {"minimum": 1, "maximum": 9}]
Pairs = Annotated[
    tuple[tuple[str, int], ...],
    Via(dict[str, int], lambda pairs: tuple(sorted(pairs.items())), dict),
]


class Whole(NamedTuple):
    """A record with a field of every kind."""

    text: str
    flag: bool
    number: float | None
    kind: Letter
    parts: tuple[Point, ...]
    ids: frozenset[int]
    row: tuple[str, int]
    table: Mapping[Letter, Count]
    pairs: Pairs
    named: Named
    some: Annotated[tuple[tuple[str, object], ...], Some(Point)]
    small: Small | None
    whatever: object
    since: Annotated[str | None, LATER] = None

    def validate(self) -> None:
        if self.small == 7:
            raise DamagedError("must not be 7", ".small")


WHOLE = Whole(
    text="t",
    flag=True,
    number=1.5,
    kind="b",
    parts=(Point(1, 2.0), Point(3, 4.0)),
    ids=frozenset((10, 9)),
    row=("r", 1),
    table={"a": 1},
    pairs=(("p", 1), ("q", 2)),
    named=Point(5, 6.0),
    some=(("x", 8),),
    small=None,
    whatever=[{}],
)
JSON = json.loads(json.dumps(to_json(WHOLE)))


def changed(*path: str | int, value: object) -> Any:
    facts = json.loads(json.dumps(JSON))
    place = facts
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return facts


def test_a_record_survives_the_way_to_json_and_back() -> None:
    assert from_json(Whole, JSON) == WHOLE
    assert (JSON["ids"], JSON["pairs"], JSON["some"]) == ([9, 10], {"p": 1, "q": 2}, {"x": 8})
    assert JSON["named"] == {"x": 5, "y": 6.0, "words": "at 5"}
    assert from_json(Whole, changed("number", value=2)).number == 2.0


def test_a_field_that_came_later_may_be_missing() -> None:
    facts = {name: part for name, part in JSON.items() if name != "since"}
    assert from_json(Whole, facts) == WHOLE
    assert from_json(Whole, {**facts, "since": "now"}).since == "now"


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ([], "[] is not an object"),
        ({**JSON, "more": 1}, "more: unknown"),
        ({**JSON, "m\n" * 99: 1}, None),
        ({**JSON, "m" * 500: 1}, None),
        (changed("text", value=1), "text: 1 is not a string"),
        (changed("text", value=None), "text: null is not a string"),
        (changed("flag", value=1), "flag: 1 is not true or false"),
        (changed("number", value=True), "number: true is not a number"),
        (changed("number", value=10**400), "number: must be a finite number"),
        (changed("number", value=float("nan")), "number: must be a finite number"),
        (changed("kind", value="c"), 'kind: "c" is not one of a, b'),
        (changed("parts", value={}), "parts: {} is not a list"),
        (changed("parts", 1, "x", value=1.0), "parts[1].x: 1.0 is not a whole number"),
        (changed("parts", 1, value={"x": 1}), "parts[1].count: missing"),
        (changed("ids", 0, value="9"), 'ids[0]: "9" is not a whole number'),
        (changed("row", value=["r"]), 'row: ["r"] is not a list of 2'),
        (changed("row", value=["r", 1, 2]), None),
        (changed("ids", value=["9"]), None),
        (changed("table", "a", value=-1), "table.a: -1 is less than 0"),
        (changed("table", value={"c": 1}), 'table: "c" is not one of a, b'),
        (changed("pairs", value=[["p", 1]]), 'pairs: [["p", 1]] is not an object'),
        (changed("named", value={"x": 1, "count": 2}), "named.y: missing"),
        (changed("some", "z", value=1), "some.z: unknown"),
        (changed("some", "x", value="1"), 'some.x: "1" is not a whole number'),
        (changed("small", value=0), "small: 0 is less than 1"),
        (changed("small", value=10), "small: 10 is more than 9"),
        (changed("small", value=7), "small: must not be 7"),
    ],
)
def test_an_invalid_value_is_named_in_a_short_line(facts: Any, said: str | None) -> None:
    with pytest.raises(DamagedError) as caught:
        from_json(Whole, facts)
    assert said is None or str(caught.value) == said
    assert str(caught.value).isprintable() and len(str(caught.value)) < 200


def test_the_schema_accepts_what_is_written_and_nothing_else() -> None:
    schema = schema_of(Whole)
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    assert list(validator.iter_errors(JSON)) == []
    assert set(schema["required"]) == set(JSON) - {"since"}
    for place, value in (("kind", "c"), ("row", [1]), ("table", {"c": 1}), ("small", 10)):
        assert not validator.is_valid({**JSON, place: value}), place
    assert schema["$defs"]["Point"]["description"] == "A place."


class Limited(NamedTuple):
    """Texts, numbers and lists at their limits."""

    moment: Moment = "2026-01-31T23:59:59Z"
    text: Text = ""
    number: float = 0.0
    some: Annotated[tuple[int, ...], {"minItems": 1}] = (1,)
    short: Annotated[str, {"maxLength": 3}] = ""
    ids: frozenset[int] = frozenset()
    size: Count = 0


@pytest.mark.parametrize(
    ("field", "within", "beyond"),
    [
        ("moment", "1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z\n"),
        ("text", "t" * (1 << 16), "t" * ((1 << 16) + 1)),
        ("text", "a path \udc80\udcff", "\udd00"),
        ("number", sys.float_info.max, float("inf")),
        ("some", [1], []),
        ("short", "abc", "abcd"),
        ("ids", [], {}),
        ("size", (1 << 64) - 1, 1 << 64),
    ],
)
def test_a_value_at_its_limit_is_read_and_one_beyond_is_not(
    field: str, within: object, beyond: object
) -> None:
    facts = to_json(Limited())
    read = from_json(Limited, {**facts, field: within})
    assert to_json(read)[field] == within
    with pytest.raises(DamagedError):
        from_json(Limited, {**facts, field: beyond})


def test_a_set_is_written_in_order() -> None:
    assert to_json(Limited(ids=frozenset((8, 1, 16))))["ids"] == [1, 8, 16]


def test_damage_in_what_is_converted_keeps_its_place() -> None:
    with pytest.raises(DamagedError) as caught:
        from_json(Whole, changed("pairs", "p", value="1"))
    assert caught.value.place == ".pairs.p"


def test_a_name_of_sixty_characters_is_still_shown_whole() -> None:
    facts = to_json(Limited())
    for length, is_whole in ((60, True), (61, False)):
        with pytest.raises(DamagedError) as caught:
            from_json(Limited, {**facts, "m" * length: 1})
        assert (caught.value.place == "." + "m" * length) == is_whole
