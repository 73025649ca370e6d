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
from bitnet_tuning.store.codec import schema_of  # noqa: E402

WIDTH = 100


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
