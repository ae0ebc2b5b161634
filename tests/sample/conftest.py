"""Scenes that several modules examine: rendering them takes seconds."""

import pytest

from vitsplit.sample import SampleScene, generate_scene


@pytest.fixture(scope="session")
def rooms() -> list[SampleScene]:
    """The scenes of seeds 0 to 39, 119 x 161 pixels."""
    return [generate_scene(seed, (119, 161)) for seed in range(40)]
