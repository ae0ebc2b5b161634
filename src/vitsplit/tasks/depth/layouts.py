"""Folder layouts of depth data sets. A new layout is one function and one line of ``LAYOUTS``."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vitsplit.data.folders import Pair, list_splits, preview, require_folder, split_pairs
from vitsplit.errors import ConfigError, DataError
from vitsplit.files import inside, is_file, read_json, read_text, real_number, shown
from vitsplit.tasks.depth.data import DepthSet, MissingScaleError, missing_scale
from vitsplit.tasks.depth.files import DEPTH_SUFFIXES

logger = logging.getLogger(__name__)

SCALE_FILE = "depth.json"
SCALES = (1e-9, 1e6)
"""Valid range of the meters per unit of a depth map."""


@dataclass(frozen=True)
class Layout:
    """The layout of one format.

    Attributes:
        open: Opens one split of a data set; the third argument is the user's depth scale, or None.
        marks: Paths of which the root has at least one, for ``auto``.
        splits: The splits of a data set.
    """

    open: Callable[[Path, str, float | None], DepthSet]
    marks: tuple[str, ...]
    splits: Callable[[Path], tuple[str, ...]]


@dataclass(frozen=True)
class ListFiles:
    """A public data set with a list per split; a line has an image, a depth map and a focal length.

    Attributes:
        name: Name for errors.
        train: File names of the training list in the Monocular Depth Estimation Toolbox and BTS.
        val: File names of the evaluation list, likewise.
        images_at: Folders that image paths may be relative to.
        depth_at: Folders that depth paths may be relative to.
        scale: Meters per unit of a depth map.
    """

    name: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    images_at: tuple[str, ...]
    depth_at: tuple[str, ...]
    scale: float

    def find(self, root: Path, split: str) -> Path | None:
        """The list of a split, or None; val and test are the same images."""
        names = self.train if split == "train" else self.val
        return next((root / name for name in names if (root / name).is_file()), None)

    def splits(self, root: Path) -> tuple[str, ...]:
        """The splits with a list."""
        return tuple(split for split in ("train", "val") if self.find(root, split))


NYUV2 = ListFiles(
    name="NYUv2",
    train=("nyu_train.txt", "nyudepthv2_train_files_with_gt.txt"),
    val=("nyu_test.txt", "nyudepthv2_test_files_with_gt.txt"),
    images_at=(".", "sync", "official_splits/test"),
    depth_at=(".", "sync", "official_splits/test"),
    scale=0.001,
)
KITTI = ListFiles(
    name="KITTI",
    train=("kitti_eigen_train.txt", "eigen_train_files_with_gt.txt"),
    val=("kitti_eigen_test.txt", "eigen_test_files_with_gt.txt"),
    images_at=("input", "."),
    depth_at=("gt_depth", "data_depth_annotated", "data_depth_annotated/train", "data_depth_annotated/val", "."),
    scale=1 / 256,
)


def open_depth_set(root: str | Path, split: str, format: str = "auto", depth_scale: float | None = None) -> DepthSet:
    """Opens one split of a depth data set; files are read later.

    Args:
        root: Folder of the data set.
        split: ``train``, ``val`` or ``test``.
        format: A key of ``LAYOUTS``, or ``auto`` to recognize it.
        depth_scale: Meters per unit of the depth maps; None: as stated by the data set.

    Raises:
        ConfigError: The format is unknown.
        DataError: The folder is missing, empty or has another layout, images and depth maps do not match, or the unit
            of integer maps is unknown.
    """
    place, name = recognize(root, format)
    if split not in ("train", "val", "test"):
        raise ConfigError(f"unknown split '{split}'. Splits: train, val, test.")
    return LAYOUTS[name].open(place, split, depth_scale)


def list_depth_splits(root: str | Path, format: str = "auto") -> tuple[str, ...]:
    """The splits of a data set."""
    place, name = recognize(root, format)
    return LAYOUTS[name].splits(place)


def recognize(root: str | Path, format: str = "auto") -> tuple[Path, str]:
    """Detects the root folder and format of a data set."""
    root = require_folder(root)
    if format != "auto" and format not in LAYOUTS:
        raise ConfigError(f"unknown depth format '{format}'. Formats: auto, {', '.join(LAYOUTS)}.")
    tried = LAYOUTS if format == "auto" else {format: LAYOUTS[format]}
    for name, layout in tried.items():
        if any((root / mark).exists() for mark in layout.marks):
            return root, name
    marks = ", ".join(mark for layout in tried.values() for mark in layout.marks)
    raise DataError(
        f"{root}: not recognized as a depth data set (format {format}): none of {marks} found. For custom data, put "
        "images in images/train and images/val, and depth maps of the same names in depth/train and depth/val."
    )


def open_folder(root: Path, split: str, depth_scale: float | None) -> DepthSet:
    """``images/{train,val}`` and ``depth/{train,val}`` (or without splits), and ``depth.json`` for integer maps."""
    items = tuple(split_pairs(root, split, labels="depth", suffixes=DEPTH_SUFFIXES))
    written = read_scale(root / SCALE_FILE)
    scale = written if depth_scale is None else depth_scale
    if None not in (written, depth_scale) and written != depth_scale:
        logger.warning(
            "--depth-scale %g overrides %s (%g). Omit the flag to use the file.",
            depth_scale,
            root / SCALE_FILE,
            written,
        )
    pngs = [depth_path for _, depth_path in items if depth_path.suffix.lower() == ".png"]
    if scale is None and pngs:  # other formats can be integers or floats
        raise MissingScaleError(missing_scale(pngs[0]))
    return DepthSet(root, split, items, scale)


def open_listed(root: Path, split: str, depth_scale: float | None, *, files: ListFiles) -> DepthSet:
    """The images of a public list; those without a depth map (``None``) are skipped and logged."""
    listed = files.find(root, split)
    if listed is None:
        names = files.train if split == "train" else files.val
        raise DataError(
            f"{root}: no {' or '.join(names)} found, the public list of {files.name} for the split {split}. Add it."
        )
    items, skipped = _read_list(listed, files)
    if skipped:
        logger.warning("%s: skipped %d images that have no depth map: %s", listed, len(skipped), preview(skipped))
    missing = [str(path) for pair in items for path in pair if not is_file(path)]
    if missing or not items:
        raise DataError(
            f"{listed}: {len(missing)} files of the {len(items)} listed images are missing ({preview(missing)}). Add "
            "them."
        )
    return DepthSet(root, split, tuple(items), files.scale if depth_scale is None else depth_scale)


def read_scale(path: Path) -> float | None:
    """Reads the meters per unit from ``{"scale": 0.001}``; None if the file does not exist.

    Raises:
        DataError: The file is invalid.
    """
    if not os.path.lexists(path):
        return None
    advice = 'Write the meters per unit as {"scale": 0.001}.'
    content = read_json(path, advice=advice)
    if not isinstance(content, dict) or "scale" not in content:
        raise DataError(f"{path}: contains {shown(content)}. {advice}")
    return real_number(content["scale"], f'{path}: "scale"', *SCALES, advice=advice)


def _read_list(listed: Path, files: ListFiles) -> tuple[list[Pair], list[str]]:
    """The pairs of a list in order, and the images without a depth map."""
    items, skipped = [], []
    for number, line in enumerate(read_text(listed).split("\n"), start=1):
        if not line.strip():
            continue
        image, *rest = line.split()
        where = f"{listed}, line {number}"
        if not rest:
            raise DataError(f"{where}: {shown(line)} is not IMAGE DEPTH FOCAL. Download the public list again.")
        if rest[0] == "None":
            skipped.append(image)
        else:
            root = listed.parent
            items.append((_locate(root, files.images_at, image, where), _locate(root, files.depth_at, rest[0], where)))
    return items, skipped


def _locate(root: Path, folders: tuple[str, ...], name: str, where: str) -> Path:
    """The file in the first folder that has it, otherwise in the first folder."""
    # Paths in NYUv2's training list start with a slash.
    places = [inside(root / folder, name.lstrip("/"), where) for folder in folders]
    return next((place for place in places if is_file(place)), places[0])


LAYOUTS: dict[str, Layout] = {
    "nyuv2": Layout(partial(open_listed, files=NYUV2), NYUV2.train + NYUV2.val, NYUV2.splits),
    "kitti": Layout(partial(open_listed, files=KITTI), KITTI.train + KITTI.val, KITTI.splits),
    "folder": Layout(
        open_folder,
        ("depth", "train/depth", "training/depth", "val/depth"),
        lambda root: tuple(list_splits(root, "depth")) or ("train", "val"),
    ),
}
"""Layout by format, in the order in which ``auto`` tries them."""
