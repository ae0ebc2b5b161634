"""YOLO's layout: one text file per image with a line per object, relative to the image's width and height.

A line is ``class center_x center_y width height``, or ``class x1 y1 x2 y2 x3 y3 ...``, a polygon. The label file of
``images/train/a.jpg`` is ``labels/train/a.txt``, that of ``train/images/a.jpg`` is ``train/labels/a.txt``; an image
without label file has no objects. Class names are in ``classes.json``, ``data.yaml`` or ``classes.txt``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitsplit.data.classes import ClassList, read_classes
from vitsplit.data.decoding import IMAGE_SUFFIXES, image_size
from vitsplit.data.folders import index_files, list_splits
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
    AnnotationLog,
    Box,
    parse_number,
    polygon_problem,
)
from vitsplit.tasks.detection.data import DetectionSet

NAME_FILES = ("classes.json", "data.yaml", "data.yml", "dataset.yaml", "classes.txt")
"""Files of class names; the first existing one is used."""
NO_LABELS = "classes.txt"
"""Some tools write the class names in the folder of labels."""


def find_splits(root: Path) -> dict[str, tuple[Path, Path]]:
    """Folders of images and labels by split."""
    return {split: pair for split, pair in list_splits(root, "labels").items() if pair[1].is_dir()}


def read_yolo(root: Path, split: str, log: AnnotationLog) -> DetectionSet:
    """Reads one split.

    Raises:
        DataError: There are no class names, images or labels. Invalid files and lines are reported to ``log``.
    """
    images_at, labels_at = find_splits(root)[split]
    classes = read_names(root)
    images = index_files(images_at, IMAGE_SUFFIXES)
    labels = {key: path for key, path in index_files(labels_at, {".txt"}).items() if path.name != NO_LABELS}
    for key in sorted(labels.keys() - images.keys()):
        log.report(MISSING_IMAGE, labels_at, f"{key} of {labels[key].name}")
    items = []
    number = 0
    for image_id, (key, path) in enumerate(images.items(), start=1):
        try:
            size = image_size(path)
        except DataError as error:
            log.report(UNREADABLE_IMAGE, images_at, str(error))
            continue
        annotations = []
        lines = read_text(labels[key], advice="Save it as plain text.").split("\n") if key in labels else ()
        for line_number, line in enumerate(lines, start=1):
            annotation = _read_line(line, number + 1, size, len(classes), labels[key], f"line {line_number}", log)
            if annotation is not None:
                number += 1
                annotations.append(annotation)
        items.append(AnnotatedImage(path, image_id, *size, tuple(annotations), labels.get(key)))
    return DetectionSet(root, split, labels_at, classes, tuple(range(len(classes))), tuple(items))


def read_names(root: Path) -> ClassList:
    """The classes of a data set, from the first existing file of ``NAME_FILES``.

    Raises:
        DataError: There is no such file, or it is invalid.
    """
    path = next((root / name for name in NAME_FILES if (root / name).is_file()), None)
    if path is None:
        raise DataError(
            f"{root / NAME_FILES[0]}: file not found, nor {', '.join(NAME_FILES[1:])}. Save a list of class names "
            'in the order of their ids: ["first", "second"].'
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
        raise DataError(f'{path}: no "names" found. Write a list of names, or a mapping from ids (from 0) to names.')
    for name in names:
        if type(name) is not str and not (type(name) is int and name.bit_length() < 64):
            # Such as no, which YAML reads as false.
            raise DataError(f'{path}: "names" has {shown(name)}, which is not a string. Put it in quotes.')
    return [str(name) for name in names]


def _read_line(
    line: str, number: int, size: tuple[int, int], num_classes: int, file: Path, place: str, log: AnnotationLog
) -> Annotation | None:
    """Reads the object of one line; None for an empty line, or an invalid one, which is reported."""
    if not line.strip():
        return None
    try:
        values = [parse_number(word) for word in line.split()]
    except ValueError:
        log.report(BROKEN_ENTRY, file, f"{place}: {shown(line.strip(), 40)} has values that are not numbers")
        return None
    is_polygon = len(values) > MIN_COORDINATES and len(values) % 2 == 1
    if not (len(values) == 5 or is_polygon) or not all(map(math.isfinite, values)):
        details = "expected a class and 4 finite numbers (a box) or x and y of at least three points (a polygon)"
        log.report(BROKEN_ENTRY, file, f"{place}: {len(values)} values, {details}")
        return None
    if values[0] not in range(num_classes):
        log.report(UNKNOWN_CLASS, file, f"{place}: class {values[0]:g} is not in 0 to {num_classes - 1}")
        return None
    box, segmentation = _polygon(values[1:], size) if is_polygon else (_box(values[1:], size), None)
    fault = "" if segmentation is None else polygon_problem(segmentation)
    if fault:
        log.report(BROKEN_MASK, file, f"{place}: {fault}")
        return None
    settled = log.check_box(box, size, file, place)
    return None if settled is None else Annotation(number, int(values[0]), settled, segmentation=segmentation)


def _box(values: list[float], size: tuple[int, int]) -> Box:
    center_x, center_y, width, height = values
    return (center_x - width / 2) * size[0], (center_y - height / 2) * size[1], width * size[0], height * size[1]


def _polygon(values: list[float], size: tuple[int, int]) -> tuple[Box, tuple[NDArray[np.float64]]]:
    """The bounding box of a polygon, and the polygon in pixels."""
    points_P2 = np.array(values).reshape(-1, 2) * size
    (x1, y1), (x2, y2) = points_P2.min(0).tolist(), points_P2.max(0).tolist()
    return (x1, y1, x2 - x1, y2 - y1), (points_P2.flatten(),)
