"""One crop for all labels of an image: drawn once, from the image's size alone, and then cut out of each.

Shapes: C channels, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as F

from vitsplit.data.extents import Extent
from vitsplit.tasks.multi.config import GeometryConfig, with_geometry
from vitsplit.tasks.segmentation.augment import (
    Window,
    cut_image,
    cut_label,
    distort,
    fit_size,
    random_size,
    random_window,
)
from vitsplit.tasks.segmentation.config import SegmentationConfig


@dataclass(frozen=True)
class Crop:
    """What was drawn for an image.

    Attributes:
        window: The part of the image, and the size that it is resized to.
        mirrored: Whether left and right are swapped afterwards.
        zoom: How many times as large things are as at test time.
        size: Height and width of the finished crop; what is missing is filled below and at the right.
        extent: Size of the picture in it where what is missing is to be the mean color; None: it is black.
    """

    window: Window
    mirrored: bool
    zoom: float
    size: tuple[int, int]
    extent: Extent | None = None

    def cut_label(self, label_HW: Tensor, fill: float) -> Tensor:
        """The crop of a value per pixel, by nearest neighbour; ``fill`` where the image is too small."""
        part_HW = cut_label(label_HW, self.window)
        return self.pad(F.horizontal_flip(part_HW) if self.mirrored else part_HW, fill)

    def pad(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """Fills up to ``size``."""
        missing = [0, 0, self.size[1] - values.shape[-1], self.size[0] - values.shape[-2]]
        return F.pad(values[None], missing, fill=fill)[0].contiguous()


def random_crop(image_CHW: Tensor, geometry: GeometryConfig, generator: Generator) -> tuple[Crop, Tensor]:
    """Draws a crop, and cuts it out of the image with colours changed.

    The draws are those of segmentation's own augmentation with ``max_class_ratio`` 1, in its order.

    Args:
        image_CHW: uint8, RGB.
        geometry: Size, scales, probabilities.
        generator: Source of every random number.

    Returns:
        The crop, and ``image_CHW`` (uint8) of ``geometry.crop_size``.
    """
    config = with_geometry(SegmentationConfig(), geometry)
    size = (image_CHW.shape[-2], image_CHW.shape[-1])
    scaled_size = random_size(size, config, generator)
    window = random_window(image_CHW[0], scaled_size, config, generator)
    mirrored = float(torch.rand((), generator=generator)) < geometry.flip
    zoom = max(scaled_size) / max(fit_size(size, geometry.image_scale))
    extent = (window.out_height, window.out_width) if geometry.pad_color == "mean" else None
    crop = Crop(window, mirrored, zoom, geometry.crop_size, extent)
    part_CHW = cut_image(image_CHW, window)
    if mirrored:
        part_CHW = F.horizontal_flip(part_CHW)
    if geometry.photometric:
        part_CHW = distort(part_CHW, generator)
    return crop, crop.pad(part_CHW)
