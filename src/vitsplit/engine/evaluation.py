"""The evaluation loop of all tasks; evaluation in the middle of training, and the bundles that come of it.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from vitsplit.atomic_files import replace_folder
from vitsplit.data.read_ahead import read_ahead, resolve_workers
from vitsplit.engine.checkpoint import Standing, TrainState, last_good
from vitsplit.engine.config import TrainConfig
from vitsplit.engine.setup import Session
from vitsplit.errors import RunError
from vitsplit.tasks.base import Evaluation, Forward, Task
from vitsplit.types import LayerTaps

logger = logging.getLogger(__name__)

SaveBundle = Callable[[Path, TrainConfig, dict[str, Any], str], None]
"""Fills a folder, which it makes if there is none, with the bundle of a head's present weights. The second argument is
the resolved configuration; the third the metrics that the weights reached, empty where they were not evaluated; the
fourth the head's name."""

PICTURES = 12
IMAGES_AT_ONCE, PIXELS_AT_ONCE = 8, 1 << 21
"""The most images, and pixels of them, that go through the model together in an evaluation on a GPU."""


def evaluate(
    task: Task,
    forward: Forward,
    *,
    workers: int = 0,
    images_at_once: int = 1,
    accelerator: Accelerator | None = None,
    on_image: Callable[[], None] | None = None,
) -> Evaluation:
    """The figures of a task's validation set.

    Args:
        task: The task with its validation data.
        forward: Model and backbone, in eval mode.
        workers: How many processes read images ahead; -1: see ``resolve_workers``.
        images_at_once: The most images of one size, in the order of the data, that go through the model together. Every
            number of them gives the same figures up to rounding.
        accelerator: Its processes share the images, and all have the figures in the end; None: this process has all.
        on_image: Called after every image.

    Raises:
        DataError: An image cannot be read, or nothing can be compared.
    """
    data, metric = task.val_data(), task.metric()
    rank, world = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    indices = range(rank, len(data), world)
    samples = read_ahead(data.load, indices, workers=min(resolve_workers(workers), len(indices)))
    for group in _of_one_size(samples, images_at_once):
        image_BCHW = torch.stack([sample.image_CHW for sample in group])
        for prediction, sample in zip(task.val_predictions(forward, image_BCHW, group), group, strict=True):
            metric.update(prediction, sample)
            if on_image is not None:
                on_image()
    if world > 1:
        metric.merge(gather_object([metric.state()]))
    return metric.compute()


def images_at_once(device: torch.device, batch_size: int) -> int:
    """How many images an evaluation takes at once: no more than training did, and one on a CPU, which gains nothing."""
    return min(IMAGES_AT_ONCE, batch_size) if device.type != "cpu" else 1


def _of_one_size(samples: Iterable[Any], most: int) -> Iterator[list[Any]]:
    """Samples in their order, in groups of neighbors whose images are of one size."""
    group: list[Any] = []
    for sample in samples:
        shape = sample.image_CHW.shape
        too_large = (len(group) + 1) * shape[-2:].numel() > PIXELS_AT_ONCE
        if group and (too_large or group[0].image_CHW.shape != shape):
            yield group
            group = []
        group.append(sample)
        if len(group) == most:
            yield group
            group = []
    if group:
        yield group


class _StoppedError(Exception):
    """A signal came in the middle of an evaluation."""


class Evaluator:
    """Evaluates the model (its average, where one is kept) and saves it as a bundle, or one bundle per head.

    Args:
        session: Task, model, device, folders.
        save_bundle: Writes a bundle.
    """

    def __init__(self, session: Session, save_bundle: SaveBundle) -> None:
        self.session = session
        self.config = session.config
        self.accelerator = session.accelerator
        self.engine = session.engine
        self.model = session.engine.model
        self.save_bundle = save_bundle
        self.found: dict[str, Evaluation] = {}

    def __call__(self, state: TrainState) -> bool:
        """Evaluates, notes the result in ``state`` and saves ``last`` and, of heads that are better, ``best``.

        Returns:
            False if a signal came in between: nothing is noted or saved then, and the evaluation is still due.
        """
        with self.engine.evaluated():
            try:
                self.found = self._evaluate()
            except _StoppedError:
                return False
            better = self._note(state)
            self._save_last(state)
            for head in better:
                self._save_best(head, state.standings[head])
        return True

    def save_last(self, state: TrainState) -> None:
        """Saves the present weights as ``last``."""
        with self.engine.evaluated():
            self._save_last(state)

    def write_pictures(self, state: TrainState) -> None:
        """Writes figures and pictures of the last evaluation, of whose weights the model still is.

        Raises:
            RunError: They could not be written.
        """
        title = f"{self.session.run.path.resolve().name}, step {state.step}"
        # All processes have a part in making a sharded model whole.
        with self.engine.evaluated():
            if self.accelerator.is_main_process:
                with self._replace(self.session.run.pictures) as folder:
                    last = {
                        head: self.found.get(head) or standing.last_evaluation()
                        for head, standing in state.standings.items()
                    }
                    self.session.tasks.write_report(self._forward, last, folder, title=title, count=PICTURES)

    def _evaluate(self) -> dict[str, Evaluation]:
        self._share_statistics()
        advance = self.session.view.evaluating()
        # One process may leave at any image; several must reach the sum over processes together.
        alone = self.accelerator.num_processes == 1

        def on_image() -> None:
            advance()
            if alone and self.session.stop.received is not None:
                raise _StoppedError

        loop = self.session.config.loop
        micro_batch = loop.batch_size // (self.accelerator.num_processes * loop.accumulate)
        try:
            return {
                head: evaluate(
                    task,
                    functools.partial(self._forward, head=head),
                    workers=loop.workers,
                    images_at_once=images_at_once(self.accelerator.device, micro_batch),
                    accelerator=self.accelerator,
                    on_image=on_image,
                )
                for head, task in self.session.tasks.tasks.items()
            }
        finally:
            self.session.view.evaluated()

    def _share_statistics(self) -> None:
        """Gives all processes the main one's running statistics, which are those that bundles hold.

        On processors, where batch norm is not synchronised, each process has statistics of its own images.
        """
        if self.accelerator.num_processes > 1:
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, src=0)

    @torch.no_grad()
    def _forward(self, image_BCHW: Tensor, *, head: str) -> tuple[Any, LayerTaps]:
        model = self.model.heads[head]
        image_BCHW = image_BCHW.to(self.accelerator.device, non_blocking=True)
        taps = self.session.backbone(image_BCHW, model.request(train=False))
        with self.session.autocast():
            return model(taps), taps

    def _note(self, state: TrainState) -> list[str]:
        """Takes the evaluation down; returns the heads that are better than ever."""
        state.evaluated = state.step
        better = []
        for head, found in self.found.items():
            standing = state.standings.setdefault(head, Standing())
            best = "best so far"
            if standing.note(found, state.step):
                better.append(head)
            else:
                best = f"best {standing.best_score:.4g} at step {standing.best_step}"
            logger.info(
                "step %d: %s %.4g (%s)", state.step, self.config.named(head, found.score_name), found.score, best
            )
        return better

    def _save_last(self, state: TrainState) -> None:
        if not self.accelerator.is_main_process:
            return
        evaluated = state.evaluated == state.step
        with self._replace(self.session.run.last) as folder:
            for head in self.model.heads:
                metrics = state.standings[head].last_metrics if evaluated else {}
                self.save_bundle(folder / self.config.named(head, ""), self.config, metrics, head)

    def _save_best(self, head: str, standing: Standing) -> None:
        if not self.accelerator.is_main_process:
            return
        with self._replace(self.session.run.best / self.config.named(head, "")) as folder:
            self.save_bundle(folder, self.config, standing.last_metrics, head)

    @contextmanager
    def _replace(self, path: Path) -> Iterator[Path]:
        try:
            with replace_folder(path) as folder:
                yield folder
        except RunError as error:
            raise RunError(f"{error} {last_good(self.session.run.checkpoints)}") from error
