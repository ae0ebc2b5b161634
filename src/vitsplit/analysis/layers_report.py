"""Advice on layers as a page, a picture and JSON.

Shapes: L layers, J columns of a gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitsplit.analysis.cka import Similarity
from vitsplit.analysis.cka_report import COLOURS, describe_split
from vitsplit.analysis.proposals import Proposal
from vitsplit.report import Page, write_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_layers(
    found: Similarity,
    proposals: Sequence[Proposal],
    folder: Path,
    *,
    images: str,
    task: str,
    gate_LJ: NDArray[np.float64] | None = None,
) -> Path:
    """Writes ``layers.json``, ``layers.png`` and ``index.html``; returns the page.

    Args:
        found: The similarity of one backbone's layers.
        proposals: The first is the one that ``--layers auto`` takes.
        folder: Where to; it is made.
        images: What the images were, for the page.
        task: The task that costs are for.
        gate_LJ: Weights of a trained gate.
    """
    (name,) = found.layers
    picture = plot_layers(found, proposals, gate_LJ)
    write_files(folder, "layers", to_json(found, proposals, gate_LJ), picture)
    first = proposals[0]
    page = Page(
        f"Which layers of {name}", subtitle=f"Linear CKA on {found.images} images of {images}; costs for {task}"
    )
    page.figures(
        [
            (str(first.num_tuned_layers), "K_t: last blocks to copy"),
            (" ".join(map(str, first.prior_layers)), "prior layers to read"),
            (f"{first.cost.parameters / 1e6:.2f} M", "parameters that train"),
            (f"{first.cost.gmacs:.1f} G", "multiply-adds of a prediction"),
        ]
    )
    page.text(describe_split(found, name))
    page.plot(picture)
    page.heading("Proposals")
    page.table(*table(proposals))
    for proposal in proposals:
        page.text(f"{proposal.name}: {proposal.why}.")
        page.code(proposal.flags)
    page.text(
        "CKA says which layers see images alike, not which serve a task best: `vitsplit analyze sweep` trains the "
        "candidates. `vitsplit train --layers auto` takes the first proposal, from its own training images.",
        soft=True,
    )
    return page.write(folder / "index.html")


def table(proposals: Sequence[Proposal]) -> tuple[list[str], list[list[str]]]:
    """Head and cells of the proposals' table."""
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
    return ["proposal", "K_t", "prior layers", "trained, M", "GMACs"], cells


def to_json(
    found: Similarity, proposals: Sequence[Proposal], gate_LJ: NDArray[np.float64] | None = None
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
    """The similarities with their division, what each proposal copies and reads, and a gate's weights."""
    from matplotlib.figure import Figure

    (name,) = found.layers
    num_layers = found.layers[name]
    panels = 2 if gate_LJ is None else 3
    figure = Figure(figsize=(4.6 * panels, 4.2), layout="constrained")
    axes = figure.subplots(1, panels)
    shown = axes[0].imshow(found.cka_MM, vmin=0, vmax=1, cmap=COLOURS, origin="lower")
    edge = found.split_point(name).first_late_layer - 0.5
    axes[0].axhline(edge, color="white", linewidth=1)
    axes[0].axvline(edge, color="white", linewidth=1)
    axes[0].set(xlabel="layer", ylabel="layer", title="CKA, and the division")
    figure.colorbar(shown, ax=axes[0], shrink=0.8)
    for row, proposal in enumerate(proposals):
        copied = range(num_layers - proposal.num_tuned_layers, num_layers)
        axes[1].barh(row, len(copied), left=copied.start - 0.5, height=0.7, color="#d1603d", alpha=0.35)
        axes[1].plot(proposal.prior_layers, [row] * len(proposal.prior_layers), "o", color="#3b6fb6")
    axes[1].set_yticks(range(len(proposals)), [proposal.name for proposal in proposals])
    axes[1].invert_yaxis()
    axes[1].set(xlabel="layer", xlim=(-0.6, num_layers - 0.4), title="copied (bar) and read (dots)")
    if gate_LJ is not None:
        weights = axes[2].imshow(gate_LJ, cmap="viridis", origin="lower", aspect="auto", vmin=0)
        axes[2].set(xlabel="mixture", ylabel="layer", title="the gate's weights")
        figure.colorbar(weights, ax=axes[2], shrink=0.8)
    return figure
