"""Grids of labeled pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont

SCREEN = (3840, 2160)
"""Maximum width and height of a grid, and its target aspect ratio."""
SMALLEST_TEXT = 11
BACKGROUND, INK, LABEL = (17, 17, 19), (255, 255, 255), (0, 0, 0, 150)


def side_by_side(pictures: Mapping[str, Image.Image]) -> Image.Image:
    """Arranges pictures in a grid in row-major order, with their names in the top left corners.

    The number of columns maximizes the size of the pictures; the grid is scaled down to fit ``SCREEN``.

    Args:
        pictures: RGB pictures of one size by name.

    Example:
        >>> side_by_side({name: Image.new("RGB", (160, 90)) for name in ("video", "depth", "masks")}).size
        (320, 180)
    """
    width, height = next(iter(pictures.values())).size
    columns = max(range(1, len(pictures) + 1), key=lambda each: (_shrink(each, len(pictures), width, height), each))
    rows = math.ceil(len(pictures) / columns)
    scale = min(1.0, _shrink(columns, len(pictures), width, height))
    cell = (max(1, int(width * scale)), max(1, int(height * scale)))
    sheet = Image.new("RGB", (columns * cell[0], rows * cell[1]), BACKGROUND)
    pen = ImageDraw.Draw(sheet, "RGBA")
    font = ImageFont.load_default(max(SMALLEST_TEXT, cell[1] // 24))
    for index, (name, picture) in enumerate(pictures.items()):
        corner = (index % columns * cell[0], index // columns * cell[1])
        sheet.paste(picture if picture.size == cell else picture.resize(cell, Image.Resampling.BILINEAR), corner)
        _, top, right, bottom = pen.textbbox(corner, name, font=font)
        margin = (bottom - top) // 2
        pen.rectangle((*corner, right + 2 * margin, bottom + 2 * margin), fill=LABEL)
        pen.text((corner[0] + margin, corner[1] + margin), name, font=font, fill=INK)
    return sheet


def _shrink(columns: int, count: int, width: int, height: int) -> float:
    """Scale factor at which a grid fills the screen."""
    return min(SCREEN[0] / (columns * width), SCREEN[1] / (math.ceil(count / columns) * height))
