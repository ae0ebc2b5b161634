"""Benchmark of runtimes: exported graphs against the model in PyTorch, measured in turns.

Timed is one call on a batch of images in memory, from uint8 pixels to all outputs of the graph. CPU time is that of all
threads, and so independent of their number, if the work is divided perfectly.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from vitsplit.analysis.bench.report import Rows, where
from vitsplit.analysis.measure import Say, Spread, describe_machine, paired_ratio, run_interleaved
from vitsplit.errors import ConfigError
from vitsplit.exporting.parity import described, find_images, measure_head, model_outputs
from vitsplit.inference.predictor import Predictor
from vitsplit.runtime.card import read_card
from vitsplit.runtime.sessions import PACKAGES, Run, open_session

REFERENCE = "PyTorch"
Call = Callable[[], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class RuntimeTimes:
    """Measurements of one graph, or of the model.

    Attributes:
        precision: Its precision.
        size_bytes: The size of its files; None: of the model, which has none of its own.
        differences: Its differences from the model by output, see ``exporting.parity.measure``.
        seconds: Wall time in each turn.
        cpu_seconds: CPU time in each turn.
    """

    precision: str
    size_bytes: int | None = None
    differences: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class RuntimesResult:
    """Results of a measurement.

    Attributes:
        heads: Names of the heads.
        size: Height and width of the images.
        batch_size: Number of images per call.
        machine: See ``describe_machine``.
        runtimes: The model and the graphs, by label.
    """

    heads: tuple[str, ...]
    size: tuple[int, int]
    batch_size: int
    machine: Mapping[str, Any]
    runtimes: Mapping[str, RuntimeTimes]

    def speedup(self, label: str, *, cpu: bool) -> Spread:
        """How many times as fast as the model a graph is, by CPU time or by wall time."""
        times = [each.cpu_seconds if cpu else each.seconds for each in (self.runtimes[REFERENCE], self.runtimes[label])]
        return paired_ratio(*times)


def measure_runtimes(
    predictor: Predictor,
    exports: Sequence[Path],
    *,
    size: tuple[int, int],
    batch_size: int = 1,
    turns: int = 10,
    warmup: int = 2,
    images: Path | None = None,
    say: Say = lambda text: None,
) -> RuntimesResult:
    """Measures the model and the graphs of exported folders.

    Args:
        predictor: The model, in float32 on the CPU.
        exports: Exported folders of the same heads.
        size: Height and width of the images.
        batch_size: Number of images per call.
        turns: Number of measured turns.
        warmup: Number of turns before.
        images: Folder of images; None: generated scenes.
        say: Called with progress messages.

    Raises:
        ConfigError: A folder has other heads, or does not take images of this size or batch.
        VitsplitError: A folder or an image cannot be read.
    """
    sources = find_images(images, count=batch_size)
    image_BCHW = torch.stack([TF.resize(image_CHW, list(size), antialias=True) for image_CHW in sources])
    expected, outputs = model_outputs(predictor, image_BCHW), described(predictor)
    calls: dict[str, Call] = {REFERENCE: partial(model_outputs, predictor, image_BCHW)}
    runtimes = {REFERENCE: RuntimeTimes(precision="fp32")}
    for folder in exports:
        for label, precision, size_bytes, call in _open(folder, predictor, image_BCHW):
            say(f"opening {label}")
            found = call()
            differences = {
                name: errors
                for each in outputs.values()
                for name, errors in measure_head(each, found, expected).items()
            }
            calls[label] = call
            runtimes[label] = RuntimeTimes(precision=precision, size_bytes=size_bytes, differences=differences)
    machine = describe_machine(torch.device("cpu"))
    timed = {label: partial(time_call, call) for label, call in calls.items()}
    for label, samples in run_interleaved(timed, turns=turns, warmup=warmup, say=say).items():
        runtimes[label].seconds.extend(wall for wall, _ in samples)
        runtimes[label].cpu_seconds.extend(cpu for _, cpu in samples)
    return RuntimesResult(heads=tuple(predictor), size=size, batch_size=batch_size, machine=machine, runtimes=runtimes)


def _open(folder: Path, predictor: Predictor, image_BCHW: Tensor) -> list[tuple[str, str, int, Call]]:
    """Opens the graphs of a folder: the label, precision and size of each, and a function that runs it."""
    card = read_card(folder)
    if card.heads.keys() != predictor.keys():
        raise ConfigError(f"{folder} has the heads {', '.join(card.heads)}, the model {', '.join(predictor)}.")
    size, batch = (image_BCHW.shape[2], image_BCHW.shape[3]), image_BCHW.shape[0]
    if card.size not in (None, size):
        raise ConfigError(f"{folder} takes images of {card.size[0]} x {card.size[1]} pixels. Give --size of these.")
    if card.batch not in (None, batch):
        raise ConfigError(f"{folder} takes one image at a time. Omit --batch-size.")
    pixels = np.ascontiguousarray(image_BCHW.permute(0, 2, 3, 1) if card.layout == "nhwc" else image_BCHW)
    found: list[tuple[str, str, int, Call]] = []
    outputs = [output for head in card.heads.values() for output in head.outputs]
    # Opening a graph of PyTorch can run code that is in the file.
    for name, graph in ((name, graph) for name, graph in card.graphs.items() if name in PACKAGES):
        if min(size) < graph.smallest_side:
            raise ConfigError(
                f"--size {size[0]} {size[1]}: {folder} takes sides of at least {graph.smallest_side} pixels."
            )
        session = open_session(card, name, threads=None)

        def call(session: Run = session) -> Mapping[str, Any]:
            return dict(zip(outputs, session(pixels, outputs), strict=True))

        size_bytes = sum(path.stat().st_size for path in graph.files)
        found.append((f"{folder.name}, {name}", graph.precision, size_bytes, call))
    if not found:
        raise ConfigError(f"{folder} has no graph for {' or '.join(PACKAGES)}. Export with --format onnx.")
    return found


def time_call(call: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU time of a call in seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def to_json(result: RuntimesResult) -> dict[str, Any]:
    """The figures, JSON-ready, in seconds and bytes."""
    return {
        "heads": list(result.heads),
        "size": list(result.size),
        "batch_size": result.batch_size,
        "machine": dict(result.machine),
        "runtimes": {
            label: {
                "precision": found.precision,
                "size_bytes": found.size_bytes,
                "seconds": asdict(Spread.of(found.seconds)),
                "cpu_seconds": asdict(Spread.of(found.cpu_seconds)),
                "speedup": asdict(result.speedup(label, cpu=False)),
                "cpu_speedup": asdict(result.speedup(label, cpu=True)),
                "differences": found.differences,
            }
            for label, found in result.runtimes.items()
        },
    }


def table(result: RuntimesResult) -> Rows:
    """Header and rows: time of the model and of each graph, and how far the graph is from the model."""
    rows = [
        [
            "runtime",
            "precision",
            "size, MB",
            "seconds",
            "CPU seconds",
            "speedup",
            "by CPU time",
            "quartiles",
            "difference",
        ]
    ]
    for label, found in result.runtimes.items():
        by_cpu = result.speedup(label, cpu=True)
        rows.append(
            [
                label,
                found.precision,
                "-" if found.size_bytes is None else f"{found.size_bytes / 1e6:.1f}",
                f"{Spread.of(found.seconds).median:.3f}",
                f"{Spread.of(found.cpu_seconds).median:.3f}",
                f"{result.speedup(label, cpu=False).median:.2f}",
                f"{by_cpu.median:.2f}",
                by_cpu.quartiles(2),
                _differences(found.differences) or "-",
            ]
        )
    return rows


def describe_setting(result: RuntimesResult) -> str:
    """A description of the measurement and the machine."""
    images = "one image" if result.batch_size == 1 else f"{result.batch_size} images"
    turns = len(result.runtimes[REFERENCE].seconds)
    return (
        f"{', '.join(result.heads)}: {images} of {result.size[0]} x {result.size[1]} pixels, medians of {turns} turns; "
        f"{where(result.machine)}"
    )


def _differences(differences: Mapping[str, Mapping[str, float]]) -> str:
    """The share of equal classes and objects, and the relative error of depths and features."""
    return ", ".join(
        f"{output} {100 * value:.1f} % equal" if name == "agreement" else f"{output} {100 * value:.2f} %"
        for output, errors in differences.items()
        for name, value in errors.items()
        if name in ("agreement", "abs_rel", "relative_error")
    )
