"""LoRA (Hu et al. 2022): low-rank updates of the attention of all blocks of the frozen transformer."""

from __future__ import annotations

from dataclasses import fields
from typing import ClassVar

from vitsplit.backbone.backbone import Backbone
from vitsplit.methods.split.config import LowRankConfig, SplitConfig
from vitsplit.methods.split.head import SplitHead
from vitsplit.methods.trunk import TrunkConfig, set_drop_path


class LoraConfig(LowRankConfig, TrunkConfig):
    """LoRA in all blocks: ViT-Split with K_t = L and low-rank updates, without prior head and fusion net."""

    name: ClassVar[str] = "lora"
    title: ClassVar[str] = "LoRA"
    reads_frozen: ClassVar[bool] = True

    @property
    def shards(self) -> bool:
        """See ``MethodConfig.shards``: most parameters are frozen weights of the backbone."""
        return False

    def build(self, backbone: Backbone, num_maps: int) -> SplitHead:
        """See ``MethodConfig.build``."""
        low_rank = {field.name: getattr(self, field.name) for field in fields(LowRankConfig)}
        head = SplitHead(
            backbone,
            SplitConfig(
                num_tuned_layers=backbone.num_layers, tune_blocks="lora", prior_head=False, fusion=False, **low_rank
            ),
        )
        if self.drop_path:
            set_drop_path(head.copied_blocks(), self.drop_path)
        return head
