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
from vitsplit.methods.split.config import LowRankConfig
from vitsplit.methods.split.low_rank import add_low_rank
from vitsplit.nn.shared_weights import share_weights
from vitsplit.nn.windows import Windows
from vitsplit.types import LayerTaps


class TaskHead(nn.Module):
    """``f_t = g_theta_t(f_(L - K_t))``, initialized with the last blocks of the frozen model.

    The blocks process all tokens, including class and register tokens; then the frozen final norm is applied (a copy
    that is neither trained nor saved), and the prefix tokens are dropped. The initial map equals that of the frozen
    model.

    Two options save memory on large images: ``checkpointed`` recomputes each block in the backward pass instead of
    storing its activations, with identical results; ``window`` restricts the attention of all blocks but the last to
    windows (``Windows``). The last block has global attention, which connects the windows.

    With ``low_rank``, only low-rank updates of the blocks' attention are trained; the blocks share the weights of the
    frozen model.

    Args:
        backbone: The source of the blocks and the norm.
        depth: ``L - K_t``, the index of the first copied block.
        checkpointed: Use activation checkpointing.
        window: Window size in patches; None: global attention in every block.
        low_rank: Settings of the low-rank updates; None: the blocks are copied and trained.

    Raises:
        ConfigError: The backbone's blocks do not support windows or low-rank updates, or there is only one block.
    """

    def __init__(
        self,
        backbone: Backbone,
        depth: int,
        *,
        checkpointed: bool = False,
        window: int | None = None,
        low_rank: LowRankConfig | None = None,
    ) -> None:
        super().__init__()
        self.depth = depth
        self.checkpointed = checkpointed
        self.window = window
        self.windows: type[Windows] = Windows
        self.family = backbone.family
        blocks = backbone.blocks[depth:]
        if low_rank is None:
            self.blocks = nn.ModuleList(copy.deepcopy(block).float() for block in blocks).requires_grad_(True)
        else:
            self.blocks = nn.ModuleList(share_weights(block) for block in blocks)
            add_low_rank(self.blocks, low_rank, backbone.name)
        self.final_norm = copy.deepcopy(backbone.final_norm).requires_grad_(False)
        if window is not None:
            self._check_window(backbone, window)

    def forward(self, taps: LayerTaps) -> Tensor:
        """``taps.tokens[L - K_t]`` to ``(B, D, h, w)``."""
        x_BTD = taps.tokens[self.depth]
        *first_blocks, last = self.blocks
        if self.window is None:
            for block in first_blocks:
                x_BTD = self._run(block, x_BTD, taps.grid, taps.rope)
        else:
            x_BTD = self._run_in_windows(first_blocks, x_BTD, taps, self.window)
        x_BTD = self._run(last, x_BTD, taps.grid, taps.rope)
        patches_BND = self.final_norm(x_BTD)[:, taps.num_prefix_tokens :]
        return patches_BND.unflatten(1, taps.grid).permute(0, 3, 1, 2)

    def block_maps(self, taps: LayerTaps, *, normed: bool) -> list[tuple[str, Tensor]]:
        """The output map of each copied block, ``(B, D, h, w)``, with a label of the layer it replaces."""
        x_BTD, rope = taps.tokens[self.depth], taps.rope
        windows = None if self.window is None else Windows(taps.grid, self.window, taps.num_prefix_tokens)
        found = []
        for index, block in enumerate(self.blocks):
            if windows is None or index == len(self.blocks) - 1:
                x_BTD = self.family.run_block(block, x_BTD, taps.grid, rope)
            else:
                cut_rope = None if rope is None else windows.cut_rope(rope, x_BTD.shape[0])
                mask = windows.mask(x_BTD.shape[0], x_BTD.device)
                grid = (windows.height, windows.width)
                x_BTD = windows.join(self.family.run_block(block, windows.cut(x_BTD), grid, cut_rope, mask))
            patches_BND = (self.final_norm(x_BTD) if normed else x_BTD)[:, taps.num_prefix_tokens :]
            found.append((f"tuned {self.depth + index}", patches_BND.unflatten(1, taps.grid).permute(0, 3, 1, 2)))
        return found

    def _run_in_windows(self, blocks: list[nn.Module], x_BTD: Tensor, taps: LayerTaps, side: int) -> Tensor:
        windows = self.windows(taps.grid, side, taps.num_prefix_tokens)
        grid = (windows.height, windows.width)
        rope = None if taps.rope is None else windows.cut_rope(taps.rope, x_BTD.shape[0])
        mask = windows.mask(x_BTD.shape[0], x_BTD.device)
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
                f"--task-head-window {window}: {backbone.name} already has windows, with relative positions. "
                "Omit the option, or choose a plain or rotary ViT."
            )
        if window < 1:
            raise ConfigError(f"--task-head-window {window}: the window must have at least one patch.")
        if len(self.blocks) < 2:
            raise ConfigError(
                f"--task-head-window {window}: the last copied block always has global attention, and there is no "
                "other. Omit the option, or increase --num-tuned-layers."
            )
