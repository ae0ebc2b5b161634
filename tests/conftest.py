"""Shared fixtures: generated scenes on disk, and a small run on them."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from small_run import SMALL_RUN
from vitsplit.sample import write_segmentation_set


class _Refusing(logging.Handler):
    """Raises an error for every logged message."""

    def emit(self, record: logging.LogRecord) -> None:
        raise AssertionError(f"{record.name} warns: {record.getMessage()}")


def pytest_configure(config: pytest.Config) -> None:
    """Tests run on the CPU, where sums have a fixed order, except those selected by ``-m gpu``.

    A warning of timm, such as one on weights for another activation, is an error.
    """
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    logging.getLogger("timm").addHandler(_Refusing(logging.WARNING))


def pytest_collection(session: pytest.Session) -> None:
    """Disables garbage collection while modules are imported, where it takes a third of the time."""
    gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Enables it again, but rarely: as often as by default, it takes a tenth of the time of the tests."""
    gc.set_threshold(5000, 20, 20)
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs modules with slow tests first, so that processes finish at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True, scope="session")
def written_to_memory() -> Iterator[None]:
    """Replaces fsync by a no-op: tests kill processes, which does not lose written data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of generated scenes: 6 to train on, 3 to evaluate on, 48 x 64 pixels."""
    return write_segmentation_set(tmp_path_factory.mktemp("scenes") / "data", 6, 3, (48, 64), seed=1, workers=1)


@pytest.fixture(scope="session")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the scenes, which tests must not change."""
    import vitsplit

    out = tmp_path_factory.mktemp("runs") / "tiny"
    vitsplit.train(data=scenes, out=out, **SMALL_RUN)
    return out
