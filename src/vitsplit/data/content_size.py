"""Content size of padded training crops.

Images are uint8 until the backbone normalizes them, and no uint8 color normalizes to exactly zero. For padding that is
zero after normalization (as in mmseg and mmdet), the content size is passed along with the image.

Shapes: B batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Extent = tuple[int, int]
"""Height and width of the content of an image; below and right of it is padding."""


def stack_extents(extents: Sequence[Extent | None]) -> Tensor | None:
    """The extents of a batch as ``extent_B2`` (int64), or None if the images have none (black padding)."""
    stated = [extent for extent in extents if extent is not None]
    return torch.tensor(stated, dtype=torch.int64) if len(stated) == len(extents) else None


def move_extents(extent_B2: Tensor | None, device: Any) -> Tensor | None:
    """Moves extents to a device."""
    return None if extent_B2 is None else extent_B2.to(device, non_blocking=True)


def pin_extents(extent_B2: Tensor | None) -> Tensor | None:
    """Copies extents to pinned memory."""
    return None if extent_B2 is None else extent_B2.pin_memory()
