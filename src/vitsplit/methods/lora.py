"""LoRA (Hu et al. 2022), with peft: low-rank updates of the attention of the frozen transformer.

Shapes: B batch, D width, h w patch grid.
"""

from __future__ import annotations

import importlib.util
from typing import Annotated, ClassVar

from pydantic import Field
from timm.models.eva import EvaAttention
from torch import nn

from vitsplit.backbone.backbone import Backbone
from vitsplit.errors import ConfigError
from vitsplit.methods.trunk import AdaptedTrunk, TrunkConfig

_ATTENTION = r"blocks\.\d+\.attn\.(qkv|q_proj|k_proj|v_proj|proj)"
"""All linear layers of the attention, with fused or separate query, key and value."""


class LoraConfig(TrunkConfig):
    """LoRA: trains low-rank updates of the attention of the frozen transformer."""

    name: ClassVar[str] = "lora"
    title: ClassVar[str] = "LoRA"
    shards: ClassVar[bool] = False

    trunk_lora_rank: Annotated[int, Field(ge=1, le=4096)] = 16
    """LoRA rank."""
    trunk_lora_alpha: Annotated[float, Field(ge=0, le=1e6)] = 16.0
    """LoRA alpha: updates are scaled by alpha / rank."""
    trunk_lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """LoRA dropout."""

    def build(self, backbone: Backbone, num_maps: int) -> LowRank:
        """See ``MethodConfig.build``."""
        return LowRank(backbone, self)


class LowRank(AdaptedTrunk):
    """The frozen transformer with ``scale * B A`` added to every linear layer of its attention; A and B are trained.

    B is initialized to zero, so the initial model equals the frozen one, whose weights are shared.

    Args:
        backbone: The frozen model.
        config: Rank, alpha (the scale is alpha / rank), dropout and drop path.

    Raises:
        ConfigError: peft is not installed, or the attention does not call its linear layers as modules.
    """

    def __init__(self, backbone: Backbone, config: LoraConfig) -> None:
        if importlib.util.find_spec("peft") is None:
            raise ConfigError("--method lora needs the package peft: pip install 'vitsplit[lora]'.")
        import peft  # slow to import

        super().__init__(backbone, config.drop_path)
        self._check_attention(backbone.name)
        adapters = peft.LoraConfig(
            r=config.trunk_lora_rank,
            lora_alpha=config.trunk_lora_alpha,  # type: ignore[arg-type]  # any factor is valid
            lora_dropout=config.trunk_lora_dropout,
            target_modules=_ATTENTION,
        )
        peft.inject_adapter_in_model(adapters, self.trunk.model)
        for parameter in self._adapters():
            # peft casts them to the precision of the frozen weights.
            parameter.data = parameter.data.float()

    def _adapters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def _check_attention(self, name: str) -> None:
        for block in self.trunk.blocks:
            attention = dict(block.named_children())["attn"]
            if isinstance(attention, EvaAttention) and attention.q_bias is not None:
                raise ConfigError(
                    f"--method lora: the attention of {name} uses the weight of query, key and value directly, "
                    "which LoRA cannot adapt. Choose another backbone, or --method adaptformer or vpt."
                )
