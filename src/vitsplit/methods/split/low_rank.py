"""LoRA (Hu et al. 2022): low-rank updates of the linear layers of frozen blocks."""

from __future__ import annotations

from collections.abc import Iterable

from timm.models.eva import EvaAttention
from torch import nn

from vitsplit.errors import ConfigError
from vitsplit.methods.split.config import LowRankConfig
from vitsplit.nn.low_rank import LowRankLinear


def add_low_rank(blocks: Iterable[nn.Module], config: LowRankConfig, backbone: str) -> None:
    """Adds ``alpha / r * B A`` to linear layers of the blocks, in place; only A and B are trainable.

    B is initialized to zero, so the initial blocks equal the given ones.

    Args:
        blocks: Blocks of a timm transformer.
        config: Rank r, alpha, dropout, and the layers: all of the attention, or of attention and MLP.
        backbone: Name of the backbone, for error messages.

    Raises:
        ConfigError: The attention does not call its linear layers as modules.
    """
    for block in blocks:
        block.requires_grad_(False)
        parts = dict(block.named_children())
        attention = parts["attn"]
        if isinstance(attention, EvaAttention) and attention.q_bias is not None:
            raise ConfigError(
                f"LoRA (--tune-blocks lora, --method lora): the attention of {backbone} uses the weight of query, key "
                "and value directly, which LoRA cannot adapt. Choose another backbone, --tune-blocks full, or --method "
                "adaptformer or vpt."
            )
        for part in (attention, parts["mlp"]) if config.trunk_lora_targets == "all" else (attention,):
            layers = {name: layer for name, layer in part.named_children() if isinstance(layer, nn.Linear)}
            for name, layer in layers.items():
                adapted = LowRankLinear(
                    layer, config.trunk_lora_rank, config.trunk_lora_alpha, config.trunk_lora_dropout
                )
                setattr(part, name, adapted)
