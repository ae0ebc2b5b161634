"""The training loop of a new or resumed run.

The loss is a sum over terms of ``sum over the whole batch / normalizer of the whole batch``. Normalizers depend on the
labels only, so they are summed over micro-batches and processes before the first forward pass: a step is the same for
any division of its batch among processes and micro-batches.

On a GPU the host does not wait for a step before it prepares the next: the results of a step are read after the next
step has started (``LAG``). A non-finite loss or a signal therefore stops a run one step later, on all processes after
the same step. All results are read before an evaluation or a checkpoint, so a non-finite step never reaches the disk.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import shlex
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from rich.console import Console
from torch import Tensor, nn

from vitsplit.backbone.backbone import Backbone
from vitsplit.engine.checkpoint import (
    Standing,
    TrainState,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from vitsplit.engine.evaluation import evaluate, images_at_once
from vitsplit.engine.feature_cache import FeatureCache, LookUp, open_features
from vitsplit.engine.optim import current_lr, lr_factor, set_lr
from vitsplit.engine.parallelism import Parallelism, parallelize
from vitsplit.engine.processes import StopRequest, StopSignal, make_accelerator
from vitsplit.engine.resume import check_same_config, first_state
from vitsplit.engine.run_bundles import RunBundles, SaveBundle
from vitsplit.engine.run_data import Batch
from vitsplit.engine.run_folder import RunFolder
from vitsplit.engine.run_records import RunRecords
from vitsplit.engine.run_tasks import RunTasks
from vitsplit.engine.sampling import ReadBatch, derive_seed, open_batches
from vitsplit.engine.sharding import check_sharding
from vitsplit.engine.step_numbers import NotFiniteError, StepNumbers, StepResult
from vitsplit.engine.tracking import check_trackers, log_to, standard_output
from vitsplit.errors import TrainingError
from vitsplit.heads import check_heads
from vitsplit.model import Model
from vitsplit.precision import DTYPES, Resolved, autocast, compiler_errors, resolve_precision
from vitsplit.tasks.base import Evaluation, Task
from vitsplit.train_config import LoopConfig, TrainConfig
from vitsplit.types import LayerTaps, TapRequest

logger = logging.getLogger(__name__)

RunBackbone = Callable[[Tensor, TapRequest, Tensor | None], LayerTaps]
"""As ``Backbone.forward``."""
LAG = {"cuda": 1}
"""Number of further steps that are started before the results of a step are read, by device type; otherwise 0."""
EXIT_STATUS: dict[StopSignal | None, int] = {None: 0, "SIGINT": 130, "SIGTERM": 143}
PICTURES = 12


@dataclass(frozen=True)
class FitResult:
    """The result of ``Trainer.fit``.

    Attributes:
        state: The final state: steps, seconds, best score and metrics.
        stopped_by: The signal that stopped the run; None if it finished.
    """

    state: TrainState
    stopped_by: StopSignal | None = None

    @property
    def best_metrics(self) -> dict[str, Any]:
        """The metrics of the best evaluation, by head; empty without one."""
        return {head: standing.best_metrics for head, standing in self.state.standings.items()}

    @property
    def exit_status(self) -> int:
        """Exit status of the process: 0, or 130 (SIGINT) and 143 (SIGTERM), as shells expect."""
        return EXIT_STATUS[self.stopped_by]


class _StoppedError(Exception):
    """A signal was received during an evaluation."""


class Trainer:
    """Trains the heads of a run, in all processes of the launch. ``fit`` can be called once.

    Args:
        config: All settings.
        tasks: Data, loss and metrics of every head, by head name.
        backbone: The frozen model. It is moved to the device and converted to the run's precision.
        model: The heads, initialized with ``config.loop.seed``, so that every start has the same weights.

    Attributes:
        config: The settings, in ``fit`` with the precision ``auto`` resolved.
        run_backbone: The backbone as called by training steps: compiled if requested. Evaluations never use compiled
            code, which would be recompiled for every image size.
        features: The feature cache, if features are cached.
        parallel: Distribution of the model over processes, and its updates.
    """

    accelerator: Accelerator
    run_backbone: RunBackbone
    parallel: Parallelism
    run: RunFolder
    bundles: RunBundles
    records: RunRecords
    state: TrainState

    def __init__(self, config: TrainConfig, *, tasks: Mapping[str, Task], backbone: Backbone, model: Model) -> None:
        self.config = config
        self.tasks = RunTasks(config, tasks)
        self.backbone = backbone
        self.model = model
        self.features: FeatureCache | None = None
        self.stop = StopRequest()
        self.stopped_by: StopSignal | None = None
        self.evaluations: dict[str, Evaluation] = {}
        self._pending: deque[StepNumbers] = deque()
        self._seconds = self._mark = 0.0

    # Set-up and resume

    def fit(
        self,
        run: RunFolder,
        save_bundle: SaveBundle,
        *,
        resume: bool = False,
        allow_changed_data: bool = False,
        console: Console | None = None,
        resume_command: str | None = None,
        pause_after: int | None = None,
    ) -> FitResult:
        """Trains until the run is finished or a signal stops it, and saves a checkpoint and the ``last`` bundle.

        Args:
            run: The run's folder, within the block of ``RunFolder.open``.
            save_bundle: Writes a head's current weights as a bundle into an empty folder, see ``SaveBundle``.
            resume: Resume from the last checkpoint; start from the beginning if the run was stopped before it wrote its
                configuration.
            allow_changed_data: Resume even if the data files have changed.
            console: Console for progress and messages; None: standard output.
            resume_command: The command line that resumes this run, shown when a signal stops it.
            pause_after: Stop after this many steps, before an evaluation; the run is resumed like a stopped one. None:
                train to the end.

        Raises:
            ConfigError: Settings are invalid, such as a batch size that is not divisible by the number of processes.
            RunError: The run cannot be resumed with these settings, or its files cannot be written.
            TrainingError: The loss or the gradient is not finite.
        """
        self.run = run
        self.accelerator = make_accelerator(self.config)
        main, console = self.accelerator.is_main_process, console or standard_output()
        with log_to(run, console, main=main), self.stop:
            if resume and not run.holds_run:
                logger.info("%s has no completed steps yet: starting from the beginning", run.path)
            resume = resume and run.holds_run
            self._resolve_config(resume)
            checkpoint = latest_checkpoint(run.checkpoints) if resume else None
            batches, look_up = self._open_data(checkpoint, allow_changed_data)
            if checkpoint is None:  # before the average of the weights begins
                self.tasks.fit_familiarity(self.model, self.backbone.to(self.accelerator.device))
            self.set_up(self.accelerator)
            if look_up is not None:
                self.features = FeatureCache(look_up.store, self.backbone, self.run_backbone)
            if checkpoint is not None:
                averaged = self.parallel.average is not None
                load_checkpoint(checkpoint, self.parallel.load, self.state, model=self.model, averaged=averaged)
            self.bundles = RunBundles(run, save_bundle, self.config, main=main)
            with RunRecords(run, self.config, self.state, self.accelerator, console) as self.records:
                self._train(batches, on_disk=checkpoint is not None, pause_after=pause_after)
            self._finish(resume_command)
        return FitResult(self.state, self.stopped_by)

    def _resolve_config(self, resume: bool) -> None:
        """Resolves the precision ``auto``, once per run and on one process."""
        check_heads(self.config)
        check_trackers(self.config.loop.track)
        precision = self.config.loop.precision
        if resume:
            precision = check_same_config(self.config, self.run)
        choice: list[Resolved] = [resolve_precision(precision, self.accelerator.device)]
        broadcast_object_list(choice)
        logger.info("precision: %s%s", choice[0], " (auto)" if self.config.loop.precision == "auto" else "")
        loop = dataclasses.replace(self.config.loop, precision=choice[0])
        self.config = dataclasses.replace(self.config, loop=loop)
        check_sharding(self.config, self.accelerator.num_processes)

    def _open_data(
        self, checkpoint: Path | None, allow_changed_data: bool
    ) -> tuple[Iterator[ReadBatch], LookUp | None]:
        """Sets the initial state; returns the micro-batches from its step on, and the reader of their cached features.

        The data workers start before the device is used.
        """
        data = self.tasks.train_data()
        self.state = first_state(
            self.tasks,
            len(data),
            self.accelerator,
            self.backbone,
            self.run,
            checkpoint,
            allow_changed_data=allow_changed_data,
        )
        loop, request = self.config.loop, self.model.request(train=True)
        look_up = open_features(loop, self.tasks, data, self.backbone, request, self._dtype)
        batches = open_batches(loop, self.tasks, data, self.accelerator, start=self.state.step, look_up=look_up)
        return batches, look_up

    def set_up(self, accelerator: Accelerator) -> None:
        """Moves backbone and model to the device, and prepares the model for training steps.

        Raises:
            ConfigError: The model cannot be sharded.
        """
        self.accelerator = accelerator
        self.backbone.to(accelerator.device)
        if self._dtype != torch.float32:
            self.backbone.set_precision(self._dtype)
        if accelerator.distributed_type == DistributedType.MULTI_GPU:
            nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.model.train()
        self.run_backbone = torch.compile(self.backbone) if self.config.loop.compile else self.backbone
        self.parallel = parallelize(accelerator, self.config, self.model, self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        """The precision of a forward pass."""
        precision = self.config.loop.precision
        assert precision != "auto", "the configuration is resolved first"
        return DTYPES[precision]

    # The loop

    def _train(self, batches: Iterator[ReadBatch], *, on_disk: bool, pause_after: int | None) -> None:
        """The training loop: evaluations and checkpoints when they are due, and optimizer steps.

        Args:
            batches: The micro-batches of this process.
            on_disk: Whether the state was loaded from a checkpoint.
            pause_after: See ``fit``.
        """
        state, every = self.state, checkpoint_every(self.config.loop)
        # The checkpoint on disk; one is saved at step 0, so that every run can be resumed.
        self._saved = (state.step, state.evaluated) if on_disk else None
        self._seconds, self._mark = state.seconds, time.perf_counter()
        while not state.finished:
            pauses = pause_after is not None and state.step >= pause_after
            evaluates, saves = self._evaluation_due() and not pauses, state.step % every == 0
            if evaluates or saves or pauses:
                self._read_all_results()
            if self.stopped_by is None and evaluates:
                self._evaluate()
            if self.stopped_by is not None or pauses:
                return self._save_stopped()
            if saves or state.finished:
                self._save_checkpoint()
            if evaluates or saves:
                self._mark = time.perf_counter()  # evaluations and checkpoints do not count as training time
            if not state.finished:
                self._advance(batches)
        return None

    def _evaluation_due(self) -> bool:
        step = self.state.step
        on_time = step % evaluate_every(self.config.loop) == 0 or self._at_end()
        return step > 0 and on_time and self.state.evaluated != step

    def _at_end(self) -> bool:
        """Whether all steps are done, or ``max_seconds`` are over."""
        loop = self.config.loop
        return self.state.step == loop.steps or (
            loop.max_seconds is not None and self.state.seconds >= loop.max_seconds
        )

    def _advance(self, batches: Iterator[ReadBatch]) -> None:
        """Runs a step, and reads the results of this step, or on a GPU those of the previous one."""
        try:
            self._pending.append(self.step(self.state.step, batches))
        except Exception:
            self._read_all_results()  # raises if an earlier step is the cause
            raise
        self.state.step += 1
        self._read_results(LAG.get(self.accelerator.device.type, 0))

    def _read_all_results(self) -> None:
        if self._pending:
            self._read_results(0)
            now = time.perf_counter()
            self._seconds, self._mark = self._seconds + now - self._mark, now

    def _read_results(self, pending: int) -> None:
        """Checks and records steps until the results of only ``pending`` steps are unread."""
        while len(self._pending) > pending:
            numbers = self._pending.popleft()
            result = numbers.read()
            try:
                self.check(numbers, result)
            except NotFiniteError as error:
                raise TrainingError(
                    f"{error} Nothing was overwritten; the last good checkpoint is "
                    f"{latest_checkpoint(self.run.checkpoints)}. Start a new run with another --out and a lower --lr, "
                    "--clip-norm 1 or --precision fp32."
                ) from error
            self.stopped_by = self.stopped_by or result.stop
            seconds, self.state.seconds = result.seconds - self.state.seconds, result.seconds
            if self.features is not None:
                self.features.record_step(seconds, self.config.loop.accumulate)
            self.records.step(result, seconds)

    def check(self, numbers: StepNumbers, result: StepResult) -> None:
        """Checks that loss and gradient are finite; collective.

        Raises:
            NotFiniteError: They are not; the message names the step and its files.
        """
        if math.isfinite(result.loss) and (math.isfinite(result.grad_norm) or self.parallel.may_overflow()):
            return
        raise NotFiniteError(numbers.describe_not_finite(result))

    # One step

    def step(self, step: int, batches: Iterator[ReadBatch]) -> StepNumbers:
        """Runs the optimizer step after ``step`` completed ones; its results are copied to the host asynchronously.

        Raises:
            ConfigError: ``--compile`` failed.
        """
        loop = self.config.loop
        read = [next(batches).to(self.accelerator.device) for _ in range(loop.accumulate)]
        scales = self._scales([each.batch for each in read])
        self.parallel.zero_grad()
        with compiler_errors(loop.compile):
            shares = [self._forward_backward(step, index, each, scales) for index, each in enumerate(read)]
        for head, optim in self.config.optims().items():
            set_lr(self.parallel.optimizer, lr_factor(step, loop.steps, optim), head)
        grad_norms = self.parallel.update()
        now = time.perf_counter()
        self._seconds, self._mark = self._seconds + now - self._mark, now
        return StepNumbers(
            self.accelerator,
            step + 1,
            lr=current_lr(self.parallel.optimizer),
            shares=shares,
            grad_norms=grad_norms,
            names=list(scales),
            files=[each.batch.names for each in read],
            seconds=self._seconds,
            signal=self.stop.received,
        )

    def _scales(self, micro_batches: Sequence[Batch]) -> dict[str, Tensor]:
        """The reciprocal of each term's normalizer over the whole batch; 0 if the normalizer is 0."""
        normalizers = [self.tasks.normalizers(batch) for batch in micro_batches]
        names = list(normalizers[0])
        totals = torch.stack([sum(n[name] for n in normalizers).double() for name in names])  # type: ignore[union-attr]
        totals = self.accelerator.reduce(totals.to(self.accelerator.device), "sum")
        scales = torch.where(totals > 0, 1 / totals, torch.zeros_like(totals)).float()
        return dict(zip(names, scales.unbind(), strict=True))

    def _forward_backward(self, step: int, index: int, read: ReadBatch, scales: dict[str, Tensor]) -> Tensor:
        """Accumulates a micro-batch's gradient; returns its part of each loss term, detached."""
        loop = self.config.loop
        # Dropout and other random numbers of the forward pass depend on this seed only: checkpoints need no state.
        torch.manual_seed(derive_seed(loop.seed, "forward", step, self.accelerator.process_index, index))
        last = index == loop.accumulate - 1
        with self.parallel.micro_batch(last=last):
            batch, taps = read.batch, self.taps(read)
            with self._autocast():
                output = self.parallel.wrapped(taps, self.tasks.targets(batch, taps))
            sums = self.tasks.loss_sums(output, batch, taps)
            share = torch.stack([sums[name].float() * scale for name, scale in scales.items()])
            self.parallel.backward(share.sum(), last=last)
        return share.detach()

    def taps(self, read: ReadBatch) -> LayerTaps:
        """The backbone's features of a batch: computed, or from the feature cache."""
        request = self.parallel.trained.request(train=True)
        image_BCHW, extent_B2 = read.batch.image_BCHW, read.batch.extent_B2
        if self.features is None or read.cached is None:
            return self.run_backbone(image_BCHW, request, extent_B2)
        return self.features.taps(image_BCHW, read.cached, request, extent_B2)

    def _autocast(self) -> AbstractContextManager[object]:
        """Autocast of a forward pass in the run's precision."""
        return autocast(self.accelerator.device.type, self._dtype)

    # Evaluation

    def _evaluate(self) -> None:
        """Evaluates the model (its average, with EMA), and saves ``last``, and ``best`` of the heads that improved.

        If a signal interrupts it, nothing is recorded or saved, and the evaluation is still due.
        """
        state = self.state
        with self.parallel.evaluated():
            try:
                self.evaluations = self._evaluate_heads()
            except _StoppedError:
                self.stopped_by = self.stop.received
                return
            state.evaluated = state.step
            better = [head for head, found in self.evaluations.items() if self._is_better(head, found)]
            self.bundles.save_last(state)
            for head in better:
                self.bundles.save_best(head, state.standings[head])
        self._end_after_evaluation()

    def _evaluate_heads(self) -> dict[str, Evaluation]:
        # Broadcast the main process's running statistics, which bundles hold: on CPUs, where batch norm is not
        # synchronized, each process has statistics of its own images.
        if self.accelerator.num_processes > 1:
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, src=0)
        loop, single = self.config.loop, self.accelerator.num_processes == 1
        micro_batch = loop.batch_size // (self.accelerator.num_processes * loop.accumulate)
        at_once = images_at_once(self.accelerator.device, micro_batch)
        with self.records.evaluating() as advance:

            def on_image() -> None:
                advance()
                # A single process can stop at any image; several must all reach the reduction.
                if single and self.stop.received is not None:
                    raise _StoppedError

            return {
                head: evaluate(
                    task,
                    functools.partial(self._forward, head=head),
                    workers=loop.workers,
                    images_at_once=at_once,
                    accelerator=self.accelerator,
                    on_image=on_image,
                )
                for head, task in self.tasks.tasks.items()
            }

    @torch.no_grad()
    def _forward(self, image_BCHW: Tensor, *, head: str) -> tuple[Any, LayerTaps]:
        model = self.model.heads[head]
        image_BCHW = image_BCHW.to(self.accelerator.device, non_blocking=True)
        taps = self.backbone(image_BCHW, model.request(train=False))
        with self._autocast():
            return model(taps), taps

    def _is_better(self, head: str, found: Evaluation) -> bool:
        """Records a head's evaluation; returns whether it is the head's best."""
        standing = self.state.standings.setdefault(head, Standing())
        better = standing.note(found, self.state.step)
        best = "best so far" if better else f"best {standing.best_score:.4g} at step {standing.best_step}"
        name = self.config.qualified_name(head, found.score_name)
        logger.info("step %d: %s %.4g (%s)", self.state.step, name, found.score, best)
        return better

    def _end_after_evaluation(self) -> None:
        """Writes the evaluation's row, and finishes the run if steps, time or patience are exhausted."""
        state, patience = self.state, self.config.loop.patience
        self.records.evaluation()
        without_gain = min(standing.without_gain for standing in state.standings.values())
        out_of_patience = patience is not None and without_gain >= patience
        state.finished = out_of_patience or self._at_end()
        if state.finished and state.step < self.config.loop.steps:
            logger.info(
                "stopped early, after %.0f s: %s",
                state.seconds,
                f"no better result in {without_gain} evaluations" if out_of_patience else "--max-seconds is reached",
            )

    # Checkpoints and the end

    def _save_checkpoint(self) -> None:
        now = (self.state.step, self.state.evaluated)
        if self._saved != now:
            tensors = self.parallel.tensors()
            if self.accelerator.is_main_process:
                save_checkpoint(self.run.checkpoints, tensors, self.state)
        self._saved = now

    def _save_stopped(self) -> None:
        self._read_all_results()
        self._save_checkpoint()
        with self.parallel.evaluated():
            self.bundles.save_last(self.state)

    def _finish(self, resume_command: str | None) -> None:
        """Writes the report of a finished run, and logs how a stopped one is resumed."""
        state = self.state
        # After the last checkpoint; if a kill prevents it, --resume writes the report.
        if state.finished and not self.run.pictures.exists():
            title = f"{self.run.path.resolve().name}, step {state.step}"
            # For a run that was resumed after its last evaluation, the results in the checkpoint.
            last = {head: standing.last_evaluation() for head, standing in state.standings.items()} | self.evaluations
            # All processes take part in gathering a sharded model.
            with self.parallel.evaluated():
                if self.accelerator.is_main_process:
                    with self.bundles.replacing(self.run.pictures) as folder:
                        self.tasks.write_report(self._forward, last, folder, title=title, count=PICTURES)
        if self.stopped_by is not None:
            command = resume_command or f"vitsplit train ... --out {shlex.quote(str(self.run.path))} --resume"
            steps = self.config.loop.steps
            logger.info("stopped by %s after step %d of %d. To resume: %s", self.stopped_by, state.step, steps, command)
        if self.features is not None and (speedup := self.features.times.describe()):
            logger.info("%s", speedup)


def evaluate_every(loop: LoopConfig) -> int:
    """Steps between two evaluations; by default a tenth of the run, at least 200."""
    return loop.eval_every or max(200, math.ceil(loop.steps / 10))


def checkpoint_every(loop: LoopConfig) -> int:
    """Steps between two checkpoints; by default a tenth of the run, at most 1000."""
    return loop.checkpoint_every or min(1000, math.ceil(loop.steps / 10))
