from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import listening, serving, write_bundles


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles of segmentation, depth and detection by name."""
    folders = write_bundles(tmp_path_factory.mktemp("served"))
    return {folder.name: folder for folder in folders}


@pytest.fixture(scope="module")
def client(runs: dict[str, Path]) -> Iterator[Any]:
    """A client of a server of all three."""
    with serving(runs) as client:
        yield client


@pytest.fixture(scope="module")
def address(runs: dict[str, Path]) -> Iterator[str]:
    """A server on a port, in a thread."""
    with listening(runs) as address:
        yield address
