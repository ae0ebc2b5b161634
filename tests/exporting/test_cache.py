"""The cache of exports, with several processes that need them at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from bundles import write_segmentation_bundle

from vitsplit.exporting import cache

PATIENCE = 30


def test_one_process_exports_and_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = write_segmentation_bundle(tmp_path / "rooms" / "best", seed=1)
    other = write_segmentation_bundle(tmp_path / "other" / "best", seed=2)
    begun, may_end, waits = threading.Event(), threading.Event(), threading.Event()
    exported: list[Path] = []

    def export(predictor: Any, folder: Path, *_: Any, **__: Any) -> None:
        exported.append(folder)
        if len(exported) == 1:
            begun.set()
            assert may_end.wait(PATIENCE)
        folder.mkdir()
        (folder / "card.json").touch()

    def call(run: Path, say: Callable[[str], None] = lambda line: None) -> Path:
        return cache.cached_export([run], "onnx", say=say)

    monkeypatch.setenv("VITSPLIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "export_graphs", export)
    monkeypatch.setattr(cache, "load_float32", lambda runs, weights: None)
    monkeypatch.setattr(cache, "SECONDS", 0.01)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(call, rooms)
        assert begun.wait(PATIENCE)
        second = pool.submit(call, rooms, lambda line: waits.set())
        assert waits.wait(PATIENCE)
        assert call(other) == exported[1] != exported[0], "another export does not wait"
        may_end.set()
        assert first.result(PATIENCE) == second.result(PATIENCE) == exported[0]
    assert len(exported) == 2
    assert {path.name for path in (tmp_path / "cache" / "exports").iterdir()} == {each.name for each in exported}
