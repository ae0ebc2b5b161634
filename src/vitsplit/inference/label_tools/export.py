"""Files of a folder of predictions for label tools."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from vitsplit.atomic_files import writing_to
from vitsplit.bundle import Card
from vitsplit.errors import ConfigError
from vitsplit.inference.inputs import Input
from vitsplit.inference.label_tools import ExportFormat, coco, cvat, fiftyone, label_studio
from vitsplit.inference.label_tools.images import HeadLabels, LabeledImage
from vitsplit.inference.prediction_log import PredictionLog
from vitsplit.inference.writers import RowFile
from vitsplit.tasks.detection.prediction import DRAWN_SCORE

Write = Callable[[Iterable[LabeledImage], HeadLabels], Iterator[str]]
"""Returns the text of a file in pieces."""

FILES: Mapping[ExportFormat, Mapping[str, Write]] = {
    "coco": {"coco.json": coco.annotation_file},
    "cvat": {"cvat.xml": cvat.annotation_file},
    "label-studio": {"label-studio.json": label_studio.tasks, "label-studio.xml": label_studio.config},
    "fiftyone": {"fiftyone/labels.json": coco.annotation_file, "fiftyone/data.json": fiftyone.manifest},
}
"""The files of each format, whose names follow ``HEAD_``."""


def check_export(kind: ExportFormat, cards: Mapping[str, Card]) -> None:
    """Refuses heads without labels.

    Raises:
        ConfigError: There is one.
    """
    for head, card in cards.items():
        if not card.config.task.prediction_type().label_readers:
            raise ConfigError(f"--export-format {kind}: {head} ({card.task}) has no masks or boxes. Omit one of them.")


def write_labels(
    kind: ExportFormat,
    cards: Mapping[str, Card],
    inputs: Sequence[Input],
    log: PredictionLog,
    min_score: float | None = None,
) -> list[Path]:
    """Writes the files of a format for every head; returns the first file of each.

    Args:
        kind: The format.
        cards: The cards by head name.
        inputs: The inputs; videos, and images without predictions, are left out.
        log: The folder with the predictions.
        min_score: Objects with a lower score are left out; None: those that overlays leave out.

    Raises:
        DataError, RunError: An image or a prediction cannot be read, or the files cannot be written.
    """
    found = []
    for head, card in cards.items():
        labels = HeadLabels.of(head, card, DRAWN_SCORE if min_score is None else min_score)
        readers = card.config.task.prediction_type().label_readers
        images = [
            LabeledImage(item.path, f"{Path(item.name).as_posix()}{item.path.suffix}", file, readers[ending], labels)
            for item in inputs
            if not item.is_video
            for file, ending in _label_files(log.files(item), item, head, readers)
        ]
        paths = [log.checked_path(f"{head}_{name}") for name in FILES[kind]]
        for path, write in zip(paths, FILES[kind].values(), strict=True):
            with writing_to(log.folder, "labels"):
                _write(path, write(images, labels))
        found.append(paths[0])
    return found


def _label_files(files: Sequence[Path], item: Input, head: str, endings: Iterable[str]) -> Iterator[tuple[Path, str]]:
    """The file with the labels of a head, named as by ``PredictionLog.place``, and its ending, if there is one."""
    stem = Path(item.name).name
    by_name = {file.name: file for file in files}
    for ending in endings:
        name = next((name for name in (f"{stem}_{head}{ending}", f"{stem}{ending}") if name in by_name), None)
        if name is not None:
            yield by_name[name], ending


def _write(path: Path, pieces: Iterator[str]) -> None:
    file = RowFile(path)
    try:
        for piece in pieces:
            file.write_bytes(piece.encode())
        file.finish()
    except BaseException:
        file.discard()
        raise
