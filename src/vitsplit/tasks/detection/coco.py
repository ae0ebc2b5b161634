"""COCO's JSON: images, annotations and categories in one file per split.

Understood are the official archives as they unpack, ``annotations/train.json`` beside ``images/train``, and folders
that hold their images and ``_annotations.coco.json``.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitsplit.data.classes import ClassList, read_classes
from vitsplit.data.folders import SPLIT_FOLDERS, first
from vitsplit.errors import DataError
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
    UNKNOWN_CLASS,
    AnnotatedImage,
    Annotation,
    Kind,
    Ledger,
    Segmentation,
)
from vitsplit.tasks.detection.data import DetectionSet

YEARS = ("", "2017", "2014")
IMAGE_FIELDS = {"id": int, "file_name": str, "width": int, "height": int}
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
    content = read_json(file)
    classes, category_ids = read_categories(content["categories"], file, root / "classes.json")
    entries = [entry for entry in content["images"] if _is_whole(entry, IMAGE_FIELDS, "image", file, ledger)]
    images_at = _find_folder(entries, folders)
    _report_twice(content["images"], DUPLICATE_IMAGE, file, ledger)
    images: dict[int, AnnotatedImage] = {}
    missing: set[int] = set()
    for entry in entries:
        path = images_at / entry["file_name"]
        images[entry["id"]] = AnnotatedImage(path, entry["id"], entry["width"], entry["height"])
        if not path.is_file():
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


def read_json(file: Path) -> dict[str, Any]:
    """Reads the file, and requires its three lists.

    Raises:
        DataError: Not JSON (with the line), or without ``images``, ``annotations`` or ``categories``.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file}: not valid JSON ({error.msg}, line {error.lineno}, column {error.colno}). "
            "Copy it again from its source, or correct it."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}). Save it as UTF-8.") from error
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
        DataError: An id or a name twice, no category at all, or a name in ``classes_file`` that is no category.
    """
    try:
        names = {int(category["id"]): str(category["name"]) for category in categories}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f'{file}: a category lacks its "id" or "name". Give every category both.') from error
    if len(names) < len(categories):
        raise DataError(f"{file}: two categories have the same id. Give every category an id of its own.")
    ids = sorted(names)
    try:
        classes = ClassList(tuple(names[category_id] for category_id in ids))
    except DataError as error:
        raise DataError(f"{file}: categories: {error}") from error
    # Beside masks, the file names the classes of segmentation.
    if not classes_file.exists() or (classes_file.parent / "masks").is_dir():
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
            if (folder / entry["file_name"]).is_file():
                return folder
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def _is_whole(entry: Any, fields: Mapping[str, type], what: str, file: Path, ledger: Ledger) -> bool:
    lacking = [key for key, kind in fields.items() if not isinstance(entry, dict) or type(entry.get(key)) is not kind]
    if lacking:
        name = entry.get("id", "without id") if isinstance(entry, dict) else entry
        kind = "a whole number" if fields[lacking[0]] is int else "a string" if fields[lacking[0]] is str else "a list"
        ledger.report(BROKEN_ENTRY, file, f'{what} {name}: "{lacking[0]}" must be {kind}')
    return not lacking


def _report_twice(entries: list[Any], kind: Kind, file: Path, ledger: Ledger) -> None:
    counts = Counter(entry["id"] for entry in entries if isinstance(entry, dict) and type(entry.get("id")) is int)
    for number, count in counts.items():
        if count > 1:
            ledger.report(kind, file, f"{number}, {count} times")


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
    segmentation, fault = read_segmentation(entry.get("segmentation"), size)
    if fault:
        ledger.report(BROKEN_MASK, file, f"{place}: {fault}")
        return None
    if isinstance(segmentation, tuple) and len(segmentation) < len(entry["segmentation"]):
        ledger.changed[DEGENERATE_PART].append(place)
        if not segmentation:
            ledger.changed[DEGENERATE].append(place)
            return None
    area = entry.get("area")
    area = float(area) if isinstance(area, int | float) else None
    return Annotation(entry["id"], labels[entry["category_id"]], box, bool(entry.get("iscrowd")), area, segmentation)


def read_segmentation(value: Any, size: tuple[int, int]) -> tuple[Segmentation | None, str]:
    """Reads the mask of an annotation, as far as it can be done without decoding it.

    Args:
        value: Polygons or a run-length encoding; None or empty where the object has no mask.
        size: Width and height of the image.

    Returns:
        The mask, without polygons of fewer than three points, or None; and what is wrong with it, or an empty string.
    """
    if not value:
        return None, ""
    width, height = size
    if isinstance(value, dict):
        if value.get("size") != [height, width]:
            return None, f"size {value.get('size')} (height, width) in an image of {width}x{height}"
        counts = value.get("counts")
        if isinstance(counts, list) and not all(type(count) is int and count >= 0 for count in counts):
            return None, "its runs must be whole numbers from 0"
        if isinstance(counts, list) and sum(counts) != height * width:
            return None, f"its runs cover {sum(counts)} pixels of {height * width}"
        return (value, "") if isinstance(counts, list | str) else (None, 'no "counts"')
    try:
        parts = [np.asarray(part, dtype=np.float64) for part in value]
    except (TypeError, ValueError):
        return None, "neither polygons nor a run-length encoding"
    if any(part.ndim != 1 or len(part) % 2 or not np.isfinite(part).all() for part in parts):
        return None, "a polygon must be a list of finite numbers: x and y of every point"
    if len(parts) * 2 >= MIN_COORDINATES and all(len(part) == 2 for part in parts):
        return None, "a list of points: a polygon must be one list of numbers, x1 y1 x2 y2 and so on"
    return tuple(part for part in parts if len(part) >= MIN_COORDINATES), ""
