"""Convert records to JSON and back as their annotations say; tools/results_schema.py makes a JSON
schema of the same forms.

A record is a ``NamedTuple`` of this package. The annotation of a field is one of these:

    str, int, float, bool, object    a value of this type (``object``: any value)
    X | None                         X or null
    tuple[X, ...], frozenset[X]      a list; sets are written in order
    tuple[X, Y]                      a list of exactly two values
    dict[K, X], Mapping[K, X]        an object; K is a kind of string
    a record                         an object with exactly the record's fields
    Annotated[X, note]               X as the note says: limits (one of these strings is
                                     {"enum": ["a", "b"]}), LATER, or a Form such as Via

Type checkers see ``Annotated`` of ``typing``. At run time it is a small copy, because every run
reads its cache with this module, and importing ``typing`` slows its start.
"""

from __future__ import annotations

import operator
import re
import sys
from functools import cache
from types import UnionType

__all__ = ["Annotated"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Annotated, Any, TypeVar

    T = TypeVar("T")
else:

    class Annotated:
        """An annotation with a note; a note of None stands for ``| None``."""

        def __init__(self, *parts):
            self.parts = parts

        def __class_getitem__(cls, parts):
            return cls(*parts)

        def __or__(self, none):
            return Annotated[self, none]


LATER = "later"
"""Note: older files may lack the field, which has its default then."""


class DamagedError(ValueError):
    """A value in JSON is not valid. ``place`` is its path, such as ``.setting.env``."""

    def __init__(self, what: str, place: str = "") -> None:
        super().__init__(what)
        self.what, self.place = what, place

    def __str__(self) -> str:
        return f"{self.place.removeprefix('.')}: {self.what}" if self.place else self.what

    def within(self, step: str | int) -> DamagedError:
        """Return the same error with a step added in front of its place."""
        if isinstance(step, str):
            name = step if step.isprintable() and len(step) <= _SHOWN else _shown(step)
            return DamagedError(self.what, f".{name}{self.place}")
        return DamagedError(self.what, f"[{step}]{self.place}")


_SHOWN = 60
"""Largest number of characters of an invalid value in a message."""


def _shown(value: object) -> str:
    import json  # noqa: PLC0415 (only errors need it, and it slows the start)

    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def to_json(record: Any) -> Any:
    """Return a record as the objects and lists that ``json`` writes."""
    return form_of(type(record)).write(record)  # type: ignore[arg-type]


def from_json(kind: type[T], value: object) -> T:
    """Return the record that ``value`` describes. Raise DamagedError if a part of it is invalid."""
    record: T = form_of(kind).read(value)  # type: ignore[arg-type]
    return record


@cache
def form_of(kind: Any) -> Form:
    """Return the form for an annotation, which is an object and not its source text."""
    if kind in _WORDS:
        return (Float if kind is float else Scalar)(kind)
    if isinstance(kind, UnionType):  # every union here is "X | None"
        return OrNull(form_of(kind.__args__[0]))
    if hasattr(kind, "_fields") or hasattr(kind, "parts"):
        return Record(kind) if hasattr(kind, "_fields") else _noted(*kind.parts)
    if hasattr(kind, "__args__"):
        origin, inner = kind.__origin__, kind.__args__
        forms = [form_of(each) for each in inner if each is not ...]
        if origin is frozenset or len(forms) < len(inner):
            return ListForm(origin, *forms)
        return RowForm(forms) if origin is tuple else ObjectForm(*forms)
    if kind is not object:
        raise TypeError(f"no form in JSON for {kind!r}")
    return Form()


def _noted(base: Any, note: Any) -> Form:
    if isinstance(note, Form):
        return note
    form = form_of(base)
    return OrNull(form) if note is None else form if note is LATER else Limited(form, note)


class Form:
    """Conversion of one kind of value to and from JSON. This base class leaves it unchanged."""

    def read(self, value: Any) -> Any:
        """Return the value for its JSON. Raise DamagedError if it is invalid."""
        return value

    def write(self, value: Any) -> Any:
        """Return the value as JSON."""
        return value


_WORDS = {str: "a string", bool: "true or false", int: "a whole number", float: "a number"}


class Scalar(Form):
    def __init__(self, kind: type) -> None:
        self.kind = kind

    def read(self, value: Any) -> Any:
        if type(value) is not self.kind:
            raise DamagedError(f"{_shown(value)} is not {_WORDS[self.kind]}")
        return value


_LARGEST = sys.float_info.max


class Float(Scalar):
    def read(self, value: Any) -> Any:
        if type(value) not in (int, float):
            raise DamagedError(f"{_shown(value)} is not a number")
        if not -_LARGEST <= value <= _LARGEST:  # also for NaN, which fails every comparison
            raise DamagedError("must be a finite number")
        return float(value)


class OrNull(Form):
    def __init__(self, form: Form) -> None:
        self.form = form

    def read(self, value: Any) -> Any:
        return None if value is None else self.form.read(value)

    def write(self, value: Any) -> Any:
        return None if value is None else self.form.write(value)


_LIMITS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "minimum": (operator.ge, "less than"),
    "exclusiveMinimum": (operator.gt, "not more than"),
    "maximum": (operator.le, "more than"),
    "maxLength": (lambda text, most: len(text) <= most, "longer than"),
    "minItems": (lambda parts, least: len(parts) >= least, "shorter than"),
    "pattern": (lambda text, pattern: re.fullmatch(pattern, text) is not None, "not of the form"),
    "enum": (lambda text, allowed: text in allowed, "not one of"),
}


class Limited(Form):
    """A value within limits, which are named like the keywords of JSON schema."""

    def __init__(self, form: Form, limits: Mapping[str, Any]) -> None:
        self.form, self.limits = form, limits
        self.write = form.write  # type: ignore[method-assign]

    def read(self, value: Any) -> Any:
        made = self.form.read(value)
        for name, bound in self.limits.items():
            if name in _LIMITS and not _LIMITS[name][0](made, bound):
                said = self.limits.get("examples", [bound])[0]
                said = ", ".join(said) if isinstance(said, list) else said
                raise DamagedError(f"{_shown(value)} is {_LIMITS[name][1]} {said}")
        return made


class Via(Form):
    """A value that is in JSON a value of ``kind``. ``made`` makes the one from the other, or raises
    ValueError; ``stored`` is its inverse."""

    def __init__(
        self, kind: object, made: Callable[[Any], Any], stored: Callable[[Any], Any]
    ) -> None:
        self.form, self.made, self.stored = form_of(kind), made, stored

    def read(self, value: Any) -> Any:
        try:
            return self.made(self.form.read(value))
        except DamagedError:
            raise
        except ValueError as error:
            raise DamagedError(str(error)) from error

    def write(self, value: Any) -> Any:
        return self.form.write(self.stored(value))


def _within(form: Form, value: Any, step: str | int) -> Any:
    try:
        return form.read(value)
    except DamagedError as error:
        raise error.within(step) from error


class ListForm(Form):
    def __init__(self, kind: type, item: Form) -> None:
        self.kind, self.item = kind, item

    def read(self, value: Any) -> Any:
        if not isinstance(value, list):
            raise DamagedError(f"{_shown(value)} is not a list")
        if type(self.item) is Scalar and all(type(part) is self.item.kind for part in value):
            return self.kind(value)
        return self.kind(_within(self.item, part, at) for at, part in enumerate(value))

    def write(self, value: Any) -> Any:
        parts = sorted(value) if self.kind is frozenset else value
        return [self.item.write(part) for part in parts]


class RowForm(Form):
    def __init__(self, items: list[Form]) -> None:
        self.items = items

    def read(self, value: Any) -> Any:
        if not isinstance(value, list) or len(value) != len(self.items):
            raise DamagedError(f"{_shown(value)} is not a list of {len(self.items)}")
        pairs = zip(self.items, value, strict=True)
        return tuple(_within(item, part, at) for at, (item, part) in enumerate(pairs))

    def write(self, value: Any) -> Any:
        return [item.write(part) for item, part in zip(self.items, value, strict=True)]


class ObjectForm(Form):
    def __init__(self, key: Form, item: Form) -> None:
        self.key, self.item = key, item

    def read(self, value: Any) -> Any:
        if not isinstance(value, dict):
            raise DamagedError(f"{_shown(value)} is not an object")
        return {self.key.read(key): _within(self.item, part, key) for key, part in value.items()}

    def write(self, value: Any) -> Any:
        return {key: self.item.write(part) for key, part in value.items()}


class Record(Form):
    """A record as an object with its fields, of which ``names`` are the names in JSON that differ.
    ``texts`` are made by functions when it is written, and ignored when it is read. If the record
    has a method ``validate``, it raises DamagedError if the fields contradict each other."""

    def __init__(
        self,
        kind: Any,
        names: Mapping[str, str] | None = None,
        texts: Mapping[str, Callable[[Any], str]] | None = None,
    ) -> None:
        self.kind, self.names, self.texts = kind, names or {}, texts or {}
        scope = vars(sys.modules[kind.__module__])
        # Evaluating one expression for all annotations takes half as long as one for each.
        every = eval(f"({', '.join(kind.__annotations__.values())},)", scope)
        kinds = dict(zip(kind.__annotations__, every, strict=True))
        self.forms = {field: form_of(each) for field, each in kinds.items()}
        self.later = {
            field
            for field, each in kinds.items()
            if isinstance(each, Annotated) and LATER in each.parts  # type: ignore[arg-type]
        }

    def read(self, value: Any) -> Any:
        made = self.kind(**self.read_fields(value, self.forms.keys() - self.later))
        if hasattr(made, "validate"):
            made.validate()
        return made

    def read_fields(self, value: Any, required: Iterable[str]) -> dict[str, Any]:
        """Return the fields that ``value`` has. Raise DamagedError if a required one is missing."""
        if not isinstance(value, dict):
            raise DamagedError(f"{_shown(value)} is not an object")
        fields = {self.names.get(field, field): field for field in self.forms}
        for problem, names in (
            ("missing", {self.names.get(field, field) for field in required} - value.keys()),
            ("unknown", value.keys() - fields.keys() - self.texts.keys()),
        ):
            if names:
                raise DamagedError(problem).within(min(names))
        return {
            field: _within(self.forms[field], value[name], name)
            for name, field in fields.items()
            if name in value
        }

    def write(self, value: Any) -> Any:
        texts = {name: make(value) for name, make in self.texts.items()}
        return {**self.write_fields(value._asdict()), **texts}

    def write_fields(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the given fields as JSON."""
        return {
            self.names.get(field, field): self.forms[field].write(part)
            for field, part in fields.items()
        }


class Some(Record):
    """Any fields of a record, as pairs of name and value; an object in JSON."""

    def read(self, value: Any) -> Any:
        return tuple(self.read_fields(value, ()).items())

    def write(self, value: Any) -> Any:
        return self.write_fields(dict(value))


Count = Annotated[int, {"minimum": 0, "maximum": (1 << 64) - 1}]
SMALLEST, LARGEST = 1e-12, 1e15
"""Limits of numbers that are divided and multiplied, far from those of floats."""
Positive = Annotated[float, {"minimum": SMALLEST, "maximum": LARGEST}]
Moment = Annotated[
    str,
    {
        "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$",
        "examples": ["2026-01-31T23:59:59Z"],
    },
]
"""A time in UTC, to the second."""

_LONGEST = 1 << 16
"""Largest number of characters of a text; the list of a large host's cores has thousands."""


def _harmless(text: str) -> str:
    if len(text) > _LONGEST:
        raise ValueError(f"must not be longer than {_LONGEST} characters")
    if any(not (letter.isprintable() or "\udc80" <= letter <= "\udcff") for letter in text):
        raise ValueError(f"{_shown(text)} has control characters")
    return text


Text = Annotated[str, Via(str, _harmless, str)]
"""A string without control characters; it may hold the escaped bytes of a path (PEP 383)."""
