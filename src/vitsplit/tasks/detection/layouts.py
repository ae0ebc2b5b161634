"""Layouts of detection data sets. A new layout is one function and one line of ``LAYOUTS``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from vitsplit.data.folders import preview, require_folder
from vitsplit.errors import ConfigError, DataError
from vitsplit.tasks.detection import coco, voc, yolo
from vitsplit.tasks.detection.annotations import AnnotationLog
from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.detection.data import DetectionSet


class Layout(NamedTuple):
    """The layout of one format.

    Attributes:
        read: Reads one split; invalid entries are reported to the log.
        splits: The splits of a folder; empty if it has another layout.
        shape: Description of the layout, for errors.
    """

    read: Callable[[Path, str, AnnotationLog], DetectionSet]
    splits: Callable[[Path], tuple[str, ...]]
    shape: str


LAYOUTS: dict[str, Layout] = {
    "coco": Layout(
        coco.read_coco,
        lambda root: tuple(coco.find_splits(root)),
        "annotations/train.json and images/train, annotations/instances_train2017.json and train2017, or "
        "train/_annotations.coco.json",
    ),
    "voc": Layout(
        voc.read_voc,
        lambda root: tuple(voc.find_splits(root)),
        "JPEGImages, Annotations/*.xml and ImageSets/Main/train.txt",
    ),
    "yolo": Layout(
        yolo.read_yolo,
        lambda root: tuple(yolo.find_splits(root)),
        "images/train and labels/train/*.txt, or train/images and train/labels, with data.yaml or classes.json",
    ),
}
"""Layout by format, in the order in which ``auto`` tries them."""


def open_detection_set(root: str | Path, split: str, config: DetectionConfig | None = None) -> DetectionSet:
    """Opens one split of a detection data set; reads labels, and image headers if needed.

    Args:
        root: Folder of the data set.
        split: ``train``, ``val`` or ``test``; also ``trainval`` for Pascal VOC.
        config: Format, masks, handling of invalid boxes; None: defaults.

    Raises:
        ConfigError: The format is unknown.
        DataError: The folder is missing or has another layout, a label is invalid, an image is missing, the split has
            no image or no object (except ``test``), or objects lack required masks.
    """
    config = config or DetectionConfig()
    log = AnnotationLog(config.bad_boxes)
    data = read_detection_set(root, split, config, log)
    log.raise_problems(data.source)
    require_objects(data)
    if config.masks == "on" and not data.has_masks:
        raise DataError(_without_masks(data))
    return data


def read_detection_set(root: str | Path, split: str, config: DetectionConfig, log: AnnotationLog) -> DetectionSet:
    """As ``open_detection_set``, but skips and reports invalid labels, and allows an empty split."""
    place, name = recognize(root, config.format)
    splits = LAYOUTS[name].splits(place)
    if split not in splits:
        raise DataError(f"{root}: split '{split}' not found (format {name}), only {', '.join(splits)}.")
    data = LAYOUTS[name].read(place, split, log)
    objects = [each for item in data.items for each in item.annotations if not each.crowd]
    has_masks = config.masks != "off" and bool(objects) and all(each.segmentation is not None for each in objects)
    return dataclasses.replace(data, has_masks=has_masks, changed=dict(log.changed))


def list_detection_splits(root: str | Path, format: str = "auto") -> tuple[str, ...]:
    """The disjoint splits of a data set."""
    place, name = recognize(root, format)
    return tuple(split for split in LAYOUTS[name].splits(place) if split != "trainval")


def recognize(root: str | Path, format: str = "auto") -> tuple[Path, str]:
    """Detects the folder and format of a data set.

    Raises:
        ConfigError: The format is unknown.
        DataError: The folder is missing, or has another layout.
    """
    root = require_folder(root)
    if format != "auto" and format not in LAYOUTS:
        raise ConfigError(f"unknown data format '{format}'. Formats: auto, {', '.join(LAYOUTS)}.")
    tried = LAYOUTS if format == "auto" else {format: LAYOUTS[format]}
    for name, layout in tried.items():
        if layout.splits(root):
            return root, name
    inside = [
        str(path)
        for path in sorted(root.iterdir())
        if path.is_dir() and any(layout.splits(path) for layout in tried.values())
    ]
    if inside:
        raise DataError(f"{root}: not a data set, but {preview(inside)} may be. Use that folder.")
    shapes = "; ".join(f"{name}: {layout.shape}" for name, layout in tried.items())
    raise DataError(f"{root}: not recognized as a detection data set (format {format}). Supported are {shapes}.")


def require_objects(data: DetectionSet) -> None:
    """Raises DataError if a split has no image, or (except ``test``) no object."""
    if not data.items:
        raise DataError(f"{data.source}: no images listed. Add images, or remove the split.")
    if data.split != "test" and all(each.crowd for item in data.items for each in item.annotations):
        raise DataError(f"{data.source}: no object in the {len(data)} images of the split {data.split}. Add labels.")


def require_same_classes(sets: Mapping[str, DetectionSet]) -> None:
    """Raises DataError if two splits differ in their classes or category ids."""
    splits = list(sets)
    for split in splits[1:]:
        one, other = sets[splits[0]], sets[split]
        if (one.category_ids, one.classes.names) != (other.category_ids, other.classes.names):
            unequal = set(_categories(one)) ^ set(_categories(other))
            raise DataError(
                f"{other.source}: its categories differ from those of {one.source} ({preview(sorted(unequal))}). Use "
                "the same categories and ids in both files."
            )


def _categories(data: DetectionSet) -> list[str]:
    return [f"{number}: {name}" for number, name in zip(data.category_ids, data.classes.names, strict=True)]


def _without_masks(data: DetectionSet) -> str:
    bare = [
        f"annotation {each.id} ({item.path.name})"
        for item in data.items
        for each in item.annotations
        if not each.crowd and each.segmentation is None
    ]
    return (
        f"{data.source}: {len(bare)} objects have no mask ({preview(bare)}), which --masks on requires. Add the masks, "
        "or use --masks off or auto."
    )
