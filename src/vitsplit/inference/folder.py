"""Predictions of many files: reads and writes in background threads, predicts in batches, and can be resumed.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitsplit.atomic_files import writing_to
from vitsplit.data.images import read_image
from vitsplit.errors import ConfigError, DataError, VitsplitError
from vitsplit.inference.asking import read_whole, vqa_heads
from vitsplit.inference.batches import batch_limit, batches, in_background
from vitsplit.inference.inputs import Input
from vitsplit.inference.large import is_large, predict_large
from vitsplit.inference.prediction_log import PredictionLog
from vitsplit.inference.predictor import Predictor
from vitsplit.inference.tiling import check_overlap
from vitsplit.inference.video import predict_video

logger = logging.getLogger(__name__)

READERS, WRITERS = 2, 2

OnPart = Callable[[Input, int, int | None], None]
"""Progress of tiles or frames: the input, the finished ones, and the total (None: unknown)."""


@dataclass(frozen=True)
class Tiling:
    """Settings of tiles, see ``predict_large``.

    Attributes:
        tile: Height and width of tiles; None: only very large images are split into tiles.
        overlap: Overlap of neighboring tiles in pixels; None: a quarter of the tile's shorter side.
        scale: Scale factor of images that are split into tiles.

    Raises:
        ConfigError: The overlap is invalid.
    """

    tile: tuple[int, int] | None = None
    overlap: int | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.tile is not None and self.overlap is not None:
            check_overlap(self.tile, self.overlap)


@dataclass
class Summary:
    """Summary of a command.

    Attributes:
        done: Number of predicted inputs.
        frames: Number of predicted video frames.
        failed: One message per unreadable input.
    """

    done: int = 0
    frames: int = 0
    failed: list[str] = field(default_factory=list)


class FolderWriter:
    """Predicts files with one or several bundles, and writes the results.

    Questions are about a whole image, which is scaled down if it is split into tiles for other bundles. Questions about
    videos are not supported.

    Args:
        model: The bundles.
        log: The log of the output folder.
        batch_size: Batch size, for images of equal size; None: 1 on a CPU, up to 8 on a GPU, depending on the image
            size.
        tiling: Settings of tiles.
        questions: Questions about every image, for bundles of visual question answering.
        max_new_tokens: Maximum number of tokens of an answer; None: the bundle's setting.
        on_done: Called after every input.
        on_part: Called after every tile of a large image or frame of a video.
    """

    def __init__(
        self,
        model: Predictor,
        log: PredictionLog,
        *,
        batch_size: int | None = None,
        tiling: Tiling | None = None,
        questions: Sequence[str] = (),
        max_new_tokens: int | None = None,
        on_done: Callable[[], None] = lambda: None,
        on_part: OnPart = lambda *_: None,
    ) -> None:
        self.model = model
        self.log = log
        self.batch_size = batch_size
        self.tiling = tiling or Tiling()
        self.questions = questions
        self.max_new_tokens = max_new_tokens
        self.on_done = on_done
        self.on_part = on_part
        self.summary = Summary()
        self._large_inputs: list[Input] = []
        vqa = vqa_heads({name: bundle.card for name, bundle in model.items()})
        self._vqa_model = model.only(vqa)
        self._dense_model = model.only(name for name in model if name not in vqa)

    def run(self, inputs: Sequence[Input]) -> Summary:
        """Predicts images first, then images in tiles, then videos.

        Raises:
            RunError: A file cannot be written, such as on a full disk. Finished results are kept.
        """
        with writing_to(self.log.folder, "predictions"), closing(self.log):
            self.log.begin()
            self._images([item for item in inputs if not item.is_video])
            for item in self._large_inputs:
                self._predict_or_skip(item, self._large)
            for item in inputs:
                if item.is_video:
                    self._predict_or_skip(item, self._video)
        return self.summary

    def _images(self, items: Sequence[Input]) -> None:
        ahead = max(2, self._batch_limit(1, 1))
        read = in_background(self._read, items, threads=READERS, ahead=ahead)
        groups = batches(self._readable(read), self._batch_limit, waiting=2 * ahead)
        for item, files in in_background(self._save, self._predict_batches(groups), threads=WRITERS, ahead=ahead):
            self._finish(item, files)

    def _read(self, item: Input) -> tuple[Input, Tensor | DataError | None]:
        """Reads an image; None if it is to be split into tiles."""
        if self.tiling.tile is not None or is_large(item.path):
            return item, None
        try:
            return item, read_image(item.path)
        except DataError as error:
            return item, error

    def _readable(self, read: Iterator[tuple[Input, Tensor | DataError | None]]) -> Iterator[tuple[Input, Tensor]]:
        for item, image_CHW in read:
            if image_CHW is None:
                self._large_inputs.append(item)
            elif isinstance(image_CHW, DataError):
                self._fail(image_CHW)
            else:
                yield item, image_CHW

    def _predict_batches(self, groups: Iterator[list[tuple[Input, Tensor]]]) -> Iterator[tuple[Input, dict[str, Any]]]:
        for group in groups:
            predictions = self.model.predict_batch(torch.stack([image_CHW for _, image_CHW in group]))
            for (item, _), prediction in zip(group, predictions, strict=True):
                self._ask(prediction)
                yield item, prediction

    def _ask(self, predictions: dict[str, Any]) -> None:
        for head in self._vqa_model or ():
            predictions[head].ask_many(self.questions, max_new_tokens=self.max_new_tokens)

    def _save(self, predicted: tuple[Input, dict[str, Any]]) -> tuple[Input, list[Path]]:
        item, predictions = predicted
        stem = Path(item.name).name
        files = [
            (bundle, file.name.removeprefix(stem), file)
            for bundle, prediction in predictions.items()
            for file in prediction.save(self.log.stage(item, bundle), stem)
        ]
        return item, self.log.place(item, files)

    def _large(self, item: Input) -> list[Path]:
        stem, placed = Path(item.name).name, []
        if self._dense_model:
            files = predict_large(
                self._dense_model,
                item.path,
                self.log.stage(item),
                stem,
                tile=self.tiling.tile,
                overlap=self.tiling.overlap,
                scale=self.tiling.scale,
                on_tile=lambda done, total: self.on_part(item, done, total),
            )
            placed += _split_by_head(files, stem, self._dense_model)
        if self._vqa_model:
            predictions = self._vqa_model.predict(read_whole(item.path))
            self._ask(predictions)
            for head, prediction in predictions.items():
                prefix = f"{stem}_{head}"
                saved = prediction.save(self.log.stage(item), prefix)
                placed += [(head, file.name.removeprefix(prefix), file) for file in saved]
        return self.log.place(item, placed)

    def _video(self, item: Input) -> list[Path]:
        if not self._dense_model:
            raise DataError(f"{item.path}: questions about videos are not supported. Use a frame of the video.")
        if self._vqa_model:
            logger.info("%s: questions about videos are not supported; predicting with the other bundles", item.path)
        target = self.log.stage(item) / f"{Path(item.name).name}_overlay.mp4"
        self.summary.frames += predict_video(
            self._dense_model,
            item.path,
            target,
            batch_limit=self._batch_limit,
            on_frame=lambda done, total: self.on_part(item, done, total),
        )
        return self.log.place(item, [("", "_overlay.mp4", target)])

    def _predict_or_skip(self, item: Input, predict: Callable[[Input], list[Path]]) -> None:
        # Without --tile, a single large image must not stop the command if libvips is not installed.
        expected = (DataError, ConfigError) if self.tiling.tile is None else (DataError,)
        try:
            self._finish(item, predict(item))
        except expected as error:
            self._fail(error)

    def _finish(self, item: Input, files: list[Path]) -> None:
        self.log.add(item, files)
        self.summary.done += 1
        self.on_done()

    def _fail(self, error: VitsplitError) -> None:
        self.summary.failed.append(str(error))
        self.on_done()

    def _batch_limit(self, height: int, width: int) -> int:
        return batch_limit(self.batch_size, self.model.backbone.mean_C11.device, height, width)


def _split_by_head(files: Iterable[Path], stem: str, heads: Collection[str]) -> list[tuple[str, str, Path]]:
    """Head, suffix of the name, and path of each file of ``predict_large``."""
    if len(heads) == 1:
        return [(head, file.name.removeprefix(stem), file) for head in heads for file in files]
    found = []
    for file in files:
        # The longest match, since one head's name can be a prefix of another's.
        head = max((each for each in heads if file.name.startswith(f"{stem}_{each}")), key=len)
        found.append((head, file.name.removeprefix(f"{stem}_{head}"), file))
    return found
