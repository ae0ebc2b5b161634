"""Settings of ViT-Split, and what it can do."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from vitsplit.errors import ConfigError
from vitsplit.methods import MethodConfig


class SplitConfig(MethodConfig):
    """The paper's three trained parts (Section 3.2). In its symbols: K_t, K_p, b, and the set S of Eq. 2."""

    name: ClassVar[str] = "vitsplit"
    title: ClassVar[str] = "ViT-Split"
    location: ClassVar[str] = "vitsplit.methods.split.head:SplitHead"
    reads_frozen: ClassVar[bool] = True
    has_layers: ClassVar[bool] = True

    num_tuned_layers: Annotated[int, Field(ge=0, le=1000)] = 3
    """K_t: how many of the last blocks the task head copies."""
    num_prior_layers: Annotated[int, Field(ge=0, le=1000)] = 4
    """K_p: how many layers' features (or, with the gate, mixtures of them) the prior head reads."""
    first_prior_layer: Annotated[int, Field(ge=0, le=1000)] = 2
    """b: the first block (0-based) whose features may be read."""
    selection: Literal["uniform", "last", "explicit", "gate"] = "uniform"
    """How the prior layers are chosen: Eq. 2, the last K_p, `prior_layers`, or the learned gate of Appendix B."""
    prior_layers: Annotated[tuple[Annotated[int, Field(ge=0, le=1000)], ...], Field(max_length=1000)] = ()
    """The blocks (0-based) to read with `selection explicit`."""
    rounding: Literal["round", "int"] = "round"
    """Rounding in Eq. 2: the paper's (ties to even) or the release's truncation."""
    task_head: bool = True
    """Train copies of the last K_t blocks (Eq. 1). Off: Table 6's rows without it."""
    prior_head: bool = True
    """Train the prior head (Eq. 3). Off: Table 6's rows without it."""
    fusion: bool = True
    """Train the fusion net (Eq. 4). Off: the two maps are added."""
    combine: Literal["concat", "add"] = "concat"
    """How the fusion net sees the two maps: side by side (2D channels) or added (D)."""
    deformable: bool = True
    """3x3 deformable convolutions; off: plain 3x3 convolutions."""
    offset_init: Literal["default", "zero"] = "default"
    """Start of the offset convolutions: PyTorch's default, as the release, or zero (a plain convolution at first)."""
    tap_norm: bool = True
    """Pass every tapped map through the backbone's final norm, as the release does."""
    gate_temperature: Annotated[float, Field(ge=1e-3, le=1e3)] = 0.5
    """Temperature of the gate's softmax over layers."""
    checkpoint_task_head: bool = False
    """Keep one sequence per block of the task head for the backward pass, and compute the rest again: less memory."""
    task_head_window: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Side in patches of the windows that all copied blocks but the last attend within; None: the whole image."""

    def without_gate(self, used_layers: tuple[int, ...] | None) -> Self:
        """K_p fixed layers in place of the gate's K_p mixtures; the last of them decides how far the backbone runs."""
        if self.selection != "gate":
            return self
        if used_layers is None:
            return replace(self, selection="last")
        end = max(used_layers) + 1
        return replace(self, selection="explicit", prior_layers=tuple(range(end - self.num_prior_layers, end)))


def split_settings(method: MethodConfig, said: str) -> SplitConfig:
    """The settings of ViT-Split, for what is about K_t and prior layers alone.

    Args:
        method: The settings of a run's method.
        said: What asks for them, such as ``--layers auto``.

    Raises:
        ConfigError: It is another method.
    """
    if isinstance(method, SplitConfig):
        return method
    raise ConfigError(
        f"{said} is about the layers that ViT-Split copies and reads, and --method {method.name} has none to choose."
    )
