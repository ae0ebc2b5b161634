"""Multi-scale deformable attention (Zhu et al. 2021, Eq. 3) in plain PyTorch operations.

Every query samples a few positions per level, at predicted offsets, and sums the values with predicted weights: the
output of a head is one embedding bag over four rows per position (``bilinear_sampling``), without an intermediate
tensor of sampled values.

Shapes: B batch, Q queries, D width, S positions of all levels, concatenated, H heads, C channels of a head, L levels,
P points per head and level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitsplit.errors import ConfigError
from vitsplit.nn.bilinear_sampling import bilinear_neighbors

Size = tuple[int, int]
"""Height and width of a map."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Reference points of the queries on each level, computed once per forward pass and shared by all its attention
    layers.

    Attributes:
        center_QL2: Reference point ``(x, y)`` of each query on each level, in pixels of that level; integers are pixel
            centers. Float32.
        width_L: Width of each level, int32.
        height_L: Height of each level, int32.
        first_L: Index of the first position of each level, int32.
    """

    center_QL2: Tensor
    width_L: Tensor
    height_L: Tensor
    first_L: Tensor

    @classmethod
    def between(cls, queries: Sequence[Size], levels: Sequence[Size], device: torch.device) -> Self:
        """Geometry of queries at the pixels of maps (row-major, concatenated) and levels of the same layout."""
        share_Q2 = torch.cat([_middles(height, width, device) for height, width in queries])
        first = [sum(height * width for height, width in levels[:index]) for index in range(len(levels))]
        table = [[width for _, width in levels], [height for height, _ in levels], first]
        # One small tensor, so there is a single host-to-device copy.
        width_L, height_L, first_L = torch.tensor(table, dtype=torch.int32, device=device)
        return cls(
            center_QL2=share_Q2[:, None] * torch.stack([width_L, height_L], dim=-1) - 0.5,
            width_L=width_L,
            height_L=height_L,
            first_L=first_L,
        )


def _middles(height: int, width: int, device: torch.device) -> Tensor:
    """``(x, y)`` of a map's pixel centers in row-major order, relative to width and height."""
    y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
    x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=-1)


class DeformableAttention(nn.Module):
    """Attention of queries to P positions per head and level.

    Initialized as in Deformable DETR: each head samples 1 to P pixels away in its own direction, with equal weights,
    independent of the query.

    Args:
        width: D, of queries and features.
        num_levels: L.
        num_heads: H.
        num_points: P.
        ratio: Channels of the values as a multiple of D.

    Raises:
        ConfigError: The heads do not divide the channels of the values.
    """

    def __init__(self, width: int, *, num_levels: int, num_heads: int, num_points: int = 4, ratio: float = 1.0) -> None:
        super().__init__()
        value_width = int(width * ratio)
        if value_width % num_heads:
            raise ConfigError(
                f"Deformable attention: {num_heads} heads do not divide {value_width} channels (width {width}, "
                f"ratio {ratio}). Choose another number of heads."
            )
        self.layout = (num_heads, num_levels, num_points)
        self.offset = nn.Linear(width, math.prod(self.layout) * 2)
        self.weight = nn.Linear(width, math.prod(self.layout))
        self.value = nn.Linear(width, value_width)
        self.out = nn.Linear(value_width, width)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initializes all four layers."""
        num_heads, num_levels, num_points = self.layout
        angle_H = torch.arange(num_heads, dtype=torch.float32) * (2 * math.pi / num_heads)
        direction_H2 = torch.stack([angle_H.cos(), angle_H.sin()], dim=-1)
        direction_H2 /= direction_H2.abs().amax(-1, keepdim=True)
        offset_HP2 = direction_H2[:, None] * torch.arange(1, num_points + 1).view(-1, 1)
        nn.init.zeros_(self.offset.weight)
        self.offset.bias.copy_(offset_HP2[:, None].expand(-1, num_levels, -1, -1).reshape(-1))
        nn.init.zeros_(self.weight.weight)
        nn.init.zeros_(self.weight.bias)
        for layer in (self.value, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, query_BQD: Tensor, feature_BSD: Tensor, geometry: Geometry) -> Tensor:
        """Attention output of every query, ``(B, Q, D)``.

        Args:
            query_BQD: Queries.
            feature_BSD: The levels' features.
            geometry: Geometry of these queries and levels.
        """
        num_heads, num_levels, num_points = self.layout
        offset_BQHLP2 = self.offset(query_BQD).unflatten(-1, (*self.layout, 2))
        # Positions and weights in float32 in every precision: bfloat16 cannot tell pixels apart beyond 256.
        dtype = torch.promote_types(offset_BQHLP2.dtype, torch.float32)
        position_BQHLP2 = geometry.center_QL2[:, None, :, None] + offset_BQHLP2.to(dtype)
        weight_BQHM = self.weight(query_BQD).unflatten(-1, (num_heads, num_levels * num_points)).to(dtype).softmax(-1)
        value_BSHC = self.value(feature_BSD).unflatten(-1, (num_heads, -1)).to(dtype)
        found_BQE = sample_levels(
            value_BSHC, position_BQHLP2, weight_BQHM.unflatten(-1, (num_levels, num_points)), geometry
        )
        return self.out(found_BQE)


def sample_levels(value_BSHC: Tensor, position_BQHLP2: Tensor, weight_BQHLP: Tensor, geometry: Geometry) -> Tensor:
    """Weighted sums of bilinearly sampled values, with zeros outside a level.

    Args:
        value_BSHC: Values.
        position_BQHLP2: ``(x, y)`` in pixels of the level; integers are pixel centers.
        weight_BQHLP: Weight of each sampled value.
        geometry: Geometry of the levels.

    Returns:
        ``(B, Q, H * C)``.
    """
    batch, num_positions, num_heads, channels = value_BSHC.shape
    device = value_BSHC.device
    image_B1111 = torch.arange(batch, dtype=torch.int32, device=device).view(-1, 1, 1, 1, 1) * num_positions
    index_BQHLP4, share_BQHLP4 = bilinear_neighbors(
        position_BQHLP2[..., 0],
        position_BQHLP2[..., 1],
        geometry.width_L[:, None],
        geometry.height_L[:, None],
        first=image_B1111 + geometry.first_L[:, None],
        weight=weight_BQHLP,
    )
    # A row holds one head's channels at one pixel of one image.
    head_H111 = torch.arange(num_heads, dtype=torch.int32, device=device).view(-1, 1, 1, 1)
    row_BQHLP4 = index_BQHLP4 * num_heads + head_H111
    found_XC = F.embedding_bag(
        row_BQHLP4.flatten(3).flatten(0, 2),
        value_BSHC.reshape(-1, channels),
        per_sample_weights=share_BQHLP4.flatten(3).flatten(0, 2),
        mode="sum",
    )
    return found_XC.view(batch, -1, num_heads * channels)
