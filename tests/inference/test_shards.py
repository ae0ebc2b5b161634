"""Shards: disjoint and complete parts, several processes in one folder, and the merged log."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import write_segmentation_bundle
from PIL import Image

from vitsplit.cli.main import main
from vitsplit.data.images import read_mask
from vitsplit.errors import ConfigError, RunError
from vitsplit.folder_lock import hold_folder
from vitsplit.inference import prediction_log
from vitsplit.inference.inputs import Input
from vitsplit.inference.prediction_log import LOG, PredictionLog
from vitsplit.inference.predictor import Predictor
from vitsplit.inference.shard import Shard

SCALE = Path(__file__).parents[2] / "docs" / "scale.md"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_segmentation_bundle(tmp_path_factory.mktemp("bundles") / "rooms" / "best").parent


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(0)
    for index in range(12):
        Image.fromarray(pixels.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry per predicted image."""
    seen: list[int] = []
    original = Predictor.predict_batch

    def predict_batch(self: Predictor, image_BCHW: torch.Tensor) -> Any:
        seen.extend(range(len(image_BCHW)))
        return original(self, image_BCHW)

    monkeypatch.setattr(Predictor, "predict_batch", predict_batch)
    return seen


def predict(*words: object) -> int:
    return main(["predict", *map(str, words)])


def masks(out: Path) -> dict[str, bytes]:
    return {path.name: read_mask(path).numpy().tobytes() for path in out.rglob("*_mask.png")}


def logged(file: Path) -> list[str]:
    return [json.loads(line)["name"] for line in file.read_text(encoding="utf-8").splitlines()[1:]]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64])
def test_shards_are_disjoint_and_complete(count: int) -> None:
    shuffled = random.Random(count)
    names = [f"{shuffled.choice(['a', 'b/c', 'ü'])}{shuffled.random()}" for _ in range(200)]
    items = [Input(Path(f"{name}.jpg"), name) for name in names]
    parts = [Shard(index, count).of(items) for index in range(1, count + 1)]
    assert Counter(item.name for part in parts for item in part) == Counter(names)
    # Files that are added or removed while the shards start must not move others to another shard.
    fewer = shuffled.sample(items, 120)
    for index, part in enumerate(parts, start=1):
        assert {*Shard(index, count).of(fewer)} == {*part} & {*fewer}


@pytest.mark.parametrize("text", ["", "1", "0/4", "5/4", "-1/4", "1/0", "1/2/3", "a/b", "1 / 2", "1/9999999999"])
def test_invalid_shards(text: str) -> None:
    with pytest.raises(ConfigError, match="--shard"):
        Shard.parse(text)


def test_shards_write_into_one_folder_and_are_merged(
    run: Path, photos: Path, tmp_path: Path, predicted: list[int]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert predict(run, photos, "--out", whole) == 0
    predicted.clear()
    for index in (1, 2, 3):
        assert predict(run, photos, "--out", out, "--shard", f"{index}/3") == 0
    logs = sorted(out.glob("predictions*.jsonl"))
    assert len(logs) == 3 and len(predicted) == 12
    assert sorted(name for log in logs for name in logged(log)) == sorted(path.stem for path in photos.iterdir())
    assert predict(run, photos, "--out", out) == 0
    assert len(predicted) == 12
    assert [*out.glob("predictions*.jsonl")] == [out / LOG]
    assert sorted(logged(out / LOG)) == sorted(logged(whole / LOG))
    assert masks(out) == masks(whole)
    # Once merged, the inputs can be divided in another way.
    assert predict(run, photos, "--out", out, "--shard", "2/5") == 0
    assert len(predicted) == 12


def test_each_shard_resumes(run: Path, photos: Path, tmp_path: Path, predicted: list[int]) -> None:
    out = tmp_path / "out"
    assert predict(run, photos, "--out", out, "--shard", "1/2") == 0
    done = len(predicted)
    gone = next(out.glob("*_mask.png"))
    gone.unlink()
    assert predict(run, photos, "--out", out, "--shard", "2/2") == 0
    assert predict(run, photos, "--out", out, "--shard", "1/2") == 0
    assert len(predicted) == 13 and 0 < done < 12 and gone.exists()


def test_a_shard_without_images_succeeds(run: Path, photos: Path, tmp_path: Path, predicted: list[int]) -> None:
    out = tmp_path / "out"
    items = [Input(path, path.stem) for path in photos.iterdir()]
    empty = next(index for index in range(1, 1000) if not Shard(index, 999).of(items))
    assert predict(run, photos, "--out", out, "--shard", f"{empty}/999") == 0
    assert not predicted and logged(out / f"predictions-{empty}-of-999.jsonl") == []


def test_locks(run: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert predict(run, photos, "--out", out, "--shard", "1/2") == 0
    with hold_folder(out, name=".lock-1-of-2"):
        assert predict(run, photos, "--out", out, "--shard", "1/2") == 2
        assert predict(run, photos, "--out", out) == 2
        assert predict(run, photos, "--out", out, "--shard", "2/2") == 0
    assert predict(run, photos, "--out", out) == 0
    assert sorted(logged(out / LOG)) == sorted(path.stem for path in photos.iterdir())


def test_a_merge_beside_a_starting_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards that start later are neither read nor removed; one that loads its model has a lock only."""
    out, made_by = tmp_path / "out", {"bundles": {"rooms": "ab" * 32}}
    photo = tmp_path / "photo.png"
    photo.touch()
    lock = prediction_log.hold_folder

    def write_log(index: int) -> None:
        with PredictionLog.open(out, made_by, shard=Shard(index, 3)) as log:
            log.begin()
            log.add(Input(photo, f"image {index}"), [])

    def starts_another(folder: Path, *, name: str) -> Any:
        if name == ".lock-1-of-3":
            monkeypatch.undo()
            write_log(2)
        return lock(folder, name=name)

    write_log(1)
    with hold_folder(out, name=".lock-3-of-3"), pytest.raises(RunError), PredictionLog.open(out, made_by):
        pass
    (out / ".lock-3-of-3").touch()  # as after kill -9
    monkeypatch.setattr(prediction_log, "hold_folder", starts_another)
    with PredictionLog.open(out, made_by) as log:
        log.begin()
    assert logged(out / LOG) == ["image 1"] and logged(out / "predictions-2-of-3.jsonl") == ["image 2"]
    with PredictionLog.open(out, made_by) as log:
        log.begin()
    assert logged(out / LOG) == ["image 1", "image 2"] and [*out.glob("predictions*.jsonl")] == [out / LOG]


def test_refused_combinations(run: Path, photos: Path, tmp_path: Path) -> None:
    other = write_segmentation_bundle(tmp_path / "other" / "best", seed=5)
    out = tmp_path / "out"
    assert predict(run, photos, "--out", out, "--shard", "1/2", "--overwrite") == 2
    assert not out.exists()
    assert predict(run, photos, "--out", out, "--shard", "1/2") == 0
    before = masks(out)
    assert predict(run, photos, "--out", out, "--shard", "1/3") == 2
    assert predict(other, photos, "--out", out, "--shard", "1/2") == 2
    assert predict(other, photos, "--out", out) == 2
    assert masks(out) == before
    assert predict(other, photos, "--out", out, "--overwrite") == 0
    assert [*out.glob("predictions*.jsonl")] == [out / LOG] and len(masks(out)) == 12


def test_the_job_array_of_the_documentation(run: Path, photos: Path, tmp_path: Path) -> None:
    """Two tasks of the array run at the same time, and the second command merges them."""
    scripts = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", SCALE.read_text(encoding="utf-8"), flags=re.DOTALL)
    array, merge = scripts[0].replace("SHARDS=8", "SHARDS=2"), scripts[1]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "rooms").symlink_to(run)
    shim = tmp_path / "bin" / "vitsplit"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/bash\nexec {sys.executable} -m vitsplit "$@"\n', encoding="utf-8")
    shim.chmod(0o755)
    path = {"PATH": f"{shim.parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    tasks = [
        subprocess.Popen(["bash", "-c", array], cwd=tmp_path, env=os.environ | path | {"SLURM_ARRAY_TASK_ID": index})
        for index in ("1", "2")
    ]
    assert [task.wait(timeout=120) for task in tasks] == [0, 0]
    assert len(masks(tmp_path / "predictions")) == 12
    assert len([*(tmp_path / "predictions").glob("predictions-*-of-2.jsonl")]) == 2
    subprocess.run(["bash", "-c", merge], cwd=tmp_path, env=os.environ | path, check=True, timeout=120)
    assert sorted(logged(tmp_path / "predictions" / LOG)) == sorted(each.stem for each in photos.iterdir())
