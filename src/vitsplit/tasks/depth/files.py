"""The file formats of depth maps, read as the numbers that they hold; what these mean in metres is not decided here.

Shapes: H W pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vitsplit.data.images import decode_image
from vitsplit.errors import DataError

DEPTH_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".npy", ".exr"})
"""Files that are taken for depth maps."""


def read_values(path: Path) -> np.ndarray:
    """The values of a depth map: integers or floats, (H, W).

    Raises:
        DataError: The file cannot be read, or holds no map of one value per pixel.
    """
    reader = {".npy": _read_npy, ".exr": _read_exr}.get(path.suffix.lower(), _read_picture)
    return reader(path)


def _read_picture(path: Path) -> np.ndarray:
    """PNG or TIFF: uint8, uint16, int32 or float32 (H, W)."""
    image = decode_image(path)
    if image.mode not in ("L", "I", "F") and not image.mode.startswith("I;16"):
        raise DataError(
            f"{path}: an image of mode {image.mode} is a picture, not a depth map. Save depth as one channel: a 16-bit "
            "PNG of millimetres, or a TIFF or NPY of float metres."
        )
    return np.asarray(image)


def _read_npy(path: Path) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file. Check the path.") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path}: not an array that numpy can read ({error}). Save it with numpy.save, as an array of numbers."
        ) from error
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim != 2 or values.dtype.kind not in "uif" or values.size == 0:
        raise DataError(
            f"{path}: an array of shape {values.shape} and type {values.dtype} is no depth map. "
            "Save one (H, W) array of float metres, or of integers with their scale."
        )
    return values


def _read_exr(path: Path) -> np.ndarray:
    """The only channel, or the one named Z, Y or depth (Blender's ``ViewLayer.Depth.Z``), or R."""
    try:
        import OpenEXR  # type: ignore[import-not-found]
    except ImportError as error:
        raise DataError(
            f"{path}: reading EXR needs the package OpenEXR. Install it: pip install 'vitsplit[exr]'."
        ) from error
    try:
        with OpenEXR.File(str(path), separate_channels=True) as file:
            channels = {name: np.array(channel.pixels) for name, channel in file.channels().items()}
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{path}: not an EXR file that can be read ({error}). Export it again.") from error
    if len(channels) == 1:
        return next(iter(channels.values()))
    for wanted in ("z", "depth", "y", "r"):
        found = [name for name in channels if name.lower().rpartition(".")[2] == wanted]
        if len(found) == 1:
            return channels[found[0]]
    raise DataError(
        f"{path}: none of its channels ({', '.join(channels)}) is known to be depth. Export one channel, or name it Z."
    )
