"""A replacement for ``typing.NamedTuple`` that starts faster.

Importing ``typing`` takes longer than reading all facts about a machine, and
``collections.namedtuple`` takes 0.1 ms to compile a class, of which a run needs thirty. Type
checkers see ``typing.NamedTuple``. At run time the same class statement makes a tuple with the
same fields, defaults, ``_replace``, ``_asdict`` and ``_fields``.
"""

from __future__ import annotations

from operator import itemgetter

__all__ = ["NamedTuple"]

TYPE_CHECKING = False  # type checkers treat a variable of this name as True
if TYPE_CHECKING:
    from typing import NamedTuple
else:
    # Records share these properties, since making them for each class takes time at every start.
    _GETTERS = [property(itemgetter(index)) for index in range(48)]

    class _Maker(type):
        """Metaclass that makes a record of the body of a class statement."""

        def __new__(cls, name, bases, body):
            fields = tuple(body.get("__annotations__", ()))
            body["_field_defaults"] = {field: body[field] for field in fields if field in body}
            body["_fields"] = body["__match_args__"] = fields
            body["__slots__"] = ()
            body.update(zip(fields, _GETTERS, strict=False))
            return type.__new__(cls, name, bases, body)

    class NamedTuple(tuple, metaclass=_Maker):
        """Base of all records; each class has its own ``_fields`` and ``_field_defaults``."""

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
