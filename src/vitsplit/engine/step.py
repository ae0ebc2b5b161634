"""One optimiser step: the same whether its batch is spread over processes and micro-batches or not.

The loss is a sum over terms of ``sum over the whole batch / normaliser of the whole batch``. Labels alone decide the
normalisers, so they are added up over micro-batches and processes before the first forward pass.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from accelerate.utils import gather_object
from torch import Tensor

from vitsplit.engine.compilation import compiler_errors
from vitsplit.engine.config import LoopConfig
from vitsplit.engine.optim import set_lr
from vitsplit.engine.run_data import Batch
from vitsplit.engine.sampling import ReadBatch, derive_seed
from vitsplit.engine.schedule import lr_factor
from vitsplit.engine.setup import Session
from vitsplit.engine.signals import STOP_SIGNALS, StopSignal
from vitsplit.errors import TrainingError


@dataclass(frozen=True)
class StepResult:
    """What is known on the host after a step, the same on every process.

    Attributes:
        terms: Each loss term over the whole batch.
        loss: Their sum.
        grad_norm: Norm of the whole gradient before clipping, of all heads together.
        stop: A signal that some process received.
    """

    terms: dict[str, float]
    loss: float
    grad_norm: float
    stop: StopSignal | None


class NotFiniteError(TrainingError):
    """The loss or the gradient of a step is not finite. Nothing on disk was changed by the step."""


class TrainStep:
    """Runs optimiser steps.

    Args:
        session: Tasks, model, device, settings.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.accelerator = session.accelerator
        self.tasks = session.tasks
        self.engine = session.engine
        self.loop: LoopConfig = session.config.loop
        self.optims = session.config.optims()

    def __call__(self, step: int, batches: Iterator[ReadBatch]) -> StepResult:
        """Takes the step that follows ``step`` finished ones.

        Raises:
            NotFiniteError: The loss or the gradient is not finite; the message names the files.
            ConfigError: Compiling was asked for and failed.
        """
        read = [next(batches).to(self.accelerator.device) for _ in range(self.loop.accumulate)]
        micro_batches = [each.batch for each in read]
        scales = self._scales(micro_batches)
        self.engine.zero_grad()
        with compiler_errors(self.loop.compile):
            terms = [self._forward_backward(step, index, each, scales) for index, each in enumerate(read)]
        for head, optim in self.optims.items():
            set_lr(self.engine.optimizer, lr_factor(step, self.loop.steps, optim), head)
        results = []

        def admit(grad_norms: Sequence[Tensor]) -> None:
            results.append(self._on_host(list(scales), terms, grad_norms))
            self._check_finite(step, results[0], micro_batches, terms)

        self.engine.update(admit)
        return results[0]

    def _scales(self, micro_batches: Sequence[Batch]) -> dict[str, Tensor]:
        """One over each term's normaliser over the whole batch; zero where there is nothing to normalise."""
        normalisers = [self.tasks.normalisers(batch) for batch in micro_batches]
        names = list(normalisers[0])
        totals = torch.stack([sum(n[name] for n in normalisers).double() for name in names])  # type: ignore[union-attr]
        totals = self.accelerator.reduce(totals.to(self.accelerator.device), "sum")
        scales = torch.where(totals > 0, 1 / totals, torch.zeros_like(totals)).float()
        return dict(zip(names, scales.unbind(), strict=True))

    def _forward_backward(self, step: int, index: int, read: ReadBatch, scales: dict[str, Tensor]) -> Tensor:
        """Adds a micro-batch's gradient; returns its share of each term, detached."""
        # Dropout and every other draw of the forward pass depend on this alone, so there is no state of it to save.
        torch.manual_seed(derive_seed(self.loop.seed, "forward", step, self.accelerator.process_index, index))
        last = index == self.loop.accumulate - 1
        with self.engine.micro_batch(last=last):
            batch, taps = read.batch, self.session.taps(read, self.engine.trained.request(train=True))
            with self.session.autocast():
                output = self.engine.wrapped(taps, self.tasks.targets(batch, taps))
            sums = self.tasks.loss_sums(output, batch, taps)
            terms = torch.stack([sums[name].float() * scale for name, scale in scales.items()])
            self.engine.backward(terms.sum(), last=last)
        return terms.detach()

    def _on_host(self, names: list[str], terms: list[Tensor], grad_norms: Sequence[Tensor]) -> StepResult:
        """The step's one wait for the device: losses over all processes, gradient norm and stop signals together."""
        flags = [float(self.session.stop.received == name) for name in STOP_SIGNALS]
        local = torch.cat(
            [torch.stack(terms).sum(0).double(), torch.tensor(flags, dtype=torch.float64).to(terms[0].device)]
        )
        together = self.accelerator.reduce(local, "sum")
        values = torch.cat([together, torch.stack(list(grad_norms)).double()]).tolist()
        losses, (interrupted, terminated), norms = (
            values[: len(names)],
            values[len(names) : len(together)],
            values[len(together) :],
        )
        stop = STOP_SIGNALS[0] if interrupted else STOP_SIGNALS[1] if terminated else None
        return StepResult(dict(zip(names, losses, strict=True)), sum(losses), math.hypot(*norms), stop)

    def _check_finite(self, step: int, result: StepResult, batches: Sequence[Batch], terms: Sequence[Tensor]) -> None:
        finite_loss = result.loss - result.loss == 0
        finite_gradient = result.grad_norm - result.grad_norm == 0 or self.engine.may_overflow()
        if finite_loss and finite_gradient:
            return
        bad_terms = ", ".join(name for name, value in result.terms.items() if value - value != 0)
        what = (
            f"the loss is {result.loss} ({bad_terms})"
            if not finite_loss
            else f"the norm of the gradient is {result.grad_norm}"
        )
        suspects = [
            name
            for batch, values in zip(batches, terms, strict=True)
            if finite_loss or not bool(torch.isfinite(values).all())
            for name in batch.names
        ]
        names = gather_object(suspects)
        raise NotFiniteError(f"Step {step + 1}: {what}. Files of the batch: {', '.join(names)}.")
