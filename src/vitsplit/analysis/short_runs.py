"""``--layers auto`` and ``--max-minutes``: short runs on the training data, the last of which the run continues."""

from __future__ import annotations

import itertools
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from vitsplit.analysis.layer_quality import Quality, measure
from vitsplit.analysis.layer_search import FIRST_STEPS, Choice, Part, TrainTo, candidates, search, steps_for
from vitsplit.analysis.training_similarity import Folders, check_choice
from vitsplit.backbone import open_backbone
from vitsplit.engine.assemble import assemble, open_tasks
from vitsplit.engine.override import override
from vitsplit.engine.processes import process_state
from vitsplit.engine.run_folder import RunFolder
from vitsplit.engine.run_tasks import RunTasks
from vitsplit.engine.trainer import EXIT_STATUS, Trainer
from vitsplit.errors import ConfigError, RunError
from vitsplit.model import backbone_settings
from vitsplit.saved_config import config_to_dict, upgraded_config
from vitsplit.train_config import TrainConfig

logger = logging.getLogger(__name__)

PREFIX = "short-runs-"
"""Of the names of temporary folders."""


def begin_run(
    config: TrainConfig,
    data: Folders,
    run: RunFolder,
    *,
    choose_layers: bool,
    max_minutes: float | None,
    max_head_gmacs: float | None = None,
) -> TrainConfig:
    """Chooses the layers of a new run, its number of steps, or both, and leaves the run begun in its folder.

    The layers of heads that share a crop are chosen in runs of each head, which are not continued.

    Args:
        config: The configuration.
        data: The data set of each head.
        run: The run's folder, which is locked and holds no run yet.
        choose_layers: Choose the layers, see ``layer_search``; otherwise those of the configuration are used.
        max_minutes: The time of the run, without evaluations, from which the number of steps follows; None: that of the
            configuration.
        max_head_gmacs: See ``layer_search.search``.

    Returns:
        The configuration of the run. The choice is in ``layers.json`` in its folder.

    Raises:
        ConfigError: There are several processes, the time is not positive, or no candidate is within the limit.
        SystemExit: A signal was received.
    """
    if process_state().num_processes > 1:
        flag = "--layers auto" if choose_layers else "--max-minutes"
        raise ConfigError(
            f"{flag} measures in one process. Run it in one process first, and give its --num-tuned-layers, "
            "--tune-blocks and --steps (config.json has them) to the run in several."
        )
    if max_minutes is not None and not 0 < max_minutes < math.inf:
        raise ConfigError(f"--max-minutes must be above 0, not {max_minutes:g}.")
    began, seconds = time.perf_counter(), None if max_minutes is None else 60 * max_minutes
    folder = run.search
    shutil.rmtree(folder, ignore_errors=True)  # of a start that was killed
    folder.mkdir()
    choices: dict[str, Choice] = {}
    for name in config.heads if choose_layers else ():
        own = config.for_head(name)
        check_choice(own, "--layers auto")
        where = {name: data[name]}
        everyone = candidates(own, _num_layers(own), folder / name, _num_classes(own, where))
        choices[name] = search(
            everyone,
            _train_to(where),
            steps=config.loop.steps,
            seconds=None if seconds is None else seconds / len(config.heads),
            max_head_gmacs=max_head_gmacs,
            first_views=_first_views(own, where),
        )
    config = override(config, {name: choice.settings for name, choice in choices.items()})
    if choices:
        run.write_choice({name: dict(choice.evidence) for name, choice in choices.items()})
    begun, part = folder / "run", None
    if choices and config.geometry is None:
        (choice,) = choices.values()
        begun, part = choice.winner.folder, choice.winner.part if choice.winner.steps else None
    if seconds is not None:
        part = part or _train_to(data)(config, begun, FIRST_STEPS)
        left = seconds - (time.perf_counter() - began)
        steps = steps_for(part, left, _first_views(config, data))
        logger.info("--max-minutes %g: %d steps of %.2f s", max_minutes, steps, part.step_seconds)
        config = override(config, {"steps": steps})
    if part is not None:
        _adopt(begun, run, config)
    shutil.rmtree(folder, ignore_errors=True)
    return config


def measure_layers(config: TrainConfig, data: Path, folder: Path, *, max_minutes: float) -> list[Quality]:
    """Short runs of a single head with K_t from 0 to L and other forms, see ``layer_quality.measure``.

    Args:
        config: The configuration.
        data: The data set.
        folder: The folder in which a folder of the runs is made, and removed at the end.
        max_minutes: The time of all runs together.

    Raises:
        ConfigError: The method or the task has no choice of layers.
        SystemExit: A signal was received.
    """
    check_choice(config, "analyze layers")
    where = dict.fromkeys(config.heads, data)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=folder) as runs:
        everyone = candidates(config, _num_layers(config), Path(runs), _num_classes(config, where))
        return measure(everyone, _train_to(where), seconds=60 * max_minutes)


def steps_within(configs: Mapping[str, TrainConfig], data: Path, folder: Path, *, seconds: float) -> dict[str, int]:
    """The number of training steps of each configuration of a single head within a time, without evaluations.

    The first steps of each are trained on the data, in turns, so that a change of the machine's speed affects all.

    Args:
        configs: The configurations by label.
        data: The data set.
        folder: The folder in which a folder of the runs is made, and removed at the end.
        seconds: The time of every run.

    Raises:
        ConfigError: The time is too short for a step.
        SystemExit: A signal was received.
    """
    train_to = {label: _train_to(dict.fromkeys(config.heads, data)) for label, config in configs.items()}
    parts: dict[str, Part] = {}
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{PREFIX}*"):  # of a command that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=folder) as runs:
        for target in (FIRST_STEPS // 2, FIRST_STEPS):
            for label, config in configs.items():
                # Longer than its beginning, whatever --steps is.
                longer = override(config, {"steps": max(config.loop.steps, 2 * FIRST_STEPS)})
                if config.loop.cache_features:  # steps that read what an earlier run has cached are not the first ones
                    longer = override(longer, {"cache_folder": str(Path(runs) / f"{label}-features")})
                parts[label] = train_to[label](longer, Path(runs) / label, target)
    return {
        label: _whole_steps(
            label, part, seconds, _first_views(configs[label], dict.fromkeys(configs[label].heads, data))
        )
        for label, part in parts.items()
    }


def _whole_steps(label: str, part: Part, seconds: float, first_views: int) -> int:
    left = seconds - sum(part.seconds)
    within = sum(taken <= seconds for taken in itertools.accumulate(part.seconds))
    steps = steps_for(part, left, first_views) if left > 0 else within
    if steps < 1:
        raise ConfigError(
            f"--minutes {seconds / 60:g}: the first step of {label} takes {part.seconds[0]:.1f} s here, and later ones "
            f"{part.step_seconds:.1f} s. Increase the time."
        )
    return steps


def with_choice_of(run: RunFolder, config: TrainConfig, *, layers: bool, steps: bool) -> TrainConfig:
    """The configuration with the layers, or the number of steps, chosen at the start of a run, for resuming it.

    Raises:
        RunError: The run's configuration cannot be read, or has other heads.
    """
    (first, *_) = config.heads.values()
    saved = upgraded_config(run.read_config(), first.task.name)
    try:
        if layers:
            config = override(config, {name: _choice_in(saved["heads"][name]) for name in config.heads})
        return override(config, {"steps": saved["loop"]["steps"]}) if steps else config
    except (KeyError, TypeError) as error:
        raise RunError(f"{run.config_file} has other heads ({error}). Give another --out, or omit --resume.") from error


def _train_to(data: Folders) -> TrainTo:
    """See ``TrainTo``. Each run opens the backbone: once in half precision, its blocks are not those to copy."""

    def train_to(config: TrainConfig, folder: Path, steps: int) -> Part:
        # A row of metrics.jsonl for every step, which does not affect the weights.
        config = replace(config, loop=replace(config.loop, log_every=1, track=()))
        resume = folder.is_dir()
        with RunFolder.open(folder, resume=resume) as run, _quiet() as console:
            assembly = assemble(config, data)
            trainer = Trainer(config, tasks=assembly.tasks, backbone=assembly.backbone, model=assembly.model)
            result = trainer.fit(run, assembly.save_bundle, resume=resume, console=console, pause_after=steps)
            if result.stopped_by is not None:
                logger.warning("stopped by %s: the same command, with --resume in a run, repeats it", result.stopped_by)
                raise SystemExit(EXIT_STATUS[result.stopped_by])
            rows = [row for row in run.read_metrics() if "loss" in row]
        seconds = [0.0, *(row["seconds"] for row in rows)]
        return Part(
            losses=[row["loss"] for row in rows],
            seconds=[after - before for before, after in itertools.pairwise(seconds)],
            backbone_seconds=0.0 if trainer.features is None else trainer.features.times.backbone_seconds,
        )

    return train_to


@contextmanager
def _quiet() -> Iterator[Console]:
    """Within the block the engine logs only warnings; yields a console without output."""
    engine = logging.getLogger("vitsplit.engine")
    level = engine.level
    engine.setLevel(logging.WARNING)
    try:
        yield Console(quiet=True)
    finally:
        engine.setLevel(level)


def _adopt(folder: Path, run: RunFolder, config: TrainConfig) -> None:
    """Moves a short run into the folder of the run that continues it.

    The configuration is written first: after a kill in between, the run starts from the beginning with it.
    """
    run.write_config(config_to_dict(config))
    begun = RunFolder(folder)
    bundles = (begun.best, begun.last)
    for path in (begun.metrics_file, begun.data_file, begun.environment_file, *bundles, begun.tensorboard):
        if path.exists():
            path.replace(run.path / path.name)
    begun.checkpoints.replace(run.checkpoints)
    run.holds_run = True


def _num_layers(config: TrainConfig) -> int:
    return open_backbone(backbone_settings(config), only_shapes=True).num_layers


def _num_classes(config: TrainConfig, data: Folders) -> int | None:
    (task,) = open_tasks(config, data).values()
    classes = task.describe().get("classes")
    return None if classes is None else len(classes)


def _first_views(config: TrainConfig, data: Folders) -> int:
    """The number of steps until the features of all views are cached."""
    samples = len(RunTasks(config, open_tasks(config, data)).train_data())
    return math.ceil(samples * config.loop.cache_features / config.loop.batch_size)


def _choice_in(config: Mapping[str, Any]) -> dict[str, Any]:
    names = ("num_tuned_layers", "tune_blocks", "prior_head", "fusion", "selection", "prior_layers", "num_prior_layers")
    # Earlier versions had no low-rank updates.
    return {name: config["method"][name] for name in names if name != "tune_blocks" or name in config["method"]}
