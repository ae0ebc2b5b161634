"""Settings of the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from vitsplit.config import Opens, Seed, Settings


class DemoConfig(Settings):
    """Settings of the demo."""

    out: Annotated[Path | None, Opens(writes=True)] = None
    """Folder of the scenes, runs and page; None: demo, or demo-2 and so on if it exists."""
    backbone: str = "auto"
    """auto: dinov2-small if it is cached or the hub is available, else dinov2-small-focus."""
    train_scenes: Annotated[int, Field(ge=1, le=10**5)] = 160
    """Number of training scenes."""
    val_scenes: Annotated[int, Field(ge=1, le=10**5)] = 32
    """Number of validation scenes."""
    size: tuple[Annotated[int, Field(ge=16, le=4096)], Annotated[int, Field(ge=16, le=4096)]] = (196, 252)
    """Height and width of a scene."""
    steps: Annotated[int, Field(ge=1, le=10**9)] = 80
    """Training steps of each task."""
    batch_size: Annotated[int, Field(ge=1, le=2**16)] = 8
    """Batch size."""
    seed: Seed = 0
    """Seed of scenes and training."""
    random_weights: bool = False
    """Use random backbone weights, for tests only: results are meaningless."""
