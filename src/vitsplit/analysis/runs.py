"""A study: named variants of one configuration, each trained with several seeds, as ordinary runs.

::

    STUDY/
      study.json              the task and the data, so that no figure of other data is mixed in
      configs/full-seed0.json what each run is started with
      runs/full-seed0/        the runs; each can be evaluated, predicted with, resumed by itself

A run is finished when its last checkpoint says so and its configuration is the one that is wanted; it is not trained
again. One that was interrupted is resumed. Variants that come to the same configuration share a run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vitsplit.analysis.processes import Job, run_jobs
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
class Variant:
    """One of what is compared.

    Attributes:
        name: Its name, which is also the beginning of its runs' folders: letters, digits, ``-``, ``_`` and ``.``.
        settings: The settings in which it differs from the study's configuration, by their bare names.
        title: What tables call it; empty: its name.
    """

    name: str
    settings: Mapping[str, Any]
    title: str = ""

    @property
    def label(self) -> str:
        """What tables call it."""
        return self.title or self.name


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One variant with one seed.

    Attributes:
        variant: The variant.
        seed: The seed.
        config: The whole configuration.
        folder: The run's folder.
    """

    variant: Variant
    seed: int
    config: TrainConfig
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished run came to.

    Attributes:
        trial: What was trained.
        score: The task's one figure at the end of the run; higher is better.
        best_score: The best of all its evaluations.
        score_name: Name of the figure.
        metrics: All metrics of the last evaluation.
        steps: Steps that were taken.
        seconds: Wall time of the steps, without evaluations.
        description: What the task says of its data (``Task.describe``).
    """

    trial: Trial
    score: float
    best_score: float
    score_name: str
    metrics: Mapping[str, Any]
    steps: int
    seconds: float
    description: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """How far a study has come.

    Attributes:
        outcomes: Of every finished run, in the order of the trials.
        stopped_by: The signal that stopped the study, None if it came to its end.
    """

    outcomes: tuple[Outcome, ...]
    stopped_by: str | None = None


def plan(base: TrainConfig, variants: Sequence[Variant], seeds: Sequence[int], out: Path) -> list[Trial]:
    """All variants with all seeds, seed after seed, so that a study that is cut short has all variants of some seeds.

    Raises:
        ConfigError: Two variants have one name, a name cannot be a folder's, a seed comes twice, or a setting does not
            exist.
    """
    names = [variant.name for variant in variants]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"Two variants are called '{name}'. Give each a name of its own.")
        if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise ConfigError(f"A variant cannot be called '{name}': letters, digits, '-', '_' and '.' make a name.")
    if len(set(seeds)) < len(seeds) or not seeds:
        raise ConfigError(f"--seeds {' '.join(map(str, seeds))}: give one seed or more, each once.")
    trials: list[Trial] = []
    for seed in seeds:
        for variant in variants:
            config = override(base, {**variant.settings, "seed": seed})
            twin = next((trial for trial in trials if trial.config == config), None)
            folder = out / "runs" / f"{variant.name}-seed{seed}" if twin is None else twin.folder
            trials.append(Trial(variant=variant, seed=seed, config=config, folder=folder))
    return trials


def run_status(trial: Trial) -> RunStatus:
    """Where a run stands.

    Raises:
        RunError: Its folder holds a run with other settings, or a broken one.
    """
    run = RunFolder(trial.folder)
    if not run.config_file.exists():
        return "new"
    check_same_config(trial.config, run)
    state = _state(trial)
    return "finished" if state is not None and state.finished else "interrupted"


def outcome(trial: Trial) -> Outcome:
    """The figures of a finished run.

    Raises:
        RunError: It is not finished, or cannot be read.
    """
    state = _state(trial)
    if state is None or not state.finished:
        raise RunError(f"{trial.folder} holds no finished run. Train or resume it first.")
    if state.standings.keys() != trial.config.heads.keys():
        raise RunError(f"{trial.folder} holds a run of other heads, not one of this study. Give another --out.")
    ((head, last),) = state.standings.items()
    return Outcome(
        trial=trial,
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
    """Trains what is not finished yet.

    Args:
        trials: From ``plan``.
        data: The data set of all runs.
        out: The study's folder.
        train: ``vitsplit.train``, which the runs of this process are trained by.
        processes: Runs at once. One: in this process; several: each in one of its own (as ``vitsplit train``), with its
            share of the cores, and of the GPUs in turn.
        on_finished: Called with all outcomes so far, at the start and after every run.

    Returns:
        All outcomes; after a signal those so far, with the interrupted runs' checkpoints on disk.

    Raises:
        RunError: The folder holds a study of other data, or runs with other settings.
        VitsplitError: What a run raises; the finished ones stay.
        TrainingError: A run in a process of its own failed; the message names its log.
    """
    if processes < 1:
        raise ConfigError(f"--processes must be at least 1, not {processes}.")
    _claim(out, trials, data)
    once = {trial.folder: trial for trial in trials}.values()
    due = [trial for trial in once if run_status(trial) != "finished"]
    for trial in once:
        write_json(_config_file(out, trial), config_to_dict(trial.config))

    def report() -> tuple[Outcome, ...]:
        found = tuple(outcome(trial) for trial in trials if run_status(trial) == "finished")
        on_finished(found)
        return found

    report()
    if processes > 1:
        stopped_by = run_jobs([_job(trial, data, out) for trial in due], processes, on_finished=report)
        return StudyResult(outcomes=report(), stopped_by=stopped_by)
    for trial in due:
        resume = run_status(trial) == "interrupted"
        result = train(trial.config, data=data, out=trial.folder, resume=resume)
        if result.stopped_by is not None:
            return StudyResult(outcomes=report(), stopped_by=result.stopped_by)
        report()
    return StudyResult(outcomes=report())


def _job(trial: Trial, data: Path, out: Path) -> Job:
    """A run as a command."""
    command = [sys.executable, "-P", "-m", "vitsplit", "train", trial.config.task.name, "--data", str(data)]
    command += ["--config", str(_config_file(out, trial)), "--out", str(trial.folder)]
    if trial.config.loop.cache_folder is not None:  # not read from a file
        command += ["--cache-folder", trial.config.loop.cache_folder]
    command += ["--resume"] * (run_status(trial) == "interrupted")
    return Job(name=str(trial.folder), command=command, errors=out / "configs" / f"{trial.folder.name}.errors.txt")


def _claim(out: Path, trials: Sequence[Trial], data: Path) -> None:
    """Writes down what the study is of, or checks that the folder is of the same."""
    about = {"task": trials[0].config.task.name, "data": str(data.resolve())}
    file = out / "study.json"
    if file.exists():
        found = read_json(file, error=RunError, advice="Give another --out.")
        if found != about:
            was = [shown(found.get(name), 200) for name in about] if isinstance(found, dict) else ["something else"] * 2
            raise RunError(
                f"{out} holds runs for {was[0]} on {was[1]}, and these are for {about['task']} "
                f"on {about['data']}. Give another --out; if the data have moved, say so in {file}."
            )
    (out / "configs").mkdir(parents=True, exist_ok=True)
    write_json(file, about)


def _config_file(out: Path, trial: Trial) -> Path:
    return out / "configs" / f"{trial.folder.name}.json"


def _state(trial: Trial) -> TrainState | None:
    checkpoint = latest_checkpoint(RunFolder(trial.folder).checkpoints)
    return None if checkpoint is None else read_state(checkpoint, trial.config.heads)


def without_seed(trial: Trial) -> TrainConfig:
    """The configuration that all seeds of a variant have in common."""
    return replace(trial.config, loop=replace(trial.config.loop, seed=0))
