"""Reading images and masks so that a bad file ends in one message that names it.

Shapes: C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vitsplit.errors import DataError

RGB = tuple[int, int, int]
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm"})
"""Files that are taken for images."""
MASK_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".bmp"})
"""Files that are taken for masks: formats without loss, since a changed value is another class."""

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


def read_image(path: str | Path) -> Tensor:
    """Reads an image of any kind as RGB.

    Grey, palette, CMYK and 16-bit images are converted (16 bits are scaled to 8, not clipped), alpha is dropped, and a
    rotation that the camera noted (EXIF) is carried out.

    Args:
        path: The file.

    Returns:
        ``image_CHW``, uint8, RGB, in channels-last memory (the order in which resizing is quickest).

    Raises:
        DataError: The file is missing, empty, truncated, no image, or larger than Pillow's limit.
    """
    return read_image_with_kind(path)[0]


def read_image_with_kind(path: str | Path) -> tuple[Tensor, str]:
    """As ``read_image``, and says what the file held: ``"RGB"`` if nothing was converted, else such as ``"CMYK"``."""
    path = Path(path)
    return _pil_to_tensor(decode_image(path), str(path))


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
        return _pil_to_tensor(image, name)[0]
    if isinstance(image, Tensor):
        return _array_to_tensor(_tensor_to_array(image, name), name)
    if isinstance(image, np.ndarray):
        return _array_to_tensor(image, name)
    raise DataError(
        f"{name}: cannot use a {type(image).__name__} as an image. "
        "Give a path, a PIL image, a numpy array (HWC) or a tensor (CHW)."
    )


def read_mask(path: str | Path, colours: Mapping[RGB, int] | None = None) -> Tensor:
    """Reads the values of a label mask.

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
    path = Path(path)
    image = decode_image(path)
    if colours is not None:
        return torch.from_numpy(_match_colours(np.asarray(image.convert("RGB")), colours, path))
    if image.mode in ("L", "P"):
        return torch.from_numpy(np.array(image))
    if image.mode == "1":
        return torch.from_numpy(np.array(image).astype(np.uint8))
    if image.mode == "LA":
        return torch.from_numpy(np.array(image.getchannel("L")))
    if image.mode == "I" or image.mode.startswith("I;16"):
        return torch.from_numpy(np.array(image).astype(np.int32))
    if image.mode in ("RGB", "RGBA"):
        array = np.asarray(image)
        if (array[..., 0] == array[..., 1]).all() and (array[..., 0] == array[..., 2]).all():
            return torch.from_numpy(array[..., 0].copy())
        raise DataError(
            f"{path}: the mask holds colours (such as {hex_colour(_most_common(array[..., :3]))}), not label ids: "
            "a palette mask was probably saved as RGB. Save it as an index or palette PNG, or list its colours in "
            'classes.json as "mask_colours": {"#rrggbb": "class name"}.'
        )
    raise DataError(
        f"{path}: a mask cannot be read from an image of mode {image.mode}. "
        "Save it as an index PNG (one 8-bit channel, the value is the label id)."
    )


def read_colours(path: str | Path) -> list[RGB]:
    """The colours that a mask holds, the most common first."""
    values, counts = np.unique(_pack(np.asarray(decode_image(Path(path)).convert("RGB"))), return_counts=True)
    return [_unpack(int(values[place])) for place in np.argsort(-counts, kind="stable")]


def hex_colour(colour: RGB) -> str:
    """``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def decode_image(path: Path) -> Image.Image:
    """Opens and decodes a whole file, in whatever mode it holds.

    Raises:
        DataError: Whatever goes wrong: the file is missing, empty, truncated, no image, or larger than Pillow's limit.
    """
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty (0 bytes). Copy it again from its source, or remove it.")
        with Image.open(path) as image:
            image.load()
            return image
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file. Check the path.") from error
    except (IsADirectoryError, PermissionError) as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror}). Give a file that you may read.") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: not an image that Pillow can read. Replace or remove the file.") from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path}: too large to be decoded safely ({error}). Cut it into tiles: `vitsplit predict` does so by "
            "itself, in Python vitsplit.inference.large.predict_large."
        ) from error
    except Exception as error:  # decoders raise whatever the broken bytes lead them to
        raise DataError(
            f"{path}: the image is truncated or corrupt ({error}). Copy it again from its source, or remove it."
        ) from error


def _pil_to_tensor(image: Image.Image, name: str) -> tuple[Tensor, str]:
    kind = "16-bit grey" if image.mode.startswith("I;16") else _KINDS.get(image.mode, image.mode)
    turned = ImageOps.exif_transpose(image)
    if image.getexif().get(0x0112, 1) != 1:
        kind += ", turned by EXIF"
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        array = np.asarray(turned)
        if image.mode == "I":  # how older versions of Pillow open 16-bit PNGs
            if array.min() < 0 or array.max() > 65535:
                raise DataError(
                    f"{name}: a 32-bit image (values {array.min()} to {array.max()}) has no known range. "
                    "Save it with 8 or 16 bits."
                )
            array = array.astype(np.uint16)
        return _array_to_tensor(array, name), kind
    return torch.from_numpy(np.array(turned.convert("RGB"))).permute(2, 0, 1), kind


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
    return torch.from_numpy(np.array(array, order="C")).permute(2, 0, 1)


def _match_colours(array_HWC: np.ndarray, colours: Mapping[RGB, int], path: Path) -> np.ndarray:
    """Colours to values, exactly; the error counts the most common colour that is not in the table."""
    packed_HW = _pack(array_HWC)
    table = sorted((_pack(np.array(colour)).item(), value) for colour, value in colours.items())
    keys = np.array([key for key, _ in table], dtype=np.int32)
    values = np.array([value for _, value in table], dtype=np.uint8)
    place_HW = np.searchsorted(keys, packed_HW).clip(max=len(keys) - 1)
    unknown_HW = keys[place_HW] != packed_HW
    if unknown_HW.any():
        colour = _most_common(array_HWC[unknown_HW])
        pixels = int((packed_HW == _pack(np.array(colour))).sum())
        raise DataError(
            f"{path}: colour {hex_colour(colour)} ({pixels} pixels) is not among the {len(keys)} mask colours of "
            'classes.json. Add it there (a class, or "ignore"), or correct the mask: scaling and JPEG blend colours.'
        )
    return values[place_HW]


def _pack(colour: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(colour.astype(np.int32), -1, 0)
    return (red << 16) + (green << 8) + blue


def _unpack(packed: int) -> RGB:
    return packed >> 16, packed >> 8 & 255, packed & 255


def _most_common(colours: np.ndarray) -> RGB:
    values, counts = np.unique(_pack(colours), return_counts=True)
    return _unpack(int(values[counts.argmax()]))
