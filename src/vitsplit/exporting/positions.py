"""Position embeddings of a grid whose size is known only when the graph runs.

Resizing is two matrix products with small weight matrices that the graph computes from the size. A ``Resize`` operator
would do, but runtimes compute antialiased bicubic resizing differently (OpenVINO: logits off by up to 0.2).

Shapes: h w new grid, j k grid of the table, D width, N = h * w patches, n = j * k entries of the table.
"""

from __future__ import annotations

import torch
from torch import Tensor

CUBIC_ANTIALIASED, CUBIC = -0.5, -0.75
"""Parameter a of the cubic kernel (Keys 1981) in PyTorch's bicubic interpolation, with and without antialiasing."""
RELEASE_OFFSET = 0.1
"""See ``PlainViTWithReleasePositions``."""


def resized_positions(table_1nD: Tensor, table_grid: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Antialiased bicubic resizing, as timm's ``resample_abs_pos_embed`` without prefix tokens.

    Args:
        table_1nD: Position embeddings of the patches.
        table_grid: ``(j, k)``.
        grid: ``(h, w)``, which may be symbolic.

    Returns:
        ``(1, N, D)``, float32.
    """
    height_hj, width_wk = (antialiased_weights(new, old) for new, old in zip(grid, table_grid, strict=True))
    return _apply(table_1nD, table_grid, height_hj, width_wk)


def release_positions(table_1nD: Tensor, table_grid: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """DINOv2's resizing, as ``PlainViTWithReleasePositions``; arguments as for ``resized_positions``."""
    new, old = (torch.stack([_scalar(side) for side in each]) for each in (grid, table_grid))
    unchanged = (new == old).all()
    height_hj, width_wk = (
        torch.where(unchanged, _is_same(new, old).float(), release_weights(new, old))
        for new, old in zip(grid, table_grid, strict=True)
    )
    return _apply(table_1nD, table_grid, height_hj, width_wk)


def antialiased_weights(new: int, old: int) -> Tensor:
    """Weights of antialiased bicubic resizing of a side, (new, old) float32; rows sum to one."""
    scale = old / _scalar(new)
    center_h1 = (torch.arange(new)[:, None] + 0.5) * scale
    distance_hj = (torch.arange(old) + 0.5 - center_h1) / scale.clamp(min=1)
    weight_hj = cubic_kernel(distance_hj, CUBIC_ANTIALIASED)
    return weight_hj / weight_hj.sum(1, keepdim=True)


def release_weights(new: int, old: int) -> Tensor:
    """Weights of bicubic interpolation with scale factor ``(new + 0.1) / old``, (new, old) float32.

    Positions beyond the table have the value at its border.
    """
    center_h1 = (torch.arange(new)[:, None] + 0.5) * (old / (_scalar(new) + RELEASE_OFFSET)) - 0.5
    first_h1 = center_h1.floor()
    weight_hj = torch.zeros(())
    for step in (-1, 0, 1, 2):
        place_h1 = first_h1 + step
        share_h1 = cubic_kernel(center_h1 - place_h1, CUBIC)
        weight_hj = weight_hj + share_h1 * (place_h1.clamp(0, old - 1) == torch.arange(old))
    return weight_hj


def cubic_kernel(distance: Tensor, a: float) -> Tensor:
    """The cubic convolution kernel (Keys 1981): zero from a distance of 2."""
    x = distance.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros(())))


def _apply(table_1nD: Tensor, table_grid: tuple[int, int], height_hj: Tensor, width_wk: Tensor) -> Tensor:
    table_jkD = table_1nD[0].float().unflatten(0, table_grid)
    rows_hkD = (height_hj @ table_jkD.flatten(1)).unflatten(1, (table_grid[1], -1))
    return (width_wk @ rows_hkD).flatten(0, 1)[None]


def _is_same(new: int, old: int) -> Tensor:
    return torch.arange(new)[:, None] == torch.arange(old)


def _scalar(side: int) -> Tensor:
    """A side, which may be symbolic, as a float32 tensor of no dimension."""
    return torch.full((), side, dtype=torch.float32)
