"""Training from the start, or from where a stopped run left off, to the end."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import broadcast
from rich.console import Console

from vitsplit.backbone.backbone import Backbone
from vitsplit.engine.checkpoint import TrainState, latest_checkpoint, load_checkpoint, save_checkpoint
from vitsplit.engine.config import LoopConfig, TrainConfig
from vitsplit.engine.evaluation import Evaluator, SaveBundle
from vitsplit.engine.feature_cache import FeatureCache
from vitsplit.engine.optim import current_lr
from vitsplit.engine.progress import Pace, ProgressView, forget_peak_memory, peak_memory_gb
from vitsplit.engine.run_folder import RunFolder
from vitsplit.engine.run_tasks import RunTasks
from vitsplit.engine.sampling import ReadBatch
from vitsplit.engine.setup import (
    Cadence,
    Session,
    begin_records,
    compute_dtype,
    first_state,
    make_accelerator,
    open_batches,
    open_features,
    resolve_config,
    set_up_model,
)
from vitsplit.engine.signals import StopRequest, StopSignal
from vitsplit.engine.step import NotFiniteError, StepResult, TrainStep
from vitsplit.engine.tracking import Metrics, log_to
from vitsplit.errors import TrainingError
from vitsplit.model import Model
from vitsplit.tasks.base import Task

logger = logging.getLogger(__name__)

EXIT_STATUS: dict[StopSignal | None, int] = {None: 0, "SIGINT": 130, "SIGTERM": 143}


@dataclass(frozen=True)
class FitResult:
    """How a run ended.

    Attributes:
        state: Its numbers: steps, seconds, best score and metrics.
        stopped_by: The signal that stopped it, None if it came to its end.
    """

    state: TrainState
    stopped_by: StopSignal | None = None

    @property
    def best_metrics(self) -> dict[str, dict[str, Any]]:
        """All metrics of the best evaluation, by head; empty without one."""
        return {head: standing.best_metrics for head, standing in self.state.standings.items()}

    @property
    def exit_status(self) -> int:
        """What the process should end with: 0, or 130 (SIGINT) and 143 (SIGTERM) as shells expect."""
        return EXIT_STATUS[self.stopped_by]


def fit(
    config: TrainConfig,
    *,
    tasks: Mapping[str, Task],
    backbone: Backbone,
    model: Model,
    run: RunFolder,
    save_bundle: SaveBundle,
    resume: bool = False,
    allow_changed_data: bool = False,
    console: Console | None = None,
    resume_command: str | None = None,
) -> FitResult:
    """Trains the heads of a model on their tasks, in as many processes as were launched.

    Args:
        config: All settings; the precision that ``auto`` comes to is written to ``config.json``.
        tasks: Data, loss and metrics of every head, by its name.
        backbone: The frozen model. It is moved to the device and rounded to the run's precision.
        model: What trains, built under ``config.loop.seed`` so that every start begins with the same weights.
        run: The run's folder, within the block of ``RunFolder.open``.
        save_bundle: Writes the model's present weights as a bundle into an empty folder, see ``SaveBundle``.
        resume: Go on from the last checkpoint; from the beginning if the run was stopped before it had a configuration.
        allow_changed_data: Go on although the data's files have changed since.
        console: Where progress and messages go; None: standard output.
        resume_command: The command line that goes on with this run, shown when a signal stops it.

    Returns:
        How it ended. After a signal a checkpoint and the ``last`` bundle are on disk.

    Raises:
        ConfigError: Settings that cannot work, such as a batch that the processes cannot share.
        RunError: The run cannot be resumed with these settings, or cannot be written.
        TrainingError: The loss or the gradient is not finite.
    """
    accelerator = make_accelerator(config)
    forget_peak_memory(accelerator.device)
    console = console or Console()
    with log_to(run, console, main=accelerator.is_main_process), StopRequest() as stop:
        if resume and not run.holds_run:
            logger.info("nothing was trained in %s yet: starting from the beginning", run.path)
        resume = resume and run.holds_run
        config = resolve_config(config, accelerator, run, resume=resume)
        run_tasks = RunTasks(config, tasks)
        data = run_tasks.train_data()
        checkpoint = latest_checkpoint(run.checkpoints) if resume else None
        state = first_state(
            run_tasks, len(data), accelerator, backbone, run, checkpoint, allow_changed_data=allow_changed_data
        )
        look_up = open_features(
            config.loop, run_tasks, data, backbone, model.request(train=True), compute_dtype(config)
        )
        batches = open_batches(config.loop, run_tasks, data, accelerator, start=state.step, look_up=look_up)
        run_backbone, engine = set_up_model(accelerator, config, backbone, model)
        if checkpoint is not None:
            averaged = engine.average is not None
            load_checkpoint(checkpoint, engine.load, state, model=engine.model, averaged=averaged)
        view = ProgressView(console if accelerator.is_main_process else None, steps=config.loop.steps, start=state.step)
        features = None if look_up is None else FeatureCache(look_up.store, backbone, run_backbone)
        session = Session(accelerator, config, run_tasks, backbone, run_backbone, engine, run, view, stop, features)
        stopped_by = _train(session, state, batches, save_bundle, saved=checkpoint is not None)
        if stopped_by is not None:
            command = resume_command or f"vitsplit train ... --out {shlex.quote(str(run.path))} --resume"
            logger.info(
                "stopped by %s after step %d of %d. To go on: %s", stopped_by, state.step, config.loop.steps, command
            )
        if features is not None and (gain := features.times.describe()):
            logger.info("%s", gain)
        return FitResult(state, stopped_by)


def _train(
    session: Session, state: TrainState, batches: Iterator[ReadBatch], save_bundle: SaveBundle, *, saved: bool
) -> StopSignal | None:
    """Trains to the end, whose pictures it leaves, or to a signal, which it returns.

    ``saved`` says that the state is that of a checkpoint on disk.
    """
    metrics = begin_records(session.config, session.run, session.accelerator, step=state.step)
    evaluator = Evaluator(session, save_bundle)
    try:
        with session.view:
            stopped_by = _Loop(session, state, metrics, evaluator, saved=saved).run(batches)
    finally:
        metrics.close()
    # After the last checkpoint, so that nothing hangs on them; a resume makes up for what a kill kept from being drawn.
    if state.finished and not session.run.pictures.exists():
        evaluator.write_pictures(state)
    return stopped_by


class _Loop:
    """Evaluates when that is due, writes a checkpoint when that is due, takes a step, and so on to the end."""

    def __init__(
        self, session: Session, state: TrainState, metrics: Metrics, evaluate: Evaluator, *, saved: bool
    ) -> None:
        self.session = session
        self.config: LoopConfig = session.config.loop
        self.cadence = Cadence.of(self.config)
        self.state = state
        self.metrics = metrics
        self.evaluate = evaluate
        self.step = TrainStep(session)
        self.pace = Pace()
        # What is on disk; a checkpoint of step 0 makes every run one that can be resumed.
        self.saved = (state.step, state.evaluated) if saved else None

    def run(self, batches: Iterator[ReadBatch]) -> StopSignal | None:
        """Runs to the end, or to a signal, which it returns."""
        state = self.state
        while not state.finished:
            if self._evaluation_due():
                if not self.evaluate(state):
                    return self._stopped(self.session.stop.received)
                self._after_evaluation()
            if state.finished or state.step % self.cadence.checkpoint == 0:
                self._checkpoint()
            if not state.finished:
                result = self._take_step(batches)
                if result.stop is not None:
                    return self._stopped(result.stop)
        return None

    def _evaluation_due(self) -> bool:
        step = self.state.step
        on_time = step % self.cadence.evaluate == 0 or self._at_end()
        return step > 0 and on_time and self.state.evaluated != step

    def _at_end(self) -> bool:
        """Whether all steps are done, or the time for them is over."""
        limit = self.config.max_seconds
        return self.state.step == self.config.steps or (limit is not None and self.state.seconds >= limit)

    def _after_evaluation(self) -> None:
        state, patience = self.state, self.config.patience
        config = self.session.config
        by_head = {head: standing.last_metrics for head, standing in state.standings.items()}
        numbers = {
            config.named(head, name): value
            for head, metrics in by_head.items()
            for name, value in metrics.items()
            if isinstance(value, int | float)
        }
        # The file has groups by head where it has groups at all, see ``TrainConfig.named``.
        (alone,) = by_head.values() if config.geometry is None else (by_head,)
        self.metrics.evaluation(state.step, alone, numbers)
        without_gain = min(standing.without_gain for standing in state.standings.values())
        out_of_patience = patience is not None and without_gain >= patience
        state.finished = out_of_patience or self._at_end()
        if state.finished and state.step < self.config.steps:
            logger.info(
                "stopped early, after %.0f s: %s",
                state.seconds,
                f"no better result in {without_gain} evaluations" if out_of_patience else "the time is over",
            )

    def _take_step(self, batches: Iterator[ReadBatch]) -> StepResult:
        state = self.state
        began = time.perf_counter()
        try:
            result = self.step(state.step, batches)
        except NotFiniteError as error:
            raise TrainingError(
                f"{error} Nothing was overwritten; the last good checkpoint is "
                f"{latest_checkpoint(self.session.run.checkpoints)}. Start again in another --out with a lower --lr, "
                "with --clip-norm 1 or with --precision fp32."
            ) from error
        state.step += 1
        seconds = time.perf_counter() - began
        state.seconds += seconds
        if self.session.features is not None:
            self.session.features.step_took(seconds, self.config.accumulate)
        if self.config.max_seconds is not None:
            # All processes go by the main one's clock: they must stop after the same step.
            clock = torch.tensor(state.seconds, dtype=torch.float64, device=self.session.accelerator.device)
            state.seconds = float(broadcast(clock))
        self.pace.add(seconds)
        self._record(result)
        return result

    def _record(self, result: StepResult) -> None:
        """Adds a step to the next row of ``metrics.jsonl``, and shows it."""
        state = self.state
        values = {"loss": result.loss, "grad_norm": result.grad_norm}
        if len(result.terms) > 1:
            for name, value in result.terms.items():
                head, slash, term = name.rpartition("/")
                values[f"{head}{slash}loss_{term}"] = value
        for name, value in values.items():
            state.window[name] = state.window.get(name, 0.0) + value
        state.window_steps += 1
        by_head = current_lr(self.session.engine.optimizer)
        lr = {self.session.config.named(head, name): rate for (head, name), rate in by_head.items()}
        memory_gb = peak_memory_gb(self.session.accelerator.device)
        images_per_second = self.config.batch_size / self.pace.seconds_per_step
        if state.step % self.config.log_every == 0 or state.step == self.config.steps:
            means = {name: total / state.window_steps for name, total in state.window.items()}
            speed = {"images_per_second": images_per_second, "seconds": state.seconds, "peak_memory_gb": memory_gb}
            self.metrics.row(state.step, means | lr | speed)
            state.window, state.window_steps = {}, 0
        self.session.view.step(
            state.step,
            loss=result.loss,
            lr=next(iter(lr.values())),
            images_per_second=images_per_second,
            seconds_left=self.pace.seconds_per_step * (self.config.steps - state.step),
            memory_gb=memory_gb,
        )

    def _checkpoint(self) -> None:
        now = (self.state.step, self.state.evaluated)
        if self.saved != now:
            tensors = self.session.engine.tensors()
            if self.session.accelerator.is_main_process:
                save_checkpoint(self.session.run.checkpoints, tensors, self.state)
        self.saved = now

    def _stopped(self, signal: StopSignal | None) -> StopSignal | None:
        self._checkpoint()
        self.evaluate.save_last(self.state)
        return signal
