"""How much of the processor a training step uses: multiply-adds per second against those of a plain matrix product.

    python benchmarks/train_step.py --precision fp32
    python benchmarks/train_step.py --precision bf16

The step is ViT-Split-S on random weights and random images, on two threads: speed does not depend on what they hold.
The matrix product (2048 cubed) runs in the same process and precision, before and after the steps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from vitsplit.analysis.cost import step_gmacs
from vitsplit.backbone import load_backbone
from vitsplit.data.classes import ClassList
from vitsplit.methods import build_model
from vitsplit.recipes import recipe
from vitsplit.tasks.segmentation.data import SegmentationBatch
from vitsplit.tasks.segmentation.task import SegmentationTask
from vitsplit.training.optim import build_optimizer
from vitsplit.training.override import override
from vitsplit.training.precision import DTYPES

PARTS = ("frozen forward", "head forward", "decoder forward", "loss", "backward", "optimiser")


def build_step(
    size: tuple[int, int], batch_size: int, num_classes: int, dtype: torch.dtype
) -> Callable[[], list[float]]:
    """A function that takes one training step and returns the seconds of its parts."""
    config = override(recipe("ade20k-small"), {"random_weights": True})
    task = SegmentationTask(config.task, ClassList(tuple(f"class {index}" for index in range(num_classes))))
    backbone = load_backbone(config.backbone.backbone, random_weights=True)
    model = build_model(config, backbone, task).train()
    if dtype != torch.float32:
        backbone.set_precision(dtype)
    optimizer = build_optimizer(model, config.optim)
    image_BCHW = torch.randint(0, 256, (batch_size, 3, *size), dtype=torch.uint8)
    mask_BHW = torch.randint(0, num_classes, (batch_size, *size), dtype=torch.uint8)
    batch = SegmentationBatch(image_BCHW, mask_BHW, ["random"] * batch_size)

    def step() -> list[float]:
        marks = [time.perf_counter()]
        taps = backbone(batch.image_BCHW, model.head.request)
        marks.append(time.perf_counter())
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            fused_BDhw = model.head(taps)
            marks.append(time.perf_counter())
            logits_BKhw = model.decoder(fused_BDhw)
        marks.append(time.perf_counter())
        counts = task.normalisers(batch)
        loss: Tensor = sum(value / counts[name] for name, value in task.loss_sums(logits_BKhw, batch, taps).items())
        marks.append(time.perf_counter())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        marks.append(time.perf_counter())
        optimizer.step()
        marks.append(time.perf_counter())
        return [after - before for before, after in itertools.pairwise(marks)]

    return step


def product_gmacs_per_second(dtype: torch.dtype, repeats: int = 7, size: int = 2048) -> list[float]:
    """Speeds of a matrix product."""
    left, right = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    left @ right
    speeds = []
    for _ in range(repeats):
        start = time.perf_counter()
        left @ right
        speeds.append(size**3 / (time.perf_counter() - start) / 1e9)
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(518, 518))
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--num-classes", type=int, default=150)
    parser.add_argument("--precision", choices=list(DTYPES), default="fp32")
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(2)
    dtype, size = DTYPES[options.precision], tuple(options.size)
    gmacs = step_gmacs(recipe("ade20k-small"), size, num_classes=options.num_classes)["step"] * options.batch_size
    step = build_step(size, options.batch_size, options.num_classes, dtype)
    step(), step()
    speeds = product_gmacs_per_second(dtype)
    times = [step() for _ in range(options.steps)]
    speeds += product_gmacs_per_second(dtype)
    seconds = statistics.median(sum(parts) for parts in times)
    product = statistics.median(speeds)
    print(f"{options.precision}, {size[0]}x{size[1]}, batch {options.batch_size}, {options.num_classes} classes")
    for name, *samples in zip(PARTS, *times, strict=True):
        print(f"  {name:<16} {statistics.median(samples):6.3f} s")
    print(f"  {'whole step':<16} {seconds:6.3f} s   {gmacs:.1f} G multiply-adds, {gmacs / seconds:.1f} G/s")
    print(f"  {'matrix product':<16} {product:6.1f} G/s")
    print(json.dumps({"seconds": seconds, "share_of_matrix_product": gmacs / seconds / product}))


if __name__ == "__main__":
    main()
