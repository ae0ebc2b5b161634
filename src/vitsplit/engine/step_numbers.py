"""What a training step computed, on its way from the device to the host, and whether it may stand."""

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
    """The loss or the gradient of a step is not finite. Nothing on disk was changed by the step."""


@dataclass(frozen=True)
class StepResult:
    """What is known on the host of a step, the same on every process.

    Attributes:
        step: Optimizer steps that are done with it.
        terms: Each loss term over the whole batch.
        loss: Their sum.
        grad_norm: Norm of the whole gradient before clipping, of all heads together.
        lr: Learning rates, by head and role; see ``optim.current_lr``.
        seconds: The main process's time of this step and all before it, over all starts.
        stop: A signal that some process received.
    """

    step: int
    terms: dict[str, float]
    loss: float
    grad_norm: float
    lr: dict[tuple[str, str], float]
    seconds: float
    stop: StopSignal | None


class StepNumbers:
    """The numbers of a step: added up over processes, and copied to the host without waiting for them.

    Args:
        accelerator: The processes.
        step: Optimizer steps that are done with it.
        lr: See ``StepResult``.
        names: The loss terms.
        shares: This process's share of them, of every micro-batch, on the device.
        files: Files of every micro-batch of this process.
        grad_norms: Norms of the gradient, the same on all processes; they add up in squares.
        seconds: This process's clock, of which the main one's counts.
        signal: What this process received.
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
        told = torch.tensor(own, dtype=torch.float64).to(device, non_blocking=True)
        together = accelerator.reduce(torch.cat([torch.stack([*shares]).sum(0).double(), told]), "sum")
        self.values = torch.cat([together, torch.stack([norm.to(device) for norm in grad_norms]).double()])
        self.copied: torch.cuda.Event | None = None
        if device.type == "cuda":
            self.values = self.values.to("cpu", non_blocking=True)  # into page-locked memory
            self.copied = torch.cuda.Event()
            self.copied.record()

    def read(self) -> StepResult:
        """Waits for the numbers, on a GPU for this step and for none after it."""
        if self.copied is not None:
            self.copied.synchronize()
        values = self.values.tolist()
        losses, (interrupted, terminated, seconds) = values[: len(self.names)], values[len(self.names) :][:3]
        norms = values[len(self.names) + 3 :]
        stop = STOP_SIGNALS[0] if interrupted else STOP_SIGNALS[1] if terminated else None
        terms = dict(zip(self.names, losses, strict=True))
        return StepResult(self.step, terms, sum(losses), math.hypot(*norms), self.lr, seconds, stop)

    def suspects(self, result: StepResult) -> str:
        """Why a step may not stand, and the files of the batch, or of the micro-batches whose loss is not finite.

        All processes must call it together.
        """
        finite_loss = math.isfinite(result.loss)
        what = f"the norm of the gradient is {result.grad_norm}"
        if not finite_loss:
            what = f"the loss is {result.loss} ({_not_finite(result.terms)})"
        suspects = [
            name
            for names, share in zip(self.files, self.shares, strict=True)
            if finite_loss or not bool(torch.isfinite(share).all())
            for name in names
        ]
        return f"Step {result.step}: {what}. Files of the batch: {', '.join(gather_object(suspects))}."


def _not_finite(terms: Mapping[str, float]) -> str:
    return ", ".join(name for name, value in terms.items() if not math.isfinite(value))
