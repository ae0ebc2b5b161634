"""The paper's augmentation (Section 4.1): scale, crop with a limit on one class, flip, photometric distortion, padding.

Every image is uint8 and every random number is drawn from the generator that is passed in.

Shapes: C channels, H W pixels, K label values.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vitsplit.data.classes import IGNORE
from vitsplit.data.extents import Extent
from vitsplit.tasks.segmentation.config import SegmentationConfig

CROP_TRIES = 10
BRIGHTNESS = 32.0
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE_TURN = 0.1
"""18 steps of OpenCV's 8-bit hue, whose circle has 180: a tenth of a turn either way, as mmseg."""


class Window(NamedTuple):
    """A part of an image, in pixels, and the size that it is resized to."""

    top: int
    left: int
    height: int
    width: int
    out_height: int
    out_width: int


def augment(
    image_CHW: Tensor, mask_HW: Tensor, config: SegmentationConfig, generator: Generator
) -> tuple[Tensor, Tensor, Extent]:
    """Makes one training crop.

    As in mmseg: resize by a random factor, crop, flip, distort the colours, pad. Here the crop is taken before it is
    resized, so that no pixel is computed and then thrown away; its edges fall on whole pixels of the file.

    Args:
        image_CHW: uint8, RGB.
        mask_HW: uint8, 255 is ignored.
        config: Crop size, scales, probabilities.
        generator: Source of every random number.

    Returns:
        ``image_CHW`` and ``mask_HW`` of ``config.crop_size``; a smaller image is padded below and at the right, with
        zeros and with 255. The third is the size before padding.
    """
    size = random_size(mask_HW.shape, config, generator)
    window = random_window(mask_HW, size, config, generator)
    image_CHW, mask_HW = cut(image_CHW, mask_HW, window)
    if uniform(generator) < config.flip:
        image_CHW, mask_HW = F.horizontal_flip(image_CHW), F.horizontal_flip(mask_HW)
    if config.photometric:
        image_CHW = distort(image_CHW, generator)
    padding = [0, 0, config.crop_size[1] - window.out_width, config.crop_size[0] - window.out_height]
    mask_HW = F.pad(mask_HW[None], padding, fill=IGNORE)[0]
    return F.pad(image_CHW, padding).contiguous(), mask_HW.contiguous(), (window.out_height, window.out_width)


def fit_size(size: tuple[int, ...], image_scale: tuple[int, int] | None) -> tuple[int, int]:
    """The largest size of the same shape that fits in ``image_scale``, as mmseg's ``keep_ratio``.

    Args:
        size: Height and width.
        image_scale: Longest and shortest side, in either order; None: the size as it is.

    Returns:
        Height and width: neither the longer side exceeds the longest, nor the shorter the shortest.

    Example:
        >>> fit_size((480, 640), (2048, 512))
        (512, 683)
    """
    height, width = size
    if image_scale is None:
        return height, width
    scale = min(max(image_scale) / max(size), min(image_scale) / min(size))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def random_size(size: tuple[int, ...], config: SegmentationConfig, generator: Generator) -> tuple[int, int]:
    """Draws the size to which the whole image would be resized: ``image_scale`` times a factor in ``scale_range``."""
    factor = uniform(generator, *config.scale_range)
    base = config.image_scale or (max(size), min(size))
    return fit_size(size, (max(1, int(base[0] * factor)), max(1, int(base[1] * factor))))


def random_window(mask_HW: Tensor, size: tuple[int, int], config: SegmentationConfig, generator: Generator) -> Window:
    """Draws a crop of the image resized to ``size``, and again while one class covers too much of it.

    As in mmseg a crop is refused if one class has ``max_class_ratio`` of its labelled pixels or more, or none is
    labelled. The tenth crop is taken as it is.

    Returns:
        The crop as a window of the original.
    """
    height, width = mask_HW.shape
    crop_height, crop_width = min(config.crop_size[0], size[0]), min(config.crop_size[1], size[1])
    spare_height, spare_width = size[0] - crop_height, size[1] - crop_width
    tries = CROP_TRIES if config.max_class_ratio < 1.0 and spare_height + spare_width > 0 else 1
    for attempt in range(tries):
        y, x = _integer(generator, spare_height + 1), _integer(generator, spare_width + 1)
        top, bottom = _span(y, crop_height, height / size[0], height)
        left, right = _span(x, crop_width, width / size[1], width)
        window = Window(top, left, bottom - top, right - left, crop_height, crop_width)
        if attempt == tries - 1 or _is_varied(mask_HW, window, config.max_class_ratio):
            break
    return window


def cut(image_CHW: Tensor, mask_HW: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """Cuts a window out of an image and its mask and resizes it: bilinear with antialiasing, and nearest."""
    return cut_image(image_CHW, window), cut_label(mask_HW, window)


def cut_image(image_CHW: Tensor, window: Window) -> Tensor:
    """Cuts a window out of an image and resizes it: bilinear with antialiasing."""
    top, left, height, width, out_height, out_width = window
    image_CHW = image_CHW[:, top : top + height, left : left + width]
    if (height, width) == (out_height, out_width):
        return image_CHW
    # Channels last: torchvision then resizes 8-bit images with vector instructions.
    image_CHW = image_CHW[None].contiguous(memory_format=torch.channels_last)[0]
    size = [out_height, out_width]
    return F.resize(image_CHW, size, interpolation=InterpolationMode.BILINEAR, antialias=True)


def cut_label(label_HW: Tensor, window: Window) -> Tensor:
    """Cuts a window out of a value per pixel (class, depth) and resizes it: nearest."""
    top, left, height, width, out_height, out_width = window
    label_HW = label_HW[top : top + height, left : left + width]
    if (height, width) == (out_height, out_width):
        return label_HW
    return F.resize(label_HW[None], [out_height, out_width], interpolation=InterpolationMode.NEAREST_EXACT)[0]


def distort(image_CHW: Tensor, generator: Generator) -> Tensor:
    """Changes brightness, contrast, saturation and hue, each with probability one half, as mmseg.

    Contrast comes before or after saturation and hue, with equal probability.

    Args:
        image_CHW: uint8, RGB.
        generator: Source of the random numbers.

    Returns:
        uint8, of the same shape.
    """
    brightness, contrast, contrast_first, saturation, hue = (uniform(generator) < 0.5 for _ in range(5))
    if not (brightness or contrast or saturation or hue):
        return image_CHW
    pixels_CHW = image_CHW.to(torch.float32, memory_format=torch.contiguous_format)
    contrast_factor = uniform(generator, *CONTRAST) if contrast else 1.0
    if brightness:
        pixels_CHW = pixels_CHW.add_(uniform(generator, -BRIGHTNESS, BRIGHTNESS)).clamp_(0.0, 255.0)
    if contrast and contrast_first:
        pixels_CHW = pixels_CHW.mul_(contrast_factor).clamp_(0.0, 255.0)
    if saturation or hue:
        factor = uniform(generator, *SATURATION) if saturation else 1.0
        turn = uniform(generator, -HUE_TURN, HUE_TURN) if hue else 0.0
        pixels_CHW = adjust_hue_saturation(pixels_CHW, turn, factor)
    if contrast and not contrast_first:
        pixels_CHW = pixels_CHW.mul_(contrast_factor).clamp_(0.0, 255.0)
    return pixels_CHW.round_().to(torch.uint8)


def adjust_hue_saturation(image_CHW: Tensor, turn: float, factor: float) -> Tensor:
    """Turns the hue and scales the saturation in HSV, both in one go.

    Written out because torchvision's ``adjust_hue`` takes several times as long, and its ``adjust_saturation`` blends
    with grey instead of scaling S.

    Args:
        image_CHW: float32, RGB, of any range from zero.
        turn: Added to the hue, in turns.
        factor: Multiplies the saturation, which stays at most 1.

    Returns:
        float32, of the same shape and range.
    """
    red_HW, green_HW, blue_HW = image_CHW
    value_HW = torch.maximum(torch.maximum(red_HW, green_HW), blue_HW)
    chroma_HW = value_HW - torch.minimum(torch.minimum(red_HW, green_HW), blue_HW)
    inverse_HW = chroma_HW.clamp_min(1e-6).reciprocal_()
    hue_HW = torch.where(  # in sixths of a turn
        value_HW == red_HW,
        (green_HW - blue_HW) * inverse_HW,
        torch.where(
            value_HW == green_HW,
            (blue_HW - red_HW) * inverse_HW + 2.0,
            (red_HW - green_HW) * inverse_HW + 4.0,
        ),
    ).add_(6.0 * turn)
    chroma_HW = torch.minimum(chroma_HW * factor, value_HW)
    out_CHW = torch.empty_like(image_CHW)
    # A channel lacks the whole chroma within one sixth of a turn of its opposite hue, and none beyond two sixths.
    for channel, opposite in enumerate((3.0, 5.0, 1.0)):
        away_HW = hue_HW - (opposite - 3.0)
        away_HW.sub_(torch.floor(away_HW / 6.0).mul_(6.0)).sub_(3.0).abs_()
        lack_HW = away_HW.neg_().add_(2.0).clamp_(0.0, 1.0).mul_(chroma_HW)
        torch.sub(value_HW, lack_HW, out=out_CHW[channel])
    return out_CHW


def _span(start: int, length: int, scale: float, limit: int) -> tuple[int, int]:
    """A stretch of the resized side as whole pixels of the original side: at least one, inside ``limit``."""
    low = min(round(start * scale), limit - 1)
    return low, min(max(round((start + length) * scale), low + 1), limit)


def _is_varied(mask_HW: Tensor, window: Window, max_class_ratio: float) -> bool:
    # A window that will be made smaller is counted at about its final size.
    step = max(1, window.height // window.out_height)
    part = mask_HW[window.top : window.top + window.height : step, window.left : window.left + window.width : step]
    counts_K = torch.bincount(part.flatten(), minlength=IGNORE + 1)[:IGNORE]
    return float(counts_K.max()) < max_class_ratio * float(counts_K.sum())


def uniform(generator: Generator, low: float = 0.0, high: float = 1.0) -> float:
    """Draws a number from ``low`` to ``high``."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def _integer(generator: Generator, below: int) -> int:
    return int(torch.randint(below, (), generator=generator))
