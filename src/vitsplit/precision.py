"""Which precision a run computes in (weights, gradients and optimizer state are float32 in all), and compiling it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import nn

from vitsplit.config import Precision
from vitsplit.errors import ConfigError

Resolved = Literal["fp32", "bf16", "fp16"]

DTYPES: dict[Resolved, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Below this, casts and the kernels that bf16 lacks eat what the matrix products gain.
WORTHWHILE_SPEEDUP = 1.5


def autocast(device_type: str, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Computes in ``dtype`` within the block (float32: without autocast), also inside somebody else's autocast.

    Nothing happens on devices that have no autocast, such as the meta device, on which only shapes are known.
    """
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, dtype, enabled=dtype != torch.float32)


def train_in_float32(model: nn.Module) -> None:
    """Makes what trains float32, in place, whatever it was loaded in: in bfloat16 small updates round to nothing."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def resolve_precision(precision: Precision, device: torch.device) -> Resolved:
    """The precision to compute in.

    ``auto`` is bf16 on GPUs that have it and fp16 on others; on a processor bf16 where a matrix product is measured
    (in a fifth of a second) to be at least 1.5 times as fast in it, else fp32.

    Raises:
        ConfigError: fp16 was asked for on a processor, where it is slower than fp32 and overflows.
    """
    if precision == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        return "bf16" if device.type == "cpu" and bf16_speedup() >= WORTHWHILE_SPEEDUP else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("--precision fp16 needs a GPU: on a processor choose auto, bf16 or fp32.")
    return precision


def bf16_speedup(size: int = 1024, repeats: int = 9) -> float:
    """How many times as fast this processor multiplies two bf16 matrices as two float32 ones.

    The two take turns, and the fastest of each counts: other work on the machine can only slow a product down, and the
    answer must be the same for every run on it. A processor without bf16 would take seconds for one large product; so
    what is not half as fast on small ones is not tried on large ones.
    """
    first_look = _speedup(size // 4, 2)
    return first_look if first_look < 0.5 else _speedup(size, repeats)


def _speedup(size: int, repeats: int) -> float:
    matrices = [torch.ones(size, size, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    fastest = [float("inf")] * len(matrices)
    for repeat in range(1 + repeats):
        for index, matrix in enumerate(matrices):
            start = time.perf_counter()
            matrix @ matrix
            seconds = time.perf_counter() - start
            if repeat > 0:  # the first product sets kernels up
                fastest[index] = min(fastest[index], seconds)
    return fastest[0] / fastest[1]


@contextmanager
def compiler_errors(compiled: bool) -> Iterator[None]:
    """Within the block a compiler that fails is a wrong setting; it is asked for when compiled code is first called.

    Args:
        compiled: Whether anything in the block is compiled; otherwise the block is as if bare.

    Raises:
        ConfigError: Compiling failed, such as for lack of a C++ compiler.
    """
    if not compiled:
        yield
        return
    from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException  # slow to import

    try:
        yield
    except TorchDynamoException as error:
        cause = error.inner_exception if isinstance(error, BackendCompilerFailed) else error
        reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        raise ConfigError(
            f"--compile failed: {reason}. Leave --compile away, or give torch.compile what it needs (a C++ compiler; "
            "on a GPU also Triton)."
        ) from error
