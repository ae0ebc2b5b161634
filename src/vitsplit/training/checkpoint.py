"""Checkpoints: everything that a run needs to go on as if it had never stopped, and nothing that does not train.

A checkpoint is a folder ``checkpoints/step-00001200`` that appears whole or not at all:

- ``weights.safetensors``: trainable parameters and norm buffers,
- ``optimizer.safetensors``: AdamW's moments, by parameter name,
- ``ema.safetensors``: the averaged weights, where the run keeps an average,
- ``state.json``: the rest, see ``TrainState``.

There is no random state in it: data, augmentation and dropout are functions of seed and step.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitsplit.errors import RunError
from vitsplit.tasks.base import Evaluation
from vitsplit.training.atomic import replace_folder, write_json

KEPT = 2


@dataclass
class Standing:
    """How one head stands in its evaluations. JSON-ready.

    Attributes:
        best_score: Best score so far, None before the first.
        best_step: Its step.
        best_metrics: Its metrics.
        last_score: The last evaluation's score.
        last_metrics: Its metrics.
        score_name: The name of the score.
        without_gain: Evaluations in a row without a better score.
    """

    best_score: float | None = None
    best_step: int = 0
    best_metrics: dict[str, Any] = field(default_factory=dict)
    last_score: float = 0.0
    last_metrics: dict[str, Any] = field(default_factory=dict)
    score_name: str = ""
    without_gain: int = 0

    def note(self, evaluation: Evaluation, step: int) -> bool:
        """Takes an evaluation down; returns whether it is the best so far: better than any, or a number after NaN."""
        best, score = self.best_score, evaluation.score
        better = best is None or score > best or (math.isnan(best) and not math.isnan(score))
        self.score_name = evaluation.score_name
        self.last_score, self.last_metrics = score, evaluation.metrics
        self.without_gain = 0 if better else self.without_gain + 1
        if better:
            self.best_score, self.best_step, self.best_metrics = score, step, evaluation.metrics
        return better

    def last_evaluation(self) -> Evaluation:
        """The last evaluation again."""
        return Evaluation(self.last_metrics, self.last_score, self.score_name)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Standing:
        """What was saved. JSON has only null for a score that is not finite."""
        standing = cls(**values)
        standing.last_score = math.nan if standing.last_score is None else standing.last_score
        if standing.best_score is None and standing.best_step:
            standing.best_score = math.nan
        return standing


@dataclass
class TrainState:
    """The numbers of a run in progress. JSON-ready.

    Attributes:
        step: Optimiser steps done.
        seconds: Wall time spent on them, over all starts.
        evaluated: The step of the last evaluation, 0 for none.
        standings: The evaluations so far of every head, by its name; ``""`` in a run of one task.
        finished: Whether nothing is left to do: all steps done, or patience at an end.
        window: Sums of what the next row of ``metrics.jsonl`` averages.
        window_steps: Steps in them.
        loss_scale: State of the gradient scaler (fp16).
        samples: Size of the training set.
        processes: Number of processes.
        backbone_hash: Hash of the frozen weights.
        description: What the task is about (``Task.describe``): classes, colours, units.
    """

    step: int = 0
    seconds: float = 0.0
    evaluated: int = 0
    standings: dict[str, Standing] = field(default_factory=dict)
    finished: bool = False
    window: dict[str, float] = field(default_factory=dict)
    window_steps: int = 0
    loss_scale: dict[str, Any] = field(default_factory=dict)
    samples: int = 0
    processes: int = 1
    backbone_hash: str = ""
    description: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunTensors:
    """What a checkpoint holds besides ``TrainState``, every tensor whole.

    Attributes:
        weights: What ``Trainee.trainable_state`` gives.
        moments: What ``optim.moments`` gives.
        average: The averaged weights, where the run keeps an average.
        loss_scale: State of the gradient scaler (fp16).
    """

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    average: dict[str, Tensor] | None
    loss_scale: dict[str, Any]


def save_checkpoint(folder: Path, tensors: RunTensors, state: TrainState) -> Path:
    """Writes ``folder/step-...`` atomically and removes all but the last two.

    Raises:
        RunError: It could not be written; the message names the last good checkpoint, which survives.
    """
    state.loss_scale = tensors.loss_scale
    path = folder / f"step-{state.step:08d}"
    survivor = last_good(folder)
    try:
        with replace_folder(path) as new:
            _save_tensors(tensors.weights, new / "weights.safetensors")
            _save_tensors(tensors.moments, new / "optimizer.safetensors")
            if tensors.average is not None:
                _save_tensors(tensors.average, new / "ema.safetensors")
            write_json(new / "state.json", dataclasses.asdict(state))
    except RunError as error:
        raise RunError(f"{error} {survivor}") from error
    for outdated in _checkpoints(folder)[:-KEPT]:
        shutil.rmtree(outdated, ignore_errors=True)
    return path


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run, if there is one."""
    return next(reversed(_checkpoints(folder)), None)


def last_good(folder: Path) -> str:
    """What is left of a run that could not write, and how to go on."""
    last = latest_checkpoint(folder)
    survivor = f"The last good checkpoint is {last}." if last else "There is no earlier checkpoint."
    return f"{survivor} Make room on that disk, then go on with --resume."


def read_state(checkpoint: Path) -> TrainState:
    """The numbers of a checkpoint.

    Raises:
        RunError: ``state.json`` cannot be read, or is of another version of the package.
    """
    try:
        values = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        state = TrainState(**values)
        state.standings = {head: Standing.from_json(saved) for head, saved in values.get("standings", {}).items()}
    except (OSError, ValueError) as error:
        raise RunError(_unreadable(checkpoint, error)) from error
    except TypeError as error:
        raise RunError(
            f"The checkpoint {checkpoint} is of another version of vitsplit ({error}). Go on with the version that "
            "wrote it (environment.json names it), or start a new run with another --out."
        ) from error
    # JSON has only null for what is not finite.
    state.window = {name: math.nan if total is None else total for name, total in state.window.items()}
    return state


def load_checkpoint(checkpoint: Path, load: Callable[[RunTensors], None], state: TrainState, *, averaged: bool) -> None:
    """Hands a checkpoint's tensors, and the gradient scaler's state of ``state``, to what puts them back in place.

    Raises:
        RunError: A file is missing or damaged, or it holds other tensors than the model.
    """
    try:
        tensors = RunTensors(
            weights=load_file(checkpoint / "weights.safetensors"),
            moments=load_file(checkpoint / "optimizer.safetensors"),
            average=load_file(checkpoint / "ema.safetensors") if averaged else None,
            loss_scale=state.loss_scale,
        )
    except (OSError, SafetensorError) as error:
        raise RunError(_unreadable(checkpoint, error)) from error
    try:
        load(tensors)
    except (KeyError, RuntimeError) as error:
        raise RunError(
            f"The checkpoint {checkpoint} does not fit the model: {error}. It is left as it is: go on with the data, "
            "the settings and the version of vitsplit that it was written with, or start a new run with another --out."
        ) from error


def _unreadable(checkpoint: Path, error: Exception) -> str:
    return (
        f"The checkpoint {checkpoint} cannot be read: {error}. Delete this folder and give --resume again: the run "
        "goes on from the checkpoint before it."
    )


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
