"""Token embedding and block call of each family of vision transformers, for sizes that are symbolic.

A size known only when the graph runs must not decide which operators are traced. timm's code branches on it (whether a
grid has the size of the position table, whether a window needs padding), so these families replace those calls and
compute the same values for every size.

Shapes: B batch, T tokens (prefix tokens first), D width, h w patch grid, H W pixels, M windows, s patches per side of a
window, N tokens of an attention (h * w or s * s), C channels of an attention head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from torch import Tensor, nn

from vitsplit.backbone.families import Family, PlainViT, PlainViTWithReleasePositions, RotaryViT, SamViT
from vitsplit.exporting.positions import release_positions, resized_positions

Record = Callable[[Tensor, bool], None]
"""Receives the tokens after the embedding (False) and after each block (True)."""


class Exported:
    """A family with exportable embedding and blocks, which also passes their outputs to ``record``.

    Args:
        family: The family to reproduce.
        record: See ``Record``.
    """

    name: ClassVar[str] = "exported"

    def __init__(self, family: Family, record: Record) -> None:
        self.family = family
        self.record = record

    def num_prefix_tokens(self, model: Any) -> int:
        """See ``Family``."""
        return self.family.num_prefix_tokens(model)

    def final_norm(self, model: Any) -> nn.Module:
        """See ``Family``."""
        return self.family.final_norm(model)

    def embed(self, model: Any, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """See ``Family``."""
        patches_BhwD = model.patch_embed.norm(model.patch_embed.proj(pixels_BCHW).permute(0, 2, 3, 1))
        grid = (patches_BhwD.shape[1], patches_BhwD.shape[2])
        if isinstance(self.family, SamViT):
            x_BTD = patches_BhwD.flatten(1, 2)
            if model.pos_embed is not None:
                table = (model.pos_embed.shape[1], model.pos_embed.shape[2])
                x_BTD = x_BTD + resized_positions(model.pos_embed.flatten(1, 2), table, grid)
        else:
            x_BTD = self._with_prefix(model, patches_BhwD.flatten(1, 2), grid)
        x_BTD = model.norm_pre(x_BTD)
        self.record(x_BTD, False)
        return x_BTD, self.rope(model, grid)

    def rope(self, model: Any, grid: tuple[int, int]) -> Tensor | None:
        """The rotary position embedding of a grid, the second output of ``embed``."""
        has_rope = isinstance(self.family, RotaryViT) and model.rope is not None
        return _rotary_positions(model.rope, grid) if has_rope else None

    def run_block(
        self, block: Any, x_BTD: Tensor, grid: tuple[int, int], rope: Tensor | None, mask: Tensor | None = None
    ) -> Tensor:
        """See ``Family``."""
        if isinstance(self.family, SamViT):
            x_BTD = _sam_block(block, x_BTD, grid)
        else:
            x_BTD = self.family.run_block(block, x_BTD, grid, rope, mask)
        self.record(x_BTD, True)
        return x_BTD

    def _with_prefix(self, model: Any, x_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patches with positions, after the prefix tokens."""
        prefix = [
            token_1PD.expand(x_BND.shape[0], -1, -1)
            for token_1PD in (model.cls_token, model.reg_token)
            if token_1PD is not None
        ]
        if model.pos_embed is None:
            return torch.cat([*prefix, x_BND], dim=1)
        table = model.patch_embed.grid_size
        own_1PD, patches_1nD = model.pos_embed.tensor_split([model.pos_embed.shape[1] - table[0] * table[1]], dim=1)
        release = isinstance(self.family, PlainViTWithReleasePositions)
        x_BND = x_BND + (release_positions if release else resized_positions)(patches_1nD, table, grid)
        if not prefix:
            return x_BND
        prefix_BPD = torch.cat(prefix, dim=1)
        return torch.cat([prefix_BPD if model.no_embed_class else prefix_BPD + own_1PD, x_BND], dim=1)


def exported(family: Family, record: Record) -> Exported:
    """The exportable form of a family.

    Raises:
        TypeError: The family has none.
    """
    if not isinstance(family, PlainViT | PlainViTWithReleasePositions | RotaryViT | SamViT):
        raise TypeError(f"{type(family).__name__} has no exportable form")
    return Exported(family, record)


def _rotary_positions(rope: Any, grid: tuple[int, int]) -> Tensor:
    """The grid's embedding, as timm's ``rope.get_embed``, whose form for DINOv3 turns the size into a constant."""
    if not isinstance(rope, RotaryEmbeddingDinoV3):
        found: Tensor = rope.get_embed(shape=grid)
        return found
    sides = [torch.full((), side, dtype=torch.float32) for side in grid]
    shared = {"max": torch.maximum, "min": torch.minimum}.get(rope.normalize_coords)
    divisors = sides if shared is None else [shared(*sides)] * 2
    steps = [
        2 * (torch.arange(side) + 0.5 + rope.grid_offset) / divisor - 1
        for side, divisor in zip(grid, divisors, strict=True)
    ]
    axes = steps[::-1] if rope.grid_indexing == "xy" else steps
    coordinates_N2 = torch.stack(torch.meshgrid(axes, indexing=rope.grid_indexing), dim=-1).flatten(0, 1)
    return torch.cat(rope._get_pos_embed_from_coords(coordinates_N2), dim=-1)


def _sam_block(block: Any, x_BTD: Tensor, grid: tuple[int, int]) -> Tensor:
    """A block of timm's ``VisionTransformerSAM``; windows are padded always, by nothing where they fit."""
    normed_BhwD = block.norm1(x_BTD).unflatten(1, grid)
    side = block.window_size
    if side:
        rows, columns = ((length + side - 1) // side for length in grid)
        padded = F.pad(normed_BhwD, (0, 0, 0, columns * side - grid[1], 0, rows * side - grid[0]))
        tiles = padded.unflatten(2, (columns, side)).unflatten(1, (rows, side)).permute(0, 1, 3, 2, 4, 5)
        out_XssD = _sam_attention(block.attn, tiles.flatten(0, 2))
        tiles = out_XssD.unflatten(0, (-1, rows, columns)).permute(0, 1, 3, 2, 4, 5)
        out_BhwD = tiles.flatten(3, 4).flatten(1, 2)[:, : grid[0], : grid[1]]
    else:
        out_BhwD = _sam_attention(block.attn, normed_BhwD)
    x_BTD = x_BTD + block.ls1(out_BhwD.flatten(1, 2))
    return x_BTD + block.ls2(block.mlp(block.norm2(x_BTD)))


def _sam_attention(attention: Any, x_BhwD: Tensor) -> Tensor:
    height, width = x_BhwD.shape[1:3]
    qkv = attention.qkv(x_BhwD.flatten(1, 2)).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    q_BHNC, k_BHNC, v_BHNC = qkv.unbind(0)
    q_BHNC, k_BHNC = attention.q_norm(q_BHNC), attention.k_norm(k_BHNC)
    bias_BHNN = None
    if attention.use_rel_pos:
        query_BHhwC = q_BHNC.unflatten(2, (height, width))
        rows_hhC, columns_wwC = (
            _relative(table_LC, side)
            for table_LC, side in ((attention.rel_pos_h, height), (attention.rel_pos_w, width))
        )
        by_row = query_BHhwC @ rows_hhC.mT
        by_column = (query_BHhwC.transpose(2, 3) @ columns_wwC.mT).transpose(2, 3)
        bias_BHNN = (by_row[..., :, None] + by_column[..., None, :]).flatten(4, 5).flatten(2, 3)
    out_BHNC = F.scaled_dot_product_attention(q_BHNC, k_BHNC, v_BHNC, attn_mask=bias_BHNN)
    return attention.proj(out_BHNC.transpose(1, 2).flatten(2)).unflatten(1, (height, width))


def _relative(table_LC: Tensor, side: int) -> Tensor:
    """Relative positions between all pairs of a side, ``(side, side, C)``; the table is resized linearly to it."""
    resized_CL = F.interpolate(table_LC.mT[None], size=2 * side - 1, mode="linear")[0]
    place = torch.arange(side)
    return resized_CL.mT[place[:, None] - place + (side - 1)]
