"""A search's space as JSON: what may be measured is kept with what was; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bitnet_tuning import setting
from bitnet_tuning.bench.asks import Knob, Space
from bitnet_tuning.cpulist import format_list, parse_list
from bitnet_tuning.openmp import TUNABLE
from bitnet_tuning.setting import Change, Setting


def as_json(space: Space) -> dict[str, Any]:
    """Settings and changes by name; of a change only what it sets."""
    return {
        "default": setting.as_json(space.default),
        "fixed": {name: setting.as_json(fixed) for name, fixed in space.fixed},
        "threads": [_change(change) for change in space.threads],
        "knobs": {knob.name: [_change(change) for change in knob.changes] for knob in space.knobs},
    }


def _change(change: Change) -> dict[str, Any]:
    fields = dict(change.fields)
    for name in setting.SETS:
        held = fields.get(name)
        if isinstance(held, frozenset):
            fields[name] = format_list(held)
    return {
        "name": change.name,
        "fields": fields,
        "set_env": dict(change.set_env),
        "unset_env": list(change.unset_env),
    }


def from_json(facts: Any) -> Space:
    """Raises ValueError for what ``as_json`` never writes."""
    default, fixed, threads, knobs = _parts(facts, "default", "fixed", "threads", "knobs")
    base = _setting(default)
    return Space(
        base,
        tuple((str(name), _setting(part)) for name, part in _items(fixed)),
        tuple(_read_change(part, base) for part in _list(threads)),
        tuple(
            Knob(str(name), tuple(_read_change(part, base) for part in _list(parts)))
            for name, parts in _items(knobs)
        ),
    )


def _setting(facts: Any) -> Setting:
    found = setting.from_json(facts)
    _check_names(tuple(dict(found.env)))
    return found


def _check_names(names: Sequence[str]) -> None:
    """A file may come from anybody: LD_PRELOAD, say, is nothing that a search sets."""
    strange = set(names) - TUNABLE
    if strange:
        raise ValueError(f"variables that no search sets: {', '.join(sorted(strange))}")


def _parts(facts: Any, *names: str) -> list[Any]:
    if not isinstance(facts, Mapping) or set(facts) != set(names):
        raise ValueError(f"it has not exactly {', '.join(names)}")
    return [facts[name] for name in names]


def _items(facts: Any) -> list[tuple[Any, Any]]:
    if not isinstance(facts, Mapping):
        raise ValueError("not an object")
    return list(facts.items())


def _list(facts: Any) -> Sequence[Any]:
    if not isinstance(facts, list):
        raise ValueError("not a list")
    return facts


def _read_change(facts: Any, base: Setting) -> Change:
    name, fields, set_env, unset_env = _parts(facts, "name", "fields", "set_env", "unset_env")
    values, env = dict(_items(fields)), dict(_items(set_env))
    # A setting that has the change is checked as any other.
    setting.from_json({**setting.as_json(base), **values, "env": env})
    if not isinstance(name, str) or not all(isinstance(each, str) for each in _list(unset_env)):
        raise ValueError("a change without a name, or with no names to unset")
    _check_names((*env, *unset_env))
    for held in setting.SETS:
        if isinstance(values.get(held), str):
            values[held] = parse_list(values[held])
    return Change(name, tuple(values.items()), tuple(env.items()), tuple(unset_env))
