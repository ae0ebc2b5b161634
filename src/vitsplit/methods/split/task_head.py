"""The task head (Eq. 1): trainable copies of the last K_t blocks.

Shapes: B batch, T tokens (prefix tokens first), D width, h w patch grid.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitsplit.backbone.backbone import Backbone
from vitsplit.backbone.families import SamViT
from vitsplit.errors import ConfigError
from vitsplit.nn.windows import Windows
from vitsplit.types import LayerTaps


class TaskHead(nn.Module):
    """``f_t = g_theta_t(f_(L - K_t))``: starts as the frozen model's own last blocks, then learns the task.

    All tokens go through, class and register tokens too; afterwards the frozen final norm is applied (a copy that never
    trains and is not saved), and the prefix tokens are dropped. Before training the map equals the frozen model's own.

    Two options for large images, of which the first changes no number: with ``checkpointed`` the backward pass computes
    every block again instead of keeping its activations; with ``window`` all blocks but the last attend within windows
    only (``Windows``). The last one looks at the whole image, as the frozen blocks below have, so that what the windows
    found meets.

    Args:
        backbone: Where the blocks and the norm are copied from.
        depth: ``L - K_t``, the first copied block.
        checkpointed: Trade a second forward pass of the blocks for memory.
        window: Side of the windows in patches; None: every block looks at the whole image.

    Raises:
        ConfigError: The backbone's blocks cannot be run in windows, or there is no block to run in them.
    """

    def __init__(
        self, backbone: Backbone, depth: int, *, checkpointed: bool = False, window: int | None = None
    ) -> None:
        super().__init__()
        self.depth = depth
        self.checkpointed = checkpointed
        self.window = window
        self.family = backbone.family
        self.blocks = nn.ModuleList(copy.deepcopy(block).float() for block in backbone.blocks[depth:])
        self.blocks.requires_grad_(True)
        self.final_norm = copy.deepcopy(backbone.final_norm).requires_grad_(False)
        if window is not None:
            self._check_window(backbone, window)

    def forward(self, taps: LayerTaps) -> Tensor:
        """``taps.tokens[L - K_t]`` to ``(B, D, h, w)``."""
        x_BTD = taps.tokens[self.depth]
        *below, last = self.blocks
        if self.window is None:
            for block in below:
                x_BTD = self._run(block, x_BTD, taps.grid, taps.rope)
        else:
            x_BTD = self._run_in_windows(below, x_BTD, taps, self.window)
        x_BTD = self._run(last, x_BTD, taps.grid, taps.rope)
        patches_BND = self.final_norm(x_BTD)[:, taps.num_prefix_tokens :]
        return patches_BND.unflatten(1, taps.grid).permute(0, 3, 1, 2)

    def block_maps(self, taps: LayerTaps, *, normed: bool) -> list[tuple[str, Tensor]]:
        """The map that leaves each copied block, ``(B, D, h, w)``, with the layer in whose place it is."""
        x_BTD, rope = taps.tokens[self.depth], taps.rope
        windows = None if self.window is None else Windows(taps.grid, self.window, taps.num_prefix_tokens)
        found = []
        for index, block in enumerate(self.blocks):
            if windows is None or index == len(self.blocks) - 1:
                x_BTD = self.family.run_block(block, x_BTD, taps.grid, rope)
            else:
                cut_rope = None if rope is None else windows.cut_rope(rope, len(x_BTD))
                mask = windows.mask(len(x_BTD), x_BTD.device)
                grid = (windows.height, windows.width)
                x_BTD = windows.join(self.family.run_block(block, windows.cut(x_BTD), grid, cut_rope, mask))
            patches_BND = (self.final_norm(x_BTD) if normed else x_BTD)[:, taps.num_prefix_tokens :]
            found.append((f"tuned {self.depth + index}", patches_BND.unflatten(1, taps.grid).permute(0, 3, 1, 2)))
        return found

    def _run_in_windows(self, blocks: list[nn.Module], x_BTD: Tensor, taps: LayerTaps, side: int) -> Tensor:
        windows = Windows(taps.grid, side, taps.num_prefix_tokens)
        grid = (windows.height, windows.width)
        rope = None if taps.rope is None else windows.cut_rope(taps.rope, len(x_BTD))
        mask = windows.mask(len(x_BTD), x_BTD.device)
        for block in blocks:
            x_BTD = windows.join(self._run(block, windows.cut(x_BTD), grid, rope, mask))
        return x_BTD

    def _run(self, block: nn.Module, *args: Any) -> Tensor:
        if self.checkpointed and torch.is_grad_enabled():
            return checkpoint(self.family.run_block, block, *args, use_reentrant=False)
        return self.family.run_block(block, *args)

    def _check_window(self, backbone: Backbone, window: int) -> None:
        if isinstance(self.family, SamViT):
            raise ConfigError(
                f"--task-head-window {window}: {backbone.name} has windows of its own, with positions relative to "
                "them. Leave the option away, or choose a plain or rotary ViT."
            )
        if window < 1:
            raise ConfigError(f"--task-head-window {window}: a window has at least one patch.")
        if len(self.blocks) < 2:
            raise ConfigError(
                f"--task-head-window {window}: the last copied block always looks at the whole image, and there is no "
                "other. Leave the option away, or raise --num-tuned-layers."
            )
