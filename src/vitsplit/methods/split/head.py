"""ViT-Split's head: taps of a frozen backbone to one fused map (Section 3.2, Fig. 5).

Shapes: B batch, D width, h w patch grid.
"""

from __future__ import annotations

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
    """Task head, prior head and fusion net, each of which can be turned off (Table 6).

    Without the fusion net the two maps are added; without both heads the map is the frozen last layer's, and only a
    decoder trains. From construction on the head sees taps, never a backbone.

    Args:
        backbone: What blocks and norm are copied from.
        config: The method's settings.

    Attributes:
        width: D, the channels of the fused map.
        prior_layers: The blocks that the prior head reads (all L with the gate), in order.
    """

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
        if config.task_head:
            self.task_head = TaskHead(
                backbone,
                split_depth(config, backbone.num_layers),
                checkpointed=config.checkpoint_task_head,
                window=config.task_head_window,
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
            )

    def request(self, *, train: bool) -> TapRequest:
        """What a pass must deliver; with the gate all layers in training, else only those that it keeps."""
        tokens = frozenset() if self.task_head is None else frozenset({self.task_head.depth})
        layers = self.prior_layers if self.gate is None or train else self.gate.used_layers()
        if self.prior_head is None and self.task_head is None:
            layers = (self.last_layer,)
        maps = frozenset(layers)
        return (
            TapRequest(tokens=tokens, maps=maps) if self.config.tap_norm else TapRequest(tokens=tokens, raw_maps=maps)
        )

    def parts(self) -> dict[str, list[nn.Module | None]]:
        """The trained modules, by what parameters are counted for."""
        return {"task_head": [self.task_head], "prior_head": [self.prior_head, self.gate], "fusion": [self.fusion]}

    def copied_blocks(self) -> list[nn.Module]:
        """The trained copies of blocks, each of which is a unit of sharding."""
        return [] if self.task_head is None else list(self.task_head.blocks)

    def describe_layers(self) -> tuple[int, tuple[int, ...]]:
        """K_t, and the frozen layers that are read (with a gate, those that it may keep)."""
        return len(self.copied_blocks()), self.prior_layers

    def pretrained_parameters(self) -> dict[int | None, list[nn.Parameter]]:
        """The task head's copied blocks."""
        return {above: list(block.parameters()) for above, block in enumerate(reversed(self.copied_blocks()))}

    def forward(self, taps: LayerTaps) -> Tensor:
        """Taps to ``fused_BDhw``."""
        layer_maps = taps.maps if self.config.tap_norm else taps.raw_maps
        maps: list[Tensor] = []
        if self.prior_head is not None:
            maps.append(self.prior_head(self._read(layer_maps)))
        if self.task_head is not None:
            maps.append(self.task_head(taps))
        if not maps:
            maps.append(layer_maps[self.last_layer])
        if self.fusion is not None:
            return self.fusion(maps)
        return maps[0] if len(maps) == 1 else maps[0] + maps[1]

    def trained_maps(self, taps: LayerTaps, num_layers: int, *, normed: bool) -> tuple[int, list[tuple[str, Tensor]]]:
        """How many frozen layers there are before what is trained, and the maps that follow, each with what it is.

        Args:
            taps: What ``request`` asked for.
            num_layers: L.
            normed: Whether blocks pass the final norm.
        """
        count, found = num_layers, []
        if self.task_head is not None:
            count = self.task_head.depth
            found += self.task_head.block_maps(taps, normed=normed)
        if self.prior_head is not None:
            maps = taps.maps if self.config.tap_norm else taps.raw_maps
            found.append(("prior", self.prior_head(self._read(maps))))
        if self.task_head is not None or self.prior_head is not None or self.fusion is not None:
            found.append(("fused", self(taps)))
        return count, found

    def _read(self, layer_maps: dict[int, Tensor]) -> list[Tensor]:
        """The K_p maps that the prior head reads."""
        return [layer_maps[layer] for layer in self.prior_layers] if self.gate is None else self.gate(layer_maps)
