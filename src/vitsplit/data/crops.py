"""Crops of an image and its labels: taken at integer pixels of the file, then resized once.

In training an image is resized, cropped and flipped. Here the crop is taken before resizing, so that no pixels are
computed in vain. Random numbers are drawn from the given generator.

Shapes: C channels, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vitsplit.data.content_size import Extent
from vitsplit.data.resizing import Size, fit_size


class Crop(NamedTuple):
    """A region of an image by its edges in pixels of the file, the size it is resized to, and whether it is flipped.

    torchvision's ``tv_tensors.Mask`` is not used: it resizes by ``NEAREST``, which is shifted by half a pixel relative
    to a downsampled image.
    """

    top: float
    left: float
    bottom: float
    right: float
    height: int
    width: int
    flipped: bool = False

    @classmethod
    def whole(cls, size: Size) -> Crop:
        """The whole image, without resizing."""
        return cls(0, 0, size[0], size[1], size[0], size[1])

    def resize(self, size: Size) -> Crop:
        """The same region at another size."""
        return self._replace(height=size[0], width=size[1])

    def crop(self, top: int, left: int, height: int, width: int) -> Crop:
        """A subregion, in pixels of the resized crop."""
        scale_y, scale_x = (self.bottom - self.top) / self.height, (self.right - self.left) / self.width
        y, x = self.top + top * scale_y, self.left + left * scale_x
        return Crop(y, x, y + height * scale_y, x + width * scale_x, height, width)

    def pixels(self, size: Size) -> tuple[slice, slice]:
        """The rows and columns of an image of ``size``, at least one of each."""
        return _whole_pixels(self.top, self.bottom, size[0]), _whole_pixels(self.left, self.right, size[1])

    def image(self, image_CHW: Tensor) -> Tensor:
        """Crops and resizes an image, bilinear with antialiasing."""
        image_CHW = image_CHW[:, *self.pixels(image_CHW.shape[-2:])]
        if image_CHW.shape[-2:] != (self.height, self.width):
            # Channels last: torchvision then resizes 8-bit images with vector instructions.
            image_CHW = image_CHW[None].contiguous(memory_format=torch.channels_last)[0]
            size = [self.height, self.width]
            image_CHW = F.resize(image_CHW, size, interpolation=InterpolationMode.BILINEAR, antialias=True)
        return F.horizontal_flip(image_CHW) if self.flipped else image_CHW

    def labels(self, labels: Tensor) -> Tensor:
        """Crops and resizes labels per pixel (classes, depth, masks), ``(..., H, W)``, with nearest neighbor."""
        labels = labels[..., *self.pixels(labels.shape[-2:])]
        if labels.shape[-2:] != (self.height, self.width):
            maps = labels.reshape(-1, 1, *labels.shape[-2:])
            size = [self.height, self.width]
            maps = F.resize(maps, size, interpolation=InterpolationMode.NEAREST_EXACT)
            labels = maps.view(*labels.shape[:-2], *size)
        return F.horizontal_flip(labels) if self.flipped else labels


def random_size(
    size: Size, image_scale: tuple[int, int] | None, scale_range: tuple[float, float], generator: Generator
) -> tuple[int, int]:
    """Samples the size of the resized image: ``image_scale`` times a factor in ``scale_range``."""
    factor = uniform(generator, *scale_range)
    base = image_scale or (max(size), min(size))
    return fit_size(size, (max(1, int(base[0] * factor)), max(1, int(base[1] * factor))))


def random_crop(size: Size, resized: Size, crop_size: Size, generator: Generator) -> Crop:
    """Samples a crop of ``crop_size`` (or less) from an image of ``size`` resized to ``resized``."""
    height, width = min(crop_size[0], resized[0]), min(crop_size[1], resized[1])
    y = int(torch.randint(resized[0] - height + 1, (), generator=generator))
    x = int(torch.randint(resized[1] - width + 1, (), generator=generator))
    scale_y, scale_x = size[0] / resized[0], size[1] / resized[1]
    return Crop(y * scale_y, x * scale_x, (y + height) * scale_y, (x + width) * scale_x, height, width)


def pad_to(values: Tensor, size: Size, fill: float = 0.0) -> Tensor:
    """Pads ``(..., H, W)`` at the bottom and right to ``size``."""
    padding = [0, 0, size[1] - values.shape[-1], size[0] - values.shape[-2]]
    return F.pad(values[None], padding, fill=fill)[0].contiguous()


def uniform(generator: Generator, low: float = 0.0, high: float = 1.0) -> float:
    """Samples a uniform number from ``low`` to ``high``."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def _whole_pixels(start: float, stop: float, limit: int) -> slice:
    low = min(round(start), limit - 1)
    return slice(low, min(max(round(stop), low + 1), limit))


@dataclass(frozen=True)
class SharedCrop:
    """A crop that was drawn for all labels of an image.

    Attributes:
        part: The part of the image, the size that it is resized to, and whether it is flipped.
        zoom: How many times as large things are as at test time.
        size: Height and width of the finished crop; what is missing is filled below and at the right.
        extent: Size of the picture in it where what is missing is to be the mean color; None: it is black.
    """

    part: Crop
    zoom: float
    size: tuple[int, int]
    extent: Extent | None = None

    def cut_label(self, label_HW: Tensor, fill: float) -> Tensor:
        """The crop of a value per pixel, by nearest neighbor; ``fill`` where the image is too small."""
        return pad_to(self.part.labels(label_HW), self.size, fill)
