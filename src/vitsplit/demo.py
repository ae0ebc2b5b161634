"""The demo: trains two bundles on one frozen backbone with generated scenes, and writes a page of results."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitsplit import api
from vitsplit.backbone import load_backbone
from vitsplit.backbone.hub import HubUnavailableError
from vitsplit.demo_config import DemoConfig
from vitsplit.demo_page import DemoResult, write_page, write_picture
from vitsplit.engine.override import override
from vitsplit.errors import RunError
from vitsplit.folder_lock import hold_folder, hold_free_folder
from vitsplit.recipes import recipe
from vitsplit.sample import write_segmentation_set
from vitsplit.train_config import TrainConfig

logger = logging.getLogger("vitsplit")

PREFERRED, FALLBACK = "dinov2-small", "dinov2-small-focus"
TASKS = ("segmentation", "depth")


@dataclass(frozen=True)
class DemoFolders:
    """Output folders of the demo."""

    out: Path

    @property
    def scenes(self) -> Path:
        """Folder of the generated scenes."""
        return self.out / "scenes"

    def run(self, task: str) -> Path:
        """Run folder of a task."""
        return self.out / task


def run_demo(config: DemoConfig, log: Callable[[str], None] = logger.info) -> Path:
    """Generates scenes, trains and evaluates both bundles, and returns the path of the page.

    Raises:
        RunError: The output folder already holds a demo.
        WeightsError: Pretrained weights are unavailable.
    """
    with hold_free_folder(Path("demo")) if config.out is None else hold_folder(config.out) as out:
        return _run(config, DemoFolders(out), log)


def _run(config: DemoConfig, folders: DemoFolders, log: Callable[[str], None]) -> Path:
    if any(folders.run(task).exists() for task in TASKS):
        raise RunError(f"{folders.out} already holds a demo. Give another folder with --out, or delete it.")
    started = time.perf_counter()
    backbone = _choose_backbone(config, log)
    log(f"generating {config.train_scenes} + {config.val_scenes} scenes in {folders.scenes}")
    write_segmentation_set(folders.scenes, config.train_scenes, config.val_scenes, config.size, config.seed)
    minutes = {}
    for task in TASKS:
        log(f"training a {task} bundle on {backbone}: {config.steps} steps of {config.batch_size} scenes")
        training_started = time.perf_counter()
        api.train(settings(config, task, backbone), data=folders.scenes, out=folders.run(task))
        minutes[task] = (time.perf_counter() - training_started) / 60
    runs = {task: folders.run(task) for task in TASKS}
    model = api.load(runs)
    evaluations = {task: api.evaluate(model[task], data=folders.scenes) for task in TASKS}
    result = DemoResult(
        config, folders.scenes, {task: folders.run(task) for task in TASKS}, model, evaluations, minutes
    )
    picture = write_picture(result, folders.out / "picture.jpg")
    page = write_page(result, folders.out)
    miou, rmse = evaluations["segmentation"][0].metrics["miou"], evaluations["depth"][0].metrics["rmse"]
    log(f"mIoU {100 * miou:.1f} %, depth RMSE {rmse:.2f} m after {sum(minutes.values()):.1f} minutes of training")
    log(f"predictions: {model.describe_passes()}; picture: {picture}")
    log(f"finished in {(time.perf_counter() - started) / 60:.1f} minutes")
    return page


def settings(config: DemoConfig, task: str, backbone: str) -> TrainConfig:
    """The laptop recipe of a task, shortened for the demo."""
    changes: dict[str, Any] = {
        "name": "demo",
        "backbone": backbone,
        "random_weights": config.random_weights,
        "crop_size": config.size,
        "image_scale": None,
        "steps": config.steps,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "eval_every": -(-config.steps // 2),
        "log_every": max(1, min(5, config.steps)),
    }
    return override(recipe(f"laptop-{task}"), changes)


def _choose_backbone(config: DemoConfig, log: Callable[[str], None]) -> str:
    """Name of the backbone; its weights are cached afterwards."""
    if config.backbone != "auto" or config.random_weights:
        return PREFERRED if config.backbone == "auto" else config.backbone
    try:
        load_backbone(PREFERRED)
        return PREFERRED
    except HubUnavailableError:
        log(f"{PREFERRED} is not cached and the model hub is unavailable: using {FALLBACK} instead")
        return FALLBACK
