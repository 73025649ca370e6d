#!/usr/bin/env python3
"""Generate docs/results.schema.json from the record classes of a benchmark's results."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from bitnet_tuning.bench.results import SCHEMA, Results  # noqa: E402
from bitnet_tuning.store import codec  # noqa: E402

WIDTH = 100

TYPES = {str: "string", bool: "boolean", int: "integer", float: "number"}


def schema_of(kind: type) -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of what ``to_json`` returns for such records."""
    known: dict[str, Any] = {}
    _schema(codec.form_of(kind), known)
    whole: dict[str, Any] = known.pop(kind.__name__)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **whole,
        "$defs": dict(sorted(known.items())),
    }


def _schema(form: codec.Form, known: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a form, and add the schemas of records to ``known`` by their names."""
    made: dict[str, Any] = {}
    match form:
        case codec.Some():
            properties = _properties(form, known)
            made = {"type": "object", "properties": properties, "additionalProperties": False}
        case codec.Record():
            made = _reference(form, known)
        case codec.Scalar():
            made = {"type": TYPES[form.kind]}
        case codec.OrNull():
            made = _schema(form.form, known)
            if "type" not in made or "enum" in made:
                made = {"anyOf": [made, {"type": "null"}]}
            else:
                made = {**made, "type": [made["type"], "null"]}
        case codec.Limited():
            made = {**_schema(form.form, known), **form.limits}
        case codec.Via():
            made = _schema(form.form, known)
        case codec.ListForm():
            made = {"type": "array", "items": _schema(form.item, known)}
        case codec.RowForm():
            count, items = len(form.items), [_schema(item, known) for item in form.items]
            made = {"type": "array", "prefixItems": items, "minItems": count, "maxItems": count}
        case codec.ObjectForm():
            keys = _schema(form.key, known)
            names = {"propertyNames": keys} if keys != {"type": "string"} else {}
            values = _schema(form.item, known)
            made = {"type": "object", **names, "additionalProperties": values}
    return made


def _reference(form: codec.Record, known: dict[str, Any]) -> dict[str, Any]:
    name = form.kind.__name__ + "".join(f" with {text}" for text in form.texts)
    if name not in known:
        known[name] = {}  # ends the recursion of a record that contains itself
        properties = _properties(form, known)
        optional = {form.names.get(field, field) for field in form.later}
        known[name] = {
            "description": " ".join((form.kind.__doc__ or "").split()),
            "type": "object",
            "properties": properties,
            "required": [each for each in properties if each not in optional],
            "additionalProperties": False,
        }
    return {"$ref": f"#/$defs/{name.replace(' ', '%20')}"}


def _properties(form: codec.Record, known: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of each field by its name in JSON."""
    fields = {form.names.get(field, field): each for field, each in form.forms.items()}
    return {
        **{name: _schema(each, known) for name, each in fields.items()},
        **{name: {"type": "string"} for name in form.texts},
    }


def document_schema() -> dict[str, Any]:
    """Return the JSON schema of a results file."""
    schema = schema_of(Results)
    return {
        **schema,
        "properties": {"schema": {"const": SCHEMA}, **schema["properties"]},
        "required": ["schema", *schema["required"]],
    }


def pretty(value: object, indent: str = "") -> str:
    """Return JSON in which only what does not fit on one line is broken into several."""
    text = json.dumps(value)
    if len(indent) + len(text) < WIDTH or not isinstance(value, (dict, list)):
        return text
    inner = indent + "  "
    if isinstance(value, list):
        parts = [pretty(part, inner) for part in value]
        return "[\n" + ",\n".join(inner + part for part in parts) + f"\n{indent}]"
    pairs = [f"{inner}{json.dumps(name)}: {pretty(part, inner)}" for name, part in value.items()]
    return "{\n" + ",\n".join(pairs) + f"\n{indent}}}"


if __name__ == "__main__":
    path = REPOSITORY / "docs" / "results.schema.json"
    path.write_text(pretty(document_schema()) + "\n", encoding="utf-8")
