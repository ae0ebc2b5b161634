"""Checkpoints: everything needed to resume a run exactly, without frozen weights.

A checkpoint is a folder ``checkpoints/step-00001200``, written atomically:

- ``weights.safetensors``: trainable parameters and norm buffers,
- ``optimizer.safetensors``: AdamW's moments, by parameter name,
- ``ema.safetensors``: the averaged weights, if the run uses EMA,
- ``state.json``: the rest, see ``TrainState``.

It holds no random state: data order, augmentation and dropout are functions of seed and step.
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

MAX_CHECKPOINTS = 2
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""AdamW's state of a parameter."""
_DELETE = "Delete this checkpoint's folder and use --resume again: the run resumes from the previous checkpoint."


@dataclass
class Standing:
    """The evaluation results of one head so far. JSON-serializable.

    Attributes:
        best_score: Best score so far, None before the first.
        best_step: Step of the best score.
        best_metrics: Metrics of the best evaluation.
        last_score: Score of the last evaluation.
        last_metrics: Metrics of the last evaluation.
        score_name: The name of the score.
        without_gain: Consecutive evaluations without a better score.
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
        """Records an evaluation; returns whether it is the best so far (any number is better than NaN)."""
        best, score = self.best_score, evaluation.score
        better = best is None or score > best or (math.isnan(best) and not math.isnan(score))
        self.score_name = evaluation.score_name
        self.last_score, self.last_metrics = score, evaluation.metrics
        self.without_gain = 0 if better else self.without_gain + 1
        if better:
            self.best_score, self.best_step, self.best_metrics = score, step, evaluation.metrics
        return better

    def last_evaluation(self) -> Evaluation:
        """The last evaluation."""
        return Evaluation(self.last_metrics, self.last_score, self.score_name)


@dataclass
class TrainState:
    """The progress of a run. JSON-serializable.

    Attributes:
        step: Completed optimizer steps.
        seconds: Wall time spent on them, over all starts of the run.
        evaluated: The step of the last evaluation, 0 for none.
        standings: The evaluation results of every head so far, by head name.
        finished: Whether training is complete: all steps are done, or the run was stopped early.
        window: Sums of the values that the next row of ``metrics.jsonl`` averages.
        window_steps: Number of steps in these sums.
        loss_scale: State of the gradient scaler (fp16).
        samples: Size of the training set.
        processes: Number of processes.
        backbone_hash: Hash of the frozen weights.
        description: ``Task.describe`` of each head's task, by head name: classes, colors, units.
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
    """The contents of a checkpoint besides ``TrainState``; no tensor is sharded.

    Attributes:
        weights: As returned by ``Model.trainable_state``.
        moments: As returned by ``optim.moments``.
        average: The averaged weights, if the run uses EMA.
        loss_scale: State of the gradient scaler (fp16).
    """

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    average: dict[str, Tensor] | None
    loss_scale: dict[str, Any]


def save_checkpoint(folder: Path, tensors: RunTensors, state: TrainState) -> Path:
    """Writes ``folder/step-...`` atomically and removes all but the last two checkpoints.

    Raises:
        RunError: It could not be written; the message names the last good checkpoint, which is preserved.
    """
    state.loss_scale = tensors.loss_scale
    path = folder / f"step-{state.step:08d}"
    advice = recovery_advice(folder)
    try:
        with replace_folder(path) as new:
            _save_tensors(tensors.weights, new / "weights.safetensors")
            _save_tensors(tensors.moments, new / "optimizer.safetensors")
            if tensors.average is not None:
                _save_tensors(tensors.average, new / "ema.safetensors")
            write_json(new / "state.json", dataclasses.asdict(state))
    except RunError as error:
        raise RunError(f"{error} {advice}") from error
    for outdated in _checkpoints(folder)[:-MAX_CHECKPOINTS]:
        shutil.rmtree(outdated, ignore_errors=True)
    return path


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run, if there is one."""
    return next(reversed(_checkpoints(folder)), None)


def recovery_advice(folder: Path) -> str:
    """After a failed write: names the last good checkpoint of a run, and how to resume."""
    last = latest_checkpoint(folder)
    found = f"The last good checkpoint is {last}." if last else "There is no earlier checkpoint."
    return f"{found} Free disk space, then resume with --resume."


def read_state(checkpoint: Path, heads: Collection[str]) -> TrainState:
    """Reads ``state.json`` of a checkpoint of a run with these heads.

    Raises:
        RunError: ``state.json`` cannot be read, a number in it is out of range, or it was written by another version of
            the package.
    """
    file = checkpoint / "state.json"
    values = read_json(file, error=RunError, advice=_DELETE)
    if isinstance(values, dict):
        values = upgraded_state(values, heads)
    standings = values.get("standings") if isinstance(values, dict) else None
    if not isinstance(standings, dict) or not all(isinstance(each, dict) for each in standings.values()):
        raise RunError(f"{file}: not the state of a run: 'standings' must be an object of objects. {_DELETE}")
    unknown = values.keys() - _names(TrainState)
    unknown |= {name for each in standings.values() for name in each.keys() - _names(Standing)}
    if unknown:
        raise RunError(
            f"The checkpoint {checkpoint} was written by another version of vitsplit (unknown keys in its state.json: "
            f"{', '.join(sorted(unknown))}). Resume with the version that wrote it (see environment.json), or start a "
            "new run with another --out."
        )
    # JSON has no NaN or infinity: these are written as null.
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
        raise RunError(f"{file}: evaluated, but without a best score. {_DELETE}")


def _names(cls: type) -> set[str]:
    return {each.name for each in dataclasses.fields(cls)}


def load_checkpoint(
    checkpoint: Path, load: Callable[[RunTensors], None], state: TrainState, *, model: Model, averaged: bool
) -> None:
    """Reads a checkpoint's tensors and passes them, with the gradient scaler's state of ``state``, to ``load``.

    All names, shapes and dtypes are compared with the model's before anything is loaded.

    Args:
        checkpoint: The checkpoint's folder.
        load: ``Parallelism.load``.
        state: The checkpoint's ``state.json``.
        model: The model; its parameters may be on the meta device.
        averaged: Whether the run uses EMA.

    Raises:
        RunError: A file is missing or damaged, or its tensors do not match the model.
    """
    tensors = RunTensors(
        weights=_read_tensors(checkpoint / "weights.safetensors", model),
        moments=_read_tensors(checkpoint / "optimizer.safetensors", model),
        average=_read_tensors(checkpoint / "ema.safetensors", model) if averaged else None,
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
            f"The checkpoint {checkpoint} does not fit the model: {error}. It was not modified: resume with the data, "
            "the settings and the version of vitsplit that it was written with, or start a new run with another --out."
        ) from error
    except ValueError as error:
        raise RunError(_unreadable(checkpoint, error)) from error


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Compares names, shapes and dtypes.

    Raises:
        KeyError: Names are missing or unexpected.
        RuntimeError: A tensor has another shape or dtype; the message names it.
    """
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unexpected:
        raise KeyError(f"missing: {missing or 'none'}; unexpected: {unexpected or 'none'}")
    for name, tensor in found.items():
        for what, saved, required in (
            ("shape", list(tensor.shape), list(expected[name].shape)),
            ("dtype", tensor.dtype, expected[name].dtype),
        ):
            if saved != required:
                raise RuntimeError(f"{name} has {what} {saved} in the file, but {required} in the model")


def _check_moments(moments: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> None:
    """Checks that every parameter has all of AdamW's moments, or none (if it has had no gradient yet).

    Raises:
        KeyError, RuntimeError: As ``check_tensors``.
        ValueError: A moment holds NaN.
    """
    names = {key.rpartition("/")[0] for key in moments}
    step = torch.zeros(())
    expected = {
        f"{name}/{kind}": step if kind == "step" else trained.get(name, step) for name in names for kind in MOMENTS
    }
    check_tensors(moments, {key: each for key, each in expected.items() if key.rpartition("/")[0] in trained})
    # A squared gradient may overflow float32 to infinity in a valid run; gradients that are NaN end a run.
    _check_numbers(moments, infinite=True)


def _check_numbers(tensors: Mapping[str, Tensor], *, infinite: bool = False) -> None:
    """Refuses values that no successful step can have produced.

    Raises:
        ValueError: A tensor holds NaN or, if not ``infinite``, an infinity.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and (tensor.isnan().any() if infinite else not tensor.isfinite().all()):
            raise ValueError(f"{name} holds numbers that are not finite")


def _read_tensors(file: Path, model: Model) -> dict[str, Tensor]:
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise OSError(f"{file.name} is not a regular file")
        return {_current_name(name, model): tensor for name, tensor in load_file(file).items()}
    except (OSError, SafetensorError, ValueError) as error:
        raise RunError(_unreadable(file.parent, error)) from error


def _current_name(name: str, model: Model) -> str:
    prefix, head, rest = upgraded_name(name, model.heads).split(".", 2)
    return f"{prefix}.{head}.{model.heads[head].current_name(rest) if head in model.heads else rest}"


def _unreadable(checkpoint: Path, error: Exception) -> str:
    return f"The checkpoint {checkpoint} cannot be read: {error}. {_DELETE}"


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
