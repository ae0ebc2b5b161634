"""Classes, their colors, and how the values of a mask become class indices (``classes.json``)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vitsplit.data.decoding import RGB, hex_color
from vitsplit.errors import DataError
from vitsplit.files import CONTROL, LONGEST_NAME, read_json, shown

KeyT = TypeVar("KeyT")

IGNORE = 255
"""Label of ignored pixels: excluded from loss and metrics."""
MAX_CLASSES = 255
MAX_VALUE = 65535
"""The largest mask value (16 bits)."""
_HEX_COLOR = re.compile(r"#[0-9a-fA-F]{6}")
_FORMS = 'Give a list of names, or {"names": [...], "colors": [...], "labels": {...}}.'
_KEYS = ("names", "colors", "labels", "mask_colors")
_BRITISH = {"colours": "colors", "mask_colours": "mask_colors"}
"""Spellings of earlier versions."""


@dataclass(frozen=True)
class ClassList:
    """Names and colors of the classes, in the order of their indices.

    Raises:
        DataError: There is no class or more than 255; a name is a duplicate, empty, longer than 1,024 characters or has
            control characters; or the number of colors differs.
    """

    names: tuple[str, ...]
    colors: tuple[RGB, ...] = ()

    def __post_init__(self) -> None:
        if not self.names:
            raise DataError("the list of classes is empty. Name at least one class.")
        if len(self.names) > MAX_CLASSES:
            raise DataError(
                f"{len(self.names)} classes, more than the limit of {MAX_CLASSES} (8-bit labels, 255 is ignored). "
                "Merge or ignore some."
            )
        seen: set[str] = set()
        for name in self.names:
            if not name.strip():
                raise DataError("a class has an empty name. Name it.")
            if len(name) > LONGEST_NAME or CONTROL.search(name):
                raise DataError(
                    f"class {shown(name)}: the name is longer than {LONGEST_NAME} characters or has control "
                    "characters. Rename it."
                )
            if name in seen:
                raise DataError(f'class {shown(name)} is a duplicate. Rename one, or merge them with "labels".')
            seen.add(name)
        if not self.colors:
            object.__setattr__(self, "colors", default_colors(len(self.names)))
        if len(self.colors) != len(self.names):
            raise DataError(
                f"{len(self.colors)} colors for {len(self.names)} classes. Give one color per class, or none."
            )

    def __len__(self) -> int:
        return len(self.names)

    def to_json(self) -> list[dict[str, str]]:
        """``name`` and ``color`` (``#rrggbb``) of every class."""
        return [{"name": name, "color": hex_color(color)} for name, color in zip(self.names, self.colors, strict=True)]


@dataclass(frozen=True)
class LabelScheme:
    """The classes, and the mapping of mask values to class indices.

    Attributes:
        classes: The classes.
        values: Mask value to class index or ``IGNORE``. Other values are errors.
        mask_colors: Color to class index or ``IGNORE``, for RGB masks; None for index masks.
        source: Where the classes were read from, for errors.
    """

    classes: ClassList
    values: Mapping[int, int]
    mask_colors: Mapping[RGB, int] | None = None
    source: str = field(default="the data set", compare=False)

    @classmethod
    def plain(cls, classes: ClassList, source: str = "the data set") -> LabelScheme:
        """Values 0..K-1 are the classes, 255 is ignored."""
        return cls(classes, {**{k: k for k in range(len(classes))}, IGNORE: IGNORE}, source=source)

    @cached_property
    def lookup(self) -> np.ndarray:
        """Lookup table of mask values, int16: class index, ``IGNORE``, or -1 if invalid; at least 256 long."""
        table = np.full(max(256, max(self.values, default=0) + 1), -1, dtype=np.int16)
        for value, label in self.values.items():
            table[value] = label
        return table

    def describe_values(self) -> str:
        """The valid mask values, for an error."""
        used = sorted(value for value, label in self.values.items() if label != IGNORE)
        if used == list(range(used[0], used[-1] + 1)):
            return f"values {used[0]} to {used[-1]}"
        return f"values {', '.join(map(str, used[:8]))}{', ...' if len(used) > 8 else ''}"


def read_classes(path: str | Path) -> LabelScheme:
    """Reads ``classes.json``.

    Either a list of names (mask value k is the k-th class), or an object with

    - ``names``: the list of names;
    - ``colors`` (optional): ``[r, g, b]`` or ``"#rrggbb"`` per name, for visualization;
    - ``labels`` (optional): mask value to class name or ``"ignore"``; several values may map to the same class, values
      not listed are errors;
    - ``mask_colors`` (optional, instead of ``labels``): ``"#rrggbb"`` to class name or ``"ignore"``, for RGB masks.

    255 is ignored unless ``labels`` maps it to a class. The spellings ``colours`` and ``mask_colors`` are read too.

    Raises:
        DataError: The file is invalid.
    """
    content = read_json(path, advice=_FORMS)
    try:
        return _parse(content, str(path))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def suggest_classes(values: Sequence[int], colors: Sequence[str] = ()) -> str:
    """The content of a ``classes.json`` for given mask values or colors (``#rrggbb``)."""
    if colors:
        names = [f"class_{k}" for k in range(len(colors))]
        return json.dumps({"names": names, "mask_colors": dict(zip(colors, names, strict=True))})
    labeled = sorted(set(values) - {IGNORE}) or [0]
    if labeled == list(range(len(labeled))):
        return json.dumps([f"class_{value}" for value in labeled])
    labels = {str(value): f"class_{value}" for value in labeled}
    return json.dumps({"names": list(labels.values()), "labels": labels})


def default_colors(count: int) -> tuple[RGB, ...]:
    """Distinct colors; the k-th is the same for every ``count``.

    In the perceptually uniform space OKLCH: hues advance by the golden angle, lightness cycles through three levels,
        which shift every 18 colors.
    """
    colors = []
    for k in range(count):
        lightness = (0.72, 0.56, 0.84)[k % 3] - 0.05 * (k // 18 % 3)
        chroma = (0.15, 0.14, 0.10)[k % 3]
        colors.append(_oklch_to_rgb(lightness, chroma, k * 2.39996 + 0.45))
    return tuple(colors)


def _oklch_to_rgb(lightness: float, chroma: float, hue: float) -> RGB:
    """OKLCH to sRGB; chroma is reduced until the color is in gamut."""
    while True:
        a, b = chroma * math.cos(hue), chroma * math.sin(hue)
        lms = [
            (lightness + x * a + y * b) ** 3
            for x, y in ((0.3963377774, 0.2158037573), (-0.1055613458, -0.0638541728), (-0.0894841775, -1.2914855480))
        ]
        rows = (
            (4.0767416621, -3.3077115913, 0.2309699292),
            (-1.2684380046, 2.6097574011, -0.3413193965),
            (-0.0041960863, -0.7034186147, 1.7076147010),
        )
        linear = [sum(w * c for w, c in zip(row, lms, strict=True)) for row in rows]
        if all(-1e-4 <= c <= 1 + 1e-4 for c in linear):
            break
        chroma *= 0.95
    red, green, blue = (round(255 * _gamma(min(max(c, 0.0), 1.0))) for c in linear)
    return red, green, blue


def _gamma(linear: float) -> float:
    return 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055


def _parse(content: Any, source: str) -> LabelScheme:
    if isinstance(content, list):
        return LabelScheme.plain(ClassList(_names(content)), source)
    if not isinstance(content, dict) or "names" not in content:
        raise DataError(f'neither a list nor an object with "names". {_FORMS}')
    content = _american(content)
    unknown = sorted(set(content) - set(_KEYS))
    if unknown:
        raise DataError(f"unknown key {shown(unknown[0])}. Known keys: {', '.join(_KEYS)}.")
    colors = content.get("colors", [])
    if not isinstance(colors, list):
        raise DataError('"colors" must be a list, with one [r, g, b] per name.')
    classes = ClassList(_names(content["names"]))
    if colors:
        classes = ClassList(classes.names, tuple(_color(color) for color in colors[: MAX_CLASSES + 1]))
    if "mask_colors" in content:
        if "labels" in content:
            raise DataError('"labels" is for masks of values and "mask_colors" for masks of colors. Give one of them.')
        table = _class_indices(content["mask_colors"], classes, "mask_colors")
        mask_colors = _unique_keys(table, _color, "mask_colors")
        return LabelScheme(classes, LabelScheme.plain(classes).values, mask_colors, source)
    if "labels" not in content:
        return LabelScheme.plain(classes, source)
    labels = _unique_keys(_class_indices(content["labels"], classes, "labels"), _value, "labels")
    return LabelScheme(classes, {IGNORE: IGNORE, **labels}, source=source)


def _american(content: dict[str, Any]) -> dict[str, Any]:
    for british, american in _BRITISH.items():
        if british in content and american in content:
            raise DataError(f'"{american}" and "{british}" are the same setting. Give one of them.')
    return {_BRITISH.get(key, key): value for key, value in content.items()}


def _names(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f'"names" must be a list of strings. {_FORMS}')
    return tuple(names)


def _class_indices(table: Any, classes: ClassList, what: str) -> dict[str, int]:
    """Replaces the class names in ``labels`` or ``mask_colors`` by class indices."""
    if not isinstance(table, dict) or not table:
        raise DataError(f'"{what}" must be an object that maps each value to a class name or "ignore".')
    indices = {"ignore": IGNORE, **{name: k for k, name in enumerate(classes.names)}}
    for key, name in table.items():
        if not isinstance(name, str) or name not in indices:
            raise DataError(
                f'"{what}" maps {shown(key)} to {shown(name)}, which is not in "names". Add it there, or write '
                '"ignore".'
            )
    if all(indices[name] == IGNORE for name in table.values()):
        raise DataError(f'"{what}" ignores everything. Map at least one value to a class.')
    return {key: indices[name] for key, name in table.items()}


def _unique_keys(table: Mapping[str, int], read: Callable[[str], KeyT], what: str) -> dict[KeyT, int]:
    """Parses the keys of ``labels`` or ``mask_colors``; raises DataError for a duplicate in another spelling."""
    found: dict[KeyT, int] = {}
    for key, label in table.items():
        value = read(key)
        if value in found:
            raise DataError(f'"{what}" has {shown(key)} twice, in two spellings. Remove one.')
        found[value] = label
    return found


def _value(key: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", key) or int(key) > MAX_VALUE:
        raise DataError(f'"labels" has the invalid key {shown(key)}. Keys are mask values from 0 to {MAX_VALUE}.')
    return int(key)


def _color(color: Any) -> RGB:
    if isinstance(color, str) and _HEX_COLOR.fullmatch(color):
        packed = int(color[1:], 16)
        return packed >> 16, packed >> 8 & 255, packed & 255
    is_triple = isinstance(color, list) and len(color) == 3
    if is_triple and all(type(part) is int and 0 <= part <= 255 for part in color):
        return color[0], color[1], color[2]
    raise DataError(f'{shown(color)} is not a color. Write "#rrggbb" or [r, g, b] with values from 0 to 255.')
