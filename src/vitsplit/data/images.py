"""Reading images and masks so that a bad file ends in one message that names it.

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
"""Files that are taken for images."""
MASK_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".bmp"})
"""Files that are taken for masks: formats without loss, since a changed value is another class."""
PILLOW_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM")
"""What Pillow may decode, told from the content: none of its readers that start programs or that nobody uses."""
MAX_PIXELS = 2**28 // 3
"""The most pixels of an image that is decoded whole: 89 million, from where on Pillow warns."""
MAX_IMAGE_BYTES = 600_000_000
"""The most bytes of the file of such an image: 6 a pixel, as an uncompressed one of 16-bit colors has."""
MAX_PLAIN_BYTES = 16_000_000
"""The same of a PPM in plain text, which takes a microsecond a byte."""
MAX_SCANS = 200
"""The most scans of a progressive JPEG. Encoders make about ten; each costs as much time as decoding the image once."""
BLOCK_PIXELS = 1 << 20
"""Large arrays are worked on in blocks of rows of about this many pixels."""

_KINDS = {
    "1": "1-bit",
    "L": "grey",
    "LA": "grey with alpha",
    "P": "palette",
    "PA": "palette with alpha",
    "RGBA": "RGB with alpha",
    "RGBX": "RGB with alpha",
    "I": "16-bit grey",
    "F": "float grey",
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
"""EXIF's orientations, other than 1, to what makes the image upright."""
_SIDES_CHANGED = (5, 6, 7, 8)
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_TILE = 256, 257, (322, 323)


def read_image(path: str | Path) -> Tensor:
    """Reads an image of any kind as RGB.

    Grey, palette, CMYK and 16-bit images are converted (16 bits are scaled to 8, not clipped), alpha is dropped, and a
    rotation that the camera noted (EXIF) is carried out.

    Args:
        path: The file.

    Returns:
        ``image_CHW``, uint8, RGB, in channels-last memory (the order in which resizing is quickest).

    Raises:
        DataError: As ``open_image``.
    """
    return _pil_to_tensor(decode_image(path), str(path))


def image_kind(image: Image.Image) -> str:
    """What a decoded image held: ``"RGB"`` if nothing is converted on reading, else such as ``"CMYK"``."""
    kind = "16-bit grey" if image.mode.startswith("I;16") else _KINDS.get(image.mode, image.mode)
    return f"{kind}, turned by EXIF" if image.info.get("turned") is True else kind


def to_image_tensor(image: str | Path | Image.Image | np.ndarray | Tensor, name: str = "image") -> Tensor:
    """Makes ``image_CHW`` (uint8, RGB) of whatever a caller has.

    Args:
        image: A path; a PIL image; an array ``HW`` or ``HWC``; or a tensor ``HW`` or ``CHW``; with 1, 3 or 4 channels
            (the fourth, alpha, is dropped), uint8, uint16, or float in 0..1.
        name: What to call the image in an error.

    Raises:
        DataError: Another type, shape, dtype or range, or a file that cannot be read.
    """
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        if image.width * image.height > MAX_PIXELS:
            raise DataError(_too_large(name, f"{image.width}x{image.height} pixels are not"))
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


def read_mask(path: str | Path, colours: Mapping[RGB, int] | None = None) -> Tensor:
    """Reads the values of a label mask, upright as ``read_image`` turns its image (EXIF).

    Palette masks give their indices, never their colours. A mask saved as RGB is taken for grey if its three channels
    are equal.

    Args:
        path: An index, palette, 1-bit or 16-bit image; with ``colours`` any image.
        colours: Colour to value, for masks that are pictures of their labels; every mask is then read through it.

    Returns:
        ``mask_HW``, uint8, or int32 if the file has more than 8 bits.

    Raises:
        DataError: The file cannot be read, holds colours without ``colours`` being given, or holds a colour not in it.
    """
    image = decode_image(path)
    if colours is not None:
        return torch.from_numpy(_match_colours(image, colours, path))
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


def find_colours(path: str | Path, most: int) -> set[RGB]:
    """The colours that a mask holds; where there are more than ``most``, some of them, but more than that."""
    found: set[int] = set()
    for _, block in _blocks(decode_image(path)):
        found.update(np.unique(_pack(np.asarray(block.convert("RGB")))).tolist())
        if len(found) > most:
            break
    return {_unpack(packed) for packed in found}


def hex_colour(colour: RGB) -> str:
    """``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height from an image's header, turned as ``read_image`` turns it (EXIF).

    Raises:
        DataError: As ``open_image``.
    """
    with open_image(path) as image:
        width, height = image.size
        if image.format == "TIFF":  # which Pillow may have turned already
            width, height = image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT]  # type: ignore[attr-defined]
        return (height, width) if _orientation(image) in _SIDES_CHANGED else (width, height)


def decode_image(path: str | Path) -> Image.Image:
    """Opens and decodes a whole file, in whatever mode it holds, and turns it upright (EXIF).

    Raises:
        DataError: As ``open_image``.
    """
    with open_image(path) as image:
        image.load()
        return _upright(image)


@contextmanager
def open_image(path: str | Path, *, any_size: bool = False) -> Iterator[Image.Image]:
    """Opens an image: the header is read, the pixels are not yet. The only place that has Pillow open files.

    Of a file of several frames or pages it is the first.

    Args:
        path: The file.
        any_size: Whether it may be larger than ``MAX_PIXELS``: for the header alone.

    Raises:
        DataError: Whatever goes wrong here or in the block: the file is missing, not a regular one, empty, truncated,
            not of ``PILLOW_FORMATS``, or too large.
    """
    with (
        _decoding(path),
        open_regular(path, advice="Give an image file.") as file,
        _open(file, os.fstat(file.fileno()).st_size, path, any_size=any_size) as image,
    ):
        yield image


def decode_bytes(content: bytes, name: str) -> Image.Image:
    """As ``decode_image``, of an image that another file carries.

    Args:
        content: The encoded image.
        name: What to call it in an error.

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
        raise DataError(_too_large(name, f"{size / 1e6:.0f} MB, and at most {MAX_IMAGE_BYTES / 1e6:.0f} MB are"))
    # Of WebP, Pillow reads the whole file to know its size.
    formats = [each for each in PILLOW_FORMATS if each != "WEBP" or size <= MAX_IMAGE_BYTES]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is looked at here
        image = Image.open(file, formats=formats)
    with image:
        if image.tile and image.tile[0][0] == "ppm_plain" and size > MAX_PLAIN_BYTES:
            raise DataError(_too_large(name, f"{size / 1e6:.0f} MB of numbers in plain text are"))
        if not any_size:
            _require_size(image, file, name)
        yield image


@contextmanager
def _decoding(name: str | Path) -> Iterator[None]:
    """Turns whatever a decoder raises into a DataError."""
    try:
        yield
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(
            f"{name}: not an image that is read here (JPEG, PNG, BMP, TIFF, WebP, PPM). Convert or remove the file."
        ) from error
    except Image.DecompressionBombError as error:  # where Pillow's own limit is lower, or the size twice as large
        raise DataError(_too_large(name, f"at most {MAX_PIXELS / 1e6:.0f} million pixels are")) from error
    except MemoryError as error:
        raise DataError(f"{name}: needs more memory than there is. Cut the image into smaller ones.") from error
    except Exception as error:  # decoders raise whatever the broken bytes lead them to
        raise DataError(
            f"{name}: the image is truncated or corrupt ({str(error)[:200]}). "
            "Copy it again from its source, or remove it."
        ) from error


def _require_size(image: Image.Image, file: BinaryIO, path: str | Path) -> None:
    """Refuses what would take gigabytes or minutes to decode."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(_too_large(path, f"{width}x{height} pixels, and at most {MAX_PIXELS / 1e6:.0f} million are"))
    if image.format == "TIFF":
        tile = [int(image.tag_v2.get(tag, 1)) for tag in _TIFF_TILE]  # type: ignore[attr-defined]
        if tile[0] * tile[1] > MAX_PIXELS:
            raise DataError(f"{path}: a tile of {tile[0]}x{tile[1]} pixels in {width}x{height}. Save the image again.")
    if image.info.get("progressive"):
        place = file.tell()
        file.seek(0)
        scans = file.read().count(b"\xff\xda")  # the marker that begins one, which cannot stand in pixels
        file.seek(place)
        if scans > MAX_SCANS:
            raise DataError(f"{path}: {scans} scans in one JPEG, of which none needs {MAX_SCANS}. Save it again.")


def _too_large(name: str | Path, said: str) -> str:
    return (
        f"{name}: too large to be decoded whole ({said} decoded whole). Cut it into tiles: `vitsplit predict` does so "
        "by itself, in Python vitsplit.inference.large.predict_large."
    )


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 where there is none or none that is known."""
    value = image.getexif().get(ExifTag.Orientation, 1)
    return value if type(value) is int and value in _UPRIGHT else 1


def _upright(image: Image.Image) -> Image.Image:
    """A decoded image as its orientation says; values change places, none is computed."""
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
    """An upright image as a uint8 array HWC of three channels; ``name`` is for errors."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        array = np.asarray(image)
        if image.mode == "I":  # how older versions of Pillow open 16-bit PNGs
            if array.min() < 0 or array.max() > 65535:
                raise DataError(
                    f"{name}: a 32-bit image (values {array.min()} to {array.max()}) has no known range. "
                    "Save it with 8 or 16 bits."
                )
            array = array.astype(np.uint16)
        return _to_uint8(array, name)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def row_blocks(height: int, width: int) -> Iterator[slice]:
    """The rows of an array in blocks of about ``BLOCK_PIXELS``: what is computed of a large one needs little memory."""
    step = max(1, BLOCK_PIXELS // max(width, 1))
    return (slice(top, min(top + step, height)) for top in range(0, height, step))


def _blocks(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """An image in blocks of rows."""
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
                f"{name}: float values must lie in 0..1, but they reach from {low:g} to {high:g}. "
                "Give uint8 for 0..255, and do not normalise: the backbone does."
            )
        array = np.rint(array * 255.0).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise DataError(f"{name}: pixels must be uint8, uint16 or float in 0..1, not {array.dtype}. Convert them.")
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return array


def _equal_channels(image: Image.Image, path: str | Path) -> np.ndarray:
    """The values of a mask that was saved as RGB."""
    mask_HW = np.empty((image.height, image.width), np.uint8)
    for rows, block in _blocks(image):
        array_HWC = np.asarray(block)
        mask_HW[rows] = array_HWC[..., 0]
        if not ((array_HWC[..., 0] == array_HWC[..., 1]).all() and (array_HWC[..., 0] == array_HWC[..., 2]).all()):
            raise DataError(
                f"{path}: the mask holds colours (such as {hex_colour(_most_common(array_HWC))}), not label ids: "
                "a palette mask was probably saved as RGB. Save it as an index or palette PNG, or list its colours in "
                'classes.json as "mask_colours": {"#rrggbb": "class name"}.'
            )
    return mask_HW


def _match_colours(image: Image.Image, colours: Mapping[RGB, int], path: str | Path) -> np.ndarray:
    """Colours to values, exactly; the error counts a colour that is not in the table."""
    table = sorted((_pack(np.array(colour)).item(), value) for colour, value in colours.items())
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
            f"{path}: colour {hex_colour(unknown)} ({pixels} pixels) is not among the {len(keys)} mask colours of "
            'classes.json. Add it there (a class, or "ignore"), or correct the mask: scaling and JPEG blend colours.'
        )
    return mask_HW


def _pack(colour: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(colour[..., :3].astype(np.int32), -1, 0)
    return (red << 16) + (green << 8) + blue


def _unpack(packed: int) -> RGB:
    return packed >> 16, packed >> 8 & 255, packed & 255


def _most_common(colours: np.ndarray) -> RGB:
    values, counts = np.unique(_pack(colours), return_counts=True)
    return _unpack(int(values[counts.argmax()]))
