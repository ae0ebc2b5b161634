"""COCO's JSON: images, annotations and categories in one file per split.

Supported are the official archives, ``annotations/train.json`` with ``images/train``, and folders of images with
``_annotations.coco.json``.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitsplit.data.classes import ClassList, read_classes
from vitsplit.data.folders import SPLIT_FOLDERS, preview
from vitsplit.errors import DataError
from vitsplit.files import LARGE_FILE, inside, is_file, read_json, shown, string, whole_number
from vitsplit.tasks.detection.annotations import (
    BROKEN_ENTRY,
    BROKEN_MASK,
    DEGENERATE,
    DEGENERATE_PART,
    DUPLICATE_IMAGE,
    DUPLICATE_OBJECT,
    MIN_COORDINATES,
    MISSING_IMAGE,
    ORPHAN,
    OUTSIDE_FOLDER,
    UNKNOWN_CLASS,
    AnnotatedImage,
    Annotation,
    AnnotationLog,
    Kind,
    Segmentation,
    polygon_problem,
    size_problem,
)
from vitsplit.tasks.detection.data import DetectionSet
from vitsplit.tasks.detection.masks import run_problem

YEARS = ("", "2017", "2014")
IMAGE_FIELDS = {"id": int, "file_name": str, "width": int, "height": int}
LARGEST_ID = 2**53
"""Limit of ids and areas: integers up to this are exact in every JSON parser."""
OBJECT_FIELDS = {"id": int, "image_id": int, "category_id": int, "bbox": list}


def find_splits(root: Path) -> dict[str, tuple[Path, list[Path]]]:
    """Annotation file and possible image folders by split, the most likely folder first."""
    found: dict[str, tuple[Path, list[Path]]] = {}
    for split, names in SPLIT_FOLDERS.items():
        for name, year in ((name, year) for name in names for year in YEARS):
            folders = [root / "images" / f"{name}{year}", root / f"{name}{year}", root / "images", root]
            for file in (
                root / "annotations" / f"{name}{year}.json",
                root / "annotations" / f"instances_{name}{year}.json",
            ):
                if file.is_file():
                    found.setdefault(split, (file, folders))
            exported = root / name / "_annotations.coco.json"
            if exported.is_file():
                found.setdefault(split, (exported, [root / name]))
    return found


def read_coco(root: Path, split: str, log: AnnotationLog) -> DetectionSet:
    """Reads one split.

    Classes are the categories in the order of their ids without gaps, or those of ``classes.json`` in its order. That
    file is ignored if there is a folder ``masks``, since it then describes the segmentation data.

    Raises:
        DataError: The file is not COCO JSON. Invalid entries are reported to ``log``.
    """
    file, folders = find_splits(root)[split]
    content = read_lists(file)
    classes, category_ids = read_categories(content["categories"], file, root / "classes.json")
    entries = [entry for entry in content["images"] if _is_image(entry, file, log)]
    images_at = _find_folder(entries, folders)
    _report_duplicates(content["images"], DUPLICATE_IMAGE, file, log)
    images: dict[int, AnnotatedImage] = {}
    missing: set[int] = set()
    for entry in entries:
        path = images_at / entry["file_name"]
        images[entry["id"]] = AnnotatedImage(path, entry["id"], entry["width"], entry["height"])
        if not is_file(path):
            missing.add(entry["id"])
            log.report(MISSING_IMAGE, file, f"{images_at.name}/{entry['file_name']}")
    _report_duplicates(content["annotations"], DUPLICATE_OBJECT, file, log)
    labels = {category_id: label for label, category_id in enumerate(category_ids)}
    objects: dict[int, list[Annotation]] = defaultdict(list)
    for entry in content["annotations"]:
        if _has_fields(entry, OBJECT_FIELDS, "annotation", file, log):
            annotation = _read_object(entry, labels, images.get(entry["image_id"]), file, log)
            if annotation is not None:
                objects[entry["image_id"]].append(annotation)
    items = tuple(
        dataclasses.replace(image, annotations=tuple(objects[number]))
        for number, image in images.items()
        if number not in missing
    )
    return DetectionSet(root, split, file, classes, category_ids, items)


def read_lists(file: Path) -> dict[str, Any]:
    """Reads the file and checks its three lists.

    Raises:
        DataError: It cannot be read (see ``vitsplit.files``), or lacks ``images``, ``annotations`` or ``categories``.
    """
    content = read_json(file, limit=LARGE_FILE, advice="Download it again, or correct it.")
    lists = ("images", "annotations", "categories")
    lacking = [key for key in lists if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if lacking:
        raise DataError(
            f"{file}: no list {', '.join(lacking)} found. "
            'A COCO file must be {"images": [...], "annotations": [...], "categories": [...]}.'
        )
    return content


def read_categories(categories: list[Any], file: Path, classes_file: Path) -> tuple[ClassList, tuple[int, ...]]:
    """The classes and their category ids.

    Raises:
        DataError: An id or name is invalid or not unique, there is no category, or ``classes_file`` has a name that is
            not a category.
    """
    names: dict[int, str] = {}
    for place, category in enumerate(categories, start=1):
        where = f"{file}: category {place}"
        if not isinstance(category, dict):
            raise DataError(f'{where} is {shown(category)}, not an object with "id" and "name". Correct it.')
        number = whole_number(category.get("id"), f'{where}: "id"', -LARGEST_ID, LARGEST_ID)
        if number in names:
            raise DataError(f"{where} has a duplicate id {number}. Use unique ids.")
        names[number] = string(category.get("name"), f'{where}: "name"')
    ids = sorted(names)
    try:
        classes = ClassList(tuple(names[category_id] for category_id in ids))
    except DataError as error:
        raise DataError(f"{file}: categories: {error}") from error
    # With a folder of masks, the file lists the classes of segmentation.
    if not os.path.lexists(classes_file) or (classes_file.parent / "masks").is_dir():
        return classes, tuple(ids)
    chosen = read_classes(classes_file).classes
    by_name = {name: category_id for category_id, name in names.items()}
    unknown = [name for name in chosen.names if name not in by_name]
    if unknown:
        raise DataError(
            f"{classes_file}: not categories of {file}: {preview(unknown)}. Use categories only "
            f"({preview(list(by_name))}), or remove {classes_file.name} to use all categories."
        )
    return chosen, tuple(by_name[name] for name in chosen.names)


def _find_folder(entries: list[dict[str, Any]], folders: list[Path]) -> Path:
    """The folder of the first image that is found; otherwise the most likely existing one."""
    for entry in entries:
        for folder in folders:
            if is_file(folder / entry["file_name"]):
                return folder
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def _has_fields(entry: Any, fields: Mapping[str, type], what: str, file: Path, log: AnnotationLog) -> bool:
    lacking = [key for key, kind in fields.items() if not isinstance(entry, dict) or type(entry.get(key)) is not kind]
    if lacking:
        name = shown(entry.get("id", "without id") if isinstance(entry, dict) else entry)
        kind = "a whole number" if fields[lacking[0]] is int else "a string" if fields[lacking[0]] is str else "a list"
        log.report(BROKEN_ENTRY, file, f'{what} {name}: "{lacking[0]}" must be {kind}')
        return False
    outside = [key for key, kind in fields.items() if kind is int and abs(entry[key]) > LARGEST_ID]
    if outside:
        log.report(BROKEN_ENTRY, file, f'{what}: "{outside[0]}" is {shown(entry[outside[0]])}, which is too large')
    return not outside


def _is_image(entry: Any, file: Path, log: AnnotationLog) -> bool:
    """Whether an entry is a valid image; otherwise it is reported."""
    if not _has_fields(entry, IMAGE_FIELDS, "image", file, log):
        return False
    place = f"image {entry['id']}"
    fault = size_problem(entry["width"], entry["height"])
    if fault:
        log.report(BROKEN_ENTRY, file, f"{place}: {fault}")
        return False
    try:
        inside(file.parent, entry["file_name"], place)
    except DataError:
        log.report(OUTSIDE_FOLDER, file, f"{place}: {shown(entry['file_name'])}")
        return False
    return True


def _report_duplicates(entries: list[Any], kind: Kind, file: Path, log: AnnotationLog) -> None:
    counts = Counter(entry["id"] for entry in entries if isinstance(entry, dict) and type(entry.get("id")) is int)
    for number, count in counts.items():
        if count > 1:
            log.report(kind, file, f"{shown(number)}, {count} times")


def _read_object(
    entry: dict[str, Any], labels: Mapping[int, int], image: AnnotatedImage | None, file: Path, log: AnnotationLog
) -> Annotation | None:
    """Reads one object; None if it is invalid or skipped, which is reported."""
    if image is None:
        log.report(ORPHAN, file, f"annotation {entry['id']} of image {entry['image_id']}")
        return None
    place, size = f"annotation {entry['id']} ({image.path.name})", (image.width, image.height)
    if entry["category_id"] not in labels:
        log.report(UNKNOWN_CLASS, file, f"{place}: category {entry['category_id']}")
        return None
    box = log.check_box(entry["bbox"], size, file, place)
    if box is None:
        return None
    fault = _optional_fields_problem(entry)
    if fault:
        log.report(BROKEN_ENTRY, file, f"{place}: {fault}")
        return None
    segmentation, fault = read_segmentation(entry.get("segmentation"), size)
    if fault:
        log.report(BROKEN_MASK, file, f"{place}: {fault}")
        return None
    if isinstance(segmentation, tuple) and len(segmentation) < len(entry["segmentation"]):
        log.changed[DEGENERATE_PART].append(place)
        if not segmentation:
            log.changed[DEGENERATE].append(place)
            return None
    area = None if entry.get("area") is None else float(entry["area"])
    return Annotation(entry["id"], labels[entry["category_id"]], box, entry.get("iscrowd") == 1, area, segmentation)


def _optional_fields_problem(entry: dict[str, Any]) -> str:
    """Describes a problem with the optional fields of an annotation, or returns an empty string."""
    crowd, area = entry.get("iscrowd"), entry.get("area")
    if crowd is not None and (type(crowd) is not int or crowd not in (0, 1)):
        return f'"iscrowd" must be 0 or 1, not {shown(crowd)}'
    if area is not None and not (type(area) in (int, float) and 0 <= area <= LARGEST_ID):  # also rejects NaN
        return f'"area" must be a non-negative number, not {shown(area)}'
    return ""


def read_segmentation(value: Any, size: tuple[int, int]) -> tuple[Segmentation | None, str]:
    """Reads the mask of an annotation.

    Args:
        value: Polygons or a run-length encoding; None or an empty list if the object has no mask.
        size: Width and height of the image.

    Returns:
        The mask without polygons of fewer than three points, or None; and a description of a problem, or an empty
        string.
    """
    if value is None or value == []:
        return None, ""
    width, height = size
    if isinstance(value, dict):
        if value.get("size") != [height, width] or set(map(type, value["size"])) != {int}:
            return None, f"size {shown(value.get('size'))} (height, width) in an image of {width}x{height}"
        fault = run_problem(value.get("counts"), height, width)
        return (None, fault) if fault else ({"size": [height, width], "counts": value["counts"]}, "")
    if not isinstance(value, list) or not all(isinstance(part, list) for part in value):
        return None, "neither polygons nor a run-length encoding"
    try:
        parts = [np.array(part, dtype=np.float64) for part in value if set(map(type, part)) <= {int, float}]
    except OverflowError:
        parts = []
    if len(parts) < len(value) or any(len(part) % 2 for part in parts):
        return None, "a polygon must be a list of numbers x1 y1 x2 y2 ..."
    if len(parts) * 2 >= MIN_COORDINATES and all(len(part) == 2 for part in parts):
        return None, "a list of points: a polygon must be a flat list of numbers x1 y1 x2 y2 ..."
    fault = polygon_problem(parts)
    return (None, fault) if fault else (tuple(part for part in parts if len(part) >= MIN_COORDINATES), "")
