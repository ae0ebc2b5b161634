"""Safe reading of images and masks: any problem is reported as one error that names the file.

Shapes: C channels, H W pixels.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base as ExifTag
from torch import Tensor

from vitsplit.errors import DataError
from vitsplit.files import open_regular

RGB = tuple[int, int, int]
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm"})
"""Suffixes of images."""
MASK_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".bmp"})
"""Suffixes of masks: lossless formats only."""
PILLOW_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM")
"""Formats that Pillow may decode, detected from the content; excludes readers that start other programs."""
MAX_PIXELS = 2**28 // 3
"""Limit of pixels of an image: 89 million, the threshold of Pillow's decompression bomb warning."""
MAX_IMAGE_BYTES = 600_000_000
"""Limit in bytes of an image file: about 6 per pixel, the size of uncompressed 16-bit RGB."""
MAX_PLAIN_BYTES = 16_000_000
"""Limit in bytes of a plain text PPM, which is decoded at 1 MB/s."""
MAX_SCANS = 200
"""Limit of scans of a progressive JPEG. Encoders write about ten; each takes as long as decoding the image once."""
BLOCK_PIXELS = 1 << 20
"""Pixels per block of rows when processing large arrays."""

_KINDS = {
    "1": "1-bit",
    "L": "gray",
    "LA": "gray with alpha",
    "P": "palette",
    "PA": "palette with alpha",
    "RGBA": "RGB with alpha",
    "RGBX": "RGB with alpha",
    "I": "16-bit gray",
    "F": "float gray",
}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientations other than 1 to the transpose that makes the image upright."""
_SIDES_CHANGED = (5, 6, 7, 8)
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_TILE = 256, 257, (322, 323)


def read_image(path: str | Path) -> Tensor:
    """Reads an image as RGB.

    Gray, palette, CMYK and 16-bit images are converted (16 bits are scaled to 8, not clipped), alpha is dropped, and
    the EXIF orientation is applied.

    Args:
        path: The file.

    Returns:
        ``image_CHW``, uint8, RGB, in channels-last memory (fastest for resizing).

    Raises:
        DataError: As ``open_image``.
    """
    return _pil_to_tensor(decode_image(path), str(path))


def image_kind(image: Image.Image) -> str:
    """The kind of a decoded image: ``"RGB"`` if no conversion is needed, else for example ``"CMYK"``."""
    kind = "16-bit gray" if image.mode.startswith("I;16") else _KINDS.get(image.mode, image.mode)
    return f"{kind}, turned by EXIF" if image.info.get("turned") is True else kind


def to_image_tensor(image: str | Path | Image.Image | np.ndarray | Tensor, name: str = "image") -> Tensor:
    """Converts an image to ``image_CHW``, uint8, RGB.

    Args:
        image: A path; a PIL image; an array ``HW`` or ``HWC``; or a tensor ``HW`` or ``CHW``; with 1, 3 or 4 channels
            (the fourth, alpha, is dropped), uint8, uint16, or float in 0..1.
        name: Name of the image for errors.

    Raises:
        DataError: The type, shape, dtype or range is not supported, or the file cannot be read.
    """
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        if image.width * image.height > MAX_PIXELS:
            raise DataError(
                _too_large(name, f"{image.width}x{image.height} pixels, limit {MAX_PIXELS / 1e6:.0f} million")
            )
        with _decoding(name):
            image.load()
            return _pil_to_tensor(_upright(image), name)
    if isinstance(image, Tensor):
        return _array_to_tensor(_tensor_to_array(image, name), name)
    if isinstance(image, np.ndarray):
        return _array_to_tensor(image, name)
    raise DataError(
        f"{name}: cannot use a {type(image).__name__} as an image. "
        "Give a path, a PIL image, a numpy array (HWC) or a tensor (CHW)."
    )


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


def hex_color(color: RGB) -> str:
    """``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height from an image's header, with the EXIF orientation applied.

    Raises:
        DataError: As ``open_image``.
    """
    with open_image(path) as image:
        width, height = image.size
        if image.format == "TIFF":  # Pillow may have applied the orientation already
            width, height = image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT]  # type: ignore[attr-defined]
        return (height, width) if _orientation(image) in _SIDES_CHANGED else (width, height)


def decode_image(path: str | Path) -> Image.Image:
    """Decodes an image in its own mode and applies the EXIF orientation.

    Raises:
        DataError: As ``open_image``.
    """
    with open_image(path) as image:
        image.load()
        return _upright(image)


@contextmanager
def open_image(path: str | Path, *, any_size: bool = False) -> Iterator[Image.Image]:
    """Opens an image without decoding it. All files are opened with Pillow here.

    Yields the first frame or page of a file.

    Args:
        path: The file.
        any_size: Allow more than ``MAX_PIXELS``, to read the header only.

    Raises:
        DataError: The file is missing, not a regular file, empty, corrupt, not of ``PILLOW_FORMATS``, or too large;
            also for errors in the block.
    """
    with (
        _decoding(path),
        open_regular(path, advice="Give an image file.") as file,
        _open(file, os.fstat(file.fileno()).st_size, path, any_size=any_size) as image,
    ):
        yield image


def decode_bytes(content: bytes, name: str) -> Image.Image:
    """As ``decode_image``, for encoded bytes.

    Args:
        content: The encoded image.
        name: Name of the image for errors.

    Raises:
        DataError: As ``open_image``.
    """
    with _decoding(name), _open(io.BytesIO(content), len(content), name, any_size=False) as image:
        image.load()
        return _upright(image)


@contextmanager
def _open(file: BinaryIO, size: int, name: str | Path, *, any_size: bool) -> Iterator[Image.Image]:
    if size == 0:
        raise DataError(f"{name}: the file is empty (0 bytes). Copy it again from its source, or remove it.")
    if size > MAX_IMAGE_BYTES and not any_size:
        raise DataError(_too_large(name, f"{size / 1e6:.0f} MB, limit {MAX_IMAGE_BYTES / 1e6:.0f} MB"))
    # Pillow reads a whole WebP file to determine its size.
    formats = [each for each in PILLOW_FORMATS if each != "WEBP" or size <= MAX_IMAGE_BYTES]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is checked here
        image = Image.open(file, formats=formats)
    with image:
        if image.tile and image.tile[0][0] == "ppm_plain" and size > MAX_PLAIN_BYTES:
            raise DataError(
                _too_large(name, f"{size / 1e6:.0f} MB of plain text, limit {MAX_PLAIN_BYTES / 1e6:.0f} MB")
            )
        if not any_size:
            _require_size(image, file, name)
        yield image


@contextmanager
def _decoding(name: str | Path) -> Iterator[None]:
    """Converts exceptions of a decoder to DataError."""
    try:
        yield
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(
            f"{name}: not a supported image (JPEG, PNG, BMP, TIFF, WebP, PPM). Convert or remove the file."
        ) from error
    except Image.DecompressionBombError as error:  # if Pillow's limit is lower, or the size twice as large
        raise DataError(_too_large(name, f"limit {MAX_PIXELS / 1e6:.0f} million pixels")) from error
    except MemoryError as error:
        raise DataError(f"{name}: not enough memory. Split the image into tiles.") from error
    except Exception as error:  # a corrupt file can raise any exception
        raise DataError(
            f"{name}: the image is truncated or corrupt ({str(error)[:200]}). "
            "Copy it again from its source, or remove it."
        ) from error


def _require_size(image: Image.Image, file: BinaryIO, path: str | Path) -> None:
    """Rejects images that would take gigabytes or minutes to decode."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(_too_large(path, f"{width}x{height} pixels, limit {MAX_PIXELS / 1e6:.0f} million"))
    if image.format == "TIFF":
        tile = [int(image.tag_v2.get(tag, 1)) for tag in _TIFF_TILE]  # type: ignore[attr-defined]
        if tile[0] * tile[1] > MAX_PIXELS:
            raise DataError(
                f"{path}: invalid tile size {tile[0]}x{tile[1]} of an image of {width}x{height} pixels. Save the image "
                "again."
            )
    if image.info.get("progressive"):
        place = file.tell()
        file.seek(0)
        scans = file.read().count(b"\xff\xda")  # start-of-scan markers, which cannot occur in entropy-coded data
        file.seek(place)
        if scans > MAX_SCANS:
            raise DataError(f"{path}: {scans} scans in one JPEG, limit {MAX_SCANS}. Save it again.")


def _too_large(name: str | Path, details: str) -> str:
    return (
        f"{name}: too large to decode ({details}). Split it into tiles, or use `vitsplit predict` "
        "(vitsplit.inference.large.predict_large), which predicts large images in tiles."
    )


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 if missing or invalid."""
    value = image.getexif().get(ExifTag.Orientation, 1)
    return value if type(value) is int and value in _UPRIGHT else 1


def _upright(image: Image.Image) -> Image.Image:
    """Applies the EXIF orientation to a decoded image, without resampling."""
    orientation = _orientation(image)
    if orientation == 1:
        return image
    turned = image.transpose(_UPRIGHT[orientation])
    turned.info["turned"] = True
    return turned


def _pil_to_tensor(image: Image.Image, name: str) -> Tensor:
    """An upright image as ``image_CHW``, uint8, RGB."""
    return torch.from_numpy(np.require(rgb_array(image, name), requirements=["C", "W"])).permute(2, 0, 1)


def rgb_array(image: Image.Image, name: str) -> np.ndarray:
    """Converts an upright image to a uint8 array HWC with three channels; ``name`` is for errors."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        array = np.asarray(image)
        if image.mode == "I":  # older versions of Pillow open 16-bit PNGs in this mode
            if array.min() < 0 or array.max() > 65535:
                raise DataError(
                    f"{name}: a 32-bit image (values {array.min()} to {array.max()}) has an unknown range. Save it "
                    "with 8 or 16 bits."
                )
            array = array.astype(np.uint16)
        return _to_uint8(array, name)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


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


def _array_to_tensor(array: np.ndarray, name: str) -> Tensor:
    """``HW`` or ``HWC`` array to ``image_CHW`` uint8 with three channels."""
    return torch.from_numpy(np.array(_to_uint8(array, name), order="C")).permute(2, 0, 1)


def _to_uint8(array: np.ndarray, name: str) -> np.ndarray:
    """``HW`` or ``HWC`` array to a uint8 array HWC with three channels."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or array.size == 0:
        raise DataError(
            f"{name}: an array must be HW or HWC with 1, 3 or 4 channels, not {array.shape}. "
            "For CHW, call .transpose(1, 2, 0) first; give one image at a time."
        )
    array = array[..., :3]
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # of either byte order
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    elif array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0.0 and high <= 1.0):  # also true of NaN
            raise DataError(
                f"{name}: float values must be in 0..1, but are from {low:g} to {high:g}. Use uint8 for 0..255; do not "
                "normalize, the backbone does."
            )
        array = np.rint(array * 255.0).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise DataError(f"{name}: pixels must be uint8, uint16 or float in 0..1, not {array.dtype}. Convert them.")
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return array


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
