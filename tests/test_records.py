"""Records of this package behave like ``typing.NamedTuple``."""

from __future__ import annotations

import copy
import pickle
import typing

import pytest

from bitnet_tuning import namedtuple


class Ours(namedtuple.NamedTuple):
    """A record."""

    first: int
    second: str = "two"

    @property
    def both(self) -> str:
        return f"{self.first} {self.second}"


class Theirs(typing.NamedTuple):
    """A record."""

    first: int
    second: str = "two"

    @property
    def both(self) -> str:
        return f"{self.first} {self.second}"


@pytest.mark.parametrize("kind", [Ours, Theirs])
def test_a_record_is_an_immutable_tuple_with_named_fields(kind: type[Ours] | type[Theirs]) -> None:
    record = kind(1)
    assert record == (1, "two") == kind(first=1, second="two")
    assert (record.first, record.second, record.both) == (1, "two", "1 two")
    assert record._replace(second="x") == kind(1, "x")
    assert type(record._replace(second="x")) is kind
    assert record._asdict() == {"first": 1, "second": "two"}
    assert kind._fields == ("first", "second")
    assert repr(record) == f"{kind.__name__}(first=1, second='two')"
    assert kind.__doc__ == "A record."
    assert pickle.loads(pickle.dumps(record)) == copy.copy(record) == record
    first, second = record
    assert (first, second) == (1, "two")
    with pytest.raises(AttributeError):
        record.first = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        record.third = 2  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [Ours, Theirs])
@pytest.mark.parametrize(
    ("values", "named"), [((), {}), ((1, "x", 3), {}), ((1,), {"third": 3}), ((), {"second": "x"})]
)
def test_missing_and_surplus_values_are_refused(
    kind: typing.Any, values: tuple[object, ...], named: dict[str, object]
) -> None:
    with pytest.raises(TypeError):
        kind(*values, **named)
