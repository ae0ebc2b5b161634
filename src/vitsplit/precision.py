"""Compute precision of a run (trainable weights, gradients and optimizer state are float32), and compiler errors."""

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

# Below this, casts and operators without bf16 kernels cost more than faster matrix products gain.
WORTHWHILE_SPEEDUP = 1.5


def autocast(device_type: str, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Autocast to ``dtype`` within the block (disabled for float32), also inside of another autocast block.

    Has no effect on devices without autocast, such as the meta device.
    """
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, dtype, enabled=dtype != torch.float32)


def train_in_float32(model: nn.Module) -> None:
    """Converts trainable parameters to float32, in place: in bfloat16 small updates would round to zero."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def resolve_precision(precision: Precision, device: torch.device) -> Resolved:
    """Resolves the compute precision.

    ``auto`` is bf16 on GPUs that support it and fp16 on others; on a CPU it is bf16 if matrix products are at least 1.5
    times as fast in bf16 (measured, in about 0.2 seconds), otherwise fp32.

    Raises:
        ConfigError: fp16 was requested on a CPU, where it is slower than fp32 and overflows.
    """
    if precision == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        return "bf16" if device.type == "cpu" and bf16_speedup() >= WORTHWHILE_SPEEDUP else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("--precision fp16 needs a GPU: on a CPU use auto, bf16 or fp32.")
    return precision


def bf16_speedup(size: int = 1024, repeats: int = 9) -> float:
    """Speedup of a bf16 over a float32 matrix product on this CPU.

    The two alternate, and the minimum time of each is used, so that the result does not depend on other load. CPUs
    without bf16 would take seconds for one large product, so a small one is measured first; its speedup is returned if
    it is below 0.5.
    """
    small = _speedup(size // 4, 2)
    return small if small < 0.5 else _speedup(size, repeats)


def _speedup(size: int, repeats: int) -> float:
    matrices = [torch.ones(size, size, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    fastest = [float("inf")] * len(matrices)
    for repeat in range(1 + repeats):
        for index, matrix in enumerate(matrices):
            start = time.perf_counter()
            matrix @ matrix
            seconds = time.perf_counter() - start
            if repeat > 0:  # the first product is warm-up
                fastest[index] = min(fastest[index], seconds)
    return fastest[0] / fastest[1]


@contextmanager
def compiler_errors(compiled: bool) -> Iterator[None]:
    """Converts compiler errors within the block, in which compiled code is called, to ``ConfigError``.

    Args:
        compiled: Whether anything in the block is compiled; otherwise this has no effect.

    Raises:
        ConfigError: Compilation failed, for example because there is no C++ compiler.
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
            f"--compile failed: {reason}. Omit --compile, or install the requirements of torch.compile (a C++ "
            "compiler; on a GPU also Triton)."
        ) from error
