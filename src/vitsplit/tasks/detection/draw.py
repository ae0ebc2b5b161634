"""Objects drawn on an image.

Shapes: H W pixels, N objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

RGB = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
OPACITY = 0.45
SMALLEST_TEXT = 11


def draw_objects(
    image_HWC: NDArray[np.uint8],
    boxes_N4: NDArray[np.float32],
    captions: Sequence[str],
    colors: Sequence[RGB],
    masks: Iterable[NDArray[np.bool_]] | None = None,
) -> Image.Image:
    """Draws masks, boxes and captions; lines and letters grow with the image.

    Args:
        image_HWC: uint8.
        boxes_N4: (x1, y1, x2, y2) in pixels.
        captions: A line per object.
        colors: A color per object.
        masks: (H, W) bool per object, or None.

    Returns:
        A picture of the image's size.
    """
    canvas_HWC = image_HWC.copy()
    for mask_HW, color in zip(masks or (), colors, strict=masks is not None):
        tinted = (1 - OPACITY) * canvas_HWC[mask_HW] + OPACITY * np.array(color, dtype=np.float32)
        canvas_HWC[mask_HW] = tinted.round().astype(np.uint8)
    picture = Image.fromarray(canvas_HWC)
    pen = ImageDraw.Draw(picture)
    side = (picture.width * picture.height) ** 0.5
    line, font = max(1, round(side / 350)), ImageFont.load_default(max(SMALLEST_TEXT, round(side / 50)))
    for box, color in zip(boxes_N4.tolist(), colors, strict=True):
        x1, y1, x2, y2 = (round(value) for value in box)
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=color, width=line)
    sizes = [_text_size(pen, caption, font) for caption in captions]
    corners = _place(sizes, boxes_N4, picture.size)
    # The first object has the highest score: its caption is drawn last, on top of the others.
    for text_size, corner, caption, color in reversed([*zip(sizes, corners, captions, colors, strict=True)]):
        _write(pen, corner, text_size, caption, color, font)
    return picture


def _text_size(pen: ImageDraw.ImageDraw, caption: str, font: Font) -> tuple[int, int]:
    """Width and height of a caption with its margin."""
    left, top, right, bottom = pen.textbbox((0, 0), caption, font=font)
    edge = _margin(bottom - top)
    return int(right - left) + 2 * edge, int(bottom - top) + 2 * edge


def _margin(height: float) -> int:
    return max(1, round(height / 5))


def _place(
    sizes: Sequence[tuple[int, int]], boxes_N4: NDArray[np.float32], image_size: tuple[int, int]
) -> list[tuple[int, int]]:
    """Top left corners of captions: above the box, or inside or below it if another caption or the border is there."""
    placed: list[tuple[int, int, int, int]] = []
    for (width, height), box in zip(sizes, boxes_N4.tolist(), strict=True):
        x1, y1, _, y2 = (round(value) for value in box)
        x = max(0, min(x1, image_size[0] - width))
        inside = max(0, min(y1, image_size[1] - height))
        rows = [y for y in (y1 - height, y1, y2 - height, y2) if 0 <= y <= image_size[1] - height] or [inside]
        free = [y for y in rows if not any(_overlap((x, y, x + width, y + height), other) for other in placed)]
        y = (free or rows)[0]
        placed.append((x, y, x + width, y + height))
    return [(x, y) for x, y, _, _ in placed]


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _write(
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    size: tuple[int, int],
    caption: str,
    color: RGB,
    font: Font,
) -> None:
    """Writes a caption on a rectangle of its color."""
    (x, y), (width, height) = corner, size
    left, top, _, bottom = pen.textbbox((0, 0), caption, font=font)
    edge = _margin(bottom - top)
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
    is_bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
    pen.text((x + edge - left, y + edge - top), caption, fill=(0, 0, 0) if is_bright else (255, 255, 255), font=font)
