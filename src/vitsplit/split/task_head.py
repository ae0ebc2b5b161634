"""The task head (Eq. 1): trainable copies of the last K_t blocks.

Shapes: B batch, T tokens (prefix tokens first), D width, h w patch grid.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn

from vitsplit.backbone.frozen import Backbone
from vitsplit.types import LayerTaps


class TaskHead(nn.Module):
    """``f_t = g_theta_t(f_(L - K_t))``: starts as the frozen model's own last blocks, then learns the task.

    All tokens go through, class and register tokens too; afterwards the frozen final norm is applied (a copy that never
    trains and is not saved), and the prefix tokens are dropped. Before training the map equals the frozen model's own.

    Args:
        backbone: Where the blocks and the norm are copied from.
        depth: ``L - K_t``, the first copied block.
    """

    def __init__(self, backbone: Backbone, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.family = backbone.family
        self.blocks = nn.ModuleList(copy.deepcopy(block).float() for block in backbone.blocks[depth:])
        self.blocks.requires_grad_(True)
        self.final_norm = copy.deepcopy(backbone.final_norm).requires_grad_(False)

    def forward(self, taps: LayerTaps) -> Tensor:
        """``taps.tokens[L - K_t]`` to ``(B, D, h, w)``."""
        x_BTD = taps.tokens[self.depth]
        for block in self.blocks:
            x_BTD = self.family.run_block(block, x_BTD, taps.grid, taps.rope)
        patches_BND = self.final_norm(x_BTD)[:, taps.num_prefix_tokens :]
        return patches_BND.unflatten(1, taps.grid).permute(0, 3, 1, 2)
