"""Equal time budgets: the number of training steps of a method within a time."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import torch

from vitsplit.analysis.bench.workload import Backbones, TimedStep, Workload, open_accelerator
from vitsplit.analysis.measure import Say, free_memory, run_interleaved
from vitsplit.engine.override import override
from vitsplit.errors import ConfigError
from vitsplit.precision import resolve_precision
from vitsplit.train_config import TrainConfig

TURNS, WARMUP = 5, 2


def steps_within(
    configs: Mapping[str, TrainConfig],
    seconds: float,
    *,
    num_classes: int,
    device: torch.device,
    say: Say = lambda text: None,
) -> dict[str, int]:
    """The number of steps of each method within a time, from the median time of a few interleaved steps.

    Learning rate schedules depend on the total number of steps, so it must be known before training.

    Args:
        configs: Label to configuration.
        seconds: Time for the steps of a run, without data loading.
        num_classes: K; 0 for depth.
        device: Device for training.
        say: Called with progress messages.

    Raises:
        ConfigError: The time is too short for a step, or the task cannot be measured.
    """
    accelerator = open_accelerator(str(device))
    backbones, steps = Backbones(), {}
    for label, config in configs.items():
        say(f"building {label}")
        precision = resolve_precision(config.loop.precision, accelerator.device)
        workload = Workload(
            label=label,
            config=override(config, {"precision": precision}),
            size=config.task.crop_size,
            batch_size=config.loop.batch_size,
            num_classes=num_classes,
            device=str(device),
        )
        steps[label] = TimedStep(workload, accelerator, backbones)
    taken = run_interleaved(steps, turns=TURNS, warmup=WARMUP, say=say)
    times = {label: [seconds for seconds, _ in samples] for label, samples in taken.items()}
    del steps, backbones
    free_memory(accelerator.device)
    return steps_of(times, seconds)


def steps_of(times: Mapping[str, list[float]], seconds: float) -> dict[str, int]:
    """The number of steps within a time, from the median step time of each method.

    Raises:
        ConfigError: The time is too short for a step.
    """
    found = {label: int(seconds / statistics.median(samples)) for label, samples in times.items()}
    for label, count in found.items():
        if count < 1:
            slowest = statistics.median(times[label])
            raise ConfigError(
                f"--seconds {seconds:g}: a step of {label} takes {slowest:.1f} s here. Increase the time."
            )
    return found
