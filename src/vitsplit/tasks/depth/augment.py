"""The augmentation of the paper's depth training: border, turn, flip, crop, gamma, brightness and colour.

Depths are metres and stay so: nothing here scales them, and they are resampled by nearest neighbour, so that no depth
is invented between two surfaces. Every random number is drawn from the generator that is passed in.

Shapes: C channels, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vitsplit.data.extents import Extent
from vitsplit.errors import ConfigError
from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.tasks.segmentation.augment import Window, cut, fit_size, uniform

GAMMA = (0.9, 1.1)
BRIGHTNESS = (0.75, 1.25)
COLOUR = (0.9, 1.1)
LARGEST_VALUE = {"0-1": 1.0, "0-255": 255.0}
"""By ``DepthConfig.color_values``."""


def augment(
    image_CHW: Tensor, depth_HW: Tensor, config: DepthConfig, generator: Generator
) -> tuple[Tensor, Tensor, Extent]:
    """Makes one training crop.

    Args:
        image_CHW: uint8, RGB.
        depth_HW: float32, metres; 0 where invalid.
        config: Border, size, probabilities.
        generator: Source of every random number.

    Returns:
        ``image_CHW`` and ``depth_HW`` of ``config.crop_size``; a smaller image is padded below and at the right, with
        zeros, which are invalid depths. So are the corners that a turn uncovers. The third is the size before padding.

    Raises:
        ConfigError: The border leaves nothing of the image.
    """
    image_CHW, depth_HW = cut(image_CHW, depth_HW, inside_border(depth_HW.shape, config))
    if uniform(generator) < config.rotate_share:
        angle = uniform(generator, -config.rotate, config.rotate)
        image_CHW = F.rotate(image_CHW, angle, interpolation=InterpolationMode.BILINEAR)
        depth_HW = F.rotate(depth_HW[None], angle, interpolation=InterpolationMode.NEAREST)[0]
    if uniform(generator) < config.flip:
        image_CHW, depth_HW = F.horizontal_flip(image_CHW), F.horizontal_flip(depth_HW)
    image_CHW, depth_HW = random_crop(image_CHW, depth_HW, config.crop_size, generator)
    if uniform(generator) < config.colour_share:
        image_CHW = change_colours(image_CHW, generator, LARGEST_VALUE[config.color_values])
    extent = (depth_HW.shape[0], depth_HW.shape[1])
    padding = [0, 0, config.crop_size[1] - extent[1], config.crop_size[0] - extent[0]]
    return F.pad(image_CHW, padding).contiguous(), F.pad(depth_HW[None], padding)[0].contiguous(), extent


def inside_border(size: tuple[int, ...], config: DepthConfig) -> Window:
    """The image without its border, resized to fit ``image_scale``.

    Raises:
        ConfigError: Nothing is left.
    """
    top, left, bottom, right = config.border
    height, width = size[0] - top - bottom, size[1] - left - right
    if height < 1 or width < 1:
        raise ConfigError(
            f"--border {top} {left} {bottom} {right} (top, left, bottom, right) leaves nothing of an image of "
            f"{size[1]}x{size[0]} (width x height). Make it smaller; 0 0 0 0 is none."
        )
    return Window(top, left, height, width, *fit_size((height, width), config.image_scale))


def random_crop(
    image_CHW: Tensor, depth_HW: Tensor, crop_size: tuple[int, int], generator: Generator
) -> tuple[Tensor, Tensor]:
    """A part of the image and its depth map, of ``crop_size`` or less where the image is smaller."""
    height, width = min(crop_size[0], depth_HW.shape[0]), min(crop_size[1], depth_HW.shape[1])
    top = int(torch.randint(depth_HW.shape[0] - height + 1, (), generator=generator))
    left = int(torch.randint(depth_HW.shape[1] - width + 1, (), generator=generator))
    rows, columns = slice(top, top + height), slice(left, left + width)
    return image_CHW[:, rows, columns], depth_HW[rows, columns]


def change_colours(image_CHW: Tensor, generator: Generator, largest: float = 1.0) -> Tensor:
    """``x^gamma * brightness * colour`` on values in 0..largest, with one factor of colour per channel.

    Args:
        image_CHW: uint8, RGB.
        generator: Source of every random number.
        largest: The value of white. In the authors' release it is 255, where white itself becomes ``255^gamma``.

    Returns:
        uint8, rounded and cut to its range (the release cuts likewise, and goes on with the fractions).
    """
    gamma, brightness = uniform(generator, *GAMMA), uniform(generator, *BRIGHTNESS)
    colour_C11 = torch.empty(3, 1, 1).uniform_(*COLOUR, generator=generator)
    # The result depends on the old value alone, of which there are 256.
    curve_256 = torch.linspace(0.0, largest, 256).pow(gamma) * brightness
    table_C256 = (curve_256 * colour_C11[..., 0]).mul(255.0 / largest).round().clamp(0.0, 255.0).to(torch.uint8)
    return torch.stack([row_256[pixels_HW.int()] for row_256, pixels_HW in zip(table_C256, image_CHW, strict=True)])
