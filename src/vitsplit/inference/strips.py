"""Reads large images in strips from top to bottom, with little memory.

Decoded by libvips, with the same result as ``data.images.read_image``.

Shapes: C channels, H W pixels.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitsplit.data.decoding import open_image
from vitsplit.data.images import to_image_tensor
from vitsplit.errors import ConfigError, DataError
from vitsplit.extras import require
from vitsplit.files import open_regular

MAX_UNPACKED_PIXELS = 1 << 30
"""Limit of pixels of an image that must be decoded to a temporary file (3 GB, or 6 GB with 16 bits)."""
LARGE_PIXELS = 50_000_000
"""Images with more pixels are predicted in tiles."""

VIPS_LOADERS = {
    "VipsForeignLoadPngFile": "pngload",
    "VipsForeignLoadTiffFile": "tiffload",
    "VipsForeignLoadJpegFile": "jpegload",
    "VipsForeignLoadWebpFile": "webpload",
}
"""Allowed loaders of libvips, detected from the content: loader name to operation."""

_NUMPY_TYPES = {"uchar": np.uint8, "ushort": np.uint16, "float": np.float32, "double": np.float64}
_COLORS = frozenset({"srgb", "rgb", "rgb16", "scrgb", "b-w", "grey16", "multiband", "cmyk"})


def is_large(path: str | Path) -> bool:
    """Whether an image has more than ``LARGE_PIXELS`` pixels, from its header; False if it cannot be read."""
    try:
        with open_image(path, any_size=True) as image:
            return image.width * image.height > LARGE_PIXELS
    except DataError as error:  # other errors are raised on reading
        return isinstance(error.__cause__, Image.DecompressionBombError)


class ImageStrips:
    """An image that is read row by row from top to bottom.

    Supports PNG, TIFF (tiles or strips), JPEG and WebP. Gray, palette, CMYK and 16-bit images are converted, alpha is
    dropped and the EXIF orientation is applied, as in ``read_image``. Rotated images and interlaced PNGs are first
    decoded to a temporary file.

    Args:
        path: The file.
        scale: Scale factor (linear filter with antialiasing).

    Attributes:
        size: Height and width after scaling.
        own_size: Height and width of the upright image in the file.

    Raises:
        ConfigError: pyvips is not installed, or the scale is not positive.
        DataError: The file is missing, empty, of an unsupported format, or too small for the scale.
    """

    def __init__(self, path: str | Path, scale: float = 1.0) -> None:
        self.path = Path(path)
        self._vips = _load_vips(self.path)
        image = self._open()
        self.own_size = (image.height, image.width)
        if image.interpretation not in _COLORS or image.format not in _NUMPY_TYPES:
            raise DataError(
                f"{path}: unsupported pixel format {image.interpretation} {image.format}. Save the image as 8- or "
                "16-bit RGB or gray."
            )
        self._cmyk = image.interpretation == "cmyk"
        if not self._cmyk and image.bands != 1:
            image = image[0] if image.bands == 2 else image[:3]
        if scale != 1.0:
            image = self._resized(image, scale)
        self.size = (image.height, image.width)
        self._image = image
        self._region = self._vips.Region.new(image)
        self._buffer_CHW = torch.empty(3, 0, image.width, dtype=torch.uint8)
        self._buffer_top = 0

    def rows(self, top: int, bottom: int) -> Tensor:
        """Reads rows from ``top`` (non-decreasing between calls) to ``bottom`` (exclusive): ``(3, bottom - top, W)``
        uint8.

        Raises:
            DataError: The file is truncated or corrupt.
        """
        read = self._buffer_top + self._buffer_CHW.shape[1]
        assert self._buffer_top <= top <= read and top < bottom, "rows must be read in order without gaps"
        rows_CHW = self._buffer_CHW[:, top - self._buffer_top :]
        if read < bottom:
            rows_CHW = torch.cat([rows_CHW, self._fetch(read, bottom)], 1)
        self._buffer_CHW, self._buffer_top = rows_CHW, top
        return rows_CHW[:, : bottom - top]

    def _fetch(self, top: int, bottom: int) -> Tensor:
        try:
            data = self._region.fetch(0, top, self.size[1], bottom - top)
        except self._vips.Error as error:
            raise DataError(
                f"{self.path}: the image is truncated or corrupt ({_reason(error)}). Download it again, or remove it."
            ) from error
        array_HWC = np.frombuffer(data, _NUMPY_TYPES[self._image.format])
        array_HWC = array_HWC.reshape(bottom - top, self.size[1], self._image.bands)
        if self._cmyk:
            picture = Image.frombytes("CMYK", (self.size[1], bottom - top), array_HWC.tobytes())
            array_HWC = np.asarray(picture.convert("RGB"))
        elif array_HWC.dtype == np.uint16 and array_HWC.shape[2] > 1:
            array_HWC = (array_HWC >> 8).astype(np.uint8)  # as Pillow converts 16-bit colors
        return to_image_tensor(array_HWC, str(self.path)).contiguous()

    def _resized(self, image: Any, scale: float) -> Any:
        if not scale > 0:
            raise ConfigError(f"--scale {scale:g}: must be above 0.")
        if min(self.own_size) * scale < 0.5:
            raise DataError(
                f"{self.path}: --scale {scale:g} is too small for {self.own_size[1]}x{self.own_size[0]} pixels. Use a "
                "larger one."
            )
        return image.resize(scale, kernel="linear", gap=0)

    def _open(self) -> Any:
        with open_regular(self.path, advice="Give an image file.") as file:
            if not file.read(1):
                raise DataError(f"{self.path}: the file is empty (0 bytes). Download it again, or remove it.")
        try:
            load = getattr(self._vips.Image, self._loader())
            image = load(str(self.path), access="sequential", fail_on="error")
            rotated = image.get_typeof("orientation") != 0 and image.get("orientation") != 1
            if rotated or image.get_typeof("interlaced") != 0:
                if image.width * image.height > MAX_UNPACKED_PIXELS:
                    raise DataError(
                        f"{self.path}: {image.width}x{image.height} pixels are too many for a rotated or interlaced "
                        "image. Save the image upright and not interlaced."
                    )
                image = load(str(self.path), access="random", fail_on="error").autorot()
        except self._vips.Error as error:
            raise DataError(
                f"{self.path}: cannot be read in strips ({_reason(error)}). Convert it to PNG, TIFF, JPEG or WebP."
            ) from error
        return image

    def _loader(self) -> str:
        """The loader of the file, detected from its content.

        Raises:
            pyvips.Error: The format is not supported.
        """
        found = self._vips.vips_lib.vips_foreign_find_load(os.fsencode(self.path))
        name = "" if found == self._vips.ffi.NULL else self._vips.ffi.string(found).decode()
        if name not in VIPS_LOADERS:
            raise self._vips.Error(f"{name or 'the content'} is not a supported format")
        return VIPS_LOADERS[name]


def _load_vips(path: Path) -> Any:
    require(f"{path}: predicting an image in tiles", "pyvips", extra="large")
    import pyvips

    pyvips.block_untrusted_set(True)  # disables loaders that are unsafe for untrusted files
    return pyvips


def _reason(error: Exception) -> str:
    """The last line of libvips' error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1]
