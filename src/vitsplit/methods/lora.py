"""LoRA (Hu et al. 2022), by peft: low-rank matrices beside the frozen attention's.

Shapes: B batch, D width, h w patch grid.
"""

from __future__ import annotations

import importlib.util
from typing import Annotated, ClassVar

from pydantic import Field
from timm.models.eva import EvaAttention
from torch import Tensor, nn

from vitsplit.backbone.backbone import Backbone
from vitsplit.errors import ConfigError
from vitsplit.methods.trunk import Trunk, TrunkConfig
from vitsplit.types import LayerTaps, TapRequest

_ATTENTION = r"blocks\.\d+\.attn\.(qkv|q_proj|k_proj|v_proj|proj)"
"""Every matrix of the attention, whether query, key and value are one or three."""


class LoraConfig(TrunkConfig):
    """LoRA: low-rank matrices are trained beside those of the frozen attention."""

    name: ClassVar[str] = "lora"
    title: ClassVar[str] = "LoRA"
    shards: ClassVar[bool] = False

    trunk_lora_rank: Annotated[int, Field(ge=1, le=4096)] = 16
    """Rank of what is added to the attention's matrices."""
    trunk_lora_alpha: Annotated[float, Field(ge=0, le=1e6)] = 16.0
    """It is scaled by this over the rank."""
    trunk_lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout of what is added."""

    def build(self, backbone: Backbone, num_maps: int) -> LowRank:
        """See ``MethodConfig.build``."""
        return LowRank(backbone, self)


class LowRank(nn.Module):
    """The frozen transformer with ``scale * B A`` added to every matrix of its attention; A and B learn.

    B starts as zero, and so the whole as the frozen model. The frozen matrices are the backbone's own, in memory once.

    Args:
        backbone: The frozen model.
        config: Rank, alpha (scale is alpha over rank), dropout and drop path.

    Raises:
        ConfigError: peft is not installed, or the attention does not call its matrices as layers.
    """

    def __init__(self, backbone: Backbone, config: LoraConfig) -> None:
        super().__init__()
        if importlib.util.find_spec("peft") is None:
            raise ConfigError("--method lora needs the package peft: pip install 'vitsplit[lora]'.")
        import peft  # slow to import

        self.trunk = Trunk(backbone, trained=False, drop_path=config.drop_path)
        self._check_attention(backbone.name)
        self.width = backbone.width
        self.last_layer = backbone.num_layers - 1
        adapters = peft.LoraConfig(
            r=config.trunk_lora_rank,
            lora_alpha=config.trunk_lora_alpha,  # type: ignore[arg-type]  # a factor like any other
            lora_dropout=config.trunk_lora_dropout,
            target_modules=_ATTENTION,
        )
        peft.inject_adapter_in_model(adapters, self.trunk.model)
        for parameter in self._adapters():
            # peft rounds them to the precision that the frozen matrices happen to be in.
            parameter.data = parameter.data.float()

    def request(self, *, train: bool) -> TapRequest:
        """The pixels: no block of the bare frozen model is run."""
        return TapRequest(pixels=True)

    def pretrained_parameters(self) -> dict[int | None, list[nn.Parameter]]:
        """None: what is added is new."""
        return {}

    def forward(self, taps: LayerTaps) -> Tensor:
        """``map_BDhw`` of the last block, after the frozen final norm."""
        assert taps.pixels_BCHW is not None, "the request asks for pixels"
        return self.trunk.maps(taps.pixels_BCHW, [self.last_layer])[0]

    def _adapters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def _check_attention(self, name: str) -> None:
        for block in self.trunk.blocks:
            attention = dict(block.named_children())["attn"]
            if isinstance(attention, EvaAttention) and attention.q_bias is not None:
                raise ConfigError(
                    f"--method lora: the attention of {name} uses the matrix of query, key and value without calling "
                    "it, so that nothing can be added. Choose another backbone, or --method adaptformer or vpt."
                )
