"""The head of ViT-Split: from the taps of a frozen backbone to one fused map (Section 3.2, Fig. 5).

Shapes: B batch, D width, h w patch grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from vitsplit.backbone.backbone import Backbone
from vitsplit.methods.split.config import SplitConfig
from vitsplit.methods.split.fusion import FusionNet
from vitsplit.methods.split.gate import SparseGate
from vitsplit.methods.split.layers import select_layers, split_depth
from vitsplit.methods.split.prior_head import PriorHead
from vitsplit.methods.split.task_head import TaskHead
from vitsplit.types import LayerTaps, TapRequest


class SplitHead(nn.Module):
    """Task head, prior head and fusion net, each of which can be disabled (Table 6).

    Without the fusion net, the two maps are added; without both heads, the map is that of the frozen last layer, and
    only a decoder is trained. With K_t = 0, the task head has no blocks, and its map is that of the frozen last layer.
    The backbone is only used in the constructor.

    Args:
        backbone: The source of the copied blocks and norm.
        config: The method's settings.

    Attributes:
        width: D, the channels of the fused map.
        prior_layers: The blocks read by the prior head (all L with the gate), in order.
        former_names: Parts of tensor names in earlier versions (of ``--method lora``, and of peft), with the current
            ones.
    """

    former_names: ClassVar[Mapping[str, str]] = {
        "head.trunk.model.blocks.": "head.task_head.blocks.",
        ".lora_A.default.": ".lora_A.",
        ".lora_B.default.": ".lora_B.",
    }

    def __init__(self, backbone: Backbone, config: SplitConfig) -> None:
        super().__init__()
        self.config = config
        self.width = backbone.width
        self.prior_layers = select_layers(config, backbone.num_layers)
        self.last_layer = backbone.num_layers - 1
        self.task_head: TaskHead | None = None
        self.gate: SparseGate | None = None
        self.prior_head: PriorHead | None = None
        self.fusion: FusionNet | None = None
        depth = split_depth(config, backbone.num_layers) if config.task_head else backbone.num_layers
        if depth < backbone.num_layers:
            self.task_head = TaskHead(
                backbone,
                depth,
                checkpointed=config.checkpoint_task_head,
                window=config.task_head_window,
                low_rank=config if config.tune_blocks == "lora" else None,
            )
        if config.prior_head:
            num_maps = config.num_prior_layers if config.selection == "gate" else len(self.prior_layers)
            if config.selection == "gate":
                self.gate = SparseGate(backbone.num_layers, num_maps, config.gate_temperature)
            self.prior_head = PriorHead(
                num_maps, self.width, deformable=config.deformable, offset_init=config.offset_init
            )
        if config.fusion:
            self.fusion = FusionNet(
                max(1, config.task_head + config.prior_head),
                self.width,
                combine=config.combine,
                deformable=config.deformable,
                offset_init=config.offset_init,
                initially_zero=config.fusion_form == "residual",
            )

    def request(self, *, train: bool) -> TapRequest:
        """The required taps; with the gate, all layers in training, and only those kept in inference."""
        layers = frozenset(self.prior_layers if self.gate is None or train else self.gate.used_layers())
        request = TapRequest(maps=layers) if self.config.tap_norm else TapRequest(raw_maps=layers)
        if not self._reads_base:
            return request
        if self.task_head is not None:
            return request | TapRequest(tokens=frozenset({self.task_head.depth}))
        last = frozenset({self.last_layer})
        return request | (TapRequest(maps=last) if self._norms_last_layer else TapRequest(raw_maps=last))

    def parts(self) -> dict[str, list[nn.Module | None]]:
        """The trainable modules by part, for counting parameters."""
        return {"task_head": [self.task_head], "prior_head": [self.prior_head, self.gate], "fusion": [self.fusion]}

    def copied_blocks(self) -> list[nn.Module]:
        """The trained copies of blocks, which are the units of sharding."""
        return [] if self.task_head is None else list(self.task_head.blocks)

    def describe_layers(self) -> tuple[int, tuple[int, ...]]:
        """K_t, and the frozen layers read by the prior head (with a gate, all that it may keep)."""
        return len(self.copied_blocks()), self.prior_layers

    def pretrained_parameters(self) -> dict[int | None, list[nn.Parameter]]:
        """The copied blocks of the task head."""
        if self.config.tune_blocks == "lora":
            return {}
        return {above: list(block.parameters()) for above, block in enumerate(reversed(self.copied_blocks()))}

    def forward(self, taps: LayerTaps) -> Tensor:
        """Taps to ``fused_BDhw``."""
        maps: list[Tensor] = []
        if self.prior_head is not None:
            maps.append(self.prior_head(self._read(taps)))
        base_BDhw = self._base_map(taps) if self._reads_base else None
        if base_BDhw is not None and self._fuses_base:
            maps.append(base_BDhw)
        if self.fusion is None:
            return maps[0] if len(maps) == 1 else maps[0] + maps[1]
        fused_BDhw: Tensor = self.fusion(maps)
        return base_BDhw + fused_BDhw if base_BDhw is not None and self._is_residual else fused_BDhw

    def trained_maps(self, taps: LayerTaps, num_layers: int, *, normed: bool) -> tuple[int, list[tuple[str, Tensor]]]:
        """The number of frozen layers before the trained modules, and the labeled maps of these modules.

        Args:
            taps: The taps of ``request``.
            num_layers: L.
            normed: Whether to apply the final norm to the maps of blocks.
        """
        count, found = num_layers, []
        if self.task_head is not None:
            count = self.task_head.depth
            found += self.task_head.block_maps(taps, normed=normed)
        if self.prior_head is not None:
            found.append(("prior", self.prior_head(self._read(taps))))
        if self.task_head is not None or self.prior_head is not None or self.fusion is not None:
            found.append(("fused", self(taps)))
        return count, found

    @property
    def _is_residual(self) -> bool:
        return self.fusion is not None and self.config.fusion_form == "residual"

    @property
    def _fuses_base(self) -> bool:
        """Whether the task map (or in its place the map of the frozen last layer) is an input of the fusion net."""
        return self.config.task_head or self.prior_head is None

    @property
    def _reads_base(self) -> bool:
        return self._fuses_base or self._is_residual

    @property
    def _norms_last_layer(self) -> bool:
        """Whether the map of the frozen last layer has the final norm: as a task map, always."""
        return self.config.task_head or self.config.tap_norm

    def _base_map(self, taps: LayerTaps) -> Tensor:
        """The task map; without copied blocks, the map of the frozen last layer."""
        if self.task_head is not None:
            return self.task_head(taps)
        return (taps.maps if self._norms_last_layer else taps.raw_maps)[self.last_layer]

    def _read(self, taps: LayerTaps) -> list[Tensor]:
        """The K_p input maps of the prior head."""
        layer_maps = taps.maps if self.config.tap_norm else taps.raw_maps
        return [layer_maps[layer] for layer in self.prior_layers] if self.gate is None else self.gate(layer_maps)
