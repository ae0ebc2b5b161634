"""Folder layouts of segmentation data sets. A new layout is one function and one line of ``LAYOUTS``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitsplit.data import public_classes
from vitsplit.data.classes import IGNORE, MAX_CLASSES, ClassList, LabelScheme, read_classes, suggest_classes
from vitsplit.data.decoding import hex_color
from vitsplit.data.folders import Pair, index_files, list_splits, pair_files, preview, require_folder, split_pairs
from vitsplit.data.images import find_colors, read_mask, row_blocks
from vitsplit.errors import ConfigError, DataError
from vitsplit.files import inside, is_file, read_text
from vitsplit.tasks.segmentation.data import SegmentationSet

VOC = ("VOC2010", "VOCdevkit/VOC2010")


@dataclass(frozen=True)
class Layout:
    """The layout of one format.

    Attributes:
        open: Opens one split of a data set.
        marks: Paths of which the root has at least one, for ``auto``.
        nested: Subfolders that may be the root, as in the official archive.
        splits: The splits of a data set.
    """

    open: Callable[[Path, str], SegmentationSet]
    marks: tuple[str, ...]
    nested: tuple[str, ...] = ()
    splits: Callable[[Path], tuple[str, ...]] = lambda root: ("train", "val")

    def find_root(self, root: Path) -> Path | None:
        """The folder with one of the marks, or None."""
        for place in (root, *(root / name for name in self.nested)):
            if any((place / mark).exists() for mark in self.marks):
                return place
        return None


def open_segmentation_set(root: str | Path, split: str, format: str = "auto") -> SegmentationSet:
    """Opens one split of a segmentation data set; files are read later.

    Args:
        root: Folder of the data set.
        split: ``train``, ``val`` or ``test``.
        format: A key of ``LAYOUTS``, or ``auto`` to recognize it.

    Raises:
        ConfigError: The format is unknown.
        DataError: The folder is missing, empty or has another layout, or images and masks do not match.
    """
    place, name = recognize(root, format)
    if split not in ("train", "val", "test"):
        raise ConfigError(f"unknown split '{split}'. Splits: train, val, test.")
    return LAYOUTS[name].open(place, split)


def list_segmentation_splits(root: str | Path, format: str = "auto") -> tuple[str, ...]:
    """The splits of a data set."""
    place, name = recognize(root, format)
    return LAYOUTS[name].splits(place)


def recognize(root: str | Path, format: str = "auto") -> tuple[Path, str]:
    """Detects the root folder and format of a data set."""
    root = require_folder(root)
    if format != "auto" and format not in LAYOUTS:
        raise ConfigError(f"unknown data format '{format}'. Formats: auto, {', '.join(LAYOUTS)}.")
    for name in LAYOUTS if format == "auto" else (format,):
        place = LAYOUTS[name].find_root(root)
        if place is not None:
            return place, name
    raise DataError(_not_recognized(root, format))


def open_folder(root: Path, split: str) -> SegmentationSet:
    """``images/{train,val}`` and ``masks/{train,val}`` (or without splits), and ``classes.json``."""
    items = split_pairs(root, split)
    if not (root / "classes.json").exists():
        raise DataError(_missing_classes(root, items))
    return SegmentationSet(root, split, read_classes(root / "classes.json"), tuple(items))


def open_ade20k(root: Path, split: str) -> SegmentationSet:
    """The scene parsing challenge: 150 classes; mask value 0 (other) is ignored, value k is the k-th class."""
    folder = {"train": "training", "val": "validation"}[_official(split, "ADE20K")]
    images_at, masks_at = root / "images" / folder, root / "annotations" / folder
    items = pair_files(index_files(images_at, {".jpg"}), index_files(masks_at, {".png"}), images_at, masks_at)
    return SegmentationSet(root, split, _labels_from_one(public_classes.ADE20K, "ADE20K"), tuple(items))


def open_cityscapes(root: Path, split: str) -> SegmentationSet:
    """``leftImg8bit`` and the fine ``labelIds``: 19 classes, others are ignored."""
    _official(split, "Cityscapes")
    images_at, masks_at = root / "leftImg8bit" / split, root / "gtFine" / split
    images = index_files(images_at, {".png"}, "_leftImg8bit")
    items = pair_files(images, index_files(masks_at, {".png"}, "_gtFine_labelIds"), images_at, masks_at)
    names, colors = zip(*public_classes.CITYSCAPES.values(), strict=True)
    train_ids = {label: k for k, label in enumerate(public_classes.CITYSCAPES)}
    values = {label: train_ids.get(label, IGNORE) for label in (*range(public_classes.CITYSCAPES_MAX_ID + 1), IGNORE)}
    return SegmentationSet(
        root, split, LabelScheme(ClassList(names, colors), values, source="Cityscapes"), tuple(items)
    )


def open_pascal_context(root: Path, split: str) -> SegmentationSet:
    """The 59 classes, from ``SegmentationClassContext/*.png`` (0 is ignored) or the published ``trainval/*.mat``."""
    _official(split, "Pascal Context")
    voc = next((place for place in (root, *(root / name for name in VOC)) if (place / "JPEGImages").is_dir()), root)
    lists = [voc / "ImageSets" / "SegmentationContext" / f"{split}.txt"]
    masks_at = voc / "SegmentationClassContext"
    if masks_at.is_dir():
        labels, suffix = _labels_from_one(public_classes.PASCAL_CONTEXT_59, "Pascal Context"), ".png"
    else:
        labels, suffix, masks_at = _labels_from_459(root / "labels.txt"), ".mat", root / "trainval"
        lists.append(voc / "ImageSets" / "Main" / f"{split}.txt")
    listed = next((path for path in lists if path.exists()), None)
    if listed is None:
        raise DataError(f"{lists[0]}: file not found. It must list the images of the split, one name per line.")
    items = []
    for number, line in enumerate(read_text(listed).split("\n"), start=1):
        if line.strip():
            name, where = line.split()[0], f"{listed}, line {number}"
            items.append((inside(voc / "JPEGImages", f"{name}.jpg", where), inside(masks_at, f"{name}{suffix}", where)))
    missing = [str(path) for path in itertools.chain(*items) if not is_file(path)]
    if missing or not items:
        raise DataError(
            f"{listed}: {len(missing)} files of the {len(items)} listed images are missing ({preview(missing)}). Add "
            "them."
        )
    return SegmentationSet(root, split, labels, tuple(items))


LAYOUTS: dict[str, Layout] = {
    "ade20k": Layout(open_ade20k, ("annotations/training", "annotations/validation"), ("ADEChallengeData2016",)),
    "cityscapes": Layout(open_cityscapes, ("leftImg8bit",)),
    "pascal-context": Layout(open_pascal_context, ("SegmentationClassContext", "59_labels.txt"), VOC),
    "folder": Layout(
        open_folder,
        ("images", "train/images", "training/images"),
        splits=lambda root: tuple(list_splits(root)) or ("train", "val"),
    ),
}
"""Layout by format, in the order in which ``auto`` tries them."""


def _not_recognized(root: Path, format: str) -> str:
    tried = [layout for name, layout in LAYOUTS.items() if format in ("auto", name)]
    marks = ", ".join(mark for layout in tried for mark in layout.marks)
    below = [
        path for path in sorted(root.iterdir()) if path.is_dir() and any(layout.find_root(path) for layout in tried)
    ]
    if below:
        return f"{root}: not a data set, but {preview([str(path) for path in below])} may be. Use that folder."
    return (
        f"{root}: not recognized as a data set (format {format}): none of {marks} found. For custom data, put images "
        "in images/train and images/val, masks of the same names in masks/train and masks/val, and the class names in "
        "classes.json."
    )


def _official(split: str, name: str) -> str:
    if split == "test":
        raise DataError(f"{name} has no public labels of its test split. Use val.")
    return split


def _labels_from_one(names: tuple[str, ...], source: str) -> LabelScheme:
    """Masks with 0 for ignored and classes from 1 (mmseg's ``reduce_zero_label``)."""
    values = {0: IGNORE, **{k + 1: k for k in range(len(names))}, IGNORE: IGNORE}
    return LabelScheme(ClassList(names), values, source=source)


def _labels_from_459(labels_file: Path) -> LabelScheme:
    """Labels of the published masks: 59 of the 459 labels are classes, matched by name; others are ignored."""
    if not labels_file.exists():
        raise DataError(
            f"{labels_file}: file not found. Add it from the published labels of Pascal Context, or use "
            "SegmentationClassContext/*.png."
        )
    values = {0: IGNORE, IGNORE: IGNORE}
    found = {}
    for number, line in enumerate(read_text(labels_file).split("\n"), start=1):
        value, _, name = line.partition(":")
        if name.strip():
            if not re.fullmatch(r"\s*[0-9]{1,4}\s*", value):
                raise DataError(
                    f"{labels_file}, line {number}: does not start with a label id, as in 1: accordion. Download the "
                    "file again."
                )
            values[int(value)] = IGNORE
            found[name.replace(" ", "").strip()] = int(value)
    absent = [name for name in public_classes.PASCAL_CONTEXT_59 if name not in found]
    if absent:
        raise DataError(
            f"{labels_file}: {len(absent)} of the 59 classes not found ({preview(absent)}). Download the file again."
        )
    values |= {found[name]: k for k, name in enumerate(public_classes.PASCAL_CONTEXT_59)}
    return LabelScheme(ClassList(public_classes.PASCAL_CONTEXT_59), values, source="Pascal Context")


def _missing_classes(root: Path, items: list[Pair]) -> str:
    masks = [mask_path for _, mask_path in items[:20]]
    colors: set[str] = set()
    values: set[int] = set()
    for mask_path in masks:
        try:
            mask_HW = read_mask(mask_path).numpy()
        except DataError:
            colors.update(map(hex_color, find_colors(mask_path, MAX_CLASSES)))
            if len(colors) > MAX_CLASSES:  # blended colors, not labels: re-raise the error of the mask
                raise
        else:
            for rows in row_blocks(*mask_HW.shape):
                values.update(np.unique(mask_HW[rows]).tolist())
                if len(values - {IGNORE}) > MAX_CLASSES:
                    raise DataError(
                        f"{mask_path}: more than {MAX_CLASSES} values in the masks so far, so they are not class ids. "
                        f"Save masks of class ids and {root / 'classes.json'}."
                    )
    return (
        f"{root / 'classes.json'}: file not found. From the values in the first {len(masks)} masks, save this file "
        f"with your class names:\n{suggest_classes(sorted(values), sorted(colors))}"
    )
