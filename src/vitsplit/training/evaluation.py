"""Evaluation in the middle of training, and the bundles that come of it.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitsplit.errors import RunError
from vitsplit.tasks.base import Evaluation
from vitsplit.training.atomic import replace_folder
from vitsplit.training.checkpoint import TrainState, last_good
from vitsplit.training.config import TrainConfig
from vitsplit.training.setup import Session
from vitsplit.types import LayerTaps

logger = logging.getLogger(__name__)

SaveBundle = Callable[[Path, TrainConfig[Any], dict[str, Any]], None]
"""Fills an empty folder with the bundle of the model's present weights. The second argument is the resolved
configuration; the third the metrics that the weights reached, empty where they were not evaluated."""

PICTURES = 12


class _StoppedError(Exception):
    """A signal came in the middle of an evaluation."""


class Evaluator:
    """Evaluates the model (its average, where one is kept) and saves it as a bundle.

    Args:
        session: Task, model, device, folders.
        save_bundle: Writes a bundle.
    """

    def __init__(self, session: Session, save_bundle: SaveBundle) -> None:
        self.session = session
        self.accelerator = session.accelerator
        self.trained = session.trained
        self.save_bundle = save_bundle

    def __call__(self, state: TrainState) -> bool:
        """Evaluates, notes the result in ``state`` and saves ``last`` and, if it is better than before, ``best``.

        Returns:
            False if a signal came in between: nothing is noted or saved then, and the evaluation is still due.
        """
        with self._evaluated_weights():
            try:
                evaluation = self._evaluate()
            except _StoppedError:
                return False
            better = _is_better(evaluation.score, state.best_score)
            self._note(state, evaluation, better)
            self._save(self.session.run.last, state)
            if better:
                self._save(self.session.run.best, state)
        return True

    def save_last(self, state: TrainState) -> None:
        """Saves the present weights as ``last``."""
        with self._evaluated_weights():
            self._save(self.session.run.last, state)

    def write_pictures(self, state: TrainState) -> None:
        """Writes figures and pictures of the last evaluation, of whose weights the model still is.

        Raises:
            RunError: They could not be written.
        """
        if not self.accelerator.is_main_process:
            return
        evaluation = Evaluation(state.last_metrics, state.last_score, state.score_name)
        title = f"{self.session.run.path.resolve().name}, step {state.step}"
        with self._evaluated_weights(), self._replace(self.session.run.pictures) as folder:
            self.session.task.write_report(self._forward, evaluation, folder, title=title, count=PICTURES)

    @contextmanager
    def _evaluated_weights(self) -> Iterator[None]:
        with self.trained.average.applied() if self.trained.average else nullcontext():
            self.trained.model.eval()
            try:
                yield
            finally:
                self.trained.model.train()

    def _evaluate(self) -> Evaluation:
        self._share_statistics()
        advance = self.session.view.evaluating()
        # One process may leave at any image; several must reach the sum over processes together.
        alone = self.accelerator.num_processes == 1

        def on_image() -> None:
            advance()
            if alone and self.session.stop.received is not None:
                raise _StoppedError

        try:
            return self.session.task.evaluate(
                self._forward,
                shard=(self.accelerator.process_index, self.accelerator.num_processes),
                gather=self._sum_over_processes,
                on_image=on_image,
            )
        finally:
            self.session.view.evaluated()

    def _share_statistics(self) -> None:
        """Gives all processes the main one's running statistics, which are those that bundles hold.

        On processors, where batch norm is not synchronised, each process has statistics of its own images.
        """
        if self.accelerator.num_processes > 1:
            for buffer in self.trained.model.buffers():
                torch.distributed.broadcast(buffer, src=0)

    @torch.no_grad()
    def _forward(self, image_BCHW: Tensor) -> tuple[Any, LayerTaps]:
        taps = self.session.backbone(
            image_BCHW.to(self.accelerator.device, non_blocking=True), self.trained.model.head.request
        )
        with self.session.autocast():
            return self.trained.model(taps), taps

    def _sum_over_processes(self, tensor: Tensor) -> Tensor:
        summed: Tensor = self.accelerator.reduce(tensor.to(self.accelerator.device), "sum")
        return summed.to(tensor.device)

    def _note(self, state: TrainState, evaluation: Evaluation, better: bool) -> None:
        state.evaluated = state.step
        state.score_name = evaluation.score_name
        state.last_score, state.last_metrics = evaluation.score, evaluation.metrics
        state.without_gain = 0 if better else state.without_gain + 1
        if better:
            state.best_score, state.best_step, state.best_metrics = evaluation.score, state.step, evaluation.metrics
        best = "best so far" if better else f"best {state.best_score:.4g} at step {state.best_step}"
        logger.info("step %d: %s %.4g (%s)", state.step, evaluation.score_name, evaluation.score, best)

    def _save(self, path: Path, state: TrainState) -> None:
        if not self.accelerator.is_main_process:
            return
        metrics = state.last_metrics if state.evaluated == state.step else {}
        with self._replace(path) as folder:
            self.save_bundle(folder, self.session.config, metrics)

    @contextmanager
    def _replace(self, path: Path) -> Iterator[Path]:
        try:
            with replace_folder(path) as folder:
                yield folder
        except RunError as error:
            raise RunError(f"{error} {last_good(self.session.run.checkpoints)}") from error


def _is_better(score: float, best: float | None) -> bool:
    """Whether a score is better than the best so far; any is better than none, and any number than none (NaN)."""
    return best is None or score > best or (math.isnan(best) and not math.isnan(score))
