"""The maps of layers as pictures, as JSON, and as a page: a model is a row, a layer a column.

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
COLUMNS, CELL, TEXT, GAP = 14, 128, 12, 4
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
    """Writes ``features.json``, a PNG for every image and ``index.html``; returns the page.

    Args:
        models: Their maps of the same images.
        images: Name and pixels ``(H, W, 3)`` of each image.
        folder: Where to; it is made.
        show: The first channel, or the first three principal components as red, green and blue.
        normed: Whether layers were taken after the final norm.
    """
    folder.mkdir(parents=True, exist_ok=True)
    colored, shares = color_models(models, show)
    page = Page("What every layer sees", subtitle=_subtitle(models, show, normed))
    names = _file_names([name for name, _ in images])
    for index, (name, pixels) in enumerate(images):
        rows = [(model.name, model.labels, [maps[index] for maps in colored[row]]) for row, model in enumerate(models)]
        sheet = draw_sheet(pixels, rows)
        sheet.save(folder / f"{names[index]}.png")
        page.heading(name)
        page.pictures([(sheet, f"{names[index]}.png")])
    page.text(
        "`layer` is frozen, `tuned` a trained block in that layer's place; `prior` is the prior head's map and `fused` "
        "the map that the decoder reads. The paper finds early layers alike whatever a model was trained on, and late "
        "ones each with the patterns of its own task (Figures 4 and 13).",
        soft=True,
    )
    if show == "pca":
        page.heading("How much the three components show")
        longest = max(models, key=lambda model: len(model.labels))
        page.table(
            ["share of the variance, %", *map(str, range(len(longest.labels)))],
            [
                [model.name, *(f"{100 * sum(each):.0f}" for each in shares[row])]
                + [""] * (len(longest.labels) - len(model.labels))
                for row, model in enumerate(models)
            ],
        )
        page.text("In the order of the pictures; all images of a layer share one set of components.", soft=True)
    return page.write(folder, {"features": _facts(models, images, shares, show=show, normed=normed)})


def color_models(
    models: Sequence[ModelMaps], show: Show
) -> tuple[list[list[NDArray[np.uint8]]], list[list[tuple[float, ...]]]]:
    """Colors ``(B, h, w, 3)`` uint8 of every map of every model, and what its components explain.

    Signs of components are those of the layer before, and of the first model's map in the same place.
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
    """The image, and below it every model's maps, in lines of at most ``COLUMNS``; models alternate line by line.

    Args:
        pixels: The image.
        rows: Name, labels and maps ``(h, w, 3)`` of every model.
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
    """Names of files without suffixes; a number before those that come twice."""
    stems = [Path(name).stem for name in names]
    return [stem if stems.count(stem) == 1 else f"{index}-{stem}" for index, stem in enumerate(stems)]


def _subtitle(models: Sequence[ModelMaps], show: Show, normed: bool) -> str:
    how = "first channel" if show == "channel" else "first three principal components as red, green and blue"
    where = "after the final norm" if normed else "as they leave their blocks"
    return f"{', '.join(model.name for model in models)}: {how} of the patches' tokens, {where}"


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
