"""The augmentation of the paper's depth training: border crop, rotation, flip, crop, gamma, brightness and color.

Depths stay in meters, unscaled, and are resampled by nearest neighbor, so that no depths are interpolated between two
surfaces. All random numbers are drawn from the given generator.

Shapes: C channels, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vitsplit.data.content_size import Extent
from vitsplit.data.crops import Crop, SharedCrop, pad_to, random_crop, uniform
from vitsplit.data.resizing import fit_size
from vitsplit.errors import ConfigError
from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.tasks.depth.data import (
    DepthSample,
    DepthSet,
    keep_range,
    keep_valid,
    load_depth,
    require_same_size,
)

GAMMA = (0.9, 1.1)
BRIGHTNESS = (0.75, 1.25)
COLOR = (0.9, 1.1)
LARGEST_VALUE = {"0-1": 1.0, "0-255": 255.0}
"""The value of white for each ``DepthConfig.color_values``."""


@dataclass(frozen=True)
class TrainDepth:
    """Training samples: ``data[index, seed]`` is the sample ``index``, augmented with the random seed ``seed``.

    A pure function of both, so samples do not depend on the number of workers or on resuming.
    """

    data: DepthSet
    config: DepthConfig

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int]) -> DepthSample:
        index, seed = key
        sample = self.data.load(index)
        depth_HW = keep_valid(sample.depth_HW, self.config, self.data.items[index][1])
        generator = torch.Generator().manual_seed(seed)
        image_CHW, depth_HW, extent = augment(sample.image_CHW, depth_HW, self.config, generator)
        return DepthSample(image_CHW, depth_HW, sample.name, extent if self.config.pad_color == "mean" else None)

    def paths(self) -> list[Path]:
        """See ``CropData``."""
        return [image_path for image_path, _ in self.data.items]

    def cropped(self, index: int, image_CHW: Tensor, crop_CHW: Tensor, crop: SharedCrop) -> DepthSample:
        """See ``CropData``; depths are invalid in the padding.

        Scaling an image by s corresponds to objects s times as near, so depths are divided by s.
        """
        image_path, depth_path = self.data.items[index]
        depth_HW = load_depth(depth_path, self.data.scale)
        require_same_size(image_CHW.shape[-2:], depth_HW, image_path, depth_path)
        valid_HW = keep_valid(depth_HW, self.config, depth_path)
        nearer_HW = crop.cut_label(valid_HW, 0.0) / crop.zoom
        nearer_HW = keep_range(nearer_HW, self.config.min_depth, self.config.max_depth)
        return DepthSample(crop_CHW, nearer_HW, str(image_path), crop.extent)


def augment(
    image_CHW: Tensor, depth_HW: Tensor, config: DepthConfig, generator: Generator
) -> tuple[Tensor, Tensor, Extent]:
    """Makes one training crop.

    Args:
        image_CHW: uint8, RGB.
        depth_HW: float32, meters; 0 where invalid.
        config: Border, size, probabilities.
        generator: Random number generator.

    Returns:
        ``image_CHW`` and ``depth_HW`` of ``config.crop_size``, padded below and to the right with zeros (invalid
        depths), like the corners after a rotation; and the size before padding.

    Raises:
        ConfigError: The border leaves nothing of the image.
    """
    inside = inside_border(depth_HW.shape, config)
    image_CHW, depth_HW = inside.image(image_CHW), inside.labels(depth_HW)
    if uniform(generator) < config.rotate_share:
        angle = uniform(generator, -config.rotate, config.rotate)
        image_CHW = F.rotate(image_CHW, angle, interpolation=InterpolationMode.BILINEAR)
        depth_HW = F.rotate(depth_HW[None], angle, interpolation=InterpolationMode.NEAREST)[0]
    if uniform(generator) < config.flip:
        image_CHW, depth_HW = F.horizontal_flip(image_CHW), F.horizontal_flip(depth_HW)
    crop = random_crop(depth_HW.shape, depth_HW.shape, config.crop_size, generator)
    image_CHW, depth_HW = crop.image(image_CHW), crop.labels(depth_HW)
    if uniform(generator) < config.color_share:
        image_CHW = change_colors(image_CHW, generator, LARGEST_VALUE[config.color_values])
    return pad_to(image_CHW, config.crop_size), pad_to(depth_HW, config.crop_size), (crop.height, crop.width)


def inside_border(size: tuple[int, ...], config: DepthConfig) -> Crop:
    """The crop that removes the border and resizes to fit ``image_scale``.

    Raises:
        ConfigError: The border covers the whole image.
    """
    top, left, bottom, right = config.border
    height, width = size[0] - top - bottom, size[1] - left - right
    if height < 1 or width < 1:
        raise ConfigError(
            f"--border {top} {left} {bottom} {right} (top, left, bottom, right) leaves nothing of an image of "
            f"{size[1]}x{size[0]} (width x height). Reduce it; 0 0 0 0 disables it."
        )
    return Crop(top, left, top + height, left + width, *fit_size((height, width), config.image_scale))


def change_colors(image_CHW: Tensor, generator: Generator, largest: float = 1.0) -> Tensor:
    """``x^gamma * brightness * color`` on values in 0..largest, with one color factor per channel.

    Args:
        image_CHW: uint8, RGB.
        generator: Random number generator.
        largest: The value of white. In the authors' release it is 255, so that white becomes ``255^gamma``.

    Returns:
        uint8, rounded and clipped (the release also clips, but does not round).
    """
    gamma, brightness = uniform(generator, *GAMMA), uniform(generator, *BRIGHTNESS)
    color_C11 = torch.empty(3, 1, 1).uniform_(*COLOR, generator=generator)
    # The result depends only on the input value, so a lookup table of 256 values suffices.
    curve_256 = torch.linspace(0.0, largest, 256).pow(gamma) * brightness
    table_C256 = (curve_256 * color_C11[..., 0]).mul(255.0 / largest).round().clamp(0.0, 255.0).to(torch.uint8)
    return torch.stack([row_256[pixels_HW.int()] for row_256, pixels_HW in zip(table_C256, image_CHW, strict=True)])
