"""Reports of evaluations of detection: metrics, COCO results, and a page of images.

Shapes: H W pixels, N objects.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from rich.table import Table

from vitsplit.data.classes import ClassList
from vitsplit.report import Page, screen_table, spread_evenly
from vitsplit.tasks.base import Evaluation, Predict
from vitsplit.tasks.detection.data import DetectionSample, DetectionSet
from vitsplit.tasks.detection.draw import draw_objects
from vitsplit.tasks.detection.metrics import Results, write_results
from vitsplit.tasks.detection.prediction import DRAWN_SCORE
from vitsplit.tasks.segmentation.report import percent

FIGURES = {"mask_ap": "mask AP", "mask_ap50": "mask AP50", "box_ap": "box AP", "box_ap50": "box AP50"}
COLUMNS = {"box_ap": "box AP", "box_ap50": "box AP50", "mask_ap": "mask AP", "mask_ap50": "mask AP50"}


def write_report(
    images: DetectionSet,
    predict: Predict,
    evaluation: Evaluation,
    folder: Path,
    *,
    results: Results | None,
    title: str,
    count: int = 12,
) -> Path:
    """Writes ``metrics.json``, COCO results and ``index.html`` (images, classes); returns the page.

    Args:
        images: The validation images.
        predict: Predicts on images.
        evaluation: The metrics.
        folder: Output folder.
        results: All detections of the evaluation, as COCO results.
        title: Title of the page.
        count: Number of images shown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if results is not None:
        write_results(results, folder)
    page = Page(title, subtitle=f"{len(images.classes)} classes, {len(images)} validation images")
    metrics = evaluation.metrics
    page.figures([(f"{percent(metrics[key])} %", name) for key, name in FIGURES.items() if key in metrics])
    page.heading("Pictures")
    add_gallery(page, images, predict, count)
    page.heading("Classes")
    page.table(["class", *_titles(evaluation)], _rows(evaluation))
    return page.write(folder, {"metrics": metrics})


def add_gallery(page: Page, images: DetectionSet, predict: Predict, count: int) -> None:
    """Ground truth and prediction on images spread evenly over the validation set."""
    page.legend(list(zip(images.classes.names, images.classes.colors, strict=True)))
    page.text(f"Objects with a score of at least {DRAWN_SCORE} are drawn.", soft=True)
    for index in spread_evenly(count, len(images)):
        sample = images.load(index)
        prediction = predict(sample.image_CHW[None])[0]
        drawn = int((prediction.scores >= DRAWN_SCORE).sum())
        page.pictures(
            [
                (
                    draw_truth(sample, images.classes),
                    f"{Path(sample.name).name}: ground truth ({len(sample.labels_N)} objects)",
                ),
                (prediction.overlay(), f"prediction ({drawn} objects)"),
            ]
        )


def draw_truth(sample: DetectionSample, classes: ClassList) -> Image.Image:
    """The image with its ground-truth objects; crowds are marked."""
    labels = sample.labels_N.tolist()
    crowds = sample.crowd_N.tolist()
    captions = [classes.names[label] + " (crowd)" * crowd for label, crowd in zip(labels, crowds, strict=True)]
    masks = None if sample.masks_NHW is None else (mask_HW.numpy() > 0 for mask_HW in sample.masks_NHW)
    image_HWC = sample.image_CHW.permute(1, 2, 0).numpy()
    colors = [classes.colors[label] for label in labels]
    return draw_objects(image_HWC, sample.boxes_N4.numpy(), captions, colors, masks)


def metrics_table(evaluation: Evaluation) -> Table:
    """The table of metrics for the terminal."""
    metrics = evaluation.metrics
    title = "   ".join(f"{name} {percent(metrics[key])} %" for key, name in FIGURES.items() if key in metrics)
    return screen_table(["class", *_titles(evaluation)], _rows(evaluation), title=title)


def _titles(evaluation: Evaluation) -> list[str]:
    return ["objects", *(f"{title}, %" for key, title in COLUMNS.items() if key in evaluation.metrics)]


def _rows(evaluation: Evaluation) -> list[list[str]]:
    keys = [key for key in COLUMNS if key in evaluation.metrics]
    return [
        [name, str(row["objects"]), *(percent(row[key]) for key in keys)]
        for name, row in evaluation.metrics["classes"].items()
    ]
