"""Reports of the similarity of layers and of the proposed layers: pages, plots and JSON.

Shapes: L layers of a model, J columns of a gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitsplit.analysis.cka import CONTRAST, Similarity
from vitsplit.analysis.layer_quality import Quality, advise
from vitsplit.analysis.layer_quality import to_json as qualities_to_json
from vitsplit.analysis.proposals import Proposal
from vitsplit.report import Page

if TYPE_CHECKING:
    from matplotlib.figure import Figure


COLORS = "magma"


def write_cka(found: Similarity, folder: Path, *, images: str, normed: bool) -> Path:
    """Writes ``cka.json``, ``cka.png`` and ``index.html`` into a folder; returns the page.

    Args:
        found: The similarities.
        folder: Output folder; created if missing.
        images: Description of the images, for the page.
        normed: Whether the final norm was applied to layers.
    """
    layers = "after the final norm" if normed else "without the final norm"
    page = Page("Similarity of layers", subtitle=f"Linear CKA on {found.images} images of {images}; layers {layers}")
    points = {name: found.split_point(name) for name in found.layers}
    page.figures(
        [(f"layer {point.first_late_layer}", f"start of the late block of {name}") for name, point in points.items()]
    )
    for name in found.layers:
        page.text(describe_split(found, name))
    page.plot(plot_cka(found), "cka")
    page.text(
        "A bright square along the diagonal is a block of similar layers. The line divides the layers into two blocks "
        "with the largest difference of CKA within and across blocks. Layers after it suggest K_t for the task head "
        "(K_t = L minus the first late layer), as in the paper. How many a task needs on this backbone is measured by "
        "vitsplit analyze layers --data.",
        soft=True,
    )
    for name in found.layers:
        page.heading(name)
        cka_LL = found.between(name, name)
        head = ["layer", *map(str, range(len(cka_LL)))]
        page.table(head, [[str(layer), *(f"{value:.2f}" for value in row)] for layer, row in enumerate(cka_LL)])
    return page.write(folder, {"cka": cka_to_json(found, normed=normed)})


def describe_split(found: Similarity, name: str) -> str:
    """Describes the division of the layers of a model into two blocks."""
    point, num_layers = found.split_point(name), found.layers[name]
    first = point.first_late_layer
    text = (
        f"{name}: layers 0 to {first - 1} and {first} to {num_layers - 1}. CKA is {point.within:.2f} within a block "
        f"and {point.across:.2f} across; {point.beyond_distance:.2f} of this is not due to the distance of layers."
    )
    if point.beyond_distance < CONTRAST:
        return f"{text} This is small: layers change evenly, without two blocks."
    return f"{text} These are the two blocks described in the paper (Fig. 3)."


def cka_to_json(found: Similarity, *, normed: bool) -> dict[str, Any]:
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
    """All pairs of models, as in Figure 15; for one model a panel as in Figure 3, with its division."""
    from matplotlib.figure import Figure

    names = list(found.layers)
    count = len(names)
    figure = Figure(figsize=(4.2 * count + 0.8, 4.2 * count), layout="constrained")
    axes = figure.subplots(count, count, squeeze=False)
    shown: Any = None
    for row, first in enumerate(names):
        for column, second in enumerate(names):
            ax = axes[row, column]
            shown = _draw_similarity(ax, found, first, second)
            ax.set(xlabel=f"layer of {second}", ylabel=f"layer of {first}")
            for axis, length in ((ax.xaxis, found.layers[second]), (ax.yaxis, found.layers[first])):
                axis.set_ticks(np.arange(0, length, 2 if length <= 24 else 4))
    figure.colorbar(shown, ax=axes, shrink=0.8, label="CKA")
    return figure


def write_layers(
    found: Similarity,
    proposals: Sequence[Proposal],
    folder: Path,
    *,
    images: str,
    task: str,
    gate_LJ: NDArray[np.float64] | None = None,
    qualities: Sequence[Quality] = (),
) -> Path:
    """Writes ``layers.json``, ``layers.png`` (``quality.png``) and ``index.html``; returns the page.

    Args:
        found: The similarity of one backbone's layers.
        proposals: The proposals.
        folder: Output folder; created if missing.
        images: Description of the images, for the page.
        task: The task, for the cost.
        gate_LJ: Weights of a trained gate.
        qualities: Short runs of the candidates, if there are labels.
    """
    (name,) = found.layers
    first = proposals[0]
    page = Page(f"Layers of {name}", subtitle=f"Linear CKA on {found.images} images of {images}; costs for {task}")
    page.figures(
        [
            (str(first.num_tuned_layers), "K_t, copied blocks"),
            (" ".join(map(str, first.prior_layers)), "prior layers"),
            (f"{first.cost.parameters / 1e6:.2f} M", "trainable parameters"),
            (f"{first.cost.gmacs:.1f} G", "multiply-adds per prediction"),
        ]
    )
    page.text(describe_split(found, name))
    page.plot(plot_layers(found, proposals, gate_LJ), "layers")
    page.heading("Proposals")
    page.table(*table(proposals))
    for proposal in proposals:
        page.text(f"{proposal.name}: {proposal.why}.")
        page.code(proposal.flags)
    if qualities:
        page.heading("Quality and cost of one more head")
        page.text(advise(qualities))
        page.plot(plot_quality(qualities), "quality")
        page.table(*quality_table(qualities))
        page.text(
            "Short runs with the same batches and the same number of steps. The loss is the mean over the last half of "
            "the steps, and the error that of its difference from the lowest one. Multiply-adds are those of one more "
            "head on a shared pass, per image of the crop size. `vitsplit train --layers auto` takes the lowest "
            "loss for equal time, whatever a further head costs within `--max-head-gmacs`.",
            soft=True,
        )
    else:
        page.text(
            "CKA measures the similarity of layers, not their quality for a task. With labels (`--data`), short runs "
            "are compared here, `vitsplit train --layers auto` chooses K_t by them, and `vitsplit analyze sweep` "
            "trains the candidates to the end.",
            soft=True,
        )
    return page.write(folder, {"layers": layers_to_json(found, proposals, gate_LJ, qualities)})


def table(proposals: Sequence[Proposal]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table of proposals."""
    cells = [
        [
            proposal.name,
            str(proposal.num_tuned_layers),
            " ".join(map(str, proposal.prior_layers)),
            f"{proposal.cost.parameters / 1e6:.2f}",
            f"{proposal.cost.gmacs:.1f}",
        ]
        for proposal in proposals
    ]
    return ["proposal", "K_t", "prior layers", "trainable, M", "GMACs"], cells


def quality_table(qualities: Sequence[Quality]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table of short runs."""
    cells = [
        [
            each.candidate.variant.label,
            f"{each.loss:.3f}",
            f"{each.behind:.3f}",
            f"{each.error:.3f}",
            f"{each.candidate.head_gmacs:.3g}",
            f"{each.candidate.part.step_seconds:.2f}",
        ]
        for each in qualities
    ]
    return ["", "loss", "above the lowest", "error", "head, GMACs", "seconds per step"], cells


def plot_quality(qualities: Sequence[Quality]) -> Figure:
    """Loss against the multiply-adds of one more head; K_t from 0 to L in the form of the recipe is a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axis = figure.subplots()
    form = {"tune_blocks", "prior_head", "fusion"}  # settings that differ from the recipe's form
    line = sorted(
        (each for each in qualities if not form & each.candidate.variant.settings.keys()),
        key=lambda each: each.candidate.head_gmacs,
    )
    axis.plot([each.candidate.head_gmacs for each in line], [each.loss for each in line], color="#3b6fb6", alpha=0.5)
    for each in qualities:
        cost = each.candidate.head_gmacs
        color = "#3b6fb6" if each in line else "#d1603d"
        axis.errorbar(cost, each.loss, yerr=each.error, fmt="o", color=color, capsize=3)
        axis.annotate(
            each.candidate.variant.label, (cost, each.loss), xytext=(5, 5), textcoords="offset points", fontsize=7
        )
    axis.margins(x=0.18, y=0.12)
    axis.grid(alpha=0.25)
    axis.set(xlabel="multiply-adds of one more head, G", ylabel="training loss")
    return figure


def layers_to_json(
    found: Similarity,
    proposals: Sequence[Proposal],
    gate_LJ: NDArray[np.float64] | None = None,
    qualities: Sequence[Quality] = (),
) -> dict[str, Any]:
    """The figures, JSON-ready."""
    (name,) = found.layers
    point = found.split_point(name)
    return {
        "backbone": name,
        "images": found.images,
        "split": vars(point) | {"contrast": point.contrast},
        "cka": found.cka_MM.round(4).tolist(),
        "gate": None if gate_LJ is None else gate_LJ.round(4).tolist(),
        "quality": qualities_to_json(qualities),
        "proposals": [
            {
                "name": each.name,
                "why": each.why,
                "num_tuned_layers": each.num_tuned_layers,
                "prior_layers": list(each.prior_layers),
                "flags": each.flags,
                "parameters": each.cost.parameters,
                "gmacs": round(each.cost.gmacs, 3),
            }
            for each in proposals
        ],
    }


def plot_layers(found: Similarity, proposals: Sequence[Proposal], gate_LJ: NDArray[np.float64] | None = None) -> Figure:
    """The similarities with their division, the layers of each proposal, and the weights of a gate."""
    from matplotlib.figure import Figure

    (name,) = found.layers
    num_layers = found.layers[name]
    panels = 2 if gate_LJ is None else 3
    figure = Figure(figsize=(4.6 * panels, 4.2), layout="constrained")
    axes = figure.subplots(1, panels)
    shown = _draw_similarity(axes[0], found, name, name)
    axes[0].set(xlabel="layer", ylabel="layer", title="CKA and its division into two blocks")
    figure.colorbar(shown, ax=axes[0], shrink=0.8, label="CKA")
    for row, proposal in enumerate(proposals):
        copied = range(num_layers - proposal.num_tuned_layers, num_layers)
        axes[1].barh(row, len(copied), left=copied.start - 0.5, height=0.7, color="#d1603d", alpha=0.35)
        axes[1].plot(proposal.prior_layers, [row] * len(proposal.prior_layers), "o", color="#3b6fb6")
    axes[1].set_yticks(range(len(proposals)), [proposal.name for proposal in proposals])
    axes[1].invert_yaxis()
    axes[1].set(xlabel="layer", xlim=(-0.6, num_layers - 0.4), title="copied (bars) and prior (dots) layers")
    if gate_LJ is not None:
        weights = axes[2].imshow(gate_LJ, cmap="viridis", origin="lower", aspect="auto", vmin=0)
        axes[2].set(xlabel="mixture", ylabel="layer", title="gate weights")
        figure.colorbar(weights, ax=axes[2], shrink=0.8, label="weight")
    return figure


def _draw_similarity(ax: Any, found: Similarity, first: str, second: str) -> Any:
    """The similarity of the layers of two models (rows: first), with the division if they are the same."""
    if first == second:
        edge = found.split_point(first).first_late_layer - 0.5
        ax.axhline(edge, color="white", linewidth=1)
        ax.axvline(edge, color="white", linewidth=1)
    return ax.imshow(found.between(first, second), vmin=0, vmax=1, cmap=COLORS, origin="lower")
