"""Records from JSON, by their annotations; pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

Reader = Callable[[Any], Any]


class DamagedError(ValueError):
    """A value that is not what its place asks for."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")


def plain(value: object, special: Mapping[type, Reader]) -> Any:
    """What JSON can hold: records as objects, tuples as lists. ``special`` converts types
    that have a form of their own."""
    if type(value) in special:
        return special[type(value)](value)
    if hasattr(value, "_asdict"):
        return {name: plain(part, special) for name, part in value._asdict().items()}
    if isinstance(value, Mapping):
        return {name: plain(part, special) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(part, special) for part in value]
    return value


def build(kind: type[T], value: object, where: str, special: Mapping[type, Reader]) -> T:
    """The ``kind`` that ``value`` describes, with exactly its fields; ``where`` names the
    place. Raises DamagedError."""
    made: T = _build(kind, value, where, special)
    return made


def _build(kind: Any, value: Any, where: str, special: Mapping[type, Reader]) -> Any:
    if kind in special:
        return _read(special[kind], value, where)
    if kind in _PLAIN:
        return _scalar(kind, value, where)
    if hasattr(kind, "_fields"):
        return _record(kind, value, where, special)
    return _generic(kind, value, where, special)


def _read(reader: Reader, value: object, where: str) -> Any:
    try:
        return reader(value)
    except ValueError as error:
        raise DamagedError(where, str(error)) from error


_PLAIN: Mapping[Any, str] = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    NoneType: "null",
}


def _scalar(kind: Any, value: Any, where: str) -> Any:
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise DamagedError(where, f"not {_PLAIN[kind]}")
    if kind is not float:
        return value
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise DamagedError(where, "not a finite number")
    return number


def _record(kind: Any, value: Any, where: str, special: Mapping[type, Reader]) -> Any:
    hints = _hints(kind)
    if not isinstance(value, Mapping):
        raise DamagedError(where, "not an object")
    for problem, names in (("missing", hints.keys() - value), ("unknown", value.keys() - hints)):
        if names:
            raise DamagedError(_join(where, min(names)), problem)
    return kind(
        **{
            name: _build(hint, value[name], _join(where, name), special)
            for name, hint in hints.items()
        }
    )


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _generic(kind: Any, value: Any, where: str, special: Mapping[type, Reader]) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Literal:
        if not isinstance(value, str) or value not in inner:
            raise DamagedError(where, f"not one of {', '.join(inner)}")
        return value
    if origin in (Union, UnionType):  # every union here is "X or null"
        present = next(part for part in inner if part is not NoneType)
        return None if value is None else _build(present, value, where, special)
    if origin is tuple:
        return _list(inner[0], value, where, special)
    return _object(inner[1], value, where, special)


def _list(kind: Any, value: Any, where: str, special: Mapping[type, Reader]) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise DamagedError(where, "not a list")
    return tuple(
        _build(kind, part, f"{where}[{index}]", special) for index, part in enumerate(value)
    )


def _object(kind: Any, value: Any, where: str, special: Mapping[type, Reader]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise DamagedError(where, "not an object")
    return {name: _build(kind, part, _join(where, name), special) for name, part in value.items()}
