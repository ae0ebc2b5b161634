"""The demo: generated scenes, a bundle trained on real pretrained weights, and one page that shows what came out."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from vitsplit import api
from vitsplit.backbone import load_backbone
from vitsplit.backbone.hub import HubUnavailableError
from vitsplit.bundle import WEIGHTS
from vitsplit.data.folders import free_folder
from vitsplit.errors import RunError
from vitsplit.inference.predictor import Predictor
from vitsplit.recipes import recipe
from vitsplit.report import Page
from vitsplit.sample import write_segmentation_set
from vitsplit.tasks.base import Evaluation
from vitsplit.tasks.segmentation.report import add_class_table, add_figures, add_gallery, paint
from vitsplit.tasks.segmentation.task import SegmentationTask
from vitsplit.training.config import DemoConfig
from vitsplit.training.override import override

logger = logging.getLogger("vitsplit")

PREFERRED, WITHOUT_HUB = "dinov2-small", "dinov2-small-focus"
PICTURE_COLUMNS, PICTURE_ROWS, GAP = 4, 3, 6


def run_demo(config: DemoConfig, say: Callable[[str], None] = logger.info) -> Path:
    """Generates scenes, trains, evaluates, and writes the page, whose path is returned.

    Raises:
        RunError: The output folder already holds a demo.
        WeightsError: No pretrained weights can be had.
    """
    out = config.out or free_folder(Path("demo"))
    data, run = out / "scenes", out / "run"
    if run.exists():
        raise RunError(f"{out} already holds a demo. Give another folder with --out, or delete it.")
    started = time.perf_counter()
    backbone = _choose_backbone(config, say)
    say(f"generating {config.train_scenes} + {config.val_scenes} scenes in {data}")
    write_segmentation_set(data, config.train_scenes, config.val_scenes, config.size, config.seed)
    settings = override(
        recipe("laptop-segmentation"),
        {
            "name": "demo",
            "backbone": backbone,
            "random_weights": config.random_weights,
            "crop_size": config.size,
            "image_scale": None,
            "steps": config.steps,
            "batch_size": config.batch_size,
            "seed": config.seed,
            "eval_every": max(1, config.steps // 4),
            "log_every": max(1, min(5, config.steps)),
        },
    )
    say(f"training a segmentation bundle on {backbone}: {config.steps} steps of {config.batch_size} scenes")
    training_started = time.perf_counter()
    api.train(settings, data=data, out=run)
    training_minutes = (time.perf_counter() - training_started) / 60
    predictor = api.load(run)
    evaluation, task = api.evaluate(predictor, data=data)
    assert isinstance(task, SegmentationTask)
    picture = write_picture(task, predictor, out / "picture.jpg")
    page = _write_page(config, out, predictor, task, evaluation, training_minutes)
    say(f"mIoU {100 * evaluation.score:.1f} % after {training_minutes:.1f} minutes of training; picture: {picture}")
    say(f"finished in {(time.perf_counter() - started) / 60:.1f} minutes")
    return page


def _choose_backbone(config: DemoConfig, say: Callable[[str], None]) -> str:
    """The name of the backbone; its weights are in reach afterwards."""
    if config.backbone != "auto" or config.random_weights:
        return PREFERRED if config.backbone == "auto" else config.backbone
    try:
        load_backbone(PREFERRED)
        return PREFERRED
    except HubUnavailableError:
        say(f"{PREFERRED} is not cached and the model hub does not answer: using {WITHOUT_HUB} instead")
        return WITHOUT_HUB


def write_picture(task: SegmentationTask, predictor: Predictor, path: Path) -> Path:
    """A sheet of validation images: image, truth, prediction, overlay in a row; several rows."""
    images = task.val_images()
    rows = []
    for index in np.linspace(0, len(images) - 1, min(PICTURE_ROWS, len(images))).round().astype(int).tolist():
        sample = images.load(index)
        prediction = task.predict(predictor.forward, sample.image_CHW[None])[0]
        colours = task.classes.colours
        cells = [
            Image.fromarray(prediction.image),
            paint(sample.mask_HW.numpy(), colours),
            paint(prediction.mask, colours),
            prediction.overlay(),
        ]
        rows.append([cell.convert("RGB") for cell in cells])
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (PICTURE_COLUMNS * (width + GAP) - GAP, len(rows) * (height + GAP) - GAP), "white")
    for row, cells in enumerate(rows):
        for column, cell in enumerate(cells):
            sheet.paste(cell.resize((width, height)), (column * (width + GAP), row * (height + GAP)))
    sheet.save(path, quality=90)
    return path


def _write_page(
    config: DemoConfig,
    out: Path,
    predictor: Predictor,
    task: SegmentationTask,
    evaluation: Evaluation,
    training_minutes: float,
) -> Path:
    run = out / "run"
    trained = sum(p.numel() for p in predictor.model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in predictor.backbone.parameters())
    size_mb = (run / "best" / WEIGHTS).stat().st_size / 1e6
    info = predictor.backbone.info
    page = Page(
        "vitsplit demo", f"A segmentation bundle for generated scenes, trained on the frozen backbone {info.name}."
    )
    add_figures(page, evaluation)
    page.figures(
        [
            (f"{training_minutes:.1f} min", f"training, {config.steps} steps of {config.batch_size}"),
            (f"{trained / 1e6:.2f} M", f"trained parameters, beside {frozen / 1e6:.1f} M frozen"),
            (f"{size_mb:.0f} MB", "bundle on disk"),
        ]
    )
    page.text(f"Weights of the backbone: {info.source}, licence {info.licence}.", soft=True)
    page.heading("Scenes that it has not seen")
    add_gallery(page, task, predictor.forward, 10)
    page.heading("Training")
    page.plot(_curves(run / "metrics.jsonl"))
    page.heading("Classes")
    add_class_table(page, evaluation)
    page.heading("Use it")
    page.code(f"vitsplit predict {run} IMAGE.jpg --out predictions\nvitsplit evaluate {run} --data {out / 'scenes'}")
    return page.write(out / "index.html")


def _curves(metrics_file: Path) -> Figure:
    """Loss and mIoU over steps."""
    rows = [json.loads(line) for line in metrics_file.read_text(encoding="utf-8").splitlines()]
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    scores = [(row["step"], 100 * row["eval"]["miou"]) for row in rows if "eval" in row]
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axis, points, name in zip(figure.subplots(1, 2), (losses, scores), ("loss", "mIoU (%)"), strict=True):
        axis.plot(*zip(*points, strict=True), color="#3e63dd", marker="o", markersize=3)
        axis.set_xlabel("step")
        axis.set_title(name, loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
    return figure
