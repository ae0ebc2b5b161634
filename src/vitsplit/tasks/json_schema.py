"""JSON schemas of the parts that predictions have in common."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def object_schema(required: Schema, optional: Schema | None = None) -> Schema:
    """The schema of an object with these properties."""
    return {"type": "object", "required": list(required), "properties": required | (optional or {})}


def list_schema(items: Schema) -> Schema:
    """The schema of a list."""
    return {"type": "array", "items": items}


TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
INTEGER: Schema = {"type": "integer"}
SIZE: Schema = list_schema(INTEGER) | {"minItems": 2, "maxItems": 2}
"""Height and width."""
CLASSES = list_schema(object_schema({"name": TEXT, "color": TEXT}))
"""``ClassList.to_json``."""
MASK = object_schema({"size": SIZE, "counts": TEXT})
"""COCO's compressed run-length encoding."""
