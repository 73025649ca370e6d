"""Frozen records with names and types, at little cost to the start of a program.

Importing ``typing`` takes longer than reading the whole machine, and each class that
``collections.namedtuple`` compiles a tenth of a millisecond; a run needs thirty. Type
checkers see ``typing.NamedTuple``; at run time the same class statement makes a tuple
with the same names, defaults, ``_replace``, ``_asdict`` and ``_fields``.
"""

from __future__ import annotations

from operator import itemgetter

__all__ = ["NamedTuple"]

TYPE_CHECKING = False  # type checkers take any variable of this name for true
if TYPE_CHECKING:
    from typing import NamedTuple
else:

    class _Record(tuple):
        """What all records share; ``_fields`` and ``_field_defaults`` are each class's own."""

        __slots__ = ()

        def __new__(cls, *values, **named):
            fields = cls._fields
            if named or len(values) != len(fields):
                given = {**cls._field_defaults, **dict(zip(fields, values, strict=False)), **named}
                if len(values) > len(fields) or given.keys() != set(fields):
                    raise TypeError(f"{cls.__name__} takes {', '.join(fields)}")
                values = [given[field] for field in fields]
            return tuple.__new__(cls, values)

        def _replace(self, **changed):
            return type(self)(**{**self._asdict(), **changed})

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))

        def __repr__(self):
            pairs = ", ".join(f"{name}={value!r}" for name, value in self._asdict().items())
            return f"{type(self).__name__}({pairs})"

        def __getnewargs__(self):
            return tuple(self)

    _GETTERS = [property(itemgetter(index)) for index in range(48)]  # shared: a start makes fewer

    class _Maker(type):
        """Turns the body of a class statement into a subclass of ``_Record``."""

        def __new__(cls, name, bases, body):
            fields = tuple(body["__annotations__"])
            body["_field_defaults"] = {field: body[field] for field in fields if field in body}
            body["_fields"] = body["__match_args__"] = fields
            body["__slots__"] = ()
            body.update(zip(fields, _GETTERS, strict=False))
            return type(name, (_Record,), body)

    class _Base:
        """Stands in a class statement for the base that a record gets."""

        def __mro_entries__(self, bases):
            return (_Anchor,)

    _Anchor = type.__new__(_Maker, "_Anchor", (), {})
    NamedTuple = _Base()
