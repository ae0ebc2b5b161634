"""Objects drawn on an image.

Shapes: H W pixels, N objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

RGB = tuple[int, int, int]
OPACITY = 0.45
SMALLEST_TEXT = 11


def draw_objects(
    image_HWC: NDArray[np.uint8],
    boxes_N4: NDArray[np.float32],
    captions: Sequence[str],
    colours: Sequence[RGB],
    masks: Iterable[NDArray[np.bool_]] | None = None,
) -> Image.Image:
    """Draws masks, boxes and captions; lines and letters grow with the image.

    Args:
        image_HWC: uint8.
        boxes_N4: (x1, y1, x2, y2) in pixels.
        captions: A line per object.
        colours: A colour per object.
        masks: (H, W) bool per object, or None.

    Returns:
        A picture of the image's size.
    """
    canvas_HWC = image_HWC.copy()
    for mask_HW, colour in zip(masks or (), colours, strict=masks is not None):
        tinted = (1 - OPACITY) * canvas_HWC[mask_HW] + OPACITY * np.array(colour, dtype=np.float32)
        canvas_HWC[mask_HW] = tinted.round().astype(np.uint8)
    picture = Image.fromarray(canvas_HWC)
    pen = ImageDraw.Draw(picture)
    side = (picture.width * picture.height) ** 0.5
    line, font = max(1, round(side / 350)), ImageFont.load_default(max(SMALLEST_TEXT, round(side / 50)))
    for box, colour in zip(boxes_N4.tolist(), colours, strict=True):
        x1, y1, x2, y2 = (round(value) for value in box)
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=line)
    # The first object is the surest: its caption comes last, on top of the others.
    for box, caption, colour in reversed([*zip(boxes_N4.tolist(), captions, colours, strict=True)]):
        _write(pen, picture.size, (round(box[0]), round(box[1])), caption, colour, font)
    return picture


def _write(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    corner: tuple[int, int],
    caption: str,
    colour: RGB,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """A caption on its colour, above the box's corner, or inside the box where the image ends above it."""
    left, top, right, bottom = pen.textbbox((0, 0), caption, font=font)
    edge = max(1, round((bottom - top) / 5))
    width, height = right - left + 2 * edge, bottom - top + 2 * edge
    x = int(max(0, min(corner[0], size[0] - width)))
    y = int(corner[1] - height if corner[1] >= height else max(0, min(corner[1], size[1] - height)))
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    is_bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    pen.text((x + edge - left, y + edge - top), caption, fill=(0, 0, 0) if is_bright else (255, 255, 255), font=font)
