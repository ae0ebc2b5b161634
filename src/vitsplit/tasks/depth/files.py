"""The file formats of depth maps, read as the numbers that they hold; what these mean in metres is not decided here.

Shapes: H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitsplit.data.folders import first
from vitsplit.data.images import MAX_PIXELS, decode_image
from vitsplit.errors import DataError
from vitsplit.files import open_regular, shown

DEPTH_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".npy", ".exr"})
"""Files that are taken for depth maps."""
_NPY = b"\x93NUMPY"
"""What a file of one array begins with."""
_LONGEST_HEADER = 10_000
"""Bytes: what numpy itself reads at most of a file of a stranger."""


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
    advice = "Save it with numpy.save, as an array of numbers."
    with open_regular(path, advice=advice) as file:
        start = file.read(12)
        if not start.startswith(_NPY):  # numpy would take a ZIP file or a pickle too
            raise DataError(f"{path}: not a file of one array of numpy. {advice}")
        # Two bytes in the format's first version, then four; numpy makes room for what they say.
        length = int.from_bytes(start[8:10] if start[6:7] == b"\x01" else start[8:12], "little")
        if length > _LONGEST_HEADER:
            raise DataError(f"{path}: its header claims {length} bytes. {advice}")
    try:
        # The header alone: what it says may be more than the file holds, and is then refused.
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy raises whatever the broken header leads it to
        raise DataError(f"{path}: not an array that numpy can read ({str(error)[:200]}). {advice}") from error
    _require_map(mapped.shape, mapped.dtype, path)
    values = np.array(mapped)
    if values.ndim == 3:
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    return values


def _require_map(shape: tuple[int, ...], dtype: np.dtype, path: Path) -> None:
    """Refuses an array that is no depth map, or too large."""
    is_flat = len(shape) == 2 or (len(shape) == 3 and 1 in (shape[0], shape[2]))
    if not is_flat or min(shape) < 1 or dtype.kind not in "uif":
        raise DataError(
            f"{path}: an array of shape {shown(shape)} and type {str(dtype)[:60]} is no depth map. "
            "Save one (H, W) array of float metres, or of integers with their scale."
        )
    if math.prod(shape) > MAX_PIXELS:
        raise DataError(
            f"{path}: an array of shape {shape} is too large: a map has at most {MAX_PIXELS / 1e6:.0f} million pixels. "
            "Cut it, and its image, into smaller ones."
        )


def _read_exr(path: Path) -> np.ndarray:
    """The only channel, or the one named Z, Y or depth (Blender's ``ViewLayer.Depth.Z``), or R."""
    try:
        import OpenEXR  # type: ignore[import-not-found]
    except ImportError as error:
        raise DataError(
            f"{path}: reading EXR needs the package OpenEXR. Install it: pip install 'vitsplit[exr]'."
        ) from error
    open_regular(path, advice="Export it again.").close()
    try:
        with OpenEXR.File(str(path), separate_channels=True, header_only=True) as file:
            (left, top), (right, bottom) = file.header()["dataWindow"]
            shape = (int(bottom) - int(top) + 1, int(right) - int(left) + 1)
            names = [channel.name for channel in file.header()["channels"]]
    except Exception as error:  # the reader raises whatever the broken bytes lead it to
        raise DataError(_broken_exr(path, error)) from error
    if min(shape) < 1 or math.prod(shape) * max(len(names), 1) > MAX_PIXELS:
        raise DataError(
            f"{path}: {shape[1]}x{shape[0]} pixels in {len(names)} channels are more than the {MAX_PIXELS / 1e6:.0f} "
            "million values that are read. Export one channel, or smaller maps."
        )
    chosen = _depth_channel(names, path)
    try:
        with OpenEXR.File(str(path), separate_channels=True) as file:
            values = np.array(file.channels()[chosen].pixels)
    except Exception as error:
        raise DataError(_broken_exr(path, error)) from error
    _require_map(values.shape, values.dtype, path)
    return values


def _depth_channel(names: Sequence[str], path: Path) -> str:
    if len(names) == 1:
        return names[0]
    for wanted in ("z", "depth", "y", "r"):
        found = [name for name in names if name.lower().rpartition(".")[2] == wanted]
        if len(found) == 1:
            return found[0]
    raise DataError(
        f"{path}: none of its channels ({first(names)}) is known to be depth. Export one channel, or name it Z."
    )


def _broken_exr(path: Path, error: Exception) -> str:
    return f"{path}: not an EXR file that can be read ({str(error)[:200]}). Export it again."
