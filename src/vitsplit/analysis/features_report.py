"""Reports of feature maps: images, JSON, and a page with a row per model and a column per layer.

Shapes: B images, C channels, h w patch grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vitsplit.analysis.features import ModelMaps, first_channel, principal_components, rescale_percentiles
from vitsplit.report import Page

Show = Literal["channel", "pca"]
COLUMNS, CELL, TEXT, GAP = 7, 144, 12, 4  # as wide as the page, so that labels are not scaled down
BACKGROUND, INK, SOFT = (255, 255, 255), (28, 32, 36), (96, 100, 108)
COLOR_MAP = "viridis"


def write_features(
    models: Sequence[ModelMaps],
    images: Sequence[tuple[str, NDArray[np.uint8]]],
    folder: Path,
    *,
    show: Show,
    normed: bool,
) -> Path:
    """Writes ``features.json``, a PNG per image and ``index.html``; returns the page.

    Args:
        models: Maps of the models on the same images.
        images: Name and pixels ``(H, W, 3)`` of each image.
        folder: Output folder; created if missing.
        show: The first channel, or the first three principal components as red, green and blue.
        normed: Whether the final norm was applied to layers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    colored, shares = color_models(models, show)
    page = Page("Feature maps of all layers", subtitle=_subtitle(models, show, normed))
    names = _file_names([name for name, _ in images])
    for index, (name, pixels) in enumerate(images):
        rows = [(model.name, model.labels, [maps[index] for maps in colored[row]]) for row, model in enumerate(models)]
        sheet = draw_sheet(pixels, rows)
        sheet.save(folder / f"{names[index]}.png")
        page.heading(name)
        page.pictures([(sheet, f"{names[index]}.png")])
    page.text(
        "`layer`: frozen layer; `tuned`: trained block replacing that layer; `prior`: map of the prior head; `fused`: "
        "input of the decoder. Colors of a map range from its 1st to its 99th percentile over all images. In "
        "the paper, early layers are similar for all models, and late layers are specific to the training task "
        "(Figures 4 and 13).",
        soft=True,
    )
    if show == "pca":
        page.heading("Explained variance of the three components")
        longest = max(models, key=lambda model: len(model.labels))
        page.table(
            ["explained variance, %", *map(str, range(len(longest.labels)))],
            [
                [model.name, *(f"{100 * sum(each):.0f}" for each in shares[row])]
                + [""] * (len(longest.labels) - len(model.labels))
                for row, model in enumerate(models)
            ],
        )
        page.text("In the order of the images; components are computed per layer over all images.", soft=True)
    return page.write(folder, {"features": _facts(models, images, shares, show=show, normed=normed)})


def color_models(
    models: Sequence[ModelMaps], show: Show
) -> tuple[list[list[NDArray[np.uint8]]], list[list[tuple[float, ...]]]]:
    """Colors ``(B, h, w, 3)`` uint8 of all maps of all models, and the variance explained by their components.

    Signs of components are aligned with the previous layer, and with the corresponding map of the first model.
    """
    from matplotlib import colormaps

    colored: list[list[NDArray[np.uint8]]] = []
    explained: list[list[tuple[float, ...]]] = []
    first: dict[int, Tensor] = {}
    for row, model in enumerate(models):
        colors: list[NDArray[np.uint8]] = []
        shares: list[tuple[float, ...]] = []
        before: Tensor | None = None
        for place, map_BDhw in enumerate(model.maps):
            if show == "channel":
                value_Bhw = rescale_percentiles(first_channel(map_BDhw)[..., None])[..., 0]
                colors.append((colormaps[COLOR_MAP](value_Bhw.numpy())[..., :3] * 255).round().astype(np.uint8))
                shares.append(())
                continue
            before, share = principal_components(map_BDhw, first.get(place, before))
            if row == 0:
                first[place] = before
            colors.append((rescale_percentiles(before).numpy() * 255).round().astype(np.uint8))
            shares.append(share)
        colored.append(colors)
        explained.append(shares)
    return colored, explained


def draw_sheet(
    pixels: NDArray[np.uint8], rows: Sequence[tuple[str, Sequence[str], Sequence[NDArray[np.uint8]]]]
) -> Image.Image:
    """The image, and below it the maps of all models in lines of at most ``COLUMNS``, alternating by model.

    Args:
        pixels: The image.
        rows: Name, labels and maps ``(h, w, 3)`` of each model.
    """
    height, width = pixels.shape[:2]
    cell = (CELL, max(1, round(CELL * height / width)))
    most = max(len(labels) for _, labels, _ in rows)
    columns = min(COLUMNS, most)
    line = cell[1] + 2 * (TEXT + 2 * GAP)
    lines = [(row, begin) for begin in range(0, most, columns) for row in rows if begin < len(row[1])]
    top = 2 * cell[1] + GAP
    size = (columns * (cell[0] + GAP) + GAP, top + len(lines) * line + GAP)
    sheet = Image.new("RGB", size, BACKGROUND)
    sheet.paste(Image.fromarray(pixels).resize((2 * cell[0], 2 * cell[1]), Image.Resampling.BILINEAR), (GAP, GAP))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    for number, ((name, labels, maps), begin) in enumerate(lines):
        y = top + number * line + GAP
        pen.text((GAP, y), name, font=font, fill=INK)
        y += TEXT + GAP
        for column, place in enumerate(range(begin, min(begin + columns, len(labels)))):
            x = GAP + column * (cell[0] + GAP)
            sheet.paste(Image.fromarray(maps[place]).resize(cell, Image.Resampling.NEAREST), (x, y))
            pen.text((x, y + cell[1]), labels[place], font=font, fill=SOFT)
    return sheet


def _file_names(names: Sequence[str]) -> list[str]:
    """File names without suffix; duplicates are prefixed with a number."""
    stems = [Path(name).stem for name in names]
    return [stem if stems.count(stem) == 1 else f"{index}-{stem}" for index, stem in enumerate(stems)]


def _subtitle(models: Sequence[ModelMaps], show: Show, normed: bool) -> str:
    values = "First channel" if show == "channel" else "First three principal components as red, green and blue"
    norm = "after the final norm" if normed else "without the final norm"
    return f"{values} of the patch tokens, {norm}. Models: {'; '.join(model.name for model in models)}."


def _facts(
    models: Sequence[ModelMaps],
    images: Sequence[tuple[str, NDArray[np.uint8]]],
    shares: Sequence[Sequence[tuple[float, ...]]],
    *,
    show: Show,
    normed: bool,
) -> dict[str, object]:
    return {
        "images": [name for name, _ in images],
        "show": show,
        "normed": normed,
        "models": [
            {
                "name": model.name,
                "maps": [
                    {
                        "label": label,
                        "channels": map_BDhw.shape[1],
                        "grid": list(map_BDhw.shape[2:]),
                        "explained": [round(each, 4) for each in share],
                    }
                    for label, map_BDhw, share in zip(model.labels, model.maps, shares[row], strict=True)
                ],
            }
            for row, model in enumerate(models)
        ],
    }
