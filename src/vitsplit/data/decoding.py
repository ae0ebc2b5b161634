"""Safe decoding of image files with Pillow, without PyTorch: any problem is one error that names the file.

Shapes: H W pixels, C channels.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base as ExifTag
from PIL.PngImagePlugin import PngInfo

from vitsplit.errors import DataError, ImageFormatError, ImageTooLargeError
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
"""Limit of scans of a JPEG."""


@dataclass(frozen=True)
class DecodingLimits:
    """Limits of an image.

    Attributes:
        formats: Formats that Pillow may decode, detected from the content.
        pixels: Number of pixels.
        scans: Number of scans of a JPEG, each of which takes the time of all pixels.
        scanned_pixels: Number of pixels times scans of a JPEG; None: no limit of the product.
    """

    formats: tuple[str, ...] = PILLOW_FORMATS
    pixels: int = MAX_PIXELS
    scans: int = MAX_SCANS
    scanned_pixels: int | None = None


_LIMITS = DecodingLimits()
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


def read_array(path: str | Path) -> np.ndarray:
    """Reads an image as RGB.

    Gray, palette, CMYK and 16-bit images are converted (16 bits are scaled to 8, not clipped), alpha is dropped, and
    the EXIF orientation is applied.

    Args:
        path: The file.

    Returns:
        ``image_HWC``, uint8, RGB.

    Raises:
        DataError: As ``open_image``.
    """
    return _owned(rgb_array(decode_image(path), str(path)))


def to_image_array(image: str | Path | Image.Image | np.ndarray, name: str = "image") -> np.ndarray:
    """Converts an image to ``image_HWC``, uint8, RGB.

    Args:
        image: A path; a PIL image; or an array ``HW`` or ``HWC`` with 1, 3 or 4 channels (the fourth, alpha, is
            dropped), uint8, uint16, or float in 0..1.
        name: Name of the image for errors.

    Raises:
        DataError: The type, shape, dtype or range is not supported, or the file cannot be read.
    """
    if isinstance(image, str | Path):
        return read_array(image)
    if isinstance(image, Image.Image):
        if image.width * image.height > MAX_PIXELS:
            raise ImageTooLargeError(
                _too_large(name, f"{image.width}x{image.height} pixels, limit {MAX_PIXELS / 1e6:.0f} million")
            )
        with _decoding(name):
            image.load()
            return _owned(rgb_array(_upright(image), name))
    if isinstance(image, np.ndarray):
        return np.array(_to_uint8(image, name), order="C")
    raise DataError(
        f"{name}: cannot use a {type(image).__name__} as an image. "
        "Give a path, a PIL image, a numpy array (HWC) or a tensor (CHW)."
    )


def image_kind(image: Image.Image) -> str:
    """The kind of a decoded image: ``"RGB"`` if no conversion is needed, else for example ``"CMYK"``."""
    kind = "16-bit gray" if image.mode.startswith("I;16") else _KINDS.get(image.mode, image.mode)
    return f"{kind}, turned by EXIF" if image.info.get("turned") is True else kind


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
        _open(file, os.fstat(file.fileno()).st_size, path, None if any_size else _LIMITS) as image,
    ):
        yield image


def decode_bytes(content: bytes, name: str, limits: DecodingLimits = _LIMITS) -> Image.Image:
    """As ``decode_image``, for encoded bytes.

    Args:
        content: The encoded image.
        name: Name of the image for errors.
        limits: The limits.

    Raises:
        DataError: As ``open_image``.
    """
    with _decoding(name), _open(io.BytesIO(content), len(content), name, limits) as image:
        image.load()
        return _upright(image)


def decode_array(content: bytes, name: str, limits: DecodingLimits = _LIMITS) -> np.ndarray:
    """As ``read_array``, for encoded bytes; see ``decode_bytes``."""
    return _owned(rgb_array(decode_bytes(content, name, limits), name))


@contextmanager
def _open(file: BinaryIO, size: int, name: str | Path, limits: DecodingLimits | None) -> Iterator[Image.Image]:
    """Opens an image; ``limits`` is None to read the header of an image of any size."""
    if size == 0:
        raise DataError(f"{name}: the file is empty (0 bytes). Copy it again from its source, or remove it.")
    if size > MAX_IMAGE_BYTES and limits is not None:
        raise ImageTooLargeError(_too_large(name, f"{size / 1e6:.0f} MB, limit {MAX_IMAGE_BYTES / 1e6:.0f} MB"))
    # Pillow reads a whole WebP file to determine its size.
    formats = [each for each in (limits or _LIMITS).formats if each != "WEBP" or size <= MAX_IMAGE_BYTES]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is checked here
        image = Image.open(file, formats=formats)
    with image:
        if image.tile and image.tile[0][0] == "ppm_plain" and size > MAX_PLAIN_BYTES:
            raise ImageTooLargeError(
                _too_large(name, f"{size / 1e6:.0f} MB of plain text, limit {MAX_PLAIN_BYTES / 1e6:.0f} MB")
            )
        if limits is not None:
            _require_size(image, file, name, limits)
        yield image


@contextmanager
def _decoding(name: str | Path) -> Iterator[None]:
    """Converts exceptions of a decoder to DataError."""
    try:
        yield
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise ImageFormatError(
            f"{name}: not a supported image (JPEG, PNG, BMP, TIFF, WebP, PPM). Convert or remove the file."
        ) from error
    except Image.DecompressionBombError as error:  # if Pillow's limit is lower, or the size twice as large
        raise ImageTooLargeError(_too_large(name, f"limit {MAX_PIXELS / 1e6:.0f} million pixels")) from error
    except MemoryError as error:
        raise DataError(f"{name}: not enough memory. Split the image into tiles.") from error
    except Exception as error:  # a corrupt file can raise any exception
        raise DataError(
            f"{name}: the image is truncated or corrupt ({str(error)[:200]}). "
            "Copy it again from its source, or remove it."
        ) from error


def _require_size(image: Image.Image, file: BinaryIO, path: str | Path, limits: DecodingLimits) -> None:
    """Rejects images that would take gigabytes or minutes to decode."""
    width, height = image.size
    if width * height > limits.pixels:
        raise ImageTooLargeError(_too_large(path, f"{width}x{height} pixels, limit {limits.pixels / 1e6:.0f} million"))
    if image.format == "TIFF":
        tile = [int(image.tag_v2.get(tag, 1)) for tag in _TIFF_TILE]  # type: ignore[attr-defined]
        if tile[0] * tile[1] > limits.pixels:
            raise DataError(
                f"{path}: invalid tile size {tile[0]}x{tile[1]} of an image of {width}x{height} pixels. Save the image "
                "again."
            )
    if image.info.get("progressive"):
        place = file.tell()
        file.seek(0)
        scans = file.read().count(b"\xff\xda")  # start-of-scan markers, which cannot occur in entropy-coded data
        file.seek(place)
        most = limits.scans
        if limits.scanned_pixels is not None:
            most = min(most, limits.scanned_pixels // (width * height))
        if scans > most:
            raise DataError(
                f"{path}: {scans} scans in one JPEG of {width}x{height} pixels, limit {most}. Save it again."
            )


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


def _owned(array: np.ndarray) -> np.ndarray:
    """The array, or a copy if it is not contiguous or not writable, as Pillow's are."""
    return np.require(array, requirements=["C", "W"])


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


def png_bytes(image: Image.Image, compress_level: int = 6, pnginfo: PngInfo | None = None) -> bytes:
    """The image as a PNG file.

    Args:
        image: The image.
        compress_level: 0 (no compression) to 9; 1 takes an eighth of the time of 6 and half as many more bytes.
        pnginfo: Text chunks.
    """
    file = io.BytesIO()
    image.save(file, format="PNG", compress_level=compress_level, pnginfo=pnginfo)
    return file.getvalue()


def hex_color(color: RGB) -> str:
    """``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*color)


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
