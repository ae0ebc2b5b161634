"""Construction of modules on the meta device without the time of their initialization."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

_IN_PLACE: frozenset[Callable[..., Any]] = frozenset(
    {
        Tensor.uniform_,
        Tensor.normal_,
        Tensor.erfinv_,
        Tensor.mul_,
        Tensor.add_,
        Tensor.clamp_,
        Tensor.fill_,
        Tensor.zero_,
    }
)
"""The steps of initializers."""


class SkipMetaInitialization(TorchFunctionMode):
    """Skips initializers of tensors on the meta device, which have no values; other tensors are initialized.

    PyTorch computes the shapes of these in-place operations in Python, in most of the time that the construction of a
    vision transformer takes.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _IN_PLACE and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))
