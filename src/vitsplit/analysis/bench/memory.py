"""The peak memory of a method's training step, in a process of its own: beside others nobody could tell whose it is."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch

from vitsplit.analysis.bench.workload import Backbones, TimedStep, Workload, open_accelerator
from vitsplit.analysis.measure import peak_resident_bytes
from vitsplit.engine.progress import forget_peak_memory
from vitsplit.types import TapRequest

STEPS = 2
"""The optimiser's state is there from the first step on, so that the second one is as large as any."""


@dataclass(frozen=True)
class PeakMemory:
    """The most memory that training steps have needed.

    Attributes:
        step: Bytes of the model, its gradients, the optimiser's state and the activations together. On a GPU what
            PyTorch has allocated at most; on a processor how far the peak of the process's resident set has grown since
            the libraries were loaded. A method that trains a trunk of its own is spared the frozen one.
        process: Bytes of the process's resident set at its peak, libraries included; on a GPU the same as ``step``.
    """

    step: int
    process: int


def measure_memory(workload: Workload, threads: int) -> PeakMemory:
    """Takes two steps in a new process.

    Raises:
        VitsplitError: The method cannot be trained so.
        NotFiniteError: The loss is not finite.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure_here, workload, threads).result()


def _measure_here(workload: Workload, threads: int) -> PeakMemory:
    torch.set_num_threads(threads)
    accelerator = open_accelerator(workload.device)
    before = peak_resident_bytes()
    forget_peak_memory(accelerator.device)
    backbones = Backbones()
    step = TimedStep(workload, accelerator, backbones)
    if step.model.request(train=True) == TapRequest(pixels=True):
        backbones.drop_weights()
    for _ in range(STEPS):
        step()
    if accelerator.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(accelerator.device)
        return PeakMemory(peak, peak)
    after = peak_resident_bytes()
    return PeakMemory(after - before, after)
