"""Settings of the frozen model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vitsplit.config import Name, Opens, Settings


class BackboneConfig(Settings):
    """Which frozen model, and where its weights come from."""

    backbone: str = "dinov2-small"
    """A short name (`vitsplit backbones` lists them) or any timm name of a plain, rotary or SAM ViT."""
    weights: Annotated[Name | None, Opens()] = None
    """File or folder to read the weights from; None: the hub cache, then the hub."""
    random_weights: bool = False
    """Use random weights. For tests of the machinery: a frozen random model teaches nothing."""
    patch_size: Annotated[int, Field(ge=1, le=256)] | None = None
    """Run the model at this patch size in pixels, with its patch embedding resampled; None: its own."""
    patch_resample: Literal["2d", "release"] = "2d"
    """How: so that an enlarged patch keeps its token (2d), or as the release does for detection."""
    position_resample: Literal["timm", "release"] = "timm"
    """Position embeddings at other image sizes: timm's exact size and antialiasing, or as in the release."""
