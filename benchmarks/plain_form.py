"""Ablation of optimizations: a training step in a plain implementation, and with optimizations added one by one.

The plain form is a straightforward implementation in float32: torchvision's operator for the deformable
convolution, attention as two products around a softmax, logits enlarged to full resolution for the loss and for an
accuracy in every step, and an optimizer that loops over tensors. All forms compute the same results; they are measured
in turns in one process.

    python benchmarks/plain_form.py --steps 5
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor

from vitsplit.analysis.measure import Spread, Stopwatch, describe_machine, run_interleaved
from vitsplit.backbone import load_backbone
from vitsplit.data.classes import IGNORE, ClassList
from vitsplit.engine.optim import build_optimizer
from vitsplit.engine.override import override
from vitsplit.model import build_head
from vitsplit.nn.deformable_convolution import DeformConv3x3
from vitsplit.precision import bf16_speedup
from vitsplit.recipes import recipe
from vitsplit.tasks.segmentation.data import SegmentationBatch
from vitsplit.tasks.segmentation.loss import resize_logits
from vitsplit.tasks.segmentation.task import SegmentationTask


@dataclass(frozen=True)
class Form:
    """The parts that use the optimized implementation."""

    name: str
    deformable: bool = False
    loss: bool = False
    attention: bool = False
    optimizer: bool = False
    bf16: bool = False


FORMS = [
    Form("plain"),
    Form("+ deformable convolution by rows", deformable=True),
    Form("+ loss a few rows at a time, no accuracy", deformable=True, loss=True),
    Form("+ fused attention", deformable=True, loss=True, attention=True),
    Form("+ fused optimizer: as the package", deformable=True, loss=True, attention=True, optimizer=True),
]


class Steps:
    """Training steps of ViT-Split-S on random images, in any form."""

    def __init__(self, size: tuple[int, int], batch_size: int, num_classes: int) -> None:
        config = override(recipe("ade20k-small"), {"random_weights": True})
        self.task = SegmentationTask(config.task, ClassList(tuple(f"class {index}" for index in range(num_classes))))
        self.backbone = load_backbone(config.backbone.backbone, random_weights=True)
        self.model = build_head(config, self.backbone, self.task).train()
        self.fused = build_optimizer({"segmentation": self.model}, config.optims())
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        groups = [{"params": [parameter]} for parameter in trained]
        self.plain = torch.optim.AdamW(groups, lr=config.optim.lr, foreach=False, fused=False)
        image_BCHW = torch.randint(0, 256, (batch_size, 3, *size), dtype=torch.uint8)
        mask_BHW = torch.randint(0, num_classes, (batch_size, *size), dtype=torch.uint8)
        self.batch = SegmentationBatch(image_BCHW, mask_BHW, ["random"] * batch_size)

    def take(self, form: Form) -> None:
        """One step."""
        for module in [*self.backbone.modules(), *self.model.modules()]:
            if isinstance(module, DeformConv3x3):
                module.implementation = "rows" if form.deformable else "torchvision"
            elif isinstance(module, Attention):
                module.fused_attn = form.attention
        optimizer: Any = self.fused if form.optimizer else self.plain
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=form.bf16):
            taps = self.backbone(self.batch.image_BCHW, self.model.request(train=True))
            logits_BKhw = self.model(taps)
        if form.loss:
            (count,), (total,) = (
                self.task.normalizers(self.batch).values(),
                self.task.loss_sums(logits_BKhw, self.batch, taps).values(),
            )
            loss = total / count
        else:
            loss = self._plain_loss(logits_BKhw, taps)
        loss.backward()
        optimizer.step()

    def _plain_loss(self, logits_BKhw: Tensor, taps: Any) -> Tensor:
        full_BKHW = resize_logits(logits_BKhw, taps.image_size, taps.padding)
        label_BHW = self.batch.mask_BHW.long()
        self.accuracy = (full_BKHW.detach().argmax(1) == label_BHW).float().mean()
        return F.cross_entropy(full_BKHW, label_BHW, ignore_index=IGNORE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512))
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--num-classes", type=int, default=150)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    steps = Steps(tuple(options.size), options.batch_size, options.num_classes)
    forms = list(FORMS)
    if (speedup := bf16_speedup()) > 1.5:
        forms.append(Form("+ bf16", True, True, True, True, True))
    watch = Stopwatch(torch.device("cpu"))
    functions = {form.name: partial(watch.time, partial(steps.take, form)) for form in forms}
    seconds = run_interleaved(functions, turns=options.steps, warmup=1)
    medians = {name: Spread.of(samples).median for name, samples in seconds.items()}
    plain = medians["plain"]
    print(f"a product of matrices is {speedup:.2f} times as fast in bf16 here")
    for name, median in medians.items():
        print(f"{name:<45} {median:6.3f} s   {plain / median:5.2f} times as fast as the plain form")
    print(json.dumps({"machine": describe_machine(torch.device("cpu")), "seconds": medians}))


if __name__ == "__main__":
    main()
