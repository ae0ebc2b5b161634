"""Values passed between backbone, methods and tasks.

Shapes: B batch, T tokens (prefix tokens first), D width, h w patch grid, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Padding:
    """Zero padding around an image, in pixels, to a multiple of the patch size."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


@dataclass(frozen=True)
class TapRequest:
    """The features that a head needs from one backbone pass.

    Attributes:
        tokens: Depths of the requested token sequences, as the number of blocks applied: 0 is the embedding,
            ``num_layers`` the output of the last block. A task head of K_t blocks requests ``num_layers - K_t``.
        maps: 0-based indices of blocks whose output is requested as a map, after the backbone's final norm.
        raw_maps: The same without the norm.
        pixels: Whether the normalized, padded pixels are requested (by methods that train their own backbone).

    Example:
        >>> request = TapRequest(tokens=frozenset({9})) | TapRequest(maps=frozenset({2, 5}))
        >>> request.num_blocks
        9
    """

    tokens: frozenset[int] = frozenset()
    maps: frozenset[int] = frozenset()
    raw_maps: frozenset[int] = frozenset()
    pixels: bool = False

    def __or__(self, other: TapRequest) -> TapRequest:
        """The union of two requests, for a shared pass."""
        return TapRequest(
            self.tokens | other.tokens,
            self.maps | other.maps,
            self.raw_maps | other.raw_maps,
            self.pixels or other.pixels,
        )

    @property
    def depths(self) -> frozenset[int]:
        """The depths of all features, as for ``tokens``: the map of a block is made of its output."""
        return self.tokens | {index + 1 for index in self.maps | self.raw_maps}

    @property
    def num_blocks(self) -> int:
        """Number of blocks that must run."""
        return max([0, *self.depths])


@dataclass(frozen=True)
class LayerTaps:
    """Outputs of one pass of the frozen backbone, detached from autograd.

    Attributes:
        image_size: ``(H, W)`` of the images before padding.
        padding: The padding around them, to be cropped from predictions.
        grid: ``(h, w)``, the patch grid of the padded image.
        num_prefix_tokens: Number of class and register tokens at the start of every token sequence.
        tokens: Depth to tokens (B, T, D), float32 or the backbone's precision, see ``TapRequest.tokens``.
        maps: Block index to features (B, D, h, w), float32 or the backbone's precision, after the final norm; prefix
            tokens are dropped.
        raw_maps: Block index to features (B, D, h, w), float32 or the backbone's precision, without the norm.
        rope: Sines and cosines of the tokens' positions in a rotary ViT, (h * w, C) float32, as in timm; else None.
        pixels_BCHW: (B, 3, H, W) float32, normalized and padded pixels, if requested; else None.

    Example:
        >>> taps = backbone(image_BCHW, TapRequest(maps=frozenset({11})))  # doctest: +SKIP
        >>> taps.maps[11].shape  # (B, D, h, w)  # doctest: +SKIP
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

    @property
    def nbytes(self) -> int:
        """Size of the tensors in bytes."""
        tensors = [*self.tokens.values(), *self.maps.values(), *self.raw_maps.values(), self.pixels_BCHW]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)
