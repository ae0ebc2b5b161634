"""The folder layouts that depth data come in. A further one is one function and one line of ``LAYOUTS``."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vitsplit.data.folders import Pair, first, list_splits, require_folder, split_pairs
from vitsplit.errors import ConfigError, DataError
from vitsplit.files import inside, is_file, read_json, read_text, real_number, shown
from vitsplit.tasks.depth.data import DepthSet, MissingScaleError, missing_scale
from vitsplit.tasks.depth.files import DEPTH_SUFFIXES

logger = logging.getLogger(__name__)

SCALE_FILE = "depth.json"
SCALES = (1e-9, 1e6)
"""The least and the most metres that one unit of a depth map can be."""


@dataclass(frozen=True)
class Layout:
    """How one data set is laid out on disk.

    Attributes:
        open: Makes one split from the root of the data set; the scale is the user's, None where none was given.
        marks: The root has one of these paths: how ``auto`` recognises the layout.
        splits: The splits of a root.
    """

    open: Callable[[Path, str, float | None], DepthSet]
    marks: tuple[str, ...]
    splits: Callable[[Path], tuple[str, ...]]


@dataclass(frozen=True)
class ListFiles:
    """A public data set that comes with lists of its splits: a line has an image, a depth map and a focal length.

    Attributes:
        name: What to call it.
        train: Names that the list of training images may have: those of the Monocular Depth Estimation Toolbox and of
            BTS, which are the same lists.
        val: The same of the images that the papers evaluate on.
        images_at: Folders that the images' paths may begin in.
        depth_at: The same of the depth maps.
        scale: Metres of one unit of a depth map.
    """

    name: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    images_at: tuple[str, ...]
    depth_at: tuple[str, ...]
    scale: float

    def find(self, root: Path, split: str) -> Path | None:
        """The list of a split, if the root has one; val and test are the same images."""
        names = self.train if split == "train" else self.val
        return next((root / name for name in names if (root / name).is_file()), None)

    def splits(self, root: Path) -> tuple[str, ...]:
        """The splits that the root has a list of."""
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
        format: A key of ``LAYOUTS``, or ``auto`` to recognise it.
        depth_scale: Metres of one unit of the depth maps; None: what the data set says.

    Raises:
        ConfigError: The format is not known.
        DataError: The folder is missing, empty, laid out otherwise, images and depth maps do not match, or the maps are
            integers of an unknown unit.
    """
    place, name = recognise(root, format)
    if split not in ("train", "val", "test"):
        raise ConfigError(f"there is no split '{split}'. Splits: train, val, test.")
    return LAYOUTS[name].open(place, split, depth_scale)


def list_depth_splits(root: str | Path, format: str = "auto") -> tuple[str, ...]:
    """The splits that a data set has."""
    place, name = recognise(root, format)
    return LAYOUTS[name].splits(place)


def recognise(root: str | Path, format: str = "auto") -> tuple[Path, str]:
    """The folder in which a data set begins, and the name of its layout."""
    root = require_folder(root)
    if format != "auto" and format not in LAYOUTS:
        raise ConfigError(f"there is no depth format '{format}'. Formats: auto, {', '.join(LAYOUTS)}.")
    tried = LAYOUTS if format == "auto" else {format: LAYOUTS[format]}
    for name, layout in tried.items():
        if any((root / mark).exists() for mark in layout.marks):
            return root, name
    marks = ", ".join(mark for layout in tried.values() for mark in layout.marks)
    raise DataError(
        f"{root}: not recognised as a set of depth maps (format {format}): it has none of {marks}. For your own data "
        "put images in images/train and images/val, and depth maps of the same names in depth/train and depth/val."
    )


def open_folder(root: Path, split: str, depth_scale: float | None) -> DepthSet:
    """``images/{train,val}`` and ``depth/{train,val}`` (or without splits), and ``depth.json`` for integer maps."""
    items = tuple(split_pairs(root, split, labels="depth", suffixes=DEPTH_SUFFIXES))
    written = read_scale(root / SCALE_FILE)
    scale = written if depth_scale is None else depth_scale
    if None not in (written, depth_scale) and written != depth_scale:
        logger.warning(
            "--depth-scale %g is taken, and %s says %g: leave the flag away if the file is right.",
            depth_scale,
            root / SCALE_FILE,
            written,
        )
    pngs = [depth_path for _, depth_path in items if depth_path.suffix.lower() == ".png"]
    if scale is None and pngs:  # of the other types only the file itself tells whether it holds integers
        raise MissingScaleError(missing_scale(pngs[0]))
    return DepthSet(root, split, items, scale)


def open_listed(root: Path, split: str, depth_scale: float | None, *, files: ListFiles) -> DepthSet:
    """The images of a public list; those without a depth map (``None``) are skipped, counted and named."""
    listed = files.find(root, split)
    if listed is None:
        names = files.train if split == "train" else files.val
        raise DataError(
            f"{root}: there is no {' or '.join(names)}, the public list of {files.name}'s images of the split {split}. "
            "Copy it there."
        )
    items, skipped = _read_list(listed, files)
    if skipped:
        logger.warning("%s: skipped %d images that have no depth map: %s", listed, len(skipped), first(skipped))
    missing = [str(path) for pair in items for path in pair if not is_file(path)]
    if missing or not items:
        raise DataError(
            f"{listed}: {len(missing)} files of the {len(items)} images that it lists are missing "
            f"({first(missing)}). Unpack them there."
        )
    return DepthSet(root, split, tuple(items), files.scale if depth_scale is None else depth_scale)


def read_scale(path: Path) -> float | None:
    """The metres of one unit of the depth maps, from ``{"scale": 0.001}``; None if there is no such file.

    Raises:
        DataError: The file says something else.
    """
    if not os.path.lexists(path):
        return None
    advice = 'State the metres of one unit as {"scale": 0.001}.'
    content = read_json(path, advice=advice)
    if not isinstance(content, dict) or "scale" not in content:
        raise DataError(f"{path}: holds {shown(content)}. {advice}")
    return real_number(content["scale"], f'{path}: "scale"', *SCALES, advice=advice)


def _read_list(listed: Path, files: ListFiles) -> tuple[list[Pair], list[str]]:
    """The pairs of a list, in its order, and the images that have no depth map."""
    items, skipped = [], []
    for number, line in enumerate(read_text(listed).split("\n"), start=1):
        if not line.strip():
            continue
        image, *rest = line.split()
        where = f"{listed}, line {number}"
        if not rest:
            raise DataError(f"{where}: {shown(line)} is not IMAGE DEPTH FOCAL. Copy the public list again.")
        if rest[0] == "None":
            skipped.append(image)
        else:
            root = listed.parent
            items.append((_locate(root, files.images_at, image, where), _locate(root, files.depth_at, rest[0], where)))
    return items, skipped


def _locate(root: Path, folders: tuple[str, ...], name: str, where: str) -> Path:
    """The file in the first of the folders that has it, or else where it should be; never outside of them."""
    # NYUv2's training list begins its paths with a slash.
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
"""Name of a format to its layout, in the order in which ``auto`` tries them."""
