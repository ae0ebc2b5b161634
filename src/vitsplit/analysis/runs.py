"""Studies: named variants of a configuration, each trained with several seeds as ordinary runs.

::

    STUDY/
      study.json              the task and the data, to prevent mixing results on different data
      configs/full-seed0.json the configuration of each run
      runs/full-seed0/        ordinary runs

Finished runs of the same configuration are not trained again, and interrupted runs are resumed. Variants with identical
configurations share a run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vitsplit.analysis.processes import Job, run_jobs
from vitsplit.analysis.short_runs import with_choice_of
from vitsplit.analysis.variants import Variant
from vitsplit.atomic_files import write_json
from vitsplit.engine.checkpoint import TrainState, latest_checkpoint, read_state
from vitsplit.engine.override import override
from vitsplit.engine.resume import check_same_config
from vitsplit.engine.run_folder import RunFolder
from vitsplit.errors import ConfigError, RunError
from vitsplit.files import read_json, shown
from vitsplit.saved_config import config_to_dict
from vitsplit.train_config import TrainConfig

RunStatus = Literal["new", "interrupted", "finished"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One variant with one seed.

    Attributes:
        variant: The variant.
        seed: The seed.
        config: The full configuration; with ``Variant.layers`` auto, the one that the run starts from.
        folder: The run folder.
    """

    variant: Variant
    seed: int
    config: TrainConfig
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a finished run.

    Attributes:
        trial: The trial, with the configuration that was trained.
        score: The task's score at the end of the run; higher is better.
        best_score: The best score of all evaluations.
        score_name: Name of the score.
        metrics: All metrics of the last evaluation.
        steps: Number of steps.
        seconds: Wall time of the steps, without evaluations.
        description: The task description (``Task.describe``).
    """

    trial: Trial
    score: float
    best_score: float
    score_name: str
    metrics: Mapping[str, Any]
    steps: int
    seconds: float
    description: Mapping[str, Any]

    @property
    def chosen_layers(self) -> str | None:
        """The name of the candidate that the run chose (``layer_search.variants``); None: its layers were given."""
        if self.trial.variant.layers == "recipe":
            return None
        return next((str(each.get("chosen")) for each in RunFolder(self.trial.folder).read_choice().values()), None)


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """The state of a study.

    Attributes:
        outcomes: Outcomes of finished runs, in the order of the trials.
        stopped_by: The signal that stopped the study; None if it finished.
    """

    outcomes: tuple[Outcome, ...]
    stopped_by: str | None = None


def plan(base: TrainConfig, variants: Sequence[Variant], seeds: Sequence[int], out: Path) -> list[Trial]:
    """All variants with all seeds, ordered by seed, so that an interrupted study has all variants of some seeds.

    Raises:
        ConfigError: Names or seeds are not unique, a name is not a valid folder name, or a setting does not exist.
    """
    names = [variant.name for variant in variants]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"Two variants are called '{name}'. Names must be unique.")
        if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise ConfigError(f"A variant cannot be called '{name}': use letters, digits, '-', '_' and '.'.")
    if len(set(seeds)) < len(seeds) or not seeds:
        raise ConfigError(f"--seeds {' '.join(map(str, seeds))}: give at least one seed, without duplicates.")
    trials: list[Trial] = []
    for seed in seeds:
        for variant in variants:
            config = override(base, {**variant.settings, "seed": seed})
            same = (trial for trial in trials if trial.config == config and trial.variant.layers == variant.layers)
            duplicate = next(same, None)
            folder = out / "runs" / f"{variant.name}-seed{seed}" if duplicate is None else duplicate.folder
            trials.append(Trial(variant=variant, seed=seed, config=config, folder=folder))
    return trials


def run_status(trial: Trial) -> RunStatus:
    """The status of a run.

    Raises:
        RunError: Its folder contains a run with other settings, or an invalid one.
    """
    run = RunFolder(trial.folder)
    if not run.config_file.exists():
        return "new"
    check_same_config(_trained_config(trial), run)
    state = _state(trial)
    return "finished" if state is not None and state.finished else "interrupted"


def outcome(trial: Trial) -> Outcome:
    """The result of a finished run.

    Raises:
        RunError: It is not finished, or cannot be read.
    """
    state = _state(trial)
    if state is None or not state.finished:
        raise RunError(f"{trial.folder} contains no finished run. Train or resume it first.")
    if state.standings.keys() != trial.config.heads.keys():
        raise RunError(f"{trial.folder} contains a run of other heads, not of this study. Choose another --out.")
    ((head, last),) = state.standings.items()
    return Outcome(
        trial=replace(trial, config=_trained_config(trial)),
        score=last.last_score,
        best_score=last.last_score if last.best_score is None else last.best_score,
        score_name=last.score_name,
        metrics=last.last_metrics,
        steps=state.step,
        seconds=state.seconds,
        description=state.description[head],
    )


def run_trials(
    trials: Sequence[Trial],
    data: Path,
    out: Path,
    *,
    train: Callable[..., Any],
    processes: int = 1,
    on_finished: Callable[[Sequence[Outcome]], None] = lambda outcomes: None,
) -> StudyResult:
    """Trains the runs that are not finished.

    Args:
        trials: From ``plan``.
        data: The data set of all runs.
        out: The study folder.
        train: ``vitsplit.train``, used for runs in this process.
        processes: Number of parallel runs. One: in this process; several: each in a subprocess (``vitsplit train``),
            with cores divided among them and GPUs assigned in turn.
        on_finished: Called with all outcomes so far, at the start and after each run.

    Returns:
        All outcomes; after a signal, those so far, with checkpoints of interrupted runs on disk.

    Raises:
        RunError: The folder contains a study of other data, or runs with other settings.
        VitsplitError: A run failed; finished runs are kept.
        TrainingError: A run in a subprocess failed; the message names the run.
    """
    if processes < 1:
        raise ConfigError(f"--processes must be at least 1, not {processes}.")
    _check_study(out, trials, data)
    unique = {trial.folder: trial for trial in trials}.values()
    for trial in unique:
        if trial.variant.layers == "auto":
            _check_start(out, trial)
    pending = [trial for trial in unique if run_status(trial) != "finished"]
    for trial in unique:
        write_json(_config_file(out, trial), config_to_dict(trial.config))

    def finished() -> tuple[Outcome, ...]:
        return tuple(outcome(trial) for trial in trials if run_status(trial) == "finished")

    def report() -> None:
        on_finished(finished())

    report()
    if processes > 1:
        stopped_by = run_jobs([_job(trial, data, out) for trial in pending], processes, on_finished=report)
        return StudyResult(outcomes=finished(), stopped_by=stopped_by)
    for trial in pending:
        resume = run_status(trial) == "interrupted"
        choice = {"layers": trial.variant.layers, "max_minutes": trial.variant.max_minutes}
        result = train(trial.config, data=data, out=trial.folder, resume=resume, **choice)
        if result.stopped_by is not None:
            return StudyResult(outcomes=finished(), stopped_by=result.stopped_by)
        report()
    return StudyResult(outcomes=finished())


def _job(trial: Trial, data: Path, out: Path) -> Job:
    """The command of a run."""
    command = [sys.executable, "-P", "-m", "vitsplit", "train", trial.config.task.name, "--data", str(data)]
    command += ["--config", str(_config_file(out, trial)), "--out", str(trial.folder)]
    if trial.config.loop.cache_folder is not None:  # ignored in configuration files
        command += ["--cache-folder", trial.config.loop.cache_folder]
    command += ["--layers", trial.variant.layers]
    if trial.variant.max_minutes is not None:
        command += ["--max-minutes", str(trial.variant.max_minutes)]
    command += ["--resume"] * (run_status(trial) == "interrupted")
    return Job(name=str(trial.folder), command=command, errors=out / "configs" / f"{trial.folder.name}.errors.txt")


def _check_study(out: Path, trials: Sequence[Trial], data: Path) -> None:
    """Writes ``study.json``, or checks that it matches."""
    about = {"task": trials[0].config.task.name, "data": str(data.resolve())}
    file = out / "study.json"
    if file.exists():
        found = read_json(file, error=RunError, advice="Choose another --out.")
        if found != about:
            was = [shown(found.get(name), 200) for name in about] if isinstance(found, dict) else ["something else"] * 2
            raise RunError(
                f"{out} contains runs for {was[0]} on {was[1]}, not for {about['task']} on {about['data']}. "
                f"Choose another --out; if the data were moved, edit {file}."
            )
    (out / "configs").mkdir(parents=True, exist_ok=True)
    write_json(file, about)


def _check_start(out: Path, trial: Trial) -> None:
    """Records what a run that chooses its layers starts from, or checks that it is what it started from.

    The configuration of the run itself has the layers and the steps that were chosen.

    Raises:
        RunError: The run was begun with other settings, or with given layers.
    """
    start = RunFolder(out / "configs" / f"{trial.folder.name}-start")
    time = start.path / "time.json"
    if RunFolder(trial.folder).config_file.exists():
        advice = "Give another --out, or delete the run."
        if not start.config_file.exists():
            raise RunError(f"{trial.folder} contains a run whose layers were given. {advice}")
        check_same_config(trial.config, start)
        before = read_json(time, error=RunError, advice=advice)
        if before != trial.variant.max_minutes:
            now = trial.variant.max_minutes
            raise RunError(f"{trial.folder} was trained for {before} minutes (None: by steps), not {now}. {advice}")
        return
    start.path.mkdir(parents=True, exist_ok=True)
    start.write_config(config_to_dict(trial.config))
    write_json(time, trial.variant.max_minutes)


def _config_file(out: Path, trial: Trial) -> Path:
    return out / "configs" / f"{trial.folder.name}.json"


def _state(trial: Trial) -> TrainState | None:
    checkpoint = latest_checkpoint(RunFolder(trial.folder).checkpoints)
    return None if checkpoint is None else read_state(checkpoint, trial.config.heads)


def _trained_config(trial: Trial) -> TrainConfig:
    """The configuration of a run that was begun: with the layers and steps that it chose, if it did."""
    if trial.variant.layers == "recipe":
        return trial.config
    chose_steps = trial.variant.max_minutes is not None
    return with_choice_of(RunFolder(trial.folder), trial.config, layers=True, steps=chose_steps)


def without_seed(trial: Trial) -> TrainConfig:
    """The configuration shared by all seeds of a variant."""
    return replace(trial.config, loop=replace(trial.config.loop, seed=0))
