"""LoRA (Hu et al. 2022), with peft: low-rank updates of the attention of frozen blocks."""

from __future__ import annotations

import importlib.util

from timm.models.eva import EvaAttention
from torch import nn

from vitsplit.errors import ConfigError
from vitsplit.methods.split.config import LowRankConfig

_ATTENTION = r"(.*\.)?attn\.(qkv|q_proj|k_proj|v_proj|proj)"
"""All linear layers of the attention, with fused or separate query, key and value."""


def add_low_rank(blocks: nn.ModuleList, config: LowRankConfig, backbone: str) -> None:
    """Adds ``alpha / r * B A`` to every linear layer of the blocks' attention, in place; only A and B are trainable.

    B is initialized to zero, so the initial blocks equal the given ones.

    Args:
        blocks: Blocks of a timm transformer.
        config: Rank r, alpha and dropout.
        backbone: Name of the backbone, for error messages.

    Raises:
        ConfigError: peft is not installed, or the attention does not call its linear layers as modules.
    """
    if importlib.util.find_spec("peft") is None:
        raise ConfigError(
            "LoRA (--tune-blocks lora, --method lora) needs the package peft: pip install 'vitsplit[lora]'."
        )
    import peft  # slow to import

    for block in blocks:
        attention = dict(block.named_children())["attn"]
        if isinstance(attention, EvaAttention) and attention.q_bias is not None:
            raise ConfigError(
                f"LoRA (--tune-blocks lora, --method lora): the attention of {backbone} uses the weight of query, key "
                "and value directly, which LoRA cannot adapt. Choose another backbone, --tune-blocks full, or --method "
                "adaptformer or vpt."
            )
    adapters = peft.LoraConfig(
        r=config.trunk_lora_rank,
        lora_alpha=config.trunk_lora_alpha,  # type: ignore[arg-type]  # any factor is valid
        lora_dropout=config.trunk_lora_dropout,
        target_modules=_ATTENTION,
    )
    peft.inject_adapter_in_model(adapters, blocks)
    for parameter in blocks.parameters():
        if parameter.requires_grad:
            # peft casts them to the precision of the frozen weights.
            parameter.data = parameter.data.float()
