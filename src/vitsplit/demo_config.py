"""Settings of the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from vitsplit.config import Opens, Seed, Settings


class DemoConfig(Settings):
    """Settings of the demo."""

    out: Annotated[Path | None, Opens(writes=True)] = None
    """Folder for the scenes, the run and the page; None: demo, or demo-2 and so on where that is taken."""
    backbone: str = "auto"
    """auto: dinov2-small where it is cached or the hub answers, else dinov2-small-focus."""
    train_scenes: Annotated[int, Field(ge=1, le=10**5)] = 160
    """Scenes to train on."""
    val_scenes: Annotated[int, Field(ge=1, le=10**5)] = 32
    """Scenes to evaluate on."""
    size: tuple[Annotated[int, Field(ge=16, le=4096)], Annotated[int, Field(ge=16, le=4096)]] = (196, 252)
    """Height and width of a scene."""
    steps: Annotated[int, Field(ge=1, le=10**9)] = 100
    """Training steps of each task."""
    batch_size: Annotated[int, Field(ge=1, le=2**16)] = 8
    """Scenes per step."""
    seed: Seed = 0
    """Seed of scenes and training."""
    random_weights: bool = False
    """Use random weights: for tests of the machinery, the result means nothing."""
