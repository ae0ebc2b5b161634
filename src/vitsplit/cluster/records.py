"""Predictions as columns of a table: one struct per head, whose fields are the ``column_types`` of its predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from vitsplit.bundle import Card
from vitsplit.errors import ConfigError
from vitsplit.tasks.prediction import ColumnType

COLUMNS = ("height", "width", "error")
"""Columns beside those of the heads: the size of the image in pixels, and why it has no predictions."""
_TYPES: Mapping[ColumnType, pa.DataType] = {
    "bytes": pa.binary(),
    "number": pa.float64(),
    "numbers": pa.list_(pa.float64()),
    "integers": pa.list_(pa.int64()),
    "texts": pa.list_(pa.string()),
    "boxes": pa.list_(pa.list_(pa.float64())),
}


@dataclass(frozen=True)
class Record:
    """The predictions of an image, or why there are none.

    Attributes:
        size: Height and width in pixels; None: the image could not be read.
        heads: The ``record()`` of each head's prediction.
        error: The message; None: there are predictions.
    """

    size: tuple[int, int] | None = None
    heads: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    error: str | None = None


def head_types(cards: Mapping[str, Card]) -> dict[str, pa.DataType]:
    """The type of each head's column.

    The types do not depend on predictions, so that the tables of all images have one schema, also of those where no
    image could be read.

    Raises:
        ConfigError: A task has no records, or a head has the name of another column.
    """
    types = {}
    for name, card in cards.items():
        fields = card.config.task.prediction_type().column_types
        if not fields:
            raise ConfigError(f"{name}: predictions of the task {card.task} cannot be written to a table.")
        if name in (*COLUMNS, "id"):
            raise ConfigError(f"The head {name} has the name of another column. Give it another name.")
        types[name] = pa.struct([(key, _TYPES[kind]) for key, kind in fields.items()])
    return types


def to_columns(records: Sequence[Record], types: Mapping[str, pa.DataType]) -> dict[str, pa.Array]:
    """The columns of several images: one per head, then ``COLUMNS``."""
    heads = {name: pa.array([each.heads.get(name) for each in records], kind) for name, kind in types.items()}
    sizes = [each.size or (None, None) for each in records]
    return heads | {
        "height": pa.array([height for height, _ in sizes], pa.int32()),
        "width": pa.array([width for _, width in sizes], pa.int32()),
        "error": pa.array([each.error for each in records], pa.string()),
    }
