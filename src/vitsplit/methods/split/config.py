"""Settings of ViT-Split."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from vitsplit.errors import ConfigError
from vitsplit.methods import MethodConfig


class LowRankConfig(MethodConfig):
    """Settings of LoRA (Hu et al. 2022) in transformer blocks."""

    trunk_lora_rank: Annotated[int, Field(ge=1, le=4096)] = 16
    """LoRA rank."""
    trunk_lora_alpha: Annotated[float, Field(ge=0, le=1e6)] = 16.0
    """LoRA alpha: updates are scaled by alpha / rank."""
    trunk_lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """LoRA dropout."""
    trunk_lora_targets: Literal["attention", "all"] = "attention"
    """Linear layers with low-rank updates: those of the attention, or those of the MLP too."""


class SplitConfig(LowRankConfig):
    """Task head, prior head and fusion net (Section 3.2). Symbols: K_t, K_p, b, and the set S of Eq. 2.

    K_t ranges from 0, where the head reads the frozen last layer, to L, where no block is shared with other heads.
    """

    name: ClassVar[str] = "vitsplit"
    title: ClassVar[str] = "ViT-Split"
    location: ClassVar[str] = "vitsplit.methods.split.head:SplitHead"
    reads_frozen: ClassVar[bool] = True
    has_layers: ClassVar[bool] = True

    num_tuned_layers: Annotated[int, Field(ge=0, le=1000)] = 3
    """K_t: number of the last blocks copied by the task head; 0: the frozen last layer is its map."""
    tune_blocks: Literal["full", "lora"] = "full"
    """Tuning of the copied blocks: all weights, or low-rank updates of the attention, which share the frozen weights
    (`--trunk-lora-rank`, `--trunk-lora-alpha`, `--trunk-lora-dropout`)."""
    num_prior_layers: Annotated[int, Field(ge=0, le=1000)] = 4
    """K_p: number of layers (or, with the gate, mixtures of layers) read by the prior head."""
    first_prior_layer: Annotated[int, Field(ge=0, le=1000)] = 2
    """b: index of the first block (0-based) that may be read."""
    selection: Literal["uniform", "last", "explicit", "gate"] = "uniform"
    """Selection of the prior layers: Eq. 2, the last K_p, `prior_layers`, or the learned gate of Appendix B."""
    prior_layers: Annotated[tuple[Annotated[int, Field(ge=0, le=1000)], ...], Field(max_length=1000)] = ()
    """Indices of the blocks (0-based) to read with `--selection explicit`."""
    rounding: Literal["round", "int"] = "round"
    """Rounding in Eq. 2: the paper's (ties to even) or the release's truncation."""
    task_head: bool = True
    """Train copies of the last K_t blocks (Eq. 1). Disabled: rows of Table 6 without it."""
    prior_head: bool = True
    """Train the prior head (Eq. 3). Disabled: rows of Table 6 without it."""
    fusion: bool = True
    """Train the fusion net (Eq. 4). Disabled: the two maps are added."""
    fusion_form: Literal["paper", "residual"] = "paper"
    """Output of the fusion net: the fused map, or a residual, initially zero, that is added to the task map (without a
    task head, to the map of the frozen last layer)."""
    combine: Literal["concat", "add"] = "concat"
    """Input of the fusion net: the two maps concatenated (2D channels) or added (D)."""
    deformable: bool = True
    """3x3 deformable convolutions; disabled: plain 3x3 convolutions."""
    offset_init: Literal["default", "zero"] = "default"
    """Initialization of the offset convolutions: PyTorch's default, as in the release, or zero (initially a plain
    convolution)."""
    tap_norm: bool = True
    """Apply the backbone's final norm to every tapped map, as in the release."""
    gate_temperature: Annotated[float, Field(ge=1e-3, le=1e3)] = 0.5
    """Temperature of the gate's softmax over layers."""
    checkpoint_task_head: bool = False
    """Activation checkpointing of the task head: recompute its blocks in the backward pass to save memory."""
    task_head_window: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Window size in patches for the attention of all copied blocks but the last; None: global attention."""

    @property
    def shards(self) -> bool:
        """Whether there are blocks to shard: low-rank updates share the weights of the frozen blocks."""
        return self.tune_blocks == "full"

    def without_gate(self, used_layers: tuple[int, ...] | None) -> Self:
        """K_p fixed layers in place of the K_p mixtures of the gate, ending at the last layer that the gate keeps."""
        if self.selection != "gate":
            return self
        if used_layers is None:
            return replace(self, selection="last")
        end = max(used_layers) + 1
        return replace(self, selection="explicit", prior_layers=tuple(range(end - self.num_prior_layers, end)))


def split_settings(method: MethodConfig, context: str) -> SplitConfig:
    """The settings of ViT-Split, for features that require K_t and prior layers.

    Args:
        method: The settings of a run's method.
        context: The feature, for the error message, such as ``--layers auto``.

    Raises:
        ConfigError: The method is not ViT-Split.
    """
    if isinstance(method, SplitConfig):
        return method
    raise ConfigError(
        f"{context} requires the copied and prior layers of ViT-Split, which --method {method.name} does not have."
    )
