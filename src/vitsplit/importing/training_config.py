"""Settings in the text of the configuration that mmcv stores in a checkpoint (``meta.config``).

The text is Python: assignments of literals and of calls of ``dict``. It is parsed, never executed.
"""

from __future__ import annotations

import ast
import logging
from collections.abc import Mapping
from typing import Any

from vitsplit.files import SMALL_FILE

logger = logging.getLogger(__name__)


class TrainingConfig:
    """The settings of a training run by their place, such as ``model.backbone.out_indices``.

    Args:
        text: The text; None if the checkpoint has none.
        source: The file, for messages.
    """

    def __init__(self, text: Any, source: str) -> None:
        self.values: Mapping[str, Any] = {}
        if isinstance(text, str):
            try:
                self.values = _parse(text)
            except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
                logger.warning("%s: its configuration (meta.config) is unreadable (%s) and not used", source, error)

    def get(self, place: str, default: Any = None) -> Any:
        """The value at a place, or ``default`` if there is none."""
        value: Any = self.values
        for name in place.split("."):
            if not isinstance(value, Mapping) or name not in value:
                return default
            value = value[name]
        return value

    def whole_numbers(self, place: str) -> tuple[int, ...] | None:
        """A list of whole numbers, or None if the place has none."""
        value = self.get(place)
        if not isinstance(value, list | tuple) or not all(type(each) is int for each in value):
            return None
        return tuple(value)

    def test_view(self) -> dict[str, Any]:
        """Size, scales and flip of test images: ``image_scale``, ``test_scales``, ``test_flip``, as far as stated."""
        for step in _mappings(self.get("data.test.pipeline")):
            if step.get("type") != "MultiScaleFlipAug":
                continue
            ratios = step.get("img_ratios") or 1.0
            view: dict[str, Any] = {
                "test_flip": bool(step.get("flip")),
                "test_scales": tuple(ratios) if isinstance(ratios, list | tuple) else (ratios,),
            }
            scale = step.get("img_scale")
            if not any(each.get("type") == "Resize" for each in _mappings(step.get("transforms"))):
                return view | {"image_scale": None}
            if isinstance(scale, tuple) and len(scale) == 2 and all(type(side) is int for side in scale):
                view["image_scale"] = (max(scale), min(scale))
            return view
        return {}


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list | tuple) else []


def _parse(text: str) -> dict[str, Any]:
    if len(text) > SMALL_FILE:
        raise ValueError(f"{len(text):,} characters")
    found = {}
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            found[statement.targets[0].id] = _value(statement.value)
    return found


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        return {ast.literal_eval(key): _value(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    if isinstance(node, ast.List):
        return [_value(each) for each in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_value(each) for each in node.elts)
    return ast.literal_eval(node)
