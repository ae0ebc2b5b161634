"""The values that travel between the rooms of the package.

Shapes: B batch, T tokens (prefix tokens first), D width, h w patch grid, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Padding:
    """Zeros that the backbone put around an image, in pixels, so that the patch size divides it."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


@dataclass(frozen=True)
class TapRequest:
    """What a head wants from one pass of the backbone.

    Attributes:
        tokens: Depths at which the token sequence is wanted, as the number of blocks that have run: 0 is the
            embedding, ``num_layers`` the output of the last block. A task head of K_t blocks asks for
            ``num_layers - K_t``.
        maps: Indices (0-based) of blocks whose output is wanted as a map, after the backbone's final norm.
        raw_maps: The same without the norm.
        pixels: Whether the normalised, padded pixels are wanted (methods that train a backbone of their own).
    """

    tokens: frozenset[int] = frozenset()
    maps: frozenset[int] = frozenset()
    raw_maps: frozenset[int] = frozenset()
    pixels: bool = False

    def __or__(self, other: TapRequest) -> TapRequest:
        """The request that serves both: what a shared pass asks for."""
        return TapRequest(
            self.tokens | other.tokens,
            self.maps | other.maps,
            self.raw_maps | other.raw_maps,
            self.pixels or other.pixels,
        )

    @property
    def num_blocks(self) -> int:
        """How many blocks must run to serve the request."""
        maps = self.maps | self.raw_maps
        return max([0, *self.tokens, *(index + 1 for index in maps)])


@dataclass(frozen=True)
class LayerTaps:
    """What one pass of a frozen backbone hands to the heads. Every tensor is free of gradient history.

    Attributes:
        image_size: ``(H, W)`` of the images before padding.
        padding: The zeros around them; a prediction on the padded image is cropped by it.
        grid: ``(h, w)``, the patch grid of the padded image.
        num_prefix_tokens: Class and register tokens at the head of every token sequence.
        tokens: Depth to ``tokens_BTD``, see ``TapRequest.tokens``.
        maps: Block index to ``map_BDhw`` after the final norm, prefix tokens dropped.
        raw_maps: The same without the norm.
        rope: Rotary position data that the blocks of a rotary ViT need, else None.
        pixels_BCHW: Normalised, padded pixels if asked for, else None.
    """

    image_size: tuple[int, int]
    padding: Padding
    grid: tuple[int, int]
    num_prefix_tokens: int
    tokens: dict[int, Tensor] = field(default_factory=dict)
    maps: dict[int, Tensor] = field(default_factory=dict)
    raw_maps: dict[int, Tensor] = field(default_factory=dict)
    rope: Tensor | None = None
    pixels_BCHW: Tensor | None = None
