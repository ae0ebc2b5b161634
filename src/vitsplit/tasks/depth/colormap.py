"""Color-coded depth and scale bars.

Shapes: H W pixels, C channels.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vitsplit.tasks.depth.palettes import palette

Range = tuple[float, float]
"""Meters of the first and the last color."""

COLORMAP = "magma_r"
"""Near is bright, far is dark; perceptually uniform."""
INVALID = (120, 124, 130)
"""Color of invalid pixels."""
STEPS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
"""Limits of a range, times a power of ten; coarse, so that frames of a video rarely differ."""


def display_range(depth_HW: NDArray[np.float32]) -> Range:
    """A range of round numbers that covers the 1st to 99th percentile of the valid depths."""
    valid_P = depth_HW[depth_HW > 0]
    if not valid_P.size:
        return 0.0, 1.0
    near, far = np.percentile(valid_P, (1, 99)).tolist()
    low, high = _round_down(near), _round_up(far)
    return (low, high) if low < high else (low, 2 * low)


def apply_colormap(
    values_HW: NDArray[np.float32], valid_HW: NDArray[np.bool_], range_m: Range, name: str = COLORMAP
) -> Image.Image:
    """Applies a colormap, see ``palettes``; values out of range are clipped, invalid pixels are gray."""
    low, high = range_m
    picture_HWC = palette(name)[np.rint((values_HW - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)]
    picture_HWC[~valid_HW] = INVALID
    return Image.fromarray(picture_HWC)


def add_scale_bar(picture: Image.Image, range_m: Range, name: str = COLORMAP) -> Image.Image:
    """Adds a color bar with meters at the right of a picture."""
    height = max(picture.height, 96)
    text = max(10, min(height // 18, 48))
    font = ImageFont.load_default(text)
    ticks = axis_ticks(range_m)
    labels = [f"{tick:g} m" for tick in ticks]
    widest = max(math.ceil(font.getlength(label)) for label in labels)
    bar, gap = max(8, text), max(4, text // 2)
    out = Image.new("RGB", (picture.width + gap + bar + gap + widest + gap, height), "white")
    out.paste(picture, (0, 0))
    top, bottom, left = text, height - text, picture.width + gap
    low, high = range_m
    column_H = np.linspace(0, 255, bottom - top).round().astype(np.uint8)
    out.paste(Image.fromarray(np.repeat(palette(name)[column_H][:, None], bar, axis=1)), (left, top))
    draw = ImageDraw.Draw(out)
    draw.rectangle((left, top, left + bar - 1, bottom - 1), outline=(96, 100, 108))
    for tick, label in zip(ticks, labels, strict=True):
        y = top + (bottom - 1 - top) * (tick - low) / (high - low)
        draw.line((left + bar, y, left + bar + gap // 2, y), fill=(96, 100, 108))
        draw.text((left + bar + gap, y), label, fill=(28, 32, 36), font=font, anchor="lm")
    return out


def axis_ticks(range_m: Range) -> list[float]:
    """Three to seven round numbers in a range (multiples of 1, 2 or 5 times a power of ten)."""
    low, high = range_m
    power = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = max(factor * power for factor in (1, 2, 5) if factor * power <= (high - low) / 3 * (1 + 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 10) for k in range(first, last + 1)]


def _round_down(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return max(step * power for step in STEPS if step * power <= value * (1 + 1e-9))


def _round_up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return min(step * power for step in STEPS if step * power >= value * (1 - 1e-9))
