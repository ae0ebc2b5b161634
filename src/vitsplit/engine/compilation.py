"""torch.compile for the steps of a run, and its failures in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vitsplit.errors import ConfigError


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
