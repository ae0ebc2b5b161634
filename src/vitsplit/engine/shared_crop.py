"""One crop for all labels of an image: drawn once, from the image's size alone, and then cut out of each.

Shapes: C channels, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator, Tensor

from vitsplit.data import crops
from vitsplit.data.content_size import Extent
from vitsplit.data.crops import fit_size, pad_to, random_size, uniform
from vitsplit.data.photometric import distort
from vitsplit.engine.config import GeometryConfig


@dataclass(frozen=True)
class Crop:
    """What was drawn for an image.

    Attributes:
        part: The part of the image, the size that it is resized to, and whether it is flipped.
        zoom: How many times as large things are as at test time.
        size: Height and width of the finished crop; what is missing is filled below and at the right.
        extent: Size of the picture in it where what is missing is to be the mean color; None: it is black.
    """

    part: crops.Crop
    zoom: float
    size: tuple[int, int]
    extent: Extent | None = None

    def cut_label(self, label_HW: Tensor, fill: float) -> Tensor:
        """The crop of a value per pixel, by nearest neighbor; ``fill`` where the image is too small."""
        return pad_to(self.part.labels(label_HW), self.size, fill)


def random_crop(image_CHW: Tensor, geometry: GeometryConfig, generator: Generator) -> tuple[Crop, Tensor]:
    """Draws a crop, and cuts it out of the image with colors changed.

    The draws are those of segmentation's own augmentation with ``max_class_ratio`` 1, in its order.

    Args:
        image_CHW: uint8, RGB.
        geometry: Size, scales, probabilities.
        generator: Source of every random number.

    Returns:
        The crop, and ``image_CHW`` (uint8) of ``geometry.crop_size``.
    """
    size = image_CHW.shape[-2:]
    resized = random_size(size, geometry.image_scale, geometry.scale_range, generator)
    part = crops.random_crop(size, resized, geometry.crop_size, generator)
    part = part._replace(flipped=uniform(generator) < geometry.flip)
    zoom = max(resized) / max(fit_size(size, geometry.image_scale))
    extent = (part.height, part.width) if geometry.pad_color == "mean" else None
    part_CHW = part.image(image_CHW)
    if geometry.photometric:
        part_CHW = distort(part_CHW, generator)
    return Crop(part, zoom, geometry.crop_size, extent), pad_to(part_CHW, geometry.crop_size)
