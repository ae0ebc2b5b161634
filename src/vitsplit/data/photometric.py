"""Photometric distortion of training images, as mmseg: brightness, contrast, saturation and hue.

Shapes: C channels, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from vitsplit.data.crops import uniform

BRIGHTNESS = 32.0
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE_TURN = 0.1
"""18 steps of OpenCV's 8-bit hue, whose circle has 180: a tenth of a turn either way, as mmseg."""


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
    with gray instead of scaling S.

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
