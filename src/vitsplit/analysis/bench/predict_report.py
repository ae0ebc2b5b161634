"""Reports of benchmarks of predictions: JSON, tables, a plot and a page."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsplit.analysis.bench.comparison import REFERENCE
from vitsplit.analysis.bench.predict import PAPER, PredictResult
from vitsplit.analysis.bench.report import add_tables, comparison_page, draw_quartiles, finish, where
from vitsplit.analysis.measure import Spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def to_json(result: PredictResult) -> dict[str, Any]:
    """The figures, JSON-ready: seconds, and 10^9 multiply-adds per image."""
    return {
        **result.setting(),
        "methods": {
            label: {
                "latency_seconds": asdict(Spread.of(found.seconds)),
                "images_per_second": result.batch_size / Spread.of(found.batch).median,
                "gmacs": found.gmacs,
                "ratio": {
                    "time": asdict(result.time_ratio(label)),
                    "multiply_adds": result.gmacs_ratio(label),
                    "paper": PAPER.get(label),
                },
            }
            for label, found in result.methods.items()
        },
        "sharing": {
            str(bundles): {
                "shared_seconds": asdict(Spread.of(found.shared)),
                "separate_seconds": asdict(Spread.of(found.separate)),
                "shared_images_per_second": result.batch_size / Spread.of(found.shared_batch).median,
                "separate_images_per_second": result.batch_size / Spread.of(found.separate_batch).median,
                "ratio": asdict(found.ratio),
                "bound": found.bound,
            }
            for bundles, found in result.sharing.items()
        },
    }


def methods_table(result: PredictResult) -> list[list[str]]:
    """Header and rows: time per image of each method, and its ratio to ViT-Split."""
    head = ["method", "seconds, one image", "quartiles", f"images/s, {result.batch_size} at a time", "GMACs"]
    rows = [[*head, f"relative to {REFERENCE}", "by multiply-adds", "paper"]]
    for label, found in result.methods.items():
        latency = Spread.of(found.seconds)
        rows.append(
            [
                label,
                f"{latency.median:.3f}",
                latency.quartiles(3),
                f"{result.batch_size / Spread.of(found.batch).median:.2f}",
                f"{found.gmacs:.1f}",
                f"{result.time_ratio(label).median:.2f}",
                f"{result.gmacs_ratio(label):.2f}",
                PAPER.get(label, "-"),
            ]
        )
    return rows


def sharing_table(result: PredictResult) -> list[list[str]]:
    """Header and rows: bundles on a shared backbone against separate models."""
    head = ["bundles", "shared, s", "separate, s", "speedup", "quartiles", "by multiply-adds"]
    rows = [[*head, *(f"images/s, {name}, {result.batch_size} at a time" for name in ("shared", "separate"))]]
    for bundles, found in result.sharing.items():
        rows.append(
            [
                str(bundles),
                f"{Spread.of(found.shared).median:.3f}",
                f"{Spread.of(found.separate).median:.3f}",
                f"{found.ratio.median:.2f}",
                found.ratio.quartiles(2),
                f"{found.bound:.2f}",
                f"{result.batch_size / Spread.of(found.shared_batch).median:.2f}",
                f"{result.batch_size / Spread.of(found.separate_batch).median:.2f}",
            ]
        )
    return rows


def describe_setting(result: PredictResult) -> str:
    """A description of the measurement and the machine."""
    turns = len(result.methods[REFERENCE].seconds)
    return (
        f"{result.recipe}, random images of {result.size[0]} x {result.size[1]} pixels, {result.precision}, medians of "
        f"{turns} turns; {where(result.machine)}"
    )


def plot_predictions(result: PredictResult) -> Figure:
    """Seconds of each method with quartiles, and of shared and separate bundles."""
    from matplotlib.figure import Figure

    labels = list(result.methods)
    figure = Figure(figsize=(11, max(3.2, 1.2 + 0.5 * len(labels))), layout="constrained")
    left, right = figure.subplots(1, 2)
    for row, found in enumerate(result.methods.values()):
        latency = Spread.of(found.seconds)
        color = "#ee6c4d" if labels[row] == REFERENCE else "#98c1d9"
        left.barh(row, latency.median, color=color, height=0.62)
        draw_quartiles(left, row, latency)
    left.set_yticks(range(len(labels)), labels)
    left.invert_yaxis()
    left.set_xlabel("seconds for one image")
    bundles = list(result.sharing)
    for name, color in (("separate", "#98c1d9"), ("shared", "#ee6c4d")):
        medians = [Spread.of(getattr(found, name)).median for found in result.sharing.values()]
        right.plot(bundles, medians, "o-", color=color, label=name)
    right.set_xticks(bundles)
    right.set_ylim(bottom=0)
    right.set_xlabel("bundles")
    right.set_ylabel("seconds for one image")
    right.legend(frameon=False)
    return figure


def write_predictions(result: PredictResult, folder: Path, *, command: str) -> Path:
    """Writes ``predict.json``, ``predict.png`` and ``index.html`` into a folder; returns the page.

    Args:
        result: The measurement.
        folder: Output folder; created if missing.
        command: The command of the measurement, for the page.
    """
    most = max(result.sharing, default=0)
    shared = [(f"{result.sharing[most].ratio.median:.2f}x", f"speedup of sharing, {most} bundles")] if most else []
    page = comparison_page(
        "Benchmark of predictions",
        result,
        describe_setting(result),
        of_reference=f"an image with {REFERENCE}",
        more=shared,
    )
    page.plot(plot_predictions(result), "predict")
    page.text(
        "Time from pixels on the device to the output of the decoder; resizing and writing are excluded. "
        "Bundles are of ViT-Split; separate bundles have one backbone pass each.",
        soft=True,
    )
    add_tables(page, {"Methods": methods_table(result), "Sharing": sharing_table(result)})
    return finish(page, folder, command, {"predict": to_json(result)})
