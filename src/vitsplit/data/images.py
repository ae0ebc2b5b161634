"""Images and masks as tensors.

Shapes: C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitsplit.data.decoding import RGB, decode_image, hex_color, read_array, to_image_array
from vitsplit.errors import DataError

BLOCK_PIXELS = 1 << 20
"""Pixels per block of rows when processing large arrays."""


def read_image(path: str | Path) -> Tensor:
    """Reads an image as RGB, see ``decoding.read_array``.

    Args:
        path: The file.

    Returns:
        ``image_CHW``, uint8, RGB, in channels-last memory (fastest for resizing).

    Raises:
        DataError: As ``decoding.open_image``.
    """
    return torch.from_numpy(read_array(path)).permute(2, 0, 1)


def to_image_tensor(image: str | Path | Image.Image | np.ndarray | Tensor, name: str = "image") -> Tensor:
    """Converts an image to ``image_CHW``, uint8, RGB.

    Args:
        image: As for ``decoding.to_image_array``, or a tensor ``HW`` or ``CHW`` of the same types and channels.
        name: Name of the image for errors.

    Raises:
        DataError: The type, shape, dtype or range is not supported, or the file cannot be read.
    """
    array_HWC = to_image_array(_tensor_to_array(image, name) if isinstance(image, Tensor) else image, name)
    return torch.from_numpy(array_HWC).permute(2, 0, 1)


def read_mask(path: str | Path, colors: Mapping[RGB, int] | None = None) -> Tensor:
    """Reads the values of a label mask, with the EXIF orientation applied.

    Palette masks yield their indices. An RGB mask with three equal channels is read as gray.

    Args:
        path: An index, palette, 1-bit or 16-bit image; with ``colors`` any image.
        colors: Color to value, for RGB masks.

    Returns:
        ``mask_HW``, uint8, or int32 if the file has more than 8 bits.

    Raises:
        DataError: The file cannot be read, has colors but ``colors`` is None, or has a color that is not in
            ``colors``.
    """
    image = decode_image(path)
    if colors is not None:
        return torch.from_numpy(_match_colors(image, colors, path))
    if image.mode in ("L", "P"):
        return torch.from_numpy(np.array(image))
    if image.mode == "1":
        return torch.from_numpy(np.array(image).astype(np.uint8))
    if image.mode == "LA":
        return torch.from_numpy(np.array(image.getchannel("L")))
    if image.mode == "I" or image.mode.startswith("I;16"):
        return torch.from_numpy(np.array(image).astype(np.int32))
    if image.mode in ("RGB", "RGBA"):
        return torch.from_numpy(_equal_channels(image, path))
    raise DataError(
        f"{path}: a mask cannot be read from an image of mode {image.mode}. "
        "Save it as an index PNG (one 8-bit channel, the value is the label id)."
    )


def find_colors(path: str | Path, most: int) -> set[RGB]:
    """The colors of a mask; stops after more than ``most``."""
    found: set[int] = set()
    for _, block in _blocks(decode_image(path)):
        found.update(np.unique(_pack(np.asarray(block.convert("RGB")))).tolist())
        if len(found) > most:
            break
    return {_unpack(packed) for packed in found}


def row_blocks(height: int, width: int) -> Iterator[slice]:
    """Splits the rows of an array into blocks of about ``BLOCK_PIXELS``, to bound memory."""
    step = max(1, BLOCK_PIXELS // max(width, 1))
    return (slice(top, min(top + step, height)) for top in range(0, height, step))


def _blocks(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """Splits an image into blocks of rows."""
    for rows in row_blocks(image.height, image.width):
        yield rows, image.crop((0, rows.start, image.width, rows.stop))


def _tensor_to_array(image: Tensor, name: str) -> np.ndarray:
    """``HW`` or ``CHW`` tensor to ``HW`` or ``HWC`` array."""
    image = image.detach().cpu()
    if image.dtype == torch.bfloat16:  # numpy has no such type
        image = image.float()
    if image.ndim != 3:
        return image.numpy()
    if image.shape[0] not in (1, 3, 4):
        raise DataError(
            f"{name}: a tensor must be CHW with 1, 3 or 4 channels, not {tuple(image.shape)}. "
            "For HWC, call .permute(2, 0, 1) first."
        )
    return image.permute(1, 2, 0).numpy()


def _equal_channels(image: Image.Image, path: str | Path) -> np.ndarray:
    """The values of an index mask saved as RGB."""
    mask_HW = np.empty((image.height, image.width), np.uint8)
    for rows, block in _blocks(image):
        array_HWC = np.asarray(block)
        mask_HW[rows] = array_HWC[..., 0]
        if not ((array_HWC[..., 0] == array_HWC[..., 1]).all() and (array_HWC[..., 0] == array_HWC[..., 2]).all()):
            raise DataError(
                f"{path}: the mask has colors (such as {hex_color(_most_common(array_HWC))}), not label ids. Save it "
                'as an index or palette PNG, or list its colors in classes.json as "mask_colors": {"#rrggbb": "name"}.'
            )
    return mask_HW


def _match_colors(image: Image.Image, colors: Mapping[RGB, int], path: str | Path) -> np.ndarray:
    """Maps colors to values exactly."""
    table = sorted((_pack(np.array(color)).item(), value) for color, value in colors.items())
    keys = np.array([key for key, _ in table], dtype=np.int32)
    values = np.array([value for _, value in table], dtype=np.uint8)
    mask_HW = np.empty((image.height, image.width), np.uint8)
    unknown, pixels = None, 0
    for rows, block in _blocks(image):
        array_HWC = np.asarray(block.convert("RGB"))
        packed_HW = _pack(array_HWC)
        place_HW = np.searchsorted(keys, packed_HW).clip(max=len(keys) - 1)
        mask_HW[rows] = values[place_HW]
        unknown_HW = keys[place_HW] != packed_HW
        if unknown is None and unknown_HW.any():
            unknown = _most_common(array_HWC[unknown_HW])
        if unknown is not None:
            pixels += int((packed_HW == _pack(np.array(unknown))).sum())
    if unknown is not None:
        raise DataError(
            f"{path}: color {hex_color(unknown)} ({pixels} pixels) is not one of the {len(keys)} mask colors in "
            'classes.json. Add it (a class, or "ignore"), or correct the mask (resizing and JPEG blend colors).'
        )
    return mask_HW


def _pack(color: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(color[..., :3].astype(np.int32), -1, 0)
    return (red << 16) + (green << 8) + blue


def _unpack(packed: int) -> RGB:
    return packed >> 16, packed >> 8 & 255, packed & 255


def _most_common(colors: np.ndarray) -> RGB:
    values, counts = np.unique(_pack(colors), return_counts=True)
    return _unpack(int(values[counts.argmax()]))
