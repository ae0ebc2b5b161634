"""Classes, their colours, and how the values of a mask become class indices (``classes.json``)."""

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

from vitsplit.data.images import RGB
from vitsplit.errors import DataError
from vitsplit.files import CONTROL, LONGEST_NAME, read_json, shown

KeyT = TypeVar("KeyT")

IGNORE = 255
"""Label of pixels that belong to no class: no loss, not counted."""
MAX_CLASSES = 255
MAX_VALUE = 65535
"""The largest value of a mask that ``labels`` can name: 16 bits."""
_HEX_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_FORMS = 'Give a list of names, or {"names": [...], "colours": [...], "labels": {...}}.'


@dataclass(frozen=True)
class ClassList:
    """Names of the classes, in the order of their indices, and a colour for each.

    Raises:
        DataError: No class, a name twice, empty, of more than 1,024 characters or with a line break or another control
            character in it, more than 255 classes, or another number of colours.
    """

    names: tuple[str, ...]
    colours: tuple[RGB, ...] = ()

    def __post_init__(self) -> None:
        if not self.names:
            raise DataError("the list of classes is empty. Name at least one class.")
        if len(self.names) > MAX_CLASSES:
            raise DataError(
                f"{len(self.names)} classes do not fit 8-bit labels, where 255 means ignored: "
                f"at most {MAX_CLASSES} are possible. Merge or ignore some."
            )
        seen: set[str] = set()
        for name in self.names:
            if not name.strip():
                raise DataError("a class has an empty name. Name it.")
            if len(name) > LONGEST_NAME or CONTROL.search(name):
                raise DataError(
                    f"class {shown(name)}: a name has at most {LONGEST_NAME} characters and none that is a line break, "
                    "a tab or another control character. Rename it."
                )
            if name in seen:
                raise DataError(f'class {shown(name)} is listed twice. Rename one, or merge them with "labels".')
            seen.add(name)
        if not self.colours:
            object.__setattr__(self, "colours", default_colours(len(self.names)))
        if len(self.colours) != len(self.names):
            raise DataError(f"{len(self.colours)} colours for {len(self.names)} classes. Give one for each, or none.")

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class LabelScheme:
    """The classes, and how the values of a mask become class indices.

    Attributes:
        classes: The classes.
        values: Value in a mask to class index, or ``IGNORE``. Other values are errors.
        mask_colours: Colour to class index, or ``IGNORE``, for masks that are pictures; None: masks hold values.
        source: Where this was read, for errors.
    """

    classes: ClassList
    values: Mapping[int, int]
    mask_colours: Mapping[RGB, int] | None = None
    source: str = field(default="the data set", compare=False)

    @classmethod
    def plain(cls, classes: ClassList, source: str = "the data set") -> LabelScheme:
        """Values 0..K-1 are the classes, 255 is ignored."""
        return cls(classes, {**{k: k for k in range(len(classes))}, IGNORE: IGNORE}, source=source)

    @cached_property
    def lookup(self) -> np.ndarray:
        """int16, raw value to class index or ``IGNORE``; -1 where a value is out of range. At least 256 long."""
        table = np.full(max(256, max(self.values, default=0) + 1), -1, dtype=np.int16)
        for value, label in self.values.items():
            table[value] = label
        return table

    def describe_values(self) -> str:
        """The mask values that are understood, for an error."""
        used = sorted(value for value, label in self.values.items() if label != IGNORE)
        if used == list(range(used[0], used[-1] + 1)):
            return f"values {used[0]} to {used[-1]}"
        return f"values {', '.join(map(str, used[:8]))}{', ...' if len(used) > 8 else ''}"


def read_classes(path: str | Path) -> LabelScheme:
    """Reads ``classes.json``.

    Either a list of names (mask value k is the k-th class), or an object with

    - ``names``: the list of names;
    - ``colours`` (optional): ``[r, g, b]`` or ``"#rrggbb"`` per name, for pictures;
    - ``labels`` (optional): mask value to class name or ``"ignore"``; several values may share a class, and values that
      are not listed are errors;
    - ``mask_colours`` (optional, instead of ``labels``): ``"#rrggbb"`` to class name or ``"ignore"``, for masks that
      are saved as colours.

    255 is ignored unless ``labels`` gives it to a class.

    Raises:
        DataError: Names the file and what is wrong in it.
    """
    content = read_json(path, advice=_FORMS)
    try:
        return _parse(content, str(path))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def suggest_classes(values: Sequence[int], colours: Sequence[str] = ()) -> str:
    """A ``classes.json`` ready to be saved, for the values (or the colours, as ``#rrggbb``) found in some masks."""
    if colours:
        names = [f"class_{k}" for k in range(len(colours))]
        return json.dumps({"names": names, "mask_colours": dict(zip(colours, names, strict=True))})
    labelled = sorted(set(values) - {IGNORE}) or [0]
    if labelled == list(range(len(labelled))):
        return json.dumps([f"class_{value}" for value in labelled])
    labels = {str(value): f"class_{value}" for value in labelled}
    return json.dumps({"names": list(labels.values()), "labels": labels})


def default_colours(count: int) -> tuple[RGB, ...]:
    """Distinct colours; the k-th is the same for every ``count``.

    In OKLCH, where equal steps look equal: hues turn by the golden angle, lightness cycles through three levels, and
    every 18 colours all three levels move, so that long lists stay distinct.
    """
    colours = []
    for k in range(count):
        lightness = (0.72, 0.56, 0.84)[k % 3] - 0.05 * (k // 18 % 3)
        chroma = (0.15, 0.14, 0.10)[k % 3]
        colours.append(_oklch_to_rgb(lightness, chroma, k * 2.39996 + 0.45))
    return tuple(colours)


def _oklch_to_rgb(lightness: float, chroma: float, hue: float) -> RGB:
    """Björn Ottosson's OKLab to sRGB, chroma reduced until the colour exists."""
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
        raise DataError(f'it holds neither a list nor an object with "names". {_FORMS}')
    unknown = sorted(set(content) - {"names", "colours", "labels", "mask_colours"})
    if unknown:
        raise DataError(f'{shown(unknown[0])} is not known. Known: "names", "colours", "labels", "mask_colours".')
    colours = content.get("colours", [])
    if not isinstance(colours, list):
        raise DataError('"colours" must be a list, with one [r, g, b] per name.')
    classes = ClassList(_names(content["names"]))
    if colours:
        classes = ClassList(classes.names, tuple(_colour(colour) for colour in colours[: MAX_CLASSES + 1]))
    if "mask_colours" in content:
        if "labels" in content:
            raise DataError(
                '"labels" is for masks of values and "mask_colours" for masks of colours. Give one of them.'
            )
        table = _targets(content["mask_colours"], classes, "mask_colours")
        mask_colours = _unlike(table, _colour, "mask_colours")
        return LabelScheme(classes, LabelScheme.plain(classes).values, mask_colours, source)
    if "labels" not in content:
        return LabelScheme.plain(classes, source)
    labels = _unlike(_targets(content["labels"], classes, "labels"), _value, "labels")
    return LabelScheme(classes, {IGNORE: IGNORE, **labels}, source=source)


def _names(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"the names must be a list of strings. {_FORMS}")
    return tuple(names)


def _targets(table: Any, classes: ClassList, what: str) -> dict[str, int]:
    """The right side of ``labels`` or ``mask_colours``: class names to indices."""
    if not isinstance(table, dict) or not table:
        raise DataError(f'"{what}" must be an object that gives each value a class name or "ignore".')
    indices = {"ignore": IGNORE, **{name: k for k, name in enumerate(classes.names)}}
    for key, name in table.items():
        if not isinstance(name, str) or name not in indices:
            raise DataError(
                f'"{what}" gives {shown(key)} to {shown(name)}, which is not among the names. Add it there, or write '
                '"ignore".'
            )
    if all(indices[name] == IGNORE for name in table.values()):
        raise DataError(f'"{what}" ignores everything. Give at least one value a class.')
    return {key: indices[name] for key, name in table.items()}


def _unlike(table: Mapping[str, int], read: Callable[[str], KeyT], what: str) -> dict[KeyT, int]:
    """The left side of ``labels`` or ``mask_colours``, of which each may be given once in whatever spelling."""
    found: dict[KeyT, int] = {}
    for key, label in table.items():
        value = read(key)
        if value in found:
            raise DataError(f'"{what}" gives {shown(key)} twice, in two spellings. Give it once.')
        found[value] = label
    return found


def _value(key: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", key) or int(key) > MAX_VALUE:
        raise DataError(f'"labels" has the key {shown(key)}. Keys are the values in the masks, 0 to {MAX_VALUE}.')
    return int(key)


def _colour(colour: Any) -> RGB:
    if isinstance(colour, str) and _HEX_COLOUR.fullmatch(colour):
        packed = int(colour[1:], 16)
        return packed >> 16, packed >> 8 & 255, packed & 255
    is_triple = isinstance(colour, list) and len(colour) == 3
    if is_triple and all(type(part) is int and 0 <= part <= 255 for part in colour):
        return colour[0], colour[1], colour[2]
    raise DataError(f'{shown(colour)} is not a colour. Write "#rrggbb" or [r, g, b] with 0 to 255.')
