"""What every reader of detection labels shares: objects as they were annotated, and what is wrong with them.

Boxes here are (x, y, width, height) in pixels, as in COCO files: x, y is the upper left corner, as an edge.
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

from vitsplit.data.folders import first
from vitsplit.data.images import MAX_PIXELS
from vitsplit.errors import DataError
from vitsplit.files import shown

logger = logging.getLogger(__name__)

Box = tuple[float, float, float, float]
Segmentation = tuple[NDArray[np.float64], ...] | dict[str, Any]
"""Polygons, each (x1, y1, x2, y2, ...), or COCO's run-length encoding ``{"size": [H, W], "counts": ...}``.

Arrays, since lists of the millions of numbers of a large set take four times the memory.
"""
OUTSIDE = 1.0
"""Pixels by which a box may leave its image: as far as rounding can bring it. What is outside is cut off."""
MIN_COORDINATES = 6
"""Of a polygon: x and y of three points, since fewer enclose nothing."""
FARTHEST = 1e6
"""Pixels from the corner of its image: the most of a number in a box or a polygon. No image has a side of so many."""
LONGEST_OUTLINE = 4e6
"""Pixels of an object's polygons together. Drawing takes 80 bytes for each; a whole image of 89 megapixels has 4e4."""
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


class Kind(NamedTuple):
    """One sort of bad label: what it is called, and what to do about it."""

    name: str
    advice: str


MISSING_IMAGE = Kind("missing images", "Copy them there, or remove their entries.")
OUTSIDE_FOLDER = Kind(
    "file names that lead out of the folder of images", "Name files inside it; a link there may lead elsewhere."
)
UNREADABLE_IMAGE = Kind("unreadable images", "Replace or remove them.")
BROKEN_ENTRY = Kind("broken entries", "Correct or remove them.")
DUPLICATE_IMAGE = Kind("duplicate image ids", "Give every image an id of its own.")
DUPLICATE_OBJECT = Kind("duplicate annotation ids", "Give every annotation an id of its own.")
ORPHAN = Kind("annotations of images that are not there", "Add the images, or remove the annotations.")
UNKNOWN_CLASS = Kind("classes out of range", "Correct them, or add the class to the list of classes.")
BROKEN_BOX = Kind("broken boxes", "A box needs four finite numbers and no negative width or height. Correct them.")
OUTSIDE_BOX = Kind(
    "boxes outside their image", "Correct them (is the image of another size now?), or clip them: --bad-boxes clip."
)
BROKEN_MASK = Kind("broken masks", "Correct them, or remove the segmentation of every object.")
DEGENERATE = "degenerate boxes"
DEGENERATE_PART = "degenerate polygons"
CLIPPED = "clipped boxes"
POLICIES = {DEGENERATE: "left out", DEGENERATE_PART: "left out", CLIPPED: "cut at the edge"}
"""What is not as it was annotated, and what was done with it."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """One object, or one region of many, as it was annotated.

    Attributes:
        id: Its id in the annotations, or its number.
        label: Class index.
        box: See the top of the file; it may leave the image by up to ``OUTSIDE``.
        crowd: A region that is neither trained on nor counted as missed.
        area: Pixels, as annotated; None where the labels have no area of their own.
        segmentation: Its mask, or None.
    """

    id: int
    label: int
    box: Box
    crowd: bool = False
    area: float | None = None
    segmentation: Segmentation | None = None


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """One image and its objects; width and height in pixels, as the labels (or the file's header) say.

    ``labels`` is the file of its objects, where every image has one of its own.
    """

    path: Path
    image_id: int
    width: int
    height: int
    annotations: tuple[Annotation, ...] = ()
    labels: Path | None = None


class Problem(NamedTuple):
    """One thing that is wrong: its kind, the file, and the place and values in it."""

    kind: Kind
    file: Path
    place: str

    @property
    def message(self) -> str:
        """What is wrong, where, and what to do."""
        return f"{self.file}: {self.kind.name}: {self.place}. {self.kind.advice}"


@dataclass
class Ledger:
    """Keeps book while labels are read: what is wrong, and what is left out or changed by policy.

    Attributes:
        bad_boxes: What to do with boxes that leave their image by more than ``OUTSIDE``.
        problems: Errors.
        changed: Key of ``POLICIES`` to the places.
    """

    bad_boxes: Literal["error", "clip"] = "error"
    problems: list[Problem] = field(default_factory=list)
    changed: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def report(self, kind: Kind, file: Path, place: str) -> None:
        """Notes an error."""
        self.problems.append(Problem(kind, file, place))

    def settle_box(self, box: Sequence[Any], size: tuple[int, int], file: Path, place: str) -> Box | None:
        """Checks a box.

        Args:
            box: x, y, width, height in pixels, of whatever type the file held.
            size: Width and height of the image.
            file: The file that holds it.
            place: Where it is, such as ``annotation 17 (a.jpg)``.

        Returns:
            The box, clipped if it had to be; None if it cannot be used, which is then noted.
        """
        fault = _box_fault(box)
        if fault:
            self.report(BROKEN_BOX, file, f"{place}: {fault}")
            return None
        x, y, width, height = map(float, box)
        left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + width, size[0]), min(y + height, size[1])
        if max(-x, -y, x + width - size[0], y + height - size[1]) > OUTSIDE:
            said = f"{place}: x {x:g} to {x + width:g}, y {y:g} to {y + height:g} in {size[0]}x{size[1]}"
            if self.bad_boxes == "error":
                self.report(OUTSIDE_BOX, file, said)
                return None
            self.changed[CLIPPED].append(said)
            x, y, width, height = left, top, right - left, bottom - top
        if right <= left or bottom <= top:
            self.changed[DEGENERATE].append(place)
            return None
        return x, y, width, height

    def settle(self, source: Path) -> None:
        """Ends the reading of a split: logs what was left out or changed, and raises what is wrong.

        Raises:
            DataError: The first kind of problem: counted, the first five named. Other kinds are counted.
        """
        if self.problems:
            raise DataError(_describe(self.problems, source))
        for what, places in self.changed.items():
            logger.warning("%s: %s, %s: %d (%s)", source, what, POLICIES[what], len(places), first(places))


def polygons_fault(parts: Sequence[NDArray[np.float64]]) -> str:
    """What forbids to draw polygons, or an empty string: drawing takes time and memory by the length of their edges."""
    farthest = [float(np.abs(part).max()) for part in parts if len(part)]
    if not all(distance <= FARTHEST for distance in farthest):  # also true of NaN
        return f"a number in a polygon is not finite, or beyond {FARTHEST:g} pixels"
    if sum(len(part) for part in parts) * max(farthest, default=0.0) <= LONGEST_OUTLINE:  # as of nearly all
        return ""
    length = sum(
        float(np.abs(np.diff(part.reshape(-1, 2), axis=0, append=part[None, :2])).max(1).sum())
        for part in parts
        if len(part)
    )
    said = f"its outline is {length:.3g} pixels long, and at most {LONGEST_OUTLINE:g} are drawn"
    return said if length > LONGEST_OUTLINE else ""


def size_fault(width: Any, height: Any) -> str:
    """What is wrong with the width and height that labels say of an image, or an empty string."""
    if not all(type(side) is int and side >= 1 for side in (width, height)):
        return f"width {shown(width)} and height {shown(height)} must be whole numbers from 1"
    if width * height > MAX_PIXELS:
        return f"{shown(width)}x{shown(height)} pixels are more than the {MAX_PIXELS / 1e6:.0f} million that are read"
    return ""


def plain_number(word: str) -> float:
    """The number that a word of a label file writes in digits; "1_0", "nan" and "inf" are none.

    Raises:
        ValueError: It writes none.
    """
    if not _NUMBER.fullmatch(word):
        raise ValueError(f"{shown(word)} is no number")
    return float(word)


def _box_fault(box: Sequence[Any]) -> str:
    numbers = [value for value in box if type(value) in (int, float) and -FARTHEST <= value <= FARTHEST]
    if len(box) != 4 or len(numbers) != 4:  # NaN lies in no range
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
    return f"{where}: {kind.name}: {len(same)} ({first(places)}). {kind.advice}" + (also and f" Also: {also}.")
