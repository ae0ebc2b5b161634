"""Reports of benchmarks of training steps: JSON, tables, a plot and a page."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsplit.analysis.bench.comparison import REFERENCE
from vitsplit.analysis.bench.report import add_tables, comparison_page, draw_quartiles, finish, where
from vitsplit.analysis.bench.train_step import TrainStepResult
from vitsplit.analysis.bench.workload import PARTS
from vitsplit.analysis.measure import Spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#8e9aaf", "#3d5a80", "#98c1d9", "#ee6c4d", "#293241", "#d9d9d9")
"""Colors of the parts of a step, in the order of ``PARTS``."""
GB = 1e9


def to_json(result: TrainStepResult) -> dict[str, Any]:
    """The figures, JSON-ready: seconds, bytes, and 10^9 multiply-adds per step."""
    methods = {}
    for label, found in result.methods.items():
        seconds = Spread.of(found.seconds)
        methods[label] = {
            "method": found.method,
            "decoder": found.decoder,
            "seconds": asdict(seconds),
            "images_per_second": result.batch_size / seconds.median,
            "parts_seconds": {part: asdict(Spread.of(samples)) for part, samples in found.parts.items()},
            "every_second": found.seconds,
            "peak_memory_bytes": None if found.memory is None else asdict(found.memory),
            "gmacs": found.gmacs,
            "gmacs_per_second": result.gmacs_per_second(label),
            "share_of_matrix_product": result.share_of_product(label),
            "trained_parameters": found.trained_parameters,
            "ratio": {
                "time": asdict(result.time_ratio(label)),
                "multiply_adds": result.gmacs_ratio(label),
                "memory": result.memory_ratio(label),
                "paper": None if found.paper is None else asdict(found.paper),
            },
        }
    return {
        **result.setting(),
        "steps": len(result.methods[REFERENCE].seconds),
        "warmup": result.warmup,
        "matrix_product_gmacs_per_second": asdict(Spread.of(result.product)) if result.product else None,
        "methods": methods,
    }


def figures_table(result: TrainStepResult) -> list[list[str]]:
    """Header and rows: measurements of each method."""
    head = ["method", "seconds", "quartiles", "images/s", "peak GB", "GMACs", "GMACs/s", "share", "trainable, M"]
    rows = [head]
    for label, found in result.methods.items():
        seconds, share = Spread.of(found.seconds), result.share_of_product(label)
        rows.append(
            [
                label,
                f"{seconds.median:.3f}",
                seconds.quartiles(3),
                f"{result.batch_size / seconds.median:.2f}",
                "-" if found.memory is None else f"{found.memory.step / GB:.2f}",
                f"{found.gmacs:.1f}",
                f"{result.gmacs_per_second(label):.1f}",
                "-" if share is None else f"{share:.2f}",
                f"{found.trained_parameters / 1e6:.2f}",
            ]
        )
    return rows


def ratios_table(result: TrainStepResult) -> list[list[str]]:
    """Header and rows: ratios of each other method to ViT-Split."""
    rows = [[f"relative to {REFERENCE}", "time", "quartiles", "by multiply-adds", "paper", "peak memory"]]
    for label, found in result.methods.items():
        if label == REFERENCE:
            continue
        ratio, memory = result.time_ratio(label), result.memory_ratio(label)
        rows.append(
            [
                label,
                f"{ratio.median:.2f}",
                ratio.quartiles(2),
                f"{result.gmacs_ratio(label):.2f}",
                "-" if found.paper is None else str(found.paper),
                "-" if memory is None else f"{memory:.2f}",
            ]
        )
    return rows


def parts_table(result: TrainStepResult) -> list[list[str]]:
    """Header and rows: the median seconds of each part of a step."""
    return [
        ["seconds of", *PARTS],
        *(
            [label, *(f"{Spread.of(found.parts[part]).median:.3f}" for part in PARTS)]
            for label, found in result.methods.items()
        ),
    ]


def describe_setting(result: TrainStepResult) -> str:
    """A description of the measurement and the machine."""
    turns = len(result.methods[REFERENCE].seconds)
    return (
        f"{result.recipe}, {result.batch_size} random images of {result.size[0]} x {result.size[1]} pixels, "
        f"{result.precision}, medians of {turns} alternating steps (warm-up: {result.warmup}); "
        f"{where(result.machine)}"
    )


def plot_steps(result: TrainStepResult) -> Figure:
    """The median step of each method by parts with quartiles, and the ratios to ViT-Split."""
    from matplotlib.figure import Figure

    labels = list(result.methods)
    figure = Figure(figsize=(11, 1.2 + 0.55 * len(labels)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
    starts = [0.0] * len(labels)
    for part, color in zip(PARTS, COLORS, strict=True):
        widths = [Spread.of(found.parts[part]).median for found in result.methods.values()]
        left.barh(labels, widths, left=starts, color=color, label=part, height=0.62)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    for row, found in enumerate(result.methods.values()):
        draw_quartiles(left, row, Spread.of(found.seconds))
    left.invert_yaxis()
    left.set_xlabel("seconds of a training step")
    rows = range(len(labels))
    right.plot([result.time_ratio(label).median for label in labels], rows, "o", color="#ee6c4d", label="measured")
    right.plot(
        [result.gmacs_ratio(label) for label in labels], rows, "|", color="#293241", ms=14, label="multiply-adds"
    )
    papers = [(found.paper.value, row) for row, found in enumerate(result.methods.values()) if found.paper is not None]
    if papers:
        right.plot(*zip(*papers, strict=True), "x", color="#3d5a80", label="paper")
    right.axvline(1, color="#d9d9d9", linewidth=1, zorder=0)
    right.set_xlim(left=0)
    right.set_xlabel(f"time of a step relative to {REFERENCE}")
    style: dict[str, Any] = {"ncols": 3, "frameon": False, "fontsize": 8}
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", **style)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", **style)
    return figure


def write_train_step(result: TrainStepResult, folder: Path, *, command: str) -> Path:
    """Writes ``train-step.json``, ``train-step.png`` and ``index.html`` into a folder; returns the page.

    Args:
        result: The measurement.
        folder: Output folder; created if missing.
        command: The command of the measurement, for the page.
    """
    page = comparison_page(
        "Benchmark of training steps", result, describe_setting(result), of_reference=f"a step of {REFERENCE}"
    )
    page.plot(plot_steps(result), "train-step")
    page.text(
        "A step consists of the forward passes of the frozen backbone and of head and decoder, the loss, the backward "
        "pass and the update; black lines are quartiles of the whole step. Vertical marks are ratios of multiply-adds.",
        soft=True,
    )
    tables = {"Ratios": ratios_table(result), "Measurements": figures_table(result), "Parts": parts_table(result)}
    add_tables(page, tables)
    page.text(NOTES, soft=True)
    return finish(page, folder, command, {"train-step": to_json(result)})


NOTES = (
    "Ratios are medians over turns, relative to ViT-Split in the same turn. GMACs are 10^9 multiply-adds, counting the "
    "frozen pass once and the trained part three times. The share is relative to the speed of a matrix product in the "
    "same process and precision. Peak memory is measured in a separate process per method: on a CPU the growth of the "
    "resident set size after loading libraries, on a GPU the memory allocated by PyTorch. The paper's ratios (Fig. 8, "
    "Table 15) are for 10,000 steps at 512 x 512 pixels on four GPUs, including data loading."
)
