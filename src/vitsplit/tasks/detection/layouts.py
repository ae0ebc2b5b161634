"""The layouts that detection data come in. A further one is one function and one line of ``LAYOUTS``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from vitsplit.data.folders import first, require_folder
from vitsplit.errors import ConfigError, DataError
from vitsplit.tasks.detection import coco, voc, yolo
from vitsplit.tasks.detection.annotations import Ledger
from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.detection.data import DetectionSet


class Layout(NamedTuple):
    """How one format is laid out on disk.

    Attributes:
        read: Reads one split; what is wrong with single entries goes into the ledger.
        splits: The splits that a root has; none if it is not of this layout.
        shape: What it looks like, for an error.
    """

    read: Callable[[Path, str, Ledger], DetectionSet]
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
"""Name of a format to its layout, in the order in which ``auto`` tries them."""


def open_detection_set(root: str | Path, split: str, config: DetectionConfig | None = None) -> DetectionSet:
    """Opens one split of a detection data set: reads the labels, and of images at most the header.

    Args:
        root: Folder of the data set.
        split: ``train``, ``val`` or ``test``; of Pascal VOC ``trainval`` too.
        config: Format, masks, what to do with bad boxes; None: the defaults.

    Raises:
        ConfigError: The format is not known.
        DataError: The folder is missing or laid out otherwise, a label is wrong, an image is missing, the split is
            empty (no image; except in ``test`` no object), or objects lack the masks that are asked for.
    """
    config = config or DetectionConfig()
    ledger = Ledger(config.bad_boxes)
    data = read_detection_set(root, split, config, ledger)
    ledger.settle(data.source)
    require_objects(data)
    if config.masks == "on" and not data.has_masks:
        raise DataError(_without_masks(data))
    return data


def read_detection_set(root: str | Path, split: str, config: DetectionConfig, ledger: Ledger) -> DetectionSet:
    """As ``open_detection_set``, but wrong labels are left out and noted in the ledger, and the split may be empty."""
    place, name = recognise(root, config.format)
    splits = LAYOUTS[name].splits(place)
    if split not in splits:
        raise DataError(f"{root}: there is no split '{split}' (format {name}), only {', '.join(splits)}.")
    data = LAYOUTS[name].read(place, split, ledger)
    objects = [each for item in data.items for each in item.annotations if not each.crowd]
    has_masks = config.masks != "off" and bool(objects) and all(each.segmentation is not None for each in objects)
    return dataclasses.replace(data, has_masks=has_masks, changed=dict(ledger.changed))


def list_detection_splits(root: str | Path, format: str = "auto") -> tuple[str, ...]:
    """The splits that a data set has, no image in two of them."""
    place, name = recognise(root, format)
    return tuple(split for split in LAYOUTS[name].splits(place) if split != "trainval")


def recognise(root: str | Path, format: str = "auto") -> tuple[Path, str]:
    """The folder of a data set, and the name of its layout.

    Raises:
        ConfigError: The format is not known.
        DataError: The folder is missing, or not laid out so.
    """
    root = require_folder(root)
    if format != "auto" and format not in LAYOUTS:
        raise ConfigError(f"there is no data format '{format}'. Formats: auto, {', '.join(LAYOUTS)}.")
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
        raise DataError(f"{root}: not a data set itself, but {first(inside)} may be. Give that folder.")
    shapes = "; ".join(f"{name}: {layout.shape}" for name, layout in tried.items())
    raise DataError(f"{root}: not recognised as a detection data set (format {format}). Understood are {shapes}.")


def require_objects(data: DetectionSet) -> None:
    """Raises a DataError if a split has no image or no object; those of a test set may be unpublished."""
    if not data.items:
        raise DataError(f"{data.source}: it lists no image. Add images, or remove the split.")
    if data.split != "test" and all(each.crowd for item in data.items for each in item.annotations):
        raise DataError(
            f"{data.source}: no object in any of the {len(data)} images of the split {data.split}, so there is nothing "
            "to learn or to find. Add labels."
        )


def require_same_classes(sets: Mapping[str, DetectionSet]) -> None:
    """Raises a DataError if two splits differ in their classes or the ids of them: a label would mean two things."""
    splits = list(sets)
    for split in splits[1:]:
        one, other = sets[splits[0]], sets[split]
        if (one.category_ids, one.classes.names) != (other.category_ids, other.classes.names):
            unequal = set(_categories(one)) ^ set(_categories(other))
            raise DataError(
                f"{other.source}: its categories differ from those of {one.source} ({first(sorted(unequal))}). "
                "Give both files the same categories with the same ids."
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
        f"{data.source}: {len(bare)} objects have a box but no mask ({first(bare)}), and --masks on needs one for "
        "every object. Add them, or use --masks off or auto."
    )
