"""Where training crops end and padding begins.

Images stay uint8 until the backbone normalizes them, and no uint8 color normalizes to zero exactly. So padding that is
to be zero after normalization, as mmseg and mmdet have it, is not a color but a size that travels with the image.

Shapes: B batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Extent = tuple[int, int]
"""Height and width of the content of an image; below and at the right of it is padding."""


def stack_extents(extents: Sequence[Extent | None]) -> Tensor | None:
    """The extents of a batch as ``extent_B2`` (int64), or None where its images have none: their padding is black."""
    stated = [extent for extent in extents if extent is not None]
    return torch.tensor(stated, dtype=torch.int64) if len(stated) == len(extents) else None


def move_extents(extent_B2: Tensor | None, device: Any) -> Tensor | None:
    """The extents on a device."""
    return None if extent_B2 is None else extent_B2.to(device, non_blocking=True)


def pin_extents(extent_B2: Tensor | None) -> Tensor | None:
    """The extents in page-locked memory."""
    return None if extent_B2 is None else extent_B2.pin_memory()
