"""NYUv2 (Silberman et al. 2012) from its published files to folders that all tasks train on.

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
from vitsplit.data.prepare.nyuv2_files import Labelled, RawClasses, open_labelled, read_mapping, read_split
from vitsplit.errors import ConfigError, DataError

Split = Literal["official", "train-80-20"]
Depth = Literal["filled", "raw"]

DEPTH_SCALE = 0.001
"""Metres per unit of a depth PNG."""
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
    """Writes images, depth maps and masks of NYUv2 in the package's folder layout.

    ``images/SPLIT/0001.png``; ``depth/SPLIT/0001.png`` (16 bits, millimetres, 0 where there is none) with
    ``depth.json``; ``masks/SPLIT/0001.png`` (ids 0 to 38; 255 where unlabelled or ``otherprop``) with
    ``classes.json``. The number is the image's in the published file, from 1. The folder appears when it is complete.

    Args:
        file: ``nyu_depth_v2_labeled.mat``.
        mapping: ``classMapping40.mat``: raw labels to 40 classes.
        splits: ``splits.mat``: the official training and test images.
        out: The folder to make; it may exist if it is empty.
        size: ``(H, W)`` to resize to: images bicubic and antialiased, depth and masks to the nearest pixel; None keeps
            480x640.
        split: ``official``: train is the training half and val the test half; ``train-80-20``: train and val are the
            first 80 % and the rest of the training half, in order, and test is the test half.
        depth: ``filled``: the holes of the sensor are filled in, as published; ``raw``: they are invalid.
        progress: Called with the images written so far and of all.

    Returns:
        Split to the number of its images.

    Raises:
        ConfigError: A side of the size is not positive.
        DataError: A file is missing, damaged or not the published one, a package to read it is not installed, or the
            folder holds something already.
    """
    if size is not None and min(size) < 1:
        raise ConfigError(
            f"the size {size[0]} {size[1]} is no height and width of an image. Give two positive numbers."
        )
    with open_labelled(Path(file), _DEPTH_ARRAYS[depth]) as labelled:
        classes = read_mapping(Path(mapping), labelled.raw_names)
        indices = divide(*read_split(Path(splits), len(labelled)), split)
        split_of = {index: name for name, listed in indices.items() for index in listed}
        with new_folder(Path(out)) as folder:
            for kind in ("images", "depth", "masks"):
                for name in indices:
                    (folder / kind / name).mkdir(parents=True)
            # In the order of the file, since neighbours may share a compressed chunk.
            for index, name in sorted(split_of.items()):
                _write(folder, name, f"{index + 1:04d}.png", labelled.read(index), classes, size)
                if progress is not None:
                    progress(index + 1, len(labelled))
            _write_json(folder / "classes.json", list(classes.names))
            _write_json(folder / "depth.json", {"scale": DEPTH_SCALE})
    return {name: len(listed) for name, listed in indices.items()}


def divide(train: list[int], test: list[int], split: Split) -> dict[str, list[int]]:
    """The splits of the folder, from the official halves; ``vitsplit train`` evaluates on the one called val."""
    if split == "official":
        return {"train": train, "val": test}
    kept = len(train) * 4 // 5
    return {"train": train[:kept], "val": train[kept:], "test": test}


def resize_nearest(array_HW: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """The array at another size ``(H, W)``; a pixel takes the value in which its centre lies."""
    rows_H, columns_W = (
        ((np.arange(wanted) + 0.5) * had / wanted).astype(int) for wanted, had in zip(size, array_HW.shape, strict=True)
    )
    return array_HW[np.ix_(rows_H, columns_W)]


def _write(
    folder: Path, split: str, name: str, labelled: Labelled, classes: RawClasses, size: tuple[int, int] | None
) -> None:
    image = Image.fromarray(labelled.image_HWC)
    depth_HW, mask_HW = _millimetres(labelled), classes.ids_S[labelled.label_HW]
    if size is not None:
        image = image.resize(size[::-1], Image.Resampling.BICUBIC)
        depth_HW, mask_HW = resize_nearest(depth_HW, size), resize_nearest(mask_HW, size)
    image.save(folder / "images" / split / name)
    Image.fromarray(depth_HW).save(folder / "depth" / split / name)
    Image.fromarray(mask_HW).save(folder / "masks" / split / name)


def _millimetres(labelled: Labelled) -> NDArray[np.uint16]:
    """Depth as 16 bits hold it; 0 where there is none."""
    units_HW = np.rint(np.where(labelled.depth_HW > 0, labelled.depth_HW, 0) / DEPTH_SCALE)
    if not units_HW.max() <= np.iinfo(np.uint16).max:
        raise DataError(
            f"{labelled.where}: a depth of {labelled.depth_HW.max():g} m is more than a 16-bit PNG of millimetres "
            "holds: NYUv2 is a set of rooms. Download the file again."
        )
    return units_HW.astype(np.uint16)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
