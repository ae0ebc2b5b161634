"""The published files of NYUv2: the labeled images (HDF5), the classes and the split (MATLAB).

Shapes: N images, H W pixels, C channels, S the 894 names of the raw labels.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitsplit.data.classes import IGNORE
from vitsplit.errors import DataError
from vitsplit.extras import require

NOT_A_CLASS = "otherprop"
"""The one of the 40 classes that is ignored (any small object)."""
CACHE_BYTES = 64 * 1024**2
"""HDF5 chunk cache per array: a chunk may span several images, and is decompressed once."""
MOST_NUMBERS = 10_000_000
"""Size limit of an array in a MATLAB file; the published ones have thousands of elements."""
_PUBLISHED = "Use the file published with NYU Depth V2"


@dataclass(frozen=True)
class RawClasses:
    """Mapping of raw labels to classes.

    Attributes:
        names: The classes, in the order of their ids.
        ids_S: uint8, raw label to class id, 255 for ignored; has one more entry than raw labels, since 0 is unlabeled.
    """

    names: tuple[str, ...]
    ids_S: NDArray[np.uint8]


@dataclass(frozen=True)
class Labeled:
    """One labeled image.

    Attributes:
        where: File and 1-based image number, for errors.
        image_HWC: uint8, RGB.
        depth_HW: float32, meters.
        label_HW: uint16, raw labels; 0 is unlabeled.
    """

    where: str
    image_HWC: NDArray[np.uint8]
    depth_HW: NDArray[np.float32]
    label_HW: NDArray[np.uint16]


class LabeledFile:
    """``nyu_depth_v2_labeled.mat``, read image by image.

    MATLAB arrays are column-major, so every array is transposed.
    """

    def __init__(self, path: Path, arrays: Any, depth: str) -> None:
        self.path = path
        self.images_NCWH, self.depths_NWH, self.labels_NWH = arrays["images"], arrays[depth], arrays["labels"]
        self.raw_names = int(arrays["names"].size)
        self._require_shapes()

    def __len__(self) -> int:
        return int(self.images_NCWH.shape[0])

    def read(self, index: int) -> Labeled:
        """Reads one image by its 0-based index.

        Raises:
            DataError: The file is corrupt, or has a label without a name.
        """
        where = f"{self.path}, image {index + 1}"
        try:
            image_CWH, depth_WH = self.images_NCWH[index], self.depths_NWH[index]
            label_WH = self.labels_NWH[index]
        except (OSError, RuntimeError) as error:
            raise DataError(f"{where}: cannot be read, the file is corrupt ({error}). Download it again.") from error
        if label_WH.max() > self.raw_names:
            raise DataError(
                f"{where}: has label {label_WH.max()}, but the file has {self.raw_names} label names. Download it "
                "again."
            )
        return Labeled(where, image_CWH.transpose(2, 1, 0), depth_WH.T, label_WH.T)

    def _require_shapes(self) -> None:
        images, depths, labels = self.images_NCWH.shape, self.depths_NWH.shape, self.labels_NWH.shape
        if len(images) != 4 or images[1] != 3 or not depths == labels == (images[0], *images[2:]):
            raise DataError(
                f"{self.path}: images {images}, depths {depths} and labels {labels} do not have the shapes "
                f"(N, 3, W, H), (N, W, H) and (N, W, H). {_PUBLISHED}: nyu_depth_v2_labeled.mat."
            )


@contextmanager
def open_labeled(path: Path, depth: str) -> Iterator[LabeledFile]:
    """Opens the file of labeled images.

    Args:
        path: ``nyu_depth_v2_labeled.mat``.
        depth: The array of depths: ``depths`` (holes filled) or ``rawDepths``.

    Raises:
        DataError: h5py is not installed, or the file is missing, truncated or not the expected one.
    """
    h5py = _import("h5py", path)
    _require_file(path)
    try:
        file = h5py.File(path, "r", rdcc_nbytes=CACHE_BYTES)
    except OSError as error:
        if "truncated" in str(error):
            raise DataError(f"{path}: the file is truncated ({error}). Download it again.") from error
        raise DataError(
            f"{path}: not the HDF5 file of NYUv2 ({error}). {_PUBLISHED}: nyu_depth_v2_labeled.mat (2.8 GB)."
        ) from error
    with file:
        absent = [name for name in ("images", depth, "labels", "names") if not isinstance(file.get(name), h5py.Dataset)]
        if absent:
            raise DataError(f"{path}: array {' or '.join(absent)} not found. {_PUBLISHED}: nyu_depth_v2_labeled.mat.")
        yield LabeledFile(path, file, depth)


def read_mapping(path: Path, raw_names: int) -> RawClasses:
    """Reads ``classMapping40.mat``: its 40 classes in order, without ``otherprop``.

    Args:
        path: The file.
        raw_names: Number of raw labels in the file of images.

    Raises:
        DataError: scipy is not installed, or the file is missing or does not match the file of images.
    """
    classes_S, class_names = _load_arrays(path, "mapClass", "className")
    try:
        names = [str(np.ravel(name)[0]) for name in class_names.ravel()]
        classes_S = classes_S.ravel().astype(np.int64)
    except (ValueError, TypeError, IndexError) as error:
        raise DataError(f"{path}: unexpected array contents. {_PUBLISHED}.") from error
    if len(classes_S) != raw_names:
        raise DataError(
            f"{path}: maps {len(classes_S)} raw labels, but the file of images has {raw_names}. {_PUBLISHED}: "
            "classMapping40.mat."
        )
    if NOT_A_CLASS not in names or classes_S.min() < 1 or classes_S.max() > len(names):
        raise DataError(
            f"{path}: maps to classes {classes_S.min()} to {classes_S.max()}, expected 1 to {len(names)} with "
            f"{NOT_A_CLASS}. {_PUBLISHED}: classMapping40.mat."
        )
    kept = [name for name in names if name != NOT_A_CLASS]
    ids = [kept.index(name) if name in kept else IGNORE for name in names]
    return RawClasses(tuple(kept), np.array([IGNORE, *(ids[k - 1] for k in classes_S)], dtype=np.uint8))


def read_split(path: Path, images: int) -> tuple[list[int], list[int]]:
    """Reads ``splits.mat``.

    Args:
        path: The file.
        images: Number of images in the file of images.

    Returns:
        Sorted 0-based indices of the training and test images.

    Raises:
        DataError: scipy is not installed, or the file is missing or does not match the file of images.
    """
    arrays = _load_arrays(path, "trainNdxs", "testNdxs")
    try:
        train, test = (sorted(int(k) - 1 for k in array.ravel()) for array in arrays)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{path}: unexpected array contents. {_PUBLISHED}: splits.mat.") from error
    if sorted(train + test) != list(range(images)):
        raise DataError(
            f"{path}: {len(train)} training and {len(test)} test images do not partition the {images} images. "
            f"{_PUBLISHED}: splits.mat."
        )
    return train, test


def _load_arrays(path: Path, *names: str) -> list[NDArray[Any]]:
    scipy_io = _import("scipy.io", path)
    _require_file(path)
    try:
        # Check the headers first: a compressed array is expanded completely.
        for name, shape, _ in scipy_io.whosmat(path):
            if name in names and math.prod(shape) > MOST_NUMBERS:
                raise ValueError(f"{name} has the shape {shape}")
        content = scipy_io.loadmat(path, variable_names=names)
    except Exception as error:  # a corrupt file can raise any exception
        raise DataError(f"{path}: not a readable MATLAB file ({error}). {_PUBLISHED}.") from error
    absent = [name for name in names if name not in content]
    if absent:
        raise DataError(f"{path}: array {' or '.join(absent)} not found. {_PUBLISHED}.")
    return [content[name] for name in names]


def _import(module: str, path: Path) -> Any:
    require(f"{path}: reading this file", module.partition(".")[0], extra="nyuv2", error=DataError)
    return importlib.import_module(module)


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path}: file not found. Check the path.")
