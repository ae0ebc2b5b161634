"""Exports heads: traces their graph, writes it in each format, and compares each with the model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from vitsplit.atomic_files import json_text
from vitsplit.data.new_folder import new_folder
from vitsplit.errors import ConfigError
from vitsplit.exporting.card import README, graph_entry, make_card, readme
from vitsplit.exporting.formats import (
    Format,
    FormatName,
    Precision,
    Traced,
    Written,
    open_format,
    open_graphs,
    trace,
    versions,
)
from vitsplit.exporting.graph import Deform, ExportGraph, Layout, split_graph
from vitsplit.exporting.parity import (
    LIMITS,
    Reference,
    check,
    compare,
    described,
    distance,
    find_images,
    references,
    sizes_of,
    summary,
)
from vitsplit.exporting.scores import (
    Labeled,
    check_comparable,
    compare_scores,
    is_close,
    score,
    scores_differ,
)
from vitsplit.inference.exported import load_export
from vitsplit.inference.predictor import Predictor, load_predictor
from vitsplit.runtime.card import CARD
from vitsplit.runtime.runtime import WITHOUT_PREDICTIONS
from vitsplit.tasks.base import GraphOutput

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
        data: Labeled images, by head, on which the graphs are evaluated too.
        split: Whether backbone and heads are graphs of their own.
    """

    formats: tuple[FormatName, ...] = ("onnx",)
    precision: Precision = "fp32"
    size: tuple[int, int] | None = None
    deform: DeformChoice = "auto"
    layout: Layout = "nchw"
    images: Path | None = None
    data: Mapping[str, Labeled] = field(default_factory=dict)
    split: bool = False


@dataclass(frozen=True)
class ExportResult:
    """An export.

    Attributes:
        folder: The folder with the graphs, ``card.json`` and ``README.md``.
        card: The contents of ``card.json``.

    Example:
        >>> vitsplit.export("runs/first", out="exported").card["heads"]  # doctest: +SKIP
    """

    folder: Path
    card: Mapping[str, Any]


def load_float32(runs: Sequence[str | Path] | Mapping[str, str | Path], **options: Any) -> Predictor:
    """Loads heads as graphs are made of them and compared with them: in float32 on the CPU.

    Args:
        runs: See ``load_predictor``.
        options: Other options of ``load_predictor``.

    Raises:
        VitsplitError: As ``load_predictor``.
    """
    return load_predictor(runs, device="cpu", precision="fp32", **options)


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
    _check_data(plan, predictor, formats)
    images = find_images(plan.images)
    with new_folder(out) as folder:
        expected = {name: score(predictor[name], labeled) for name, labeled in plan.data.items()}
        if plan.precision != "fp32":
            check_comparable(expected)
        card: dict[str, Any] = {}
        operators: dict[Deform, _Operators] = {}
        for name, each in formats.items():
            deform: Deform = each.deforms[0] if plan.deform == "auto" else plan.deform
            if deform not in operators:
                operators[deform] = _trace(predictor, plan, deform, images)
            card = card or make_card(predictor, operators[deform].graph, plan.size, weights or {})
            # Below fp32, scores decide where there are any. If those of int8 are too far off, blocks are kept in
            # float32 for the outputs, and the scores of that graph decide.
            judged: Sequence[Collection[str]] = [() if plan.precision == "fp32" else plan.data]
            if plan.precision == "int8" and plan.data:
                judged = [plan.data, ()]
            for by_scores in judged:
                entry = _write(each, name, operators[deform], folder, plan, by_scores)
                card["graphs"][name] = entry
                say(f"{name}: {_describe(entry)}")
                _write_card(card, folder)
                if name == "pt2" or not plan.data:
                    break
                scores = entry["scores"] = compare_scores(expected, load_export([folder], name), plan.data)
                for head, found in scores.items():
                    say(f"{name}: {head}: {found['measure']} {found['graph']:.4f}, of the model {found['model']:.4f}")
                if all(is_close(found) for found in scores.values()):
                    break
            else:
                raise scores_differ(scores, f"--format {name}")
        _write_card(card, folder)
        (folder / README).write_text(readme(card, formats), encoding="utf-8")
    return ExportResult(out, card)


def _check_data(plan: ExportPlan, predictor: Predictor, formats: Mapping[FormatName, Format]) -> None:
    """Refuses data of heads that have no predictions or do not exist, and data without a format that is evaluated."""
    known = [name for name, head in predictor.items() if head.task.name not in WITHOUT_PREDICTIONS]
    for name in plan.data:
        if name not in known:
            raise ConfigError(
                f"--data {name}=...: no head of this name predicts from a graph. Heads: {', '.join(known)}."
            )
    if plan.data and plan.size is not None:
        raise ConfigError(
            "--data: a graph of one size cannot be evaluated on images of others. Omit --size, or --data."
        )
    if plan.data and not formats.keys() - {"pt2"}:
        raise ConfigError("--data: a graph of PyTorch is not evaluated. Add --format onnx or openvino, or omit --data.")


def _write_card(card: Mapping[str, Any], folder: Path) -> None:
    (folder / CARD).write_text(json_text(card, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Operators:
    """Graphs as operators, and what the model computes; formats with the same deformable convolutions share them.

    Attributes:
        graph: The whole graph.
        traced: The graphs to write: the whole, or its parts.
        images: The images of the comparison.
        expected: The model's outputs for them.
        outputs: The outputs of each head, see ``described``.
        smallest_side: Smallest height and width in pixels that all graphs accept.
    """

    graph: ExportGraph
    traced: Sequence[Traced]
    images: Sequence[Tensor]
    expected: Sequence[Reference]
    outputs: Mapping[str, Mapping[str, GraphOutput]]
    smallest_side: int


def _trace(predictor: Predictor, plan: ExportPlan, deform: Deform, images: Sequence[Tensor]) -> _Operators:
    graph = ExportGraph(predictor, layout=plan.layout, deform=deform).eval()
    parts = split_graph(predictor, layout=plan.layout, deform=deform) if plan.split else [graph]
    traced = [trace(part, plan.size) for part in parts]
    smallest_side = max(part.smallest_side for part in traced)
    expected = references(predictor, graph, images, sizes_of(graph, plan.size, smallest_side))
    return _Operators(graph, traced, images, expected, described(predictor), smallest_side)


def _write(
    each: Format, name: str, operators: _Operators, folder: Path, plan: ExportPlan, by_scores: Collection[str]
) -> dict[str, Any]:
    """Writes the graphs of a format, and checks them, below fp32 without the outputs of heads that have data.

    Args:
        each: The format.
        name: Its name.
        operators: The graphs, and what the model computes.
        folder: The folder for the files.
        plan: What to export.
        by_scores: Heads whose outputs do not keep blocks of an int8 graph in float32.

    Returns:
        The entry of the format in the card.
    """
    settings = each.settings(plan.precision)

    def measure(graphs: Sequence[Written]) -> list[dict[str, Any]]:
        without_steps = [replace(part, steps={}) for part in graphs]
        run = open_graphs(each, without_steps, settings)
        return compare(run, operators.expected, operators.graph, operators.outputs)

    graphs, rest = write_graphs(
        each,
        operators.traced,
        folder,
        plan.precision,
        lambda graphs: distance(measure(graphs), LIMITS[plan.precision], by_scores),
    )
    records = measure(graphs)
    check(
        records,
        plan.precision,
        lambda: open_graphs(each, graphs, settings),
        operators.graph,
        operators.images,
        f"--format {name}",
        judged=() if plan.precision == "fp32" else plan.data,
    )
    return graph_entry(
        each,
        graphs,
        deform=operators.graph.deform,
        precision=plan.precision,
        settings=settings,
        smallest_side=operators.smallest_side,
        versions=versions(sorted({"torch", *each.packages})),
        parity={
            "images": plan.images.name if plan.images else "generated scenes",
            "worst": summary(records),
            "runs": records,
        },
        **rest,
    )


def write_graphs(
    each: Format,
    traced: Sequence[Traced],
    folder: Path,
    precision: Precision,
    measure: Callable[[Sequence[Written]], float],
) -> tuple[list[Written], dict[str, Any]]:
    """Writes graphs, in int8 with the blocks in float32 that have to be.

    Args:
        each: The format.
        traced: The graphs.
        folder: The folder for their files.
        precision: The precision.
        measure: The distance of the written graphs from the model, see ``parity.distance``.

    Returns:
        The graphs; and what the card says of their precision.
    """
    if precision != "int8":
        return [each.write(part, folder, precision) for part in traced], {}
    from vitsplit.exporting.quantization import REST, keep_sensitive, products_by_step, quantize

    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        exact = [each.write(part, Path(temporary), "fp32") for part in traced]
        graphs = [replace(part, path=folder / part.path.name) for part in exact]
        products = [products_by_step(part.path, list(part.steps.values())) for part in exact]
        for index, part in enumerate(traced):
            titles = {name: step for step, name in part.steps.items()}
            titles[REST] = REST if len(traced) == 1 else f"{part.name}: {REST}"
            products[index] = {titles[group]: names for group, names in products[index].items()}

        def write(quantized: Collection[str]) -> None:
            for source, target, found in zip(exact, graphs, products, strict=True):
                names = [name for group, each in found.items() if group in quantized for name in each]
                quantize(source.path, target.path, names)

        groups = {group: names for found in products for group, names in found.items()}
        return graphs, {"in_fp32": keep_sensitive(groups, write, lambda: measure(graphs))}


def _describe(entry: Mapping[str, Any]) -> str:
    figures = "; ".join(
        f"{output} " + ", ".join(f"{name} {value:.3g}" for name, value in errors.items() if name != "largest")
        for output, errors in entry["parity"]["worst"].items()
    )
    return f"{', '.join(entry['files'])} in {entry['precision']}: {figures}"
