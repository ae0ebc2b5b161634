"""COCO's JSON: images, annotations and categories in one file per split.

Understood are the official archives as they unpack, ``annotations/train.json`` beside ``images/train``, and folders
that hold their images and ``_annotations.coco.json``.
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
from vitsplit.data.folders import SPLIT_FOLDERS, first
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
    Kind,
    Ledger,
    Segmentation,
    polygons_fault,
    size_fault,
)
from vitsplit.tasks.detection.data import DetectionSet
from vitsplit.tasks.detection.masks import runs_fault

YEARS = ("", "2017", "2014")
IMAGE_FIELDS = {"id": int, "file_name": str, "width": int, "height": int}
LARGEST_ID = 2**53
"""The most of an id or an area: what every program that reads JSON can hold exactly."""
OBJECT_FIELDS = {"id": int, "image_id": int, "category_id": int, "bbox": list}


def find_splits(root: Path) -> dict[str, tuple[Path, list[Path]]]:
    """Split to its annotation file and the folders in which its images may lie, the most likely first."""
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


def read_coco(root: Path, split: str, ledger: Ledger) -> DetectionSet:
    """Reads one split.

    Classes are the categories in the order of their ids, gaps closed; where there is a ``classes.json``, its names (of
    categories) in its order. Beside a folder ``masks`` that file speaks of segmentation, and is not read.

    Raises:
        DataError: The file is not COCO's JSON. What is wrong with its entries is noted in the ledger.
    """
    file, folders = find_splits(root)[split]
    content = read_lists(file)
    classes, category_ids = read_categories(content["categories"], file, root / "classes.json")
    entries = [entry for entry in content["images"] if _is_image(entry, file, ledger)]
    images_at = _find_folder(entries, folders)
    _report_twice(content["images"], DUPLICATE_IMAGE, file, ledger)
    images: dict[int, AnnotatedImage] = {}
    missing: set[int] = set()
    for entry in entries:
        path = images_at / entry["file_name"]
        images[entry["id"]] = AnnotatedImage(path, entry["id"], entry["width"], entry["height"])
        if not is_file(path):
            missing.add(entry["id"])
            ledger.report(MISSING_IMAGE, file, f"{images_at.name}/{entry['file_name']}")
    _report_twice(content["annotations"], DUPLICATE_OBJECT, file, ledger)
    labels = {category_id: label for label, category_id in enumerate(category_ids)}
    objects: dict[int, list[Annotation]] = defaultdict(list)
    for entry in content["annotations"]:
        if _is_whole(entry, OBJECT_FIELDS, "annotation", file, ledger):
            annotation = _read_object(entry, labels, images.get(entry["image_id"]), file, ledger)
            if annotation is not None:
                objects[entry["image_id"]].append(annotation)
    items = tuple(
        dataclasses.replace(image, annotations=tuple(objects[number]))
        for number, image in images.items()
        if number not in missing
    )
    return DetectionSet(root, split, file, classes, category_ids, items)


def read_lists(file: Path) -> dict[str, Any]:
    """Reads the file, and requires its three lists.

    Raises:
        DataError: It cannot be read (see ``vitsplit.files``), or is without ``images``, ``annotations`` or
            ``categories``.
    """
    content = read_json(file, limit=LARGE_FILE, advice="Copy it again from its source, or correct it.")
    lists = ("images", "annotations", "categories")
    lacking = [key for key in lists if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if lacking:
        raise DataError(
            f"{file}: no list of {', '.join(lacking)} in it, so it is no COCO file of objects. "
            'It must hold {"images": [...], "annotations": [...], "categories": [...]}.'
        )
    return content


def read_categories(categories: list[Any], file: Path, classes_file: Path) -> tuple[ClassList, tuple[int, ...]]:
    """The classes, and the category id of each.

    Raises:
        DataError: An id or a name of another type, or twice, no category at all, or a name in ``classes_file`` that is
            no category.
    """
    names: dict[int, str] = {}
    for place, category in enumerate(categories, start=1):
        where = f"{file}: category {place}"
        if not isinstance(category, dict):
            raise DataError(f'{where} is {shown(category)}, not an object with "id" and "name". Correct it.')
        number = whole_number(category.get("id"), f'{where}: "id"', -LARGEST_ID, LARGEST_ID)
        if number in names:
            raise DataError(f"{where} has the id {number} of another one. Give every category an id of its own.")
        names[number] = string(category.get("name"), f'{where}: "name"')
    ids = sorted(names)
    try:
        classes = ClassList(tuple(names[category_id] for category_id in ids))
    except DataError as error:
        raise DataError(f"{file}: categories: {error}") from error
    # Beside masks, the file names the classes of segmentation.
    if not os.path.lexists(classes_file) or (classes_file.parent / "masks").is_dir():
        return classes, tuple(ids)
    chosen = read_classes(classes_file).classes
    by_name = {name: category_id for category_id, name in names.items()}
    unknown = [name for name in chosen.names if name not in by_name]
    if unknown:
        raise DataError(
            f"{classes_file}: not among the categories of {file}: {first(unknown)}. Name categories only "
            f"({first(list(by_name))}), or remove {classes_file.name}: the categories are then the classes."
        )
    return chosen, tuple(by_name[name] for name in chosen.names)


def _find_folder(entries: list[dict[str, Any]], folders: list[Path]) -> Path:
    """The folder that holds the first image that is in one of them; the likeliest that exists if none is."""
    for entry in entries:
        for folder in folders:
            if is_file(folder / entry["file_name"]):
                return folder
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def _is_whole(entry: Any, fields: Mapping[str, type], what: str, file: Path, ledger: Ledger) -> bool:
    lacking = [key for key, kind in fields.items() if not isinstance(entry, dict) or type(entry.get(key)) is not kind]
    if lacking:
        name = shown(entry.get("id", "without id") if isinstance(entry, dict) else entry)
        kind = "a whole number" if fields[lacking[0]] is int else "a string" if fields[lacking[0]] is str else "a list"
        ledger.report(BROKEN_ENTRY, file, f'{what} {name}: "{lacking[0]}" must be {kind}')
        return False
    outside = [key for key, kind in fields.items() if kind is int and abs(entry[key]) > LARGEST_ID]
    if outside:
        ledger.report(
            BROKEN_ENTRY, file, f'{what}: "{outside[0]}" is {shown(entry[outside[0]])}, which no tool can hold'
        )
    return not outside


def _is_image(entry: Any, file: Path, ledger: Ledger) -> bool:
    """Whether an entry describes an image; if not, that is noted."""
    if not _is_whole(entry, IMAGE_FIELDS, "image", file, ledger):
        return False
    place = f"image {entry['id']}"
    fault = size_fault(entry["width"], entry["height"])
    if fault:
        ledger.report(BROKEN_ENTRY, file, f"{place}: {fault}")
        return False
    try:
        inside(file.parent, entry["file_name"], place)
    except DataError:
        ledger.report(OUTSIDE_FOLDER, file, f"{place}: {shown(entry['file_name'])}")
        return False
    return True


def _report_twice(entries: list[Any], kind: Kind, file: Path, ledger: Ledger) -> None:
    counts = Counter(entry["id"] for entry in entries if isinstance(entry, dict) and type(entry.get("id")) is int)
    for number, count in counts.items():
        if count > 1:
            ledger.report(kind, file, f"{shown(number)}, {count} times")


def _read_object(
    entry: dict[str, Any], labels: Mapping[int, int], image: AnnotatedImage | None, file: Path, ledger: Ledger
) -> Annotation | None:
    """One object; None where something is wrong, or it is left out, which is then noted."""
    if image is None:
        ledger.report(ORPHAN, file, f"annotation {entry['id']} of image {entry['image_id']}")
        return None
    place, size = f"annotation {entry['id']} ({image.path.name})", (image.width, image.height)
    if entry["category_id"] not in labels:
        ledger.report(UNKNOWN_CLASS, file, f"{place}: category {entry['category_id']}")
        return None
    box = ledger.settle_box(entry["bbox"], size, file, place)
    if box is None:
        return None
    fault = _fields_fault(entry)
    if fault:
        ledger.report(BROKEN_ENTRY, file, f"{place}: {fault}")
        return None
    segmentation, fault = read_segmentation(entry.get("segmentation"), size)
    if fault:
        ledger.report(BROKEN_MASK, file, f"{place}: {fault}")
        return None
    if isinstance(segmentation, tuple) and len(segmentation) < len(entry["segmentation"]):
        ledger.changed[DEGENERATE_PART].append(place)
        if not segmentation:
            ledger.changed[DEGENERATE].append(place)
            return None
    area = None if entry.get("area") is None else float(entry["area"])
    return Annotation(entry["id"], labels[entry["category_id"]], box, entry.get("iscrowd") == 1, area, segmentation)


def _fields_fault(entry: dict[str, Any]) -> str:
    """What is wrong with the fields that an annotation may lack, or an empty string."""
    crowd, area = entry.get("iscrowd"), entry.get("area")
    if crowd is not None and (type(crowd) is not int or crowd not in (0, 1)):
        return f'"iscrowd" must be 0 or 1, not {shown(crowd)}'
    if area is not None and not (type(area) in (int, float) and 0 <= area <= LARGEST_ID):  # NaN lies in no range
        return f'"area" must be a number from 0, not {shown(area)}'
    return ""


def read_segmentation(value: Any, size: tuple[int, int]) -> tuple[Segmentation | None, str]:
    """Reads the mask of an annotation.

    Args:
        value: Polygons or a run-length encoding; None or an empty list where the object has no mask.
        size: Width and height of the image.

    Returns:
        The mask, without polygons of fewer than three points, or None; and what is wrong with it, or an empty string.
    """
    if value is None or value == []:
        return None, ""
    width, height = size
    if isinstance(value, dict):
        if value.get("size") != [height, width] or set(map(type, value["size"])) != {int}:
            return None, f"size {shown(value.get('size'))} (height, width) in an image of {width}x{height}"
        fault = runs_fault(value.get("counts"), height, width)
        return (None, fault) if fault else ({"size": [height, width], "counts": value["counts"]}, "")
    if not isinstance(value, list) or not all(isinstance(part, list) for part in value):
        return None, "neither polygons nor a run-length encoding"
    try:
        parts = [np.array(part, dtype=np.float64) for part in value if set(map(type, part)) <= {int, float}]
    except OverflowError:
        parts = []
    if len(parts) < len(value) or any(len(part) % 2 for part in parts):
        return None, "a polygon must be a list of numbers: x and y of every point"
    if len(parts) * 2 >= MIN_COORDINATES and all(len(part) == 2 for part in parts):
        return None, "a list of points: a polygon must be one list of numbers, x1 y1 x2 y2 and so on"
    fault = polygons_fault(parts)
    return (None, fault) if fault else (tuple(part for part in parts if len(part) >= MIN_COORDINATES), "")
