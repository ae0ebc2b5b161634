"""Annotated objects, and checks shared by all readers of detection labels.

Boxes are (x, y, width, height) in pixels with x, y the upper left corner, as in COCO files.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitsplit.data.decoding import MAX_PIXELS
from vitsplit.data.folders import preview
from vitsplit.errors import DataError
from vitsplit.files import shown

logger = logging.getLogger(__name__)

Box = tuple[float, float, float, float]
Segmentation = tuple[NDArray[np.float64], ...] | dict[str, Any]
"""Polygons, each (x1, y1, x2, y2, ...), or COCO's run-length encoding ``{"size": [H, W], "counts": ...}``.

Arrays, since lists take four times the memory.
"""
OUTSIDE = 1.0
"""Tolerance in pixels of boxes beyond the image (rounding); they are clipped."""
MIN_COORDINATES = 6
"""Minimum number of coordinates of a polygon: x and y of three points."""
MAX_COORDINATE = 1e6
"""Limit in pixels of coordinates of boxes and polygons."""
MAX_OUTLINE = 4e6
"""Limit in pixels of the total outline of an object's polygons. Rasterizing takes 80 bytes per pixel of outline."""
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


class Kind(NamedTuple):
    """A kind of label problem, and its remedy."""

    name: str
    advice: str


MISSING_IMAGE = Kind("missing images", "Add them, or remove their entries.")
OUTSIDE_FOLDER = Kind(
    "file names outside of the image folder", "Use names inside it; links in the folder may lead elsewhere."
)
UNREADABLE_IMAGE = Kind("unreadable images", "Replace or remove them.")
BROKEN_ENTRY = Kind("invalid entries", "Correct or remove them.")
DUPLICATE_IMAGE = Kind("duplicate image ids", "Use unique ids.")
DUPLICATE_OBJECT = Kind("duplicate annotation ids", "Use unique ids.")
ORPHAN = Kind("annotations of missing images", "Add the images, or remove the annotations.")
UNKNOWN_CLASS = Kind("classes out of range", "Correct them, or add the class to the list of classes.")
BROKEN_BOX = Kind("invalid boxes", "A box needs four finite numbers with non-negative width and height. Correct them.")
OUTSIDE_BOX = Kind(
    "boxes outside their image", "Correct them (was the image resized?), or clip them with --bad-boxes clip."
)
BROKEN_MASK = Kind("invalid masks", "Correct them, or remove the segmentation of every object.")
DEGENERATE = "degenerate boxes"
DEGENERATE_PART = "degenerate polygons"
CLIPPED = "clipped boxes"
CHANGES = {DEGENERATE: "skipped", DEGENERATE_PART: "skipped", CLIPPED: "clipped"}
"""Changed annotations, and how they are handled."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """An annotated object, or a crowd region.

    Attributes:
        id: Id in the annotations, or a running number.
        label: Class index.
        box: (x, y, width, height); may exceed the image by up to ``OUTSIDE``.
        crowd: A region that is excluded from training and ignored in evaluation.
        area: Annotated area in pixels, or None.
        segmentation: Mask, or None.
    """

    id: int
    label: int
    box: Box
    crowd: bool = False
    area: float | None = None
    segmentation: Segmentation | None = None


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """An image and its objects; width and height in pixels from the labels (or the file's header).

    ``labels`` is its label file, for formats with one file per image.
    """

    path: Path
    image_id: int
    width: int
    height: int
    annotations: tuple[Annotation, ...] = ()
    labels: Path | None = None


class Problem(NamedTuple):
    """A problem: its kind, the file, and the location and values in it."""

    kind: Kind
    file: Path
    place: str

    @property
    def message(self) -> str:
        """The full message with the remedy."""
        return f"{self.file}: {self.kind.name}: {self.place}. {self.kind.advice}"


@dataclass
class AnnotationLog:
    """Collects problems and changes while labels are read.

    Attributes:
        bad_boxes: Handling of boxes that exceed their image by more than ``OUTSIDE``.
        problems: Errors.
        changed: Locations of changed annotations by key of ``CHANGES``.
    """

    bad_boxes: Literal["error", "clip"] = "error"
    problems: list[Problem] = field(default_factory=list)
    changed: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def report(self, kind: Kind, file: Path, place: str) -> None:
        """Records a problem."""
        self.problems.append(Problem(kind, file, place))

    def check_box(self, box: Sequence[Any], size: tuple[int, int], file: Path, place: str) -> Box | None:
        """Checks and clips a box.

        Args:
            box: x, y, width, height in pixels, of any type.
            size: Width and height of the image.
            file: The file.
            place: Location, such as ``annotation 17 (a.jpg)``.

        Returns:
            The box, clipped if necessary; None if it is invalid, which is recorded.
        """
        fault = _box_problem(box)
        if fault:
            self.report(BROKEN_BOX, file, f"{place}: {fault}")
            return None
        x, y, width, height = map(float, box)
        left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + width, size[0]), min(y + height, size[1])
        if max(-x, -y, x + width - size[0], y + height - size[1]) > OUTSIDE:
            details = f"{place}: x {x:g} to {x + width:g}, y {y:g} to {y + height:g} in {size[0]}x{size[1]}"
            if self.bad_boxes == "error":
                self.report(OUTSIDE_BOX, file, details)
                return None
            self.changed[CLIPPED].append(details)
            x, y, width, height = left, top, right - left, bottom - top
        if right <= left or bottom <= top:
            self.changed[DEGENERATE].append(place)
            return None
        return x, y, width, height

    def raise_problems(self, source: Path) -> None:
        """Raises an error for problems, and logs changes.

        Raises:
            DataError: There are problems.
        """
        if self.problems:
            raise DataError(_describe(self.problems, source))
        for what, places in self.changed.items():
            logger.warning("%s: %s, %s: %d (%s)", source, what, CHANGES[what], len(places), preview(places))


def polygon_problem(parts: Sequence[NDArray[np.float64]]) -> str:
    """Describes why polygons cannot be rasterized (time and memory grow with their outline), or an empty string."""
    farthest = [float(np.abs(part).max()) for part in parts if len(part)]
    if not all(distance <= MAX_COORDINATE for distance in farthest):  # also rejects NaN
        return f"a coordinate is not finite, or beyond {MAX_COORDINATE:g} pixels"
    if sum(len(part) for part in parts) * max(farthest, default=0.0) <= MAX_OUTLINE:  # nearly always
        return ""
    length = sum(
        float(np.abs(np.diff(part.reshape(-1, 2), axis=0, append=part[None, :2])).max(1).sum())
        for part in parts
        if len(part)
    )
    details = f"its outline has {length:.3g} pixels, more than the limit of {MAX_OUTLINE:g}"
    return details if length > MAX_OUTLINE else ""


def size_problem(width: Any, height: Any) -> str:
    """Describes a problem with the annotated size of an image, or an empty string."""
    if not all(type(side) is int and side >= 1 for side in (width, height)):
        return f"width {shown(width)} and height {shown(height)} must be positive integers"
    if width * height > MAX_PIXELS:
        return f"{shown(width)}x{shown(height)} pixels, more than the limit of {MAX_PIXELS / 1e6:.0f} million"
    return ""


def parse_number(word: str) -> float:
    """Parses a decimal number; rejects "1_0", "nan" and "inf".

    Raises:
        ValueError: It is not a number.
    """
    if not _NUMBER.fullmatch(word):
        raise ValueError(f"{shown(word)} is not a number")
    return float(word)


def _box_problem(box: Sequence[Any]) -> str:
    numbers = [value for value in box if type(value) in (int, float) and -MAX_COORDINATE <= value <= MAX_COORDINATE]
    if len(box) != 4 or len(numbers) != 4:  # also rejects NaN
        return shown(list(box))
    return f"width {box[2]:g}, height {box[3]:g}" if min(box[2:]) < 0 else ""


def _describe(problems: list[Problem], source: Path) -> str:
    kind = problems[0].kind
    same = [problem for problem in problems if problem.kind == kind]
    files = {problem.file for problem in same}
    if len(files) == 1:
        where, places = str(same[0].file), [problem.place for problem in same]
    else:
        where, places = str(source), [f"{problem.file.name}, {problem.place}" for problem in same]
    others: dict[str, int] = defaultdict(int)
    for problem in problems[1:]:
        others[problem.kind.name] += problem.kind != kind
    also = ", ".join(f"{name} ({count})" for name, count in others.items() if count)
    return f"{where}: {kind.name}: {len(same)} ({preview(places)}). {kind.advice}" + (also and f" Also: {also}.")
