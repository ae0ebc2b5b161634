"""Window attention: partitions a patch grid into equal windows, each with a copy of the prefix tokens.

Shapes: B batch, T tokens (prefix tokens first), P prefix tokens, D width, h w patch grid, M windows, n patches of a
window, E channels of a rotary position embedding.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class Windows:
    """Partition of a patch grid into windows, and its inverse.

    Windows start at the top left corner. Those that extend beyond the grid are padded with zeros, which are masked out
    (``mask``). Class and register tokens are copied into every window and averaged over the windows afterwards. A
    window that covers the grid changes nothing.

    Args:
        grid: ``(h, w)``.
        side: Patches per side of a window; less where the grid is smaller.
        num_prefix_tokens: P.
    """

    def __init__(self, grid: tuple[int, int], side: int, num_prefix_tokens: int) -> None:
        self.grid = grid
        self.num_prefix_tokens = num_prefix_tokens
        self.height, self.width = min(side, grid[0]), min(side, grid[1])
        self.rows, self.columns = math.ceil(grid[0] / self.height), math.ceil(grid[1] / self.width)

    @property
    def count(self) -> int:
        """M."""
        return self.rows * self.columns

    def cut(self, x_BTD: Tensor) -> Tensor:
        """``x_BTD`` to ``(B M, P + n, D)``, with the windows of an image adjacent."""
        prefix_BPD, patches_BND = x_BTD.tensor_split([self.num_prefix_tokens], dim=1)
        prefix_BMPD = prefix_BPD[:, None].expand(-1, self.count, -1, -1)
        return torch.cat([prefix_BMPD, self._cut_patches(patches_BND)], dim=2).flatten(0, 1)

    def join(self, x_XTD: Tensor) -> Tensor:
        """Inverse of ``cut``: ``(B M, P + n, D)`` to ``x_BTD``; X is B M."""
        x_BMTD = x_XTD.unflatten(0, (-1, self.count))
        prefix_BMPD, patches_BMnD = x_BMTD.tensor_split([self.num_prefix_tokens], dim=2)
        tiles = patches_BMnD.unflatten(2, (self.height, self.width)).unflatten(1, (self.rows, self.columns))
        whole_BhwD = tiles.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)
        patches_BhwD = whole_BhwD[:, : self.grid[0], : self.grid[1]]
        return torch.cat([prefix_BMPD.mean(1), patches_BhwD.flatten(1, 2)], dim=1)

    def cut_rope(self, rope_NE: Tensor, batch: int) -> Tensor:
        """Rotary position embeddings of the grid to those of every window, ``(B M, 1, n, E)`` (1: all heads)."""
        rope_1MnE = self._cut_patches(rope_NE[None])
        return rope_1MnE.expand(batch, -1, -1, -1).flatten(0, 1)[:, None]

    def mask(self, batch: int, device: torch.device) -> Tensor | None:
        """Attention mask, ``(B M, 1, 1, P + n)`` bool, True for valid tokens; None if no window is padded."""
        if self.grid == (self.rows * self.height, self.columns * self.width):
            return None
        inside_1T1 = torch.ones(1, self.num_prefix_tokens + math.prod(self.grid), 1, dtype=torch.bool, device=device)
        return self.cut(inside_1T1).squeeze(-1).repeat(batch, 1)[:, None, None]

    def _cut_patches(self, patches_BND: Tensor) -> Tensor:
        patches_BhwD = patches_BND.unflatten(1, self.grid)
        below = self.rows * self.height - self.grid[0]
        right = self.columns * self.width - self.grid[1]
        padded_BhwD = F.pad(patches_BhwD, (0, 0, 0, right, 0, below))
        tiles = padded_BhwD.unflatten(2, (self.columns, self.width)).unflatten(1, (self.rows, self.height))
        return tiles.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)


class FixedWindows(Windows):
    """Windows of the full side for every grid, always with a mask: for sizes that are symbolic, on which no branch may
    depend. Results are the same.

    Arguments are those of ``Windows``.
    """

    def __init__(self, grid: tuple[int, int], side: int, num_prefix_tokens: int) -> None:
        self.grid = grid
        self.num_prefix_tokens = num_prefix_tokens
        self.height = self.width = side
        self.rows, self.columns = ((length + side - 1) // side for length in grid)

    def mask(self, batch: int, device: torch.device) -> Tensor:
        """As ``Windows.mask``, also where no window is padded."""
        inside_1T1 = torch.ones(1, self.num_prefix_tokens + self.grid[0] * self.grid[1], 1, device=device)
        return (self.cut(inside_1T1).squeeze(-1).repeat(batch, 1) > 0)[:, None, None]
