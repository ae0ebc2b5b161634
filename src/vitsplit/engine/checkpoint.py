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
import math
import shutil
import stat
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitsplit.atomic_files import replace_folder, write_json
from vitsplit.config import STRICT_FIELDS, from_dict
from vitsplit.engine.run_folder import MOST_STEPS
from vitsplit.errors import ConfigError, RunError
from vitsplit.files import read_json, real_number, whole_number
from vitsplit.model import Model
from vitsplit.saved_config import upgraded_name, upgraded_state
from vitsplit.tasks.base import Evaluation

KEPT = 2
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW keeps of a parameter."""
_DELETE = "Delete this checkpoint's folder and give --resume again: the run goes on from the checkpoint before it."


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

    __pydantic_config__: ClassVar[ConfigDict] = STRICT_FIELDS

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


@dataclass
class TrainState:
    """The numbers of a run in progress. JSON-ready.

    Attributes:
        step: Optimiser steps done.
        seconds: Wall time spent on them, over all starts.
        evaluated: The step of the last evaluation, 0 for none.
        standings: The evaluations so far of every head, by its name.
        finished: Whether nothing is left to do: all steps done, or patience at an end.
        window: Sums of what the next row of ``metrics.jsonl`` averages.
        window_steps: Steps in them.
        loss_scale: State of the gradient scaler (fp16).
        samples: Size of the training set.
        processes: Number of processes.
        backbone_hash: Hash of the frozen weights.
        description: What each head's task is about (``Task.describe``), by its name: classes, colors, units.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT_FIELDS

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
        weights: What ``Model.trainable_state`` gives.
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


def read_state(checkpoint: Path, heads: Collection[str]) -> TrainState:
    """The numbers of a checkpoint of a run with these heads.

    Raises:
        RunError: ``state.json`` cannot be read, a number in it is none that a run can have, or it is of another version
            of the package.
    """
    file = checkpoint / "state.json"
    values = read_json(file, error=RunError, advice=_DELETE)
    if isinstance(values, dict):
        values = upgraded_state(values, heads)
    standings = values.get("standings") if isinstance(values, dict) else None
    if not isinstance(standings, dict) or not all(isinstance(each, dict) for each in standings.values()):
        raise RunError(f"{file}: not the state of a run. {_DELETE}")
    unknown = values.keys() - _names(TrainState)
    unknown |= {name for each in standings.values() for name in each.keys() - _names(Standing)}
    if unknown:
        raise RunError(
            f"The checkpoint {checkpoint} is of another version of vitsplit (unknown in its state.json: "
            f"{', '.join(sorted(unknown))}). Go on with the version that wrote it (environment.json names it), or "
            "start a new run with another --out."
        )
    # JSON has only null for what is not finite.
    for each in standings.values():
        if each.get("last_score", 0.0) is None:
            each["last_score"] = math.nan
        if each.get("best_score") is None and each.get("best_step"):
            each["best_score"] = math.nan
    window = values.get("window")
    not_finite = [name for name, total in window.items() if total is None] if isinstance(window, dict) else []
    for name in not_finite:
        window[name] = 0.0
    try:
        state: TrainState = from_dict(TrainState, values, str(file))
    except ConfigError as error:
        raise RunError(f"{error} {_DELETE}") from error
    state.window |= dict.fromkeys(not_finite, math.nan)
    _check_ranges(state, file)
    return state


def _check_ranges(state: TrainState, file: Path) -> None:
    whole_number(state.step, f"{file}: step", 0, MOST_STEPS, error=RunError, advice=_DELETE)
    real_number(state.seconds, f"{file}: seconds", 0.0, error=RunError, advice=_DELETE)
    ranges = [
        ("evaluated", state.evaluated, 0, state.step),
        ("window_steps", state.window_steps, 1 if state.window else 0, state.step),
        ("samples", state.samples, 0, MOST_STEPS),
        ("processes", state.processes, 1, MOST_STEPS),
    ]
    for head, standing in state.standings.items():
        ranges.append((f"best_step of '{head}'", standing.best_step, 0, state.evaluated))
        ranges.append((f"without_gain of '{head}'", standing.without_gain, 0, state.step))
    for name, value, least, most in ranges:
        whole_number(value, f"{file}: {name}", least, most, error=RunError, advice=_DELETE)
    for name, value in state.loss_scale.items():
        real_number(value, f"{file}: loss_scale: {name}", error=RunError, advice=_DELETE)
    scores = [standing.best_score for standing in state.standings.values()]
    if (state.finished or state.evaluated) and (not scores or None in scores):
        raise RunError(f"{file}: evaluated, and without a result. {_DELETE}")


def _names(cls: type) -> set[str]:
    return {each.name for each in dataclasses.fields(cls)}


def load_checkpoint(
    checkpoint: Path, load: Callable[[RunTensors], None], state: TrainState, *, model: Model, averaged: bool
) -> None:
    """Hands a checkpoint's tensors, and the gradient scaler's state of ``state``, to what puts them back in place.

    Nothing is put anywhere before all names, shapes and dtypes were compared with the model's.

    Args:
        checkpoint: Its folder.
        load: ``Engine.load``.
        state: The checkpoint's numbers.
        model: The model; its parameters may be without storage.
        averaged: Whether the run keeps an average of the weights.

    Raises:
        RunError: A file is missing or damaged, or it holds other tensors than the model.
    """
    tensors = RunTensors(
        weights=_read_tensors(checkpoint / "weights.safetensors", model.heads),
        moments=_read_tensors(checkpoint / "optimizer.safetensors", model.heads),
        average=_read_tensors(checkpoint / "ema.safetensors", model.heads) if averaged else None,
        loss_scale=state.loss_scale,
    )
    try:
        if state.standings and state.standings.keys() != model.heads.keys():
            raise KeyError(f"results of the heads {sorted(state.standings)} instead of {sorted(model.heads)}")
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        own = model.trainable_state()
        for weights in (tensors.weights, tensors.average):
            if weights is not None:
                check_tensors(weights, own)
                _check_numbers({name: tensor for name, tensor in weights.items() if name in trained})
        _check_moments(tensors.moments, {name: own[name] for name in trained & own.keys()})
        load(tensors)
    except (KeyError, RuntimeError) as error:
        raise RunError(
            f"The checkpoint {checkpoint} does not fit the model: {error}. It is left as it is: go on with the data, "
            "the settings and the version of vitsplit that it was written with, or start a new run with another --out."
        ) from error
    except ValueError as error:
        raise RunError(_unreadable(checkpoint, error)) from error


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Compares names, shapes and dtypes.

    Raises:
        KeyError: Names are missing or unexpected.
        RuntimeError: A tensor has another shape or dtype; names it.
    """
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unexpected:
        raise KeyError(f"missing: {missing or 'none'}; unexpected: {unexpected or 'none'}")
    for name, tensor in found.items():
        for what, there, here in (
            ("shape", list(tensor.shape), list(expected[name].shape)),
            ("dtype", tensor.dtype, expected[name].dtype),
        ):
            if there != here:
                raise RuntimeError(f"{name} has the {what} {there} there, and {here} in the model")


def _check_moments(moments: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> None:
    """Every parameter has all of AdamW's moments, or none: one that no gradient has reached yet.

    Raises:
        KeyError, RuntimeError: As ``check_tensors``.
        ValueError: A moment is not a number.
    """
    names = {key.rpartition("/")[0] for key in moments}
    step = torch.zeros(())
    expected = {
        f"{name}/{kind}": step if kind == "step" else trained.get(name, step) for name in names for kind in MOMENTS
    }
    check_tensors(moments, {key: each for key, each in expected.items() if key.rpartition("/")[0] in trained})
    # A square may be beyond float32 and infinite in a run that goes on; that no gradient was NaN is checked.
    _check_numbers(moments, infinite=True)


def _check_numbers(tensors: Mapping[str, Tensor], *, infinite: bool = False) -> None:
    """Refuses what no step that was admitted can have left.

    Raises:
        ValueError: A tensor holds NaN or, if not ``infinite``, an infinity.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and (tensor.isnan().any() if infinite else not tensor.isfinite().all()):
            raise ValueError(f"{name} holds numbers that are not finite")


def _read_tensors(file: Path, heads: Collection[str]) -> dict[str, Tensor]:
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise OSError(f"{file.name} is not a regular file")
        return {upgraded_name(name, heads): tensor for name, tensor in load_file(file).items()}
    except (OSError, SafetensorError, ValueError) as error:
        raise RunError(_unreadable(file.parent, error)) from error


def _unreadable(checkpoint: Path, error: Exception) -> str:
    return f"The checkpoint {checkpoint} cannot be read: {error}. {_DELETE}"


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
