"""Readers of depth map files; values are returned without conversion to meters.

Shapes: H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitsplit.data.decoding import MAX_PIXELS, decode_image
from vitsplit.data.folders import preview
from vitsplit.errors import DataError
from vitsplit.extras import require
from vitsplit.files import open_regular, shown

DEPTH_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".npy", ".exr"})
"""Suffixes of depth maps."""
_NPY = b"\x93NUMPY"
"""Magic string of NPY files."""
_LONGEST_HEADER = 10_000
"""Limit in bytes of an NPY header, as in numpy for untrusted files."""


def read_values(path: Path) -> np.ndarray:
    """Reads the values of a depth map: integers or floats, (H, W).

    Raises:
        DataError: The file cannot be read, or is not a single-channel map.
    """
    reader = {".npy": _read_npy, ".exr": _read_exr}.get(path.suffix.lower(), _read_picture)
    return reader(path)


def _read_picture(path: Path) -> np.ndarray:
    """PNG or TIFF: uint8, uint16, int32 or float32 (H, W)."""
    image = decode_image(path)
    if image.mode not in ("L", "I", "F") and not image.mode.startswith("I;16"):
        raise DataError(
            f"{path}: an image of mode {image.mode} is not a depth map. Save depth as one channel: a 16-bit PNG in "
            "millimeters, or a float TIFF or NPY in meters."
        )
    return np.asarray(image)


def _read_npy(path: Path) -> np.ndarray:
    advice = "Save it with numpy.save as a numeric array."
    with open_regular(path, advice=advice) as file:
        start = file.read(12)
        if not start.startswith(_NPY):  # numpy would also load ZIP files and pickles
            raise DataError(f"{path}: not an NPY file. {advice}")
        # Header length: two bytes in version 1 of the format, later four.
        length = int.from_bytes(start[8:10] if start[6:7] == b"\x01" else start[8:12], "little")
        if length > _LONGEST_HEADER:
            raise DataError(f"{path}: invalid header length {length}. {advice}")
    try:
        # Memory-mapped, so that a header that exceeds the file is rejected without allocation.
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a corrupt header can raise any exception
        raise DataError(f"{path}: not a valid NPY file ({str(error)[:200]}). {advice}") from error
    _require_map(mapped.shape, mapped.dtype, path)
    values = np.array(mapped)
    if values.ndim == 3:
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    return values


def _require_map(shape: tuple[int, ...], dtype: np.dtype, path: Path) -> None:
    """Rejects arrays that are not depth maps, or too large."""
    is_flat = len(shape) == 2 or (len(shape) == 3 and 1 in (shape[0], shape[2]))
    if not is_flat or min(shape) < 1 or dtype.kind not in "uif":
        raise DataError(
            f"{path}: an array of shape {shown(shape)} and type {str(dtype)[:60]} is not a depth map. Save an (H, W) "
            "array of floats in meters, or of integers with a scale."
        )
    if math.prod(shape) > MAX_PIXELS:
        raise DataError(
            f"{path}: an array of shape {shape} exceeds the limit of {MAX_PIXELS / 1e6:.0f} million pixels. Split it "
            "and its image into tiles."
        )


def _read_exr(path: Path) -> np.ndarray:
    """Reads the only channel, or the one named Z, depth, Y or R (Blender: ``ViewLayer.Depth.Z``)."""
    require(f"{path}: reading EXR", "OpenEXR", extra="exr", error=DataError)
    import OpenEXR  # type: ignore[import-not-found]

    open_regular(path, advice="Export it again.").close()
    try:
        with OpenEXR.File(str(path), separate_channels=True, header_only=True) as file:
            (left, top), (right, bottom) = file.header()["dataWindow"]
            shape = (int(bottom) - int(top) + 1, int(right) - int(left) + 1)
            names = [channel.name for channel in file.header()["channels"]]
    except Exception as error:  # a corrupt file can raise any exception
        raise DataError(_broken_exr(path, error)) from error
    if min(shape) < 1 or math.prod(shape) * max(len(names), 1) > MAX_PIXELS:
        raise DataError(
            f"{path}: {shape[1]}x{shape[0]} pixels in {len(names)} channels exceed the limit of {MAX_PIXELS / 1e6:.0f} "
            "million values. Export one channel, or smaller maps."
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
    raise DataError(f"{path}: no depth channel among {preview(names)}. Export one channel, or name it Z.")


def _broken_exr(path: Path, error: Exception) -> str:
    return f"{path}: not a readable EXR file ({str(error)[:200]}). Export it again."
