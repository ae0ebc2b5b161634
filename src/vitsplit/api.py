"""The public functions: train, evaluate, load, predict. The command line calls the same ones."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from vitsplit.analysis.auto_layers import with_advised_layers, with_layers_of
from vitsplit.atomic_files import write_json
from vitsplit.config import Precision
from vitsplit.engine.assemble import assemble
from vitsplit.engine.evaluation import evaluate as evaluate_task
from vitsplit.engine.evaluation import images_at_once
from vitsplit.engine.override import override
from vitsplit.engine.processes import process_state
from vitsplit.engine.run_folder import RunFolder
from vitsplit.engine.sharding import check_sharding
from vitsplit.engine.tracking import log_to
from vitsplit.engine.trainer import Trainer
from vitsplit.errors import BundleError, ConfigError
from vitsplit.folder_lock import hold_folder
from vitsplit.inference.predictor import LoadedHead, Predictions, Predictor, load_head, load_predictor, the_head
from vitsplit.recipes import recipe as named_recipe
from vitsplit.recipes.starting_point import stage_file, starting_config, starting_heads
from vitsplit.saved_config import config_to_dict
from vitsplit.tasks import open_task
from vitsplit.tasks.base import Evaluation, Task
from vitsplit.train_config import TrainConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What ``train`` returns.

    Attributes:
        run: The run folder; ``run / "best"`` is the best bundle, or holds one per head where heads share a crop.
        metrics: Of the best evaluation; by head where heads share a crop, each of its own best evaluation.
        stopped_by: Name of the signal that stopped the run early, or None.
    """

    run: Path
    metrics: Mapping[str, Any]
    stopped_by: str | None


def train(
    config: TrainConfig | None = None,
    *,
    data: str | Path | Mapping[str, str | Path | tuple[str, str | Path]],
    task: str | None = None,
    recipe: str | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    allow_changed_data: bool = False,
    layers: Literal["recipe", "auto"] = "recipe",
    **settings: Any,
) -> TrainResult:
    """Trains a head bundle, or several heads on the same images, with one pass of the backbone per batch.

    Args:
        config: A complete configuration; otherwise the recipe's, or that of the run that goes on.
        data: The data set's folder; of several heads one per head, by the heads' names. A head is called by its task,
            or has any name with the task's beside the folder: ``{"rooms": ("segmentation", "my_data")}``.
        task: The task, where ``data`` is one folder; None: the recipe's, or segmentation.
        recipe: Name of the recipe to start from, where ``data`` is one folder; None: the task's own for a laptop.
        out: The run folder; None: a new one under ``runs/``.
        resume: Go on with the run in ``out``, exactly as if it had never stopped.
        allow_changed_data: Resume although files of the data have changed since; what has is told in the log.
        layers: Whose K_t and prior layers: the settings' own, or ``auto``, those that `vitsplit analyze layers` would
            propose from up to 64 training images. A run that goes on keeps those that it began with.
        settings: Any field of the configuration by its name, such as ``steps=1000`` or ``crop_size=(448, 448)``. They
            are those of all heads, and those of one stand under its name: ``depth={"lr": 3e-4}``.

    Raises:
        VitsplitError: Settings, data, weights or the run folder cannot be used; the message says what to do.

    Example:
        >>> result = vitsplit.train(data="my_data", out="runs/first", steps=500)  # doctest: +SKIP
        >>> heads = {"rooms": ("segmentation", "my_rooms"), "parts": ("segmentation", "my_parts"), "depth": "my_depth"}
        >>> result = vitsplit.train(data=heads, out="runs/all", depth={"lr": 3e-4})  # doctest: +SKIP
    """
    if resume and out is None:
        raise ConfigError("Which run should go on? Give its folder with --out.")
    if layers not in ("recipe", "auto"):
        raise ConfigError(f"layers='{layers}': the layers are the recipe's ('recipe') or chosen from images ('auto').")
    if config is not None and recipe is not None:
        raise ConfigError("A configuration and a recipe were both given: choose one to start from.")
    resumed = out if resume else None
    if isinstance(data, Mapping):
        if recipe is not None:
            raise ConfigError("Several heads each start from their task's own recipe for a laptop. Change settings.")
        tasks = {name: name if isinstance(value, str | Path) else value[0] for name, value in data.items()}
        folders = {name: value if isinstance(value, str | Path) else value[1] for name, value in data.items()}
        config = config or starting_heads(tasks, resumed=resumed)
    else:
        if task is None:
            task = "segmentation" if recipe is None else named_recipe(recipe).task.name
        config = config or starting_config(task, recipe=recipe, resumed=resumed)
        folders = _folder_of_the_head(config, data)
    config = override(config, settings)
    run_path = Path(out) if out is not None else _new_run_path(config)
    return _train(config, folders, run_path, resume=resume, allow_changed_data=allow_changed_data, layers=layers)


def _folder_of_the_head(config: TrainConfig, data: str | Path) -> dict[str, str | Path]:
    if len(config.heads) > 1:
        heads = ", ".join(config.heads)
        raise ConfigError(f"The settings are for {heads}: give each a data set, by its name.")
    return dict.fromkeys(config.heads, data)


def _train(
    config: TrainConfig,
    data: Mapping[str, str | Path],
    run_path: Path,
    *,
    resume: bool,
    allow_changed_data: bool = False,
    layers: Literal["recipe", "auto"] = "recipe",
    resume_command: str | None = None,
) -> TrainResult:
    """Trains by a complete configuration. ``resume_command`` is what to tell a user whose run was stopped, if not the
    command of this run by itself."""
    check_sharding(config, process_state().num_processes)
    main = process_state().is_main_process
    with RunFolder.open(run_path, resume=resume) as run, log_to(run, Console(), main=main):
        if layers == "auto":
            config = with_layers_of(run, config) if run.holds_run else with_advised_layers(config, data)
        if main and not run.holds_run:
            run.write_start(config_to_dict(config))
        backbone, tasks, model, save = assemble(config, data)
        if config.loop.cache_features and len(tasks) == 1:
            logger.info("%s", _gain_of_keeping(config, next(iter(tasks.values())).describe()))
        trainer = Trainer(config, tasks=tasks, backbone=backbone, model=model)
        result = trainer.fit(
            run,
            save,
            resume=resume,
            allow_changed_data=allow_changed_data,
            resume_command=resume_command or _resume_command(config, data, run_path),
        )
    metrics = result.best_metrics
    if config.geometry is None:
        metrics = next(iter(metrics.values()), {})
    return TrainResult(run=run_path, metrics=metrics, stopped_by=result.stopped_by)


def train_stages(
    align: TrainConfig,
    instruct: TrainConfig,
    *,
    data: str | Path,
    out: str | Path | None = None,
    resume: bool = False,
    allow_changed_data: bool = False,
) -> TrainResult:
    """Trains a connector and then the language model with it: both stages of visual question answering.

    Args:
        align: Settings of the first stage, whose run is ``out / "align"``.
        instruct: Settings of the second, whose run is ``out / "instruct"``; it starts with the first one's connector.
        data: The data set of both.
        out: Folder of the two runs; None: a new one under ``runs/``.
        resume: Go on where the stages in ``out`` stopped.
        allow_changed_data: As in ``train``.

    Returns:
        Of the second stage; of the first where a signal stopped it.

    Raises:
        VitsplitError: As ``train``.
    """
    if resume and out is None:
        raise ConfigError("Which run should go on? Give its folder with --out.")
    root = Path(out) if out is not None else _new_run_path(instruct)
    first, second = root / "align", root / "instruct"
    folders = _folder_of_the_head(align, data)
    # Before the main process makes them.
    begun = {stage: resume and stage.exists() for stage in (first, second)}
    options: dict[str, Any] = {
        "allow_changed_data": allow_changed_data,
        "resume_command": _resume_command(align, folders, root, stage="both"),
    }
    main = process_state().is_main_process
    with hold_folder(root) if main else nullcontext():
        if main and not RunFolder(first).config_file.exists():
            # The second stage's settings have no run to stand in yet, and a resumed first stage must find them.
            for stage, config in (("align", align), ("instruct", instruct)):
                write_json(stage_file(root, stage), config_to_dict(config))
        result = _train(align, folders, first, resume=begun[first], **options)
        if result.stopped_by is not None:
            return result
        instruct = override(instruct, {"start_from": str(first)})
        return _train(instruct, folders, second, resume=begun[second], **options)


def load(
    run: str | Path | Mapping[str, str | Path],
    *more: str | Path,
    weights: str | Path | None = None,
    language_weights: str | Path | None = None,
    language_model: str | None = None,
    device: str | None = None,
    precision: Precision | None = None,
) -> Predictor:
    """Loads the heads of runs (their best bundles) or of bundle folders on their one backbone, ready to ``predict``.

    Heads that were trained on the same backbone have it in memory once, and one pass of it serves all of them: see
    ``Predictor``, which can also ``add`` and ``drop`` heads later.

    Args:
        run: Run or bundle folder; or a mapping of names of your own to several.
        more: Further run or bundle folders. A head is called by its name in its run, which is its task's unless another
            was given, and heads of the same name by their run folders.
        weights: File or folder of the backbone's weights where they are neither cached nor available from the hub. A
            bundle opens no file of its own: give what it was trained with.
        language_weights: Folder of the language model of a bundle that answers questions. A bundle opens no folder of
            its own: give what it was trained with.
        language_model: Its name, where it is none of those that vitsplit knows and may be taken from the hub.
        device: Where to compute; None: the first GPU, else the CPU.
        precision: What to compute in; None: float32 if the run computed in it, else what suits the device (``auto``).

    Raises:
        BundleError: A bundle is broken, or several were trained on different backbones or for different precisions.
        ConfigError: Two heads would have the same name, or none has the language model that ``language_weights`` is.
        WeightsError: The weights of the backbone or of a language model are unavailable.

    Example:
        >>> model = vitsplit.load("runs/first")  # doctest: +SKIP
        >>> model.predict("image.jpg")["segmentation"].overlay().show()  # doctest: +SKIP
        >>> both = vitsplit.load("runs/first", "runs/depth")  # doctest: +SKIP
        >>> both.predict("image.jpg")["depth"].overlay().show()  # doctest: +SKIP
        >>> vitsplit.load({"rooms": "runs/first", "streets": "runs/second"})  # doctest: +SKIP
        >>> vitsplit.load("runs/vqa").ask("desk.jpg", "What is on the desk?")  # doctest: +SKIP
    """
    options: dict[str, Any] = {
        "weights": weights,
        "language_weights": language_weights,
        "language_model": language_model,
        "device": device,
        "precision": precision,
    }
    if isinstance(run, Mapping):
        if more:
            raise ConfigError("Give either a mapping of names to runs, or runs one after the other, not both.")
        return load_predictor(run, **options)
    return load_predictor([run, *more], **options)


def predict(
    run: str | Path | Sequence[str | Path] | Mapping[str, str | Path], images: Iterable[Any], **options: Any
) -> list[Predictions]:
    """Predictions for several images.

    Args:
        run: A run or bundle folder; or several of them on one backbone, as a list or a mapping of your own names.
        images: What ``Predictor.predict`` takes.
        options: See ``load``.

    Returns:
        For every image a dictionary of predictions, by the heads' names.

    Example:
        >>> vitsplit.predict("runs/first", ["a.jpg", "b.jpg"])[0]["segmentation"].mask  # doctest: +SKIP
        >>> vitsplit.predict(["runs/first", "runs/depth"], ["a.jpg"])[0]["depth"].depth  # doctest: +SKIP
    """
    predictor = load_predictor([run] if isinstance(run, str | Path) else run, **options)
    return [predictor.predict(image) for image in images]


def evaluate(
    run: str | Path | Predictor | LoadedHead,
    *,
    data: str | Path,
    split: str = "val",
    workers: int = -1,
    on_image: Any = None,
    **settings: Any,
) -> tuple[Evaluation, Task]:
    """Measures a bundle on labelled images.

    Args:
        run: Run or bundle folder of one head, or what is loaded: a predictor of one head, or one head of a predictor.
            One that was trained with weights or a language model from a folder is loaded with them first,
            ``load(run, weights=...)``.
        data: The data set's folder.
        split: Which of its splits.
        workers: Processes that read images ahead; -1: the number of cores, at most 8 (none on a machine with two).
        on_image: Called after every image.
        settings: Fields of the task's settings to change, such as ``test_flip=True``.

    Returns:
        The evaluation, and the task opened on the data (for pictures).

    Raises:
        BundleError: The data's classes are not the bundle's.
    """
    if isinstance(run, Predictor):
        run = the_head(run)
    head = run if isinstance(run, LoadedHead) else load_head(run)
    config = override(head.card.config, settings)
    for flag in ("--train-file", "--val-file", "--image-folder"):
        if flag in head.card.paths and flag.lstrip("-").replace("-", "_") not in settings:
            raise ConfigError(
                f"The bundle's card names {head.card.paths[flag]!r}, which is outside of the data, as {flag}. "
                f"It is not followed: give {flag} yourself."
            )
    task = open_task(config.task, Path(data), (split,))
    if task.describe().get("classes") != head.task.describe().get("classes"):
        raise BundleError(_class_mismatch(head, task, data))
    loop, device = head.card.config.loop, head.backbone.mean_C11.device
    at_once = images_at_once(device, loop.batch_size // loop.accumulate)
    return evaluate_task(task, head.forward, workers=workers, images_at_once=at_once, on_image=on_image), task


def _class_mismatch(head: LoadedHead, task: Task, data: str | Path) -> str:
    ours, theirs = head.task.describe()["classes"], task.describe()["classes"]
    missing = [name for name in ours if name not in theirs]
    extra = [name for name in theirs if name not in ours]
    detail = f"only in the bundle: {missing or 'none'}; only in the data: {extra or 'none'}"
    if not missing and not extra:
        detail = f"the same names in another order: {ours} against {theirs}"
    return (
        f"{data} has {len(theirs)} classes and the bundle {len(ours)} ({detail}). Evaluate on data with the bundle's "
        "classes, or map the labels in classes.json."
    )


def _resume_command(config: TrainConfig, data: Mapping[str, str | Path], run: Path, *, stage: str | None = None) -> str:
    kinds = {name: head.task.name for name, head in config.heads.items()}
    if config.geometry is None:
        ((name, kind),) = kinds.items()
        stages = f" --stage {stage}" if stage is not None else ""
        what = f"{kind}{stages} --data {shlex.quote(str(data[name]))}"
    else:
        what = " ".join(f"--head {shlex.quote(f'{name}={kind}:{data[name]}')}" for name, kind in kinds.items())
    return f"vitsplit train {what} --out {shlex.quote(str(run))} --resume"


def _gain_of_keeping(config: TrainConfig, description: Mapping[str, Any]) -> str:
    """What multiply-adds alone say that a step gains where no feature is computed, in words."""
    from vitsplit.analysis.cost import step_gmacs

    cost = step_gmacs(config, config.task.crop_size, num_classes=len(description.get("classes", ())) or None)
    share = cost["frozen"] / cost["step"]
    return (
        f"of a step's multiply-adds {share:.0%} are the frozen pass (a language model not counted): "
        f"on kept features it can be {1 / (1 - share):.2f} times as fast"
    )


def _new_run_path(config: TrainConfig) -> Path:
    return Path("runs") / f"{'-'.join(config.heads)[:60]}-{time.strftime('%Y%m%d-%H%M%S')}"
