"""Frozen records with names and types, without what ``typing`` costs at start-up.

Importing ``typing`` takes as long as reading the whole machine. Type checkers see
``typing.NamedTuple``; at run time the same class statement makes the same kind of class.
"""

from __future__ import annotations

from collections import namedtuple

__all__ = ["TYPE_CHECKING", "NamedTuple"]

TYPE_CHECKING = False
"""As ``typing``'s: type checkers take any variable of this name for true."""

if TYPE_CHECKING:
    from typing import NamedTuple
else:
    _TAKEN_CARE_OF = ("__annotations__", "__module__", "__qualname__", "__firstlineno__")

    class _Maker(type):
        """Turns the body of a class statement into a ``collections.namedtuple``."""

        def __new__(cls, name, bases, body):
            fields = body["__annotations__"]
            defaults = [body.pop(field) for field in fields if field in body]
            record = namedtuple(name, fields, defaults=defaults, module=body["__module__"])
            for key, value in body.items():
                if key not in _TAKEN_CARE_OF:
                    setattr(record, key, value)
            return record

    class _Base:
        """Stands in a class statement for the tuple that comes of it."""

        def __mro_entries__(self, bases):
            return (_Anchor,)

    _Anchor = type.__new__(_Maker, "_Anchor", (), {})
    NamedTuple = _Base()
