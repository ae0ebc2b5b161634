"""Report of an evaluation: metrics as JSON, and a page of images with questions and answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from rich.table import Table

from vitsplit.data.images import read_image
from vitsplit.report import Page, screen_table, spread_evenly
from vitsplit.tasks.base import Evaluation
from vitsplit.tasks.vqa.generate import Answerer
from vitsplit.tasks.vqa.metrics import set_match
from vitsplit.tasks.vqa.samples import Sample

LABELS = {
    "exact_match": "exact match of the answer",
    "set_match": "set match of the answer, in any order",
    "answer_loss": "negative log-likelihood per token of the true answers",
    "likelihood": "likelihood per token of the true answers",
}
QUESTIONS = 6
"""Maximum number of questions per image."""


def write_report(
    samples: Sequence[Sample],
    open_answerer: Callable[[Sample], Answerer],
    evaluation: Evaluation,
    folder: Path,
    *,
    title: str,
    count: int = 12,
) -> Path:
    """Writes ``metrics.json`` and ``index.html`` (figures, ``count`` images spread over the set); returns the page."""
    metrics = evaluation.metrics
    page = Page(title, subtitle=f"{metrics['questions']} questions on {metrics['images']} validation samples")
    page.figures(
        [
            (f"{100 * metrics['exact_match']:.1f} %", "exact match"),
            (f"{100 * metrics['set_match']:.1f} %", "set match"),
            (f"{metrics['answer_loss']:.3f}", "negative log-likelihood per token"),
        ]
    )
    page.heading("Questions and answers")
    for sample in (samples[index] for index in spread_evenly(count, len(samples))):
        answerer = open_answerer(sample)
        turns = [conversation[0] for conversation in sample.conversations[:QUESTIONS]]
        answers = answerer.answer([turn.question for turn in turns])
        head = ["question", "answer", "ground truth", ""]
        rows = [
            [turn.question, answer, turn.answer, "correct" if set_match(answer, turn.answer) else "wrong"]
            for turn, answer in zip(turns, answers, strict=True)
        ]
        if sample.image is None:
            page.table(head, rows)
        else:
            image_HWC = read_image(sample.image).permute(1, 2, 0).numpy()
            page.picture_beside_table(Image.fromarray(image_HWC), sample.image.name, head, rows)
    page.heading("Figures")
    page.table(["metric", "value"], _rows(metrics))
    return page.write(folder, {"metrics": metrics})


def metrics_table(evaluation: Evaluation) -> Table:
    """The table of metrics for the terminal."""
    metrics = evaluation.metrics
    title, caption = f"exact match {100 * metrics['exact_match']:.1f} %", f"{metrics['questions']} questions"
    return screen_table(["metric", "value"], _rows(metrics), title=title, caption=caption)


def _rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    return [[label, f"{metrics[name]:.4f}"] for name, label in LABELS.items()]
