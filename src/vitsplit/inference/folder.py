"""Predictions of many files into a folder: read ahead, in batches, written beside, and taken up where they stopped.

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
from vitsplit.inference.asking import names_to_ask, read_whole
from vitsplit.inference.batches import batches, in_background
from vitsplit.inference.inputs import Input
from vitsplit.inference.large import is_large, predict_large
from vitsplit.inference.prediction_log import PredictionLog
from vitsplit.inference.predictor import Predictor
from vitsplit.inference.tiling import check_overlap
from vitsplit.inference.video import predict_video
from vitsplit.tasks.vqa.predict import VqaPrediction

logger = logging.getLogger(__name__)

GPU_BATCH = 8
GPU_BATCH_PIXELS = 8 << 20
"""Without a batch size, the pixels of a batch on a GPU: eight images of 1024 x 1024. Answers are as large as images."""
READERS, WRITERS = 2, 2

OnPart = Callable[[Input, int, int | None], None]
"""Told of the tiles of a large image, or of the frames of a video: the input, parts done, and all (None: unknown)."""


@dataclass(frozen=True)
class Tiling:
    """How images are cut; see ``predict_large``.

    Attributes:
        tile: Height and width of a tile; None: images are cut only where they are very large.
        overlap: Pixels that neighbours share; None: a quarter of the tile.
        scale: Factor on images that are cut.

    Raises:
        ConfigError: The tiles cannot overlap so.
    """

    tile: tuple[int, int] | None = None
    overlap: int | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.tile is not None and self.overlap is not None:
            check_overlap(self.tile, self.overlap)


@dataclass
class Summary:
    """What became of the inputs.

    Attributes:
        done: Inputs predicted.
        frames: Video frames among them.
        failed: A message per input that could not be read.
    """

    done: int = 0
    frames: int = 0
    failed: list[str] = field(default_factory=list)


class FolderWriter:
    """Predicts files with one or several bundles, and writes each one's results in one go.

    Questions are about a whole image: one that is cut into tiles for other bundles is shrunk for a bundle that is
    asked. They are not asked about videos.

    Args:
        model: The bundles.
        log: What is in the folder.
        batch_size: Images of equal size that go through the network together; None: 1 on a processor; on a GPU 8, and
            fewer large ones.
        tiling: How images are cut.
        questions: What bundles of visual question answering are asked about every image.
        max_new_tokens: The most tokens of an answer; None: as the bundle says.
        on_done: Called after every input.
        on_part: Called within long inputs.
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
        self._in_tiles: list[Input] = []
        asked = names_to_ask({name: bundle.card for name, bundle in model.items()})
        self._asked = model.only(asked)
        self._drawn = model.only(name for name in model if name not in asked)

    def run(self, inputs: Sequence[Input]) -> Summary:
        """Predicts the inputs: images first, then those that are cut into tiles, then videos.

        Raises:
            RunError: A file could not be written, such as on a full disk. What was done before stays.
        """
        with writing_to(self.log.folder, "predictions"), closing(self.log):
            self.log.begin()
            self._images([item for item in inputs if not item.is_video])
            for item in self._in_tiles:
                self._guarded(item, self._large)
            for item in inputs:
                if item.is_video:
                    self._guarded(item, self._video)
        return self.summary

    def _images(self, items: Sequence[Input]) -> None:
        ahead = max(2, self._batch_limit(1, 1))
        read = in_background(self._read, items, threads=READERS, ahead=ahead)
        groups = batches(self._readable(read), self._batch_limit, waiting=2 * ahead)
        for item, files in in_background(self._save, self._predicted(groups), threads=WRITERS, ahead=ahead):
            self._finish(item, files)

    def _read(self, item: Input) -> tuple[Input, Tensor | DataError | None]:
        """The image; None if it is to be cut into tiles."""
        if self.tiling.tile is not None or is_large(item.path):
            return item, None
        try:
            return item, read_image(item.path)
        except DataError as error:
            return item, error

    def _readable(self, read: Iterator[tuple[Input, Tensor | DataError | None]]) -> Iterator[tuple[Input, Tensor]]:
        for item, image_CHW in read:
            if image_CHW is None:
                self._in_tiles.append(item)
            elif isinstance(image_CHW, DataError):
                self._fail(image_CHW)
            else:
                yield item, image_CHW

    def _predicted(self, groups: Iterator[list[tuple[Input, Tensor]]]) -> Iterator[tuple[Input, dict[str, Any]]]:
        for group in groups:
            answers = self.model.predict_batch(torch.stack([image_CHW for _, image_CHW in group]))
            for (item, _), answer in zip(group, answers, strict=True):
                self._ask(answer)
                yield item, answer

    def _ask(self, answer: dict[str, Any]) -> None:
        for prediction in answer.values():
            if isinstance(prediction, VqaPrediction):
                prediction.ask_many(self.questions, max_new_tokens=self.max_new_tokens)

    def _save(self, answer: tuple[Input, dict[str, Any]]) -> tuple[Input, list[Path]]:
        item, predictions = answer
        stem = Path(item.name).name
        files = [
            (bundle, file.name.removeprefix(stem), file)
            for bundle, prediction in predictions.items()
            for file in prediction.save(self.log.stage(item, bundle), stem)
        ]
        return item, self.log.place(item, files)

    def _large(self, item: Input) -> list[Path]:
        stem, placed = Path(item.name).name, []
        if self._drawn:
            files = predict_large(
                self._drawn,
                item.path,
                self.log.stage(item),
                stem,
                tile=self.tiling.tile,
                overlap=self.tiling.overlap,
                scale=self.tiling.scale,
                on_tile=lambda done, total: self.on_part(item, done, total),
            )
            placed += _by_head(files, stem, self._drawn)
        if self._asked:
            predictions = self._asked.predict(read_whole(item.path))
            self._ask(predictions)
            for head, prediction in predictions.items():
                beginning = f"{stem}_{head}"
                saved = prediction.save(self.log.stage(item), beginning)
                placed += [(head, file.name.removeprefix(beginning), file) for file in saved]
        return self.log.place(item, placed)

    def _video(self, item: Input) -> list[Path]:
        if not self._drawn:
            raise DataError(f"{item.path}: questions are not asked about videos. Ask about an image out of it.")
        if self._asked:
            logger.info("%s: questions are not asked about videos; the other bundles draw it", item.path)
        target = self.log.stage(item) / f"{Path(item.name).name}_overlay.mp4"
        self.summary.frames += predict_video(
            self._drawn,
            item.path,
            target,
            batch_limit=self._batch_limit,
            on_frame=lambda done, total: self.on_part(item, done, total),
        )
        return self.log.place(item, [("", "_overlay.mp4", target)])

    def _guarded(self, item: Input, predict: Callable[[Input], list[Path]]) -> None:
        # One huge image among many must not end the command for want of libvips, unless tiles were asked for.
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
        if self.batch_size is not None:
            return self.batch_size
        if self.model.backbone.mean_C11.device.type == "cpu":
            return 1
        return max(1, min(GPU_BATCH, GPU_BATCH_PIXELS // (height * width)))


def _by_head(files: Iterable[Path], stem: str, heads: Collection[str]) -> list[tuple[str, str, Path]]:
    """Files of ``predict_large`` with the head that each is of, and what its name ends with."""
    if len(heads) == 1:
        return [(head, file.name.removeprefix(stem), file) for head in heads for file in files]
    found = []
    for file in files:
        # The longest: one may be the beginning of another.
        head = max((each for each in heads if file.name.startswith(f"{stem}_{each}")), key=len)
        found.append((head, file.name.removeprefix(f"{stem}_{head}"), file))
    return found
