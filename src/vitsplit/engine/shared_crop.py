"""One random crop for all labels of an image, drawn from the image's size only and applied to every label.

Shapes: C channels, H W pixels.
"""

from __future__ import annotations

from torch import Generator, Tensor

from vitsplit.data import crops
from vitsplit.data.crops import SharedCrop, pad_to, random_size, uniform
from vitsplit.data.photometric import distort
from vitsplit.data.resizing import fit_size
from vitsplit.train_config import GeometryConfig


def random_crop(image_CHW: Tensor, geometry: GeometryConfig, generator: Generator) -> tuple[SharedCrop, Tensor]:
    """Draws a crop, and applies it and the photometric augmentation to the image.

    The random numbers are drawn as in segmentation's own augmentation with ``max_class_ratio`` 1, in the same order.

    Args:
        image_CHW: uint8, RGB.
        geometry: Size, scales, probabilities.
        generator: Generator of all random numbers.

    Returns:
        The crop, and the cropped image (C, ``*geometry.crop_size``), uint8.
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
    return SharedCrop(part, zoom, geometry.crop_size, extent), pad_to(part_CHW, geometry.crop_size)
