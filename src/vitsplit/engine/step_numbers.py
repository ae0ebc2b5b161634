"""The results of a training step (losses, gradient norm), copied asynchronously from the device to the host."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from vitsplit.engine.processes import STOP_SIGNALS, StopSignal
from vitsplit.errors import TrainingError


class NotFiniteError(TrainingError):
    """The loss or the gradient of a step is not finite. The step has not changed anything on disk."""


@dataclass(frozen=True)
class StepResult:
    """The results of a step on the host, the same on every process.

    Attributes:
        step: Completed optimizer steps, including this one.
        terms: Each loss term over the whole batch.
        loss: Sum of the terms.
        grad_norm: Norm of the gradient of all heads before clipping.
        lr: Learning rates, by head and name; see ``optim.current_lr``.
        seconds: Time of all steps up to this one on the main process, over all starts of the run.
        stop: A signal that any process has received.
    """

    step: int
    terms: dict[str, float]
    loss: float
    grad_norm: float
    lr: dict[tuple[str, str], float]
    seconds: float
    stop: StopSignal | None


class StepNumbers:
    """The results of a step: summed over processes, and copied to the host asynchronously.

    Args:
        accelerator: The processes.
        step: Completed optimizer steps, including this one.
        lr: See ``StepResult``.
        names: Names of the loss terms.
        shares: This process's part of the terms, per micro-batch, on the device.
        files: File names of each micro-batch of this process.
        grad_norms: Norms of the gradient, the same on all processes, to be summed in squares.
        seconds: This process's training time; that of the main process is used.
        signal: The signal that this process has received.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        step: int,
        *,
        lr: dict[tuple[str, str], float],
        names: Sequence[str],
        shares: Sequence[Tensor],
        files: Sequence[list[str]],
        grad_norms: Sequence[Tensor],
        seconds: float,
        signal: StopSignal | None,
    ) -> None:
        self.step, self.lr, self.names, self.shares, self.files = step, lr, names, shares, files
        device = shares[0].device
        own = [float(signal == name) for name in STOP_SIGNALS] + [seconds if accelerator.is_main_process else 0.0]
        flags = torch.tensor(own, dtype=torch.float64).to(device, non_blocking=True)
        sums = accelerator.reduce(torch.cat([torch.stack([*shares]).sum(0).double(), flags]), "sum")
        self.values = torch.cat([sums, torch.stack([norm.to(device) for norm in grad_norms]).double()])
        self.copied: torch.cuda.Event | None = None
        if device.type == "cuda":
            self.values = self.values.to("cpu", non_blocking=True)  # into page-locked memory
            self.copied = torch.cuda.Event()
            self.copied.record()

    def read(self) -> StepResult:
        """Waits for the results; on a GPU only for this step, not for later ones."""
        if self.copied is not None:
            self.copied.synchronize()
        values = self.values.tolist()
        losses, (interrupted, terminated, seconds) = values[: len(self.names)], values[len(self.names) :][:3]
        norms = values[len(self.names) + 3 :]
        stop = STOP_SIGNALS[0] if interrupted else STOP_SIGNALS[1] if terminated else None
        terms = dict(zip(self.names, losses, strict=True))
        return StepResult(self.step, terms, sum(losses), math.hypot(*norms), self.lr, seconds, stop)

    def describe_not_finite(self, result: StepResult) -> str:
        """Describes a step with a non-finite loss or gradient, with the files of the batch that may have caused it.

        These are the files of the micro-batches with a non-finite loss, or all if the loss is finite. Collective.
        """
        finite_loss = math.isfinite(result.loss)
        what = f"the norm of the gradient is {result.grad_norm}"
        if not finite_loss:
            what = f"the loss is {result.loss} ({_not_finite(result.terms)})"
        files = [
            name
            for names, share in zip(self.files, self.shares, strict=True)
            if finite_loss or not bool(torch.isfinite(share).all())
            for name in names
        ]
        return f"Step {result.step}: {what}. Files of the batch: {', '.join(gather_object(files))}."


def _not_finite(terms: Mapping[str, float]) -> str:
    return ", ".join(name for name, value in terms.items() if not math.isfinite(value))
