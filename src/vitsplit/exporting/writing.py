"""Exports heads: traces their graph, writes it in each format, and compares each with the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from vitsplit.atomic_files import json_text
from vitsplit.data.new_folder import new_folder
from vitsplit.errors import ConfigError
from vitsplit.exporting.card import CARD, README, graph_entry, make_card, readme
from vitsplit.exporting.formats import Format, FormatName, Precision, open_format, trace, versions
from vitsplit.exporting.graph import Deform, ExportGraph, Layout
from vitsplit.exporting.parity import check, compare, find_images, sizes_of, summary
from vitsplit.inference.predictor import Predictor

DeformChoice = Literal["auto", "native", "grid"]


@dataclass(frozen=True)
class ExportPlan:
    """What to export.

    Attributes:
        formats: The formats.
        precision: The precision of the graphs.
        size: Height and width of the input in pixels; None: any.
        deform: Form of the deformable convolutions; auto: the best for each runtime.
        layout: Layout of the input.
        images: Folder of images for the comparison with the model; None: generated scenes.
    """

    formats: tuple[FormatName, ...] = ("onnx",)
    precision: Precision = "fp32"
    size: tuple[int, int] | None = None
    deform: DeformChoice = "auto"
    layout: Layout = "nchw"
    images: Path | None = None


@dataclass(frozen=True)
class ExportResult:
    """An export.

    Attributes:
        folder: The folder with the graphs, ``card.json`` and ``README.md``.
        card: The contents of ``card.json``.
    """

    folder: Path
    card: Mapping[str, Any]


def export_graphs(
    predictor: Predictor,
    out: Path,
    plan: ExportPlan,
    *,
    weights: Mapping[str, str] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> ExportResult:
    """Writes the graphs of a predictor's heads into a new folder, which exists only if all of them are correct.

    Args:
        predictor: The heads, in float32 on the CPU. They are not changed.
        out: The folder; must be empty or missing.
        plan: What to export.
        weights: SHA-256 of the weights file of each head, for the card.
        say: Receives a line on each finished graph.

    Raises:
        ExportError: A head cannot be exported, a package is missing, or a graph differs from the model; the message
            has the output and the block in which the difference begins.
        DataError: The folder is not empty, or there are no images.
    """
    if not plan.formats:
        raise ConfigError("--format: no format was given. Give onnx, openvino or pt2.")
    formats = {name: open_format(name) for name in dict.fromkeys(plan.formats)}
    for name, each in formats.items():
        for flag, value, offered in (
            ("--precision", plan.precision, each.precisions),
            ("--deform", plan.deform, ("auto", *each.deforms)),
        ):
            if value not in offered:
                raise ConfigError(
                    f"{flag} {value}: --format {name} supports {', '.join(offered)}. Choose one of these, or export "
                    "the formats separately."
                )
    images = find_images(plan.images)
    with new_folder(out) as folder:
        card: dict[str, Any] = {}
        for name, each in formats.items():
            deform: Deform = each.deforms[0] if plan.deform == "auto" else plan.deform
            graph = ExportGraph(predictor, layout=plan.layout, deform=deform).eval()
            card = card or make_card(predictor, graph, plan.size, weights or {})
            card["graphs"][name] = _write(each, name, graph, predictor, folder, plan, images)
            say(f"{name}: {_describe(card['graphs'][name])}")
        (folder / CARD).write_text(json_text(card, indent=2) + "\n", encoding="utf-8")
        (folder / README).write_text(readme(card, formats), encoding="utf-8")
    return ExportResult(out, card)


def _write(
    each: Format,
    name: str,
    graph: ExportGraph,
    predictor: Predictor,
    folder: Path,
    plan: ExportPlan,
    images: Sequence[Tensor],
) -> dict[str, Any]:
    """Writes and checks one graph; returns its entry in the card."""
    before = set(folder.iterdir())
    traced = trace(graph, plan.size)
    steps = each.write(traced, folder, plan.precision)
    files = sorted(set(folder.iterdir()) - before)
    settings = each.settings(plan.precision)
    sizes = sizes_of(graph, plan.size, traced.smallest_side)
    records = compare(each.open(folder, graph.outputs, settings), predictor, graph, images, sizes)
    check(
        records,
        plan.precision,
        lambda: each.open(folder, graph.outputs, settings, steps),
        graph,
        images,
        f"--format {name}",
    )
    return graph_entry(
        folder,
        files,
        deform=graph.deform,
        precision=plan.precision,
        settings=settings,
        smallest_side=traced.smallest_side,
        versions=versions(sorted({"torch", *each.packages})),
        steps=steps,
        parity={
            "images": plan.images.name if plan.images else "generated scenes",
            "worst": summary(records),
            "runs": records,
        },
    )


def _describe(entry: Mapping[str, Any]) -> str:
    figures = "; ".join(
        f"{output} " + ", ".join(f"{name} {value:.3g}" for name, value in errors.items() if name != "largest")
        for output, errors in entry["parity"]["worst"].items()
    )
    return f"{', '.join(entry['files'])} in {entry['precision']}: {figures}"
