"""The CKA of layers as a picture, as figures, and as a page.

Shapes: L layers of a model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitsplit.analysis.cka import Similarity
from vitsplit.report import Page, write_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = "magma"
CONTRAST = 0.05
"""What the division must explain beyond distance (``SplitPoint.beyond_distance``) for two blocks to be spoken of."""


def write_cka(found: Similarity, folder: Path, *, images: str, normed: bool) -> Path:
    """Writes ``cka.json``, ``cka.png`` and ``index.html`` into a folder; returns the page.

    Args:
        found: The similarities.
        folder: Where to; it is made.
        images: What the images were, for the page.
        normed: Whether layers were compared after the final norm.
    """
    picture = plot_cka(found)
    write_files(folder, "cka", to_json(found, normed=normed), picture)
    layers = "after the final norm" if normed else "as they leave their blocks"
    page = Page(
        "How alike the layers are", subtitle=f"Linear CKA on {found.images} images of {images}; layers {layers}"
    )
    points = {name: found.split_point(name) for name in found.layers}
    page.figures(
        [
            (f"layer {point.first_late_layer}", f"where the late block of {name} begins")
            for name, point in points.items()
        ]
    )
    for name in found.layers:
        page.text(describe_split(found, name))
    page.plot(picture)
    page.text(
        "A bright square along the diagonal is a block of layers that see images alike. The line divides the layers "
        "where the two blocks are most alike inside compared with each other: what comes after it is what a task head "
        "would copy if it followed this picture alone (K_t = L minus the first late layer).",
        soft=True,
    )
    for name in found.layers:
        page.heading(name)
        cka_LL = found.between(name, name)
        head = ["layer", *map(str, range(len(cka_LL)))]
        page.table(head, [[str(layer), *(f"{value:.2f}" for value in row)] for layer, row in enumerate(cka_LL)])
    return page.write(folder / "index.html")


def describe_split(found: Similarity, name: str) -> str:
    """In words where a model's layers divide, and whether they do."""
    point, num_layers = found.split_point(name), found.layers[name]
    first = point.first_late_layer
    said = (
        f"{name}: layers 0 to {first - 1} and {first} to {num_layers - 1}. CKA is {point.within:.2f} within a block "
        f"and {point.across:.2f} across; {point.beyond_distance:.2f} of that is more than layers' distance explains."
    )
    if point.beyond_distance < CONTRAST:
        return f"{said} That is little: layers change evenly, and two blocks are not there."
    return f"{said} These are the two blocks that the paper speaks of (its Fig. 3)."


def to_json(found: Similarity, *, normed: bool) -> dict[str, Any]:
    """The figures, JSON-ready: ``cka`` by pairs of models, ``A | B``; ``split`` by model."""
    names = list(found.layers)
    return {
        "images": found.images,
        "normed": normed,
        "layers": dict(found.layers),
        "split": {
            name: vars(found.split_point(name)) | {"contrast": found.split_point(name).contrast} for name in names
        },
        "cka": {
            f"{first} | {second}": found.between(first, second).round(4).tolist()
            for index, first in enumerate(names)
            for second in names[index:]
        },
    }


def plot_cka(found: Similarity) -> Figure:
    """Every model against every other, as in Figure 15; of one by itself a panel of Figure 3, with its division."""
    from matplotlib.figure import Figure

    names = list(found.layers)
    count = len(names)
    figure = Figure(figsize=(4.2 * count + 0.8, 4.2 * count), layout="constrained")
    axes = figure.subplots(count, count, squeeze=False)
    shown: Any = None
    for row, first in enumerate(names):
        for column, second in enumerate(names):
            ax = axes[row, column]
            shown = ax.imshow(found.between(first, second), vmin=0, vmax=1, cmap=COLOURS, origin="lower")
            ax.set_xlabel(f"layer of {second}")
            ax.set_ylabel(f"layer of {first}")
            for axis, length in ((ax.xaxis, found.layers[second]), (ax.yaxis, found.layers[first])):
                axis.set_ticks(np.arange(0, length, 2 if length <= 24 else 4))
            if row == column:
                edge = found.split_point(first).first_late_layer - 0.5
                ax.axhline(edge, color="white", linewidth=1)
                ax.axvline(edge, color="white", linewidth=1)
    figure.colorbar(shown, ax=axes, shrink=0.8, label="CKA")
    return figure
