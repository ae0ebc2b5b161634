"""Predictions of a folder as pre-annotations of label tools: one module per format, and ``export`` with their table."""

from typing import Literal

ExportFormat = Literal["coco", "cvat", "label-studio", "fiftyone"]
"""Format of a label tool."""
