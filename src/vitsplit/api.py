"""The public functions: train, evaluate, load, predict. The command line calls the same ones."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from vitsplit.backbone import load_backbone
from vitsplit.bundle import save_bundle
from vitsplit.errors import BundleError, ConfigError
from vitsplit.inference.predictor import Predictor, load_predictor
from vitsplit.methods import build_model
from vitsplit.tasks import open_task, task_name
from vitsplit.tasks.base import Evaluation, Task
from vitsplit.training.config import Precision, TrainConfig
from vitsplit.training.loop import fit
from vitsplit.training.override import override
from vitsplit.training.processes import process_state
from vitsplit.training.run_folder import RunFolder
from vitsplit.training.starting_point import starting_config
from vitsplit.training.tracking import log_to


@dataclass(frozen=True)
class TrainResult:
    """What ``train`` returns.

    Attributes:
        run: The run folder; ``run / "best"`` is the best bundle.
        metrics: Of the best evaluation.
        stopped_by: Name of the signal that stopped the run early, or None.
    """

    run: Path
    metrics: Mapping[str, Any]
    stopped_by: str | None


def train(
    config: TrainConfig[Any] | None = None,
    *,
    data: str | Path,
    task: str = "segmentation",
    recipe: str | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    **settings: Any,
) -> TrainResult:
    """Trains a head bundle.

    Args:
        config: A complete configuration; otherwise the recipe's, or that of the run that goes on.
        data: The data set's folder.
        task: The task.
        recipe: Name of the recipe to start from; None: the task's own for a laptop.
        out: The run folder; None: a new one under ``runs/``.
        resume: Go on with the run in ``out``, exactly as if it had never stopped.
        settings: Any field of the configuration by its name, such as ``steps=1000`` or ``crop_size=(448, 448)``.

    Raises:
        VitsplitError: Settings, data, weights or the run folder cannot be used; the message says what to do.

    Example:
        >>> result = vitsplit.train(data="my_data", out="runs/first", steps=500)  # doctest: +SKIP
    """
    if resume and out is None:
        raise ConfigError("Which run should go on? Give its folder with --out.")
    if config is None:
        config = starting_config(task, recipe=recipe, resumed=out if resume else None)
    elif recipe is not None:
        raise ConfigError("A configuration and a recipe were both given: choose one to start from.")
    config = override(config, settings)
    run_path = Path(out) if out is not None else _new_run_path(config)
    run = RunFolder.open(run_path, resume=resume)
    with log_to(run, Console(), main=process_state().is_main_process):
        opened = open_task(config, Path(data))
        backbone = load_backbone(
            config.backbone.backbone, weights=config.backbone.weights, random_weights=config.backbone.random_weights
        )
        model = build_model(config, backbone, opened)

        def save(folder: Path, config: TrainConfig[Any], metrics: Mapping[str, Any]) -> None:
            save_bundle(folder, config=config, task=opened, backbone=backbone, model=model, metrics=metrics)

        result = fit(
            config,
            task=opened,
            backbone=backbone,
            model=model,
            run=run,
            save_bundle=save,
            resume=resume,
            resume_command=_resume_command(opened.name, data, run_path),
        )
    return TrainResult(run=run_path, metrics=result.best_metrics, stopped_by=result.stopped_by)


def load(
    run: str | Path, *, weights: str | Path | None = None, device: str | None = None, precision: Precision | None = None
) -> Predictor:
    """Loads a run's best bundle (or a bundle folder) with its backbone, ready to ``predict``.

    Args:
        run: Run or bundle folder.
        weights: File or folder of the backbone's weights where they are neither cached nor to be fetched.
        device: Where to compute; None: the first GPU, else the processor.
        precision: What to compute in; None: float32 if the run computed in it, else what suits the device (``auto``).

    Example:
        >>> model = vitsplit.load("runs/first")  # doctest: +SKIP
        >>> model.predict("image.jpg").overlay().show()  # doctest: +SKIP
    """
    return load_predictor(run, weights=weights, device=device, precision=precision)


def predict(run: str | Path, images: Iterable[Any], **options: Any) -> list[Any]:
    """Predictions of one bundle for several images; see ``load`` for the options."""
    predictor = load(run, **options)
    return [predictor.predict(image) for image in images]


def evaluate(
    run: str | Path | Predictor,
    *,
    data: str | Path,
    split: str = "val",
    on_image: Any = None,
    **settings: Any,
) -> tuple[Evaluation, Task]:
    """Measures a bundle on labelled images.

    Args:
        run: Run or bundle folder, or a loaded predictor.
        data: The data set's folder.
        split: Which of its splits.
        on_image: Called after every image.
        settings: Fields of the task's settings to change, such as ``test_flip=True``.

    Returns:
        The evaluation, and the task opened on the data (for pictures).

    Raises:
        BundleError: The data's classes are not the bundle's.
    """
    predictor = run if isinstance(run, Predictor) else load(run)
    config = override(predictor.card.config, settings)
    task = open_task(config, Path(data), (split,))
    if task.describe().get("classes") != predictor.task.describe().get("classes"):
        raise BundleError(_class_mismatch(predictor, task, data))
    return task.evaluate(predictor.forward, on_image=on_image), task


def _class_mismatch(predictor: Predictor, task: Task, data: str | Path) -> str:
    ours, theirs = predictor.task.describe()["classes"], task.describe()["classes"]
    missing = [name for name in ours if name not in theirs]
    extra = [name for name in theirs if name not in ours]
    detail = f"only in the bundle: {missing or 'none'}; only in the data: {extra or 'none'}"
    if not missing and not extra:
        detail = f"the same names in another order: {ours} against {theirs}"
    return (
        f"{data} has {len(theirs)} classes and the bundle {len(ours)} ({detail}). Evaluate on data with the bundle's "
        "classes, or map the labels in classes.json."
    )


def _resume_command(task: str, data: str | Path, run: Path) -> str:
    return f"vitsplit train {task} --data {shlex.quote(str(data))} --out {shlex.quote(str(run))} --resume"


def _new_run_path(config: TrainConfig[Any]) -> Path:
    return Path("runs") / f"{task_name(config)}-{time.strftime('%Y%m%d-%H%M%S')}"
