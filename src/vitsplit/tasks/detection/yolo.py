"""YOLO's folders: one text file per image with a line per object, in shares of the image's width and height.

A line is ``class centre_x centre_y width height``, or ``class x1 y1 x2 y2 x3 y3 ...``, a polygon. The label file of
``images/train/a.jpg`` is ``labels/train/a.txt``, that of ``train/images/a.jpg`` is ``train/labels/a.txt``; an image
without one has no objects. The classes' names are in ``classes.json``, ``data.yaml`` or ``classes.txt``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitsplit.data.classes import ClassList, read_classes
from vitsplit.data.folders import index_files, list_splits
from vitsplit.data.images import IMAGE_SUFFIXES, image_size
from vitsplit.errors import DataError
from vitsplit.files import read_text, read_yaml, shown
from vitsplit.tasks.detection.annotations import (
    BROKEN_ENTRY,
    BROKEN_MASK,
    MIN_COORDINATES,
    MISSING_IMAGE,
    UNKNOWN_CLASS,
    UNREADABLE_IMAGE,
    AnnotatedImage,
    Annotation,
    Box,
    Ledger,
    plain_number,
    polygons_fault,
)
from vitsplit.tasks.detection.data import DetectionSet

NAME_FILES = ("classes.json", "data.yaml", "data.yml", "dataset.yaml", "classes.txt")
"""Where the names of the classes may be, the first that is there."""
NO_LABELS = "classes.txt"
"""Some tools write the names beside the labels."""


def find_splits(root: Path) -> dict[str, tuple[Path, Path]]:
    """Split to its folders of images and of labels."""
    return {split: pair for split, pair in list_splits(root, "labels").items() if pair[1].is_dir()}


def read_yolo(root: Path, split: str, ledger: Ledger) -> DetectionSet:
    """Reads one split.

    Raises:
        DataError: There are no names of classes, or no images or labels at all. What is wrong with single files and
            lines is noted in the ledger.
    """
    images_at, labels_at = find_splits(root)[split]
    classes = read_names(root)
    images = index_files(images_at, IMAGE_SUFFIXES)
    labels = {key: path for key, path in index_files(labels_at, {".txt"}).items() if path.name != NO_LABELS}
    for key in sorted(labels.keys() - images.keys()):
        ledger.report(MISSING_IMAGE, labels_at, f"{key} of {labels[key].name}")
    items = []
    number = 0
    for image_id, (key, path) in enumerate(images.items(), start=1):
        try:
            size = image_size(path)
        except DataError as error:
            ledger.report(UNREADABLE_IMAGE, images_at, str(error))
            continue
        annotations = []
        lines = read_text(labels[key], advice="Save it as plain text.").split("\n") if key in labels else ()
        for line_number, line in enumerate(lines, start=1):
            annotation = _read_line(line, number + 1, size, len(classes), labels[key], f"line {line_number}", ledger)
            if annotation is not None:
                number += 1
                annotations.append(annotation)
        items.append(AnnotatedImage(path, image_id, *size, tuple(annotations), labels.get(key)))
    return DetectionSet(root, split, labels_at, classes, tuple(range(len(classes))), tuple(items))


def read_names(root: Path) -> ClassList:
    """The classes of a data set, from the first of ``NAME_FILES`` that it has.

    Raises:
        DataError: There is none, or it cannot be read.
    """
    path = next((root / name for name in NAME_FILES if (root / name).is_file()), None)
    if path is None:
        raise DataError(
            f"{root / NAME_FILES[0]}: there is no such file, nor {', '.join(NAME_FILES[1:])}, so the classes have no "
            'names. Save there a list of names, in the order of their numbers: ["first", "second"].'
        )
    if path.suffix == ".json":
        return read_classes(path).classes
    if path.suffix == ".txt":
        names = [line for line in read_text(path).split("\n") if line.strip()]
    else:
        names = _yaml_names(read_yaml(path), path)
    try:
        return ClassList(tuple(name.strip() for name in names))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _yaml_names(content: Any, path: Path) -> list[str]:
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and set(map(type, names)) == {int} and set(names) == set(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f'{path}: no "names" in it. Write a list of names, or the numbers from 0 with their names.')
    for name in names:
        if type(name) is not str and not (type(name) is int and name.bit_length() < 64):
            # Such as no, which YAML takes for false.
            raise DataError(f'{path}: "names" has {shown(name)}, which is not text. Put it in quotes.')
    return [str(name) for name in names]


def _read_line(
    line: str, number: int, size: tuple[int, int], num_classes: int, file: Path, place: str, ledger: Ledger
) -> Annotation | None:
    """The object of one line; None for an empty line and where something is wrong, which is then noted."""
    if not line.strip():
        return None
    try:
        values = [plain_number(word) for word in line.split()]
    except ValueError:
        ledger.report(BROKEN_ENTRY, file, f"{place}: {shown(line.strip(), 40)} are not numbers")
        return None
    is_polygon = len(values) > MIN_COORDINATES and len(values) % 2 == 1
    if not (len(values) == 5 or is_polygon) or not all(map(math.isfinite, values)):
        said = "a class and 4 finite numbers (a box), or x and y of three points or more (a polygon), are needed"
        ledger.report(BROKEN_ENTRY, file, f"{place}: {len(values)} values, but {said}")
        return None
    if values[0] not in range(num_classes):
        ledger.report(UNKNOWN_CLASS, file, f"{place}: class {values[0]:g}, but there are 0 to {num_classes - 1}")
        return None
    box, segmentation = _polygon(values[1:], size) if is_polygon else (_box(values[1:], size), None)
    fault = "" if segmentation is None else polygons_fault(segmentation)
    if fault:
        ledger.report(BROKEN_MASK, file, f"{place}: {fault}")
        return None
    settled = ledger.settle_box(box, size, file, place)
    return None if settled is None else Annotation(number, int(values[0]), settled, segmentation=segmentation)


def _box(values: list[float], size: tuple[int, int]) -> Box:
    centre_x, centre_y, width, height = values
    return (centre_x - width / 2) * size[0], (centre_y - height / 2) * size[1], width * size[0], height * size[1]


def _polygon(values: list[float], size: tuple[int, int]) -> tuple[Box, tuple[NDArray[np.float64]]]:
    """A polygon in pixels, and the box around it."""
    points_P2 = np.array(values).reshape(-1, 2) * size
    (x1, y1), (x2, y2) = points_P2.min(0).tolist(), points_P2.max(0).tolist()
    return (x1, y1, x2 - x1, y2 - y1), (points_P2.flatten(),)
