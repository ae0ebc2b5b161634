"""Compares implementations of deformable convolution, forward and backward: by rows, and torchvision's operator.

    python benchmarks/deformable.py --device cuda --batch-size 16 --width 1024

They are measured in turns; the ratio is the median over turns.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from vitsplit.analysis.measure import Spread, Stopwatch, describe_machine, paired_ratio, run_interleaved
from vitsplit.nn.deformable_convolution import deform_conv3x3
from vitsplit.precision import DTYPES, autocast


def main() -> None:
    """Measures both in turns, and prints the medians and the maximum difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16", help="(default: bf16)")
    parser.add_argument("--batch-size", type=int, default=2, help="maps (default: 2)")
    parser.add_argument("--width", type=int, default=384, help="channels (default: 384)")
    parser.add_argument("--side", type=int, default=37, help="height and width of a map (default: 37)")
    parser.add_argument("--turns", type=int, default=8, help="measured turns, after two for warm-up (default: 8)")
    options = parser.parse_args()

    device, dtype = torch.device(options.device), DTYPES[options.precision]
    shape = (options.batch_size, options.width, options.side, options.side)
    generator = torch.Generator().manual_seed(0)
    map_BDhw = torch.randn(shape, generator=generator).to(device, dtype, memory_format=torch.channels_last)
    offset_BChw = 2 * torch.randn(shape[0], 18, *shape[2:], generator=generator).to(device, dtype)
    weight_EDkk = 0.02 * torch.randn(options.width, options.width, 3, 3, generator=generator).to(device)
    leaves = [tensor.requires_grad_() for tensor in (map_BDhw, offset_BChw, weight_EDkk)]

    def rows() -> list[Tensor]:
        with autocast(device.type, dtype):
            return _with_gradients(deform_conv3x3(*leaves), leaves)

    def torchvision() -> list[Tensor]:
        return _with_gradients(deform_conv2d(*(leaf.float() for leaf in leaves), padding=1), leaves)

    print(describe_machine(device))
    difference = max(_difference(a, b) for a, b in zip(rows(), torchvision(), strict=True))
    watch = Stopwatch(device)
    forms = {"rows": lambda: watch.time(rows), "torchvision": lambda: watch.time(torchvision)}
    seconds = run_interleaved(forms, turns=options.turns, warmup=2)
    ours, theirs = (1e3 * Spread.of(samples).median for samples in seconds.values())
    ratio = paired_ratio(seconds["torchvision"], seconds["rows"]).median
    print(f"rows {ours:.2f} ms, torchvision {theirs:.2f} ms: {ratio:.2f} times")
    print(f"largest relative difference of output and gradients: {difference:.1e}")


def _with_gradients(out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return [out.detach(), *torch.autograd.grad(out.float().square().mean(), leaves)]


def _difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


if __name__ == "__main__":
    main()
