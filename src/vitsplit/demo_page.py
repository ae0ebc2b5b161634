"""Report of the demo: a grid of pictures and a page.

Shapes: H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from vitsplit.bundle import WEIGHTS, find_bundle
from vitsplit.demo_config import DemoConfig
from vitsplit.engine.run_folder import RunFolder
from vitsplit.inference.predictor import Predictor
from vitsplit.report import Page, spread_evenly
from vitsplit.tasks.base import Evaluation, Task
from vitsplit.tasks.depth.colormap import apply_colormap, display_range
from vitsplit.tasks.segmentation.report import add_class_table, paint

PICTURE_ROWS, PAGE_ROWS, GAP = 3, 10, 6
INK = "#3e63dd"


@dataclass(frozen=True)
class DemoResult:
    """Results of the demo.

    Attributes:
        config: Settings of the demo.
        scenes: Folder of the data set.
        runs: Run folder by task.
        model: Both bundles on one backbone.
        evaluations: By task, the evaluation and the task opened on the validation scenes.
        minutes: Training time in minutes by task.
    """

    config: DemoConfig
    scenes: Path
    runs: dict[str, Path]
    model: Predictor
    evaluations: dict[str, tuple[Evaluation, Task]]
    minutes: dict[str, float]

    def cells(self, count: int) -> list[list[tuple[Image.Image, str]]]:
        """Image, ground truth and predictions of both tasks with captions, for ``count`` evenly spaced scenes."""
        segmentation: Any = self.evaluations["segmentation"][1]
        depth: Any = self.evaluations["depth"][1]
        images, depths = segmentation.val_images(), depth.val_images()
        rows = []
        for index in spread_evenly(count, len(images)):
            sample, depth_HW = images.load(index), depths.load(index).depth_HW.numpy()
            predictions = self.model.predict(sample.image_CHW)
            mask_HW, depth_m_HW = predictions["segmentation"].mask, predictions["depth"].depth
            range_m = display_range(depth_HW)
            rows.append(
                [
                    (Image.fromarray(predictions["depth"].image), Path(sample.name).name),
                    (paint(sample.mask_HW.numpy(), segmentation.classes.colors), "classes, ground truth"),
                    (paint(mask_HW, segmentation.classes.colors), "classes, prediction"),
                    (
                        apply_colormap(depth_HW, depth_HW > 0, range_m),
                        f"depth, ground truth ({range_m[0]:.1f} to {range_m[1]:.1f} m)",
                    ),
                    (apply_colormap(depth_m_HW, depth_m_HW > 0, range_m), "depth, prediction"),
                ]
            )
        return rows


def write_picture(result: DemoResult, path: Path) -> Path:
    """Writes a grid of validation scenes, see ``DemoResult.cells``."""
    rows = [[picture.convert("RGB") for picture, _ in row] for row in result.cells(PICTURE_ROWS)]
    width, height = rows[0][0].size
    columns = len(rows[0])
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, len(rows) * (height + GAP) - GAP), "white")
    for row, cells in enumerate(rows):
        for column, cell in enumerate(cells):
            sheet.paste(cell, (column * (width + GAP), row * (height + GAP)))
    sheet.save(path, quality=90)
    return path


def write_page(result: DemoResult, folder: Path) -> Path:
    """Writes the page: metrics, shared parameters, pictures, training curves, classes and commands."""
    model, config = result.model, result.config
    info = model.backbone.info
    segmentation, depth = (result.evaluations[task][0] for task in ("segmentation", "depth"))
    page = Page(
        "vitsplit demo",
        f"Segmentation and depth of generated scenes: two bundles on the frozen backbone {info.name}.",
    )
    page.figures(
        [
            (f"{100 * segmentation.metrics['miou']:.1f} %", "segmentation mIoU"),
            (f"{depth.metrics['rmse']:.2f} m", "depth RMSE"),
            (f"{100 * depth.metrics['delta1']:.1f} %", "depth delta1 (ratio < 1.25)"),
            (f"{sum(result.minutes.values()):.1f} min", f"training, 2 x {config.steps} steps of {config.batch_size}"),
        ]
    )
    _add_sharing(page, result)
    page.text(f"Weights of the backbone: {info.source}, license {info.license}.", soft=True)
    page.heading("Predictions for validation scenes, both tasks from one pass")
    task: Any = result.evaluations["segmentation"][1]
    page.legend(list(zip(task.classes.names, task.classes.colors, strict=True)))
    for row in result.cells(PAGE_ROWS):
        page.pictures(row)
    page.heading("Training")
    page.plot(_curves(result))
    page.heading("Classes")
    add_class_table(page, segmentation)
    page.heading("Use it")
    runs = " ".join(str(run) for run in result.runs.values())
    page.code(
        f"vitsplit predict {runs} IMAGE.jpg --out predictions\n"
        f"vitsplit evaluate {result.runs['depth']} --data {result.scenes}\nvitsplit info {runs}"
    )
    return page.write(folder)


def _add_sharing(page: Page, result: DemoResult) -> None:
    model = result.model
    frozen = sum(parameter.numel() for parameter in model.backbone.parameters())
    rows = [["frozen backbone, shared", f"{frozen / 1e6:.2f} M", "-"]]
    for name, bundle in model.items():
        trained = sum(p.numel() for p in bundle.model.parameters() if p.requires_grad)
        size = (find_bundle(result.runs[name]) / WEIGHTS).stat().st_size
        rows.append([f"{name} bundle", f"{trained / 1e6:.2f} M", f"{size / 1e6:.0f} MB"])
    page.table(["part", "parameters", "on disk"], rows)


def _curves(result: DemoResult) -> Figure:
    """Loss and metric of both tasks over training steps."""
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    axes = figure.subplots(2, 2)
    scores = {"segmentation": ("miou", 100.0, "mIoU (%)"), "depth": ("rmse", 1.0, "RMSE (m)")}
    for row, (task, run) in zip(axes, result.runs.items(), strict=True):
        lines = RunFolder(run).read_metrics()
        key, factor, name = scores[task]
        losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
        scores_by_step = [(line["step"], factor * line["eval"][key]) for line in lines if "eval" in line]
        for axis, points, title in zip(row, (losses, scores_by_step), ("loss", name), strict=True):
            axis.plot(*zip(*points, strict=True), color=INK, marker="o", markersize=3)
            axis.set_xlabel("step")
            axis.set_title(f"{task}: {title}", loc="left", fontsize=10)
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(axis="y", alpha=0.3)
    return figure
