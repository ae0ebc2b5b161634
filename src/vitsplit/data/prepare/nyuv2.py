"""NYUv2 (Silberman et al. 2012) conversion of the published files to the package's folder layout.

Shapes: H W pixels, C channels, S the 894 names of the raw labels.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitsplit.data.new_folder import new_folder
from vitsplit.data.prepare.nyuv2_files import Labeled, RawClasses, open_labeled, read_mapping, read_split
from vitsplit.errors import ConfigError, DataError

Split = Literal["official", "train-80-20"]
Depth = Literal["filled", "raw"]

DEPTH_SCALE = 0.001
"""Meters per unit of depth PNGs."""
_DEPTH_ARRAYS = {"filled": "depths", "raw": "rawDepths"}


def prepare_nyuv2(
    file: str | Path,
    mapping: str | Path,
    splits: str | Path,
    out: str | Path,
    *,
    size: tuple[int, int] | None = None,
    split: Split = "official",
    depth: Depth = "filled",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Converts NYUv2 to images, depth maps and masks in the package's folder layout.

    ``images/SPLIT/0001.png``; ``depth/SPLIT/0001.png`` (16-bit, millimeters, 0 is invalid) with ``depth.json``;
    ``masks/SPLIT/0001.png`` (ids 0 to 38; 255 for unlabeled and ``otherprop``) with ``classes.json``. The number is
    the 1-based index in the published file. The folder is created atomically.

    Args:
        file: ``nyu_depth_v2_labeled.mat``.
        mapping: ``classMapping40.mat``: raw labels to 40 classes.
        splits: ``splits.mat``: the official training and test images.
        out: The folder to create; may exist if empty.
        size: ``(H, W)`` to resize to: images bicubic with antialiasing, depth and masks nearest neighbor; None:
            480x640.
        split: ``official``: train is the training half and val the test half; ``train-80-20``: train and val are the
            first 80 % and the rest of the training half, test is the test half.
        depth: ``filled``: holes filled in, as published; ``raw``: holes are invalid.
        progress: Called with the number of images written and their total.

    Returns:
        Number of images by split.

    Raises:
        ConfigError: The size is not positive.
        DataError: A file is missing, corrupt or not the published one, a required package is not installed, or the
            folder is not empty.
    """
    if size is not None and min(size) < 1:
        raise ConfigError(f"invalid size {size[0]} {size[1]}. Give a positive height and width.")
    with open_labeled(Path(file), _DEPTH_ARRAYS[depth]) as labeled:
        classes = read_mapping(Path(mapping), labeled.raw_names)
        indices = divide(*read_split(Path(splits), len(labeled)), split)
        split_of = {index: name for name, listed in indices.items() for index in listed}
        with new_folder(Path(out)) as folder:
            for kind in ("images", "depth", "masks"):
                for name in indices:
                    (folder / kind / name).mkdir(parents=True)
            # In file order, since adjacent images may share a compressed chunk.
            for index, name in sorted(split_of.items()):
                _write(folder, name, f"{index + 1:04d}.png", labeled.read(index), classes, size)
                if progress is not None:
                    progress(index + 1, len(labeled))
            _write_json(folder / "classes.json", list(classes.names))
            _write_json(folder / "depth.json", {"scale": DEPTH_SCALE})
    return {name: len(listed) for name, listed in indices.items()}


def divide(train: list[int], test: list[int], split: Split) -> dict[str, list[int]]:
    """The splits of the folder, from the official halves."""
    if split == "official":
        return {"train": train, "val": test}
    kept = len(train) * 4 // 5
    return {"train": train[:kept], "val": train[kept:], "test": test}


def resize_nearest(array_HW: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Resizes an array to ``(H, W)`` with nearest-neighbor interpolation."""
    rows_H, columns_W = (
        ((np.arange(wanted) + 0.5) * had / wanted).astype(int) for wanted, had in zip(size, array_HW.shape, strict=True)
    )
    return array_HW[np.ix_(rows_H, columns_W)]


def _write(
    folder: Path, split: str, name: str, labeled: Labeled, classes: RawClasses, size: tuple[int, int] | None
) -> None:
    image = Image.fromarray(labeled.image_HWC)
    depth_HW, mask_HW = _millimeters(labeled), classes.ids_S[labeled.label_HW]
    if size is not None:
        image = image.resize(size[::-1], Image.Resampling.BICUBIC)
        depth_HW, mask_HW = resize_nearest(depth_HW, size), resize_nearest(mask_HW, size)
    image.save(folder / "images" / split / name)
    Image.fromarray(depth_HW).save(folder / "depth" / split / name)
    Image.fromarray(mask_HW).save(folder / "masks" / split / name)


def _millimeters(labeled: Labeled) -> NDArray[np.uint16]:
    """Depth in millimeters, uint16; 0 is invalid."""
    units_HW = np.rint(np.where(labeled.depth_HW > 0, labeled.depth_HW, 0) / DEPTH_SCALE)
    if not units_HW.max() <= np.iinfo(np.uint16).max:
        raise DataError(
            f"{labeled.where}: a depth of {labeled.depth_HW.max():g} m exceeds the range of a 16-bit PNG in "
            "millimeters. Download the file again."
        )
    return units_HW.astype(np.uint16)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
