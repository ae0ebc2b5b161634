"""Predictions of folders: file names, batches, resuming and errors."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import write_segmentation_bundle
from PIL import Image

import vitsplit
from vitsplit.cli.main import main
from vitsplit.data.images import read_mask
from vitsplit.inference.prediction_log import LOG
from vitsplit.inference.predictor import Predictor


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bundles")
    return {
        "rooms": write_segmentation_bundle(root / "rooms" / "best", seed=1),
        "cars": write_segmentation_bundle(root / "cars" / "best", num_classes=3, num_tuned_layers=3, seed=2),
    }


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight images of two sizes, some in a folder of their own."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    pixels = np.random.default_rng(0)
    for index in range(8):
        size = (60, 80, 3) if index % 3 else (80, 60, 3)
        place = folder / "deep" if index > 5 else folder
        Image.fromarray(pixels.integers(0, 256, size, dtype=np.uint8)).save(place / f"{index}.png")
    return folder


@pytest.fixture
def batches_seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    seen: list[tuple[int, ...]] = []
    original = Predictor.predict_batch

    def predict_batch(self: Predictor, image_BCHW: torch.Tensor) -> Any:
        seen.append(tuple(image_BCHW.shape))
        return original(self, image_BCHW)

    monkeypatch.setattr(Predictor, "predict_batch", predict_batch)
    return seen


def predict(*words: object) -> int:
    return main(["predict", *map(str, words)])


def masks(out: Path) -> dict[str, np.ndarray]:
    return {str(path.relative_to(out)): read_mask(path).numpy() for path in sorted(out.rglob("*_mask.png"))}


def test_one_run_writes_the_file_names_of_the_task(runs: dict[str, Path], photos: Path, tmp_path: Path,
                                                   capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    out = tmp_path / "out"
    assert predict(runs["rooms"], photos, "--out", out) == 0
    assert "8 of 8 images" in capsys.readouterr().out
    found = masks(out)
    assert list(found) == [f"{index}_mask.png" for index in range(6)] + ["deep/6_mask.png", "deep/7_mask.png"]
    model = vitsplit.load(runs["rooms"])
    for name, mask in found.items():
        assert np.array_equal(mask, model.predict(photos / name.replace("_mask", ""))["segmentation"].mask)
    assert len(list(out.rglob("*_overlay.jpg"))) == 8 and not (out / ".partial").exists()


def test_runs_of_one_task_have_separate_files_and_share_the_pass(
    runs: dict[str, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert predict(runs["rooms"], runs["cars"], photos / "0.png", photos / "1.png", "--out", out) == 0
    names = {f"{index}_{run}_{what}" for index in (0, 1) for run in runs for what in ("mask.png", "overlay.jpg")}
    assert {path.name for path in out.iterdir()} == names | {LOG}
    for run, folder in runs.items():
        expected = vitsplit.load(folder).predict(photos / "0.png")["segmentation"].mask
        assert np.array_equal(read_mask(out / f"0_{run}_mask.png").numpy(), expected)
    # Portrait and landscape images: 64 x 48 and 48 x 64.
    assert "2 passes at 2 sizes for rooms and cars" in capsys.readouterr().out


def test_batches_have_images_of_one_size(runs: dict[str, Path], photos: Path, tmp_path: Path,
                                         batches_seen: list[tuple[int, ...]]) -> None:  # fmt: skip
    assert predict(runs["rooms"], photos, "--out", tmp_path / "three", "--batch-size", 3) == 0
    # Portrait: 0, 3, 6; landscape: 1, 2, 4, 5, 7.
    assert sorted(batches_seen) == [(2, 3, 60, 80), (3, 3, 60, 80), (3, 3, 80, 60)]
    batches_seen.clear()
    assert predict(runs["rooms"], photos, "--out", tmp_path / "one") == 0
    assert [shape[0] for shape in batches_seen] == [1] * 8
    three, one = masks(tmp_path / "three"), masks(tmp_path / "one")
    assert three.keys() == one.keys()
    for name, mask in three.items():
        # The order of summation can differ in a batch, which can change pixels at borders.
        assert (mask != one[name]).mean() < 1e-3


def test_an_interrupted_command_resumes(
    runs: dict[str, Path], photos: Path, tmp_path: Path, batches_seen: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert predict(runs["rooms"], photos, "--out", whole) == 0
    with monkeypatch.context() as patch:
        original = Predictor.predict_batch

        def fail(self: Predictor, image_BCHW: torch.Tensor) -> Any:
            if len(batches_seen) == 8 + 4:
                raise KeyboardInterrupt
            return original(self, image_BCHW)

        patch.setattr(Predictor, "predict_batch", fail)
        assert predict(runs["rooms"], photos, "--out", out) == 130
    noted = (out / LOG).read_text().splitlines()[1:]
    assert len(noted) <= 4
    with (out / LOG).open("a") as log:
        log.write('{"name": "5", "by')  # a kill in the middle of a line
    batches_seen.clear()
    capsys.readouterr()
    assert predict(runs["rooms"], photos, "--out", out) == 0
    assert len(batches_seen) == 8 - len(noted)
    assert "8 of 8 images" in (output := capsys.readouterr().out)
    assert not noted or f"{len(noted)} of them predicted earlier" in output
    assert len((out / LOG).read_text().splitlines()) == 9
    first, second = masks(whole), masks(out)
    assert first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_finished_inputs_are_repeated_only_if_changed(
    runs: dict[str, Path], photos: Path, tmp_path: Path, batches_seen: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    assert predict(runs["rooms"], photos, "--out", out) == 0
    batches_seen.clear()
    with monkeypatch.context() as patch:  # without work, the backbone is not loaded
        patch.setattr("vitsplit.inference.loading.open_backbone", lambda *_, **__: pytest.fail("backbone read"))
        assert predict(runs["rooms"], photos, "--out", out) == 0
    assert "8 of them predicted earlier" in capsys.readouterr().out
    (out / "2_overlay.jpg").unlink()
    os.utime(photos / "4.png", (1, 1))
    Image.new("RGB", (33, 21)).save(photos / "1.png")
    assert predict(runs["rooms"], photos, "--out", out) == 0
    assert sorted(batches_seen) == [(1, 3, 21, 33), (1, 3, 60, 80), (1, 3, 60, 80)]
    assert read_mask(out / "1_mask.png").shape == (21, 33)
    batches_seen.clear()
    assert predict(runs["rooms"], photos, "--out", out, "--overwrite") == 0
    assert len(batches_seen) == 8


def test_other_bundles_or_settings_are_rejected(
    runs: dict[str, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert predict(runs["rooms"], photos, "--out", out) == 0
    before = masks(out)
    (out / "mine.txt").write_text("not vitsplit's")
    for words in ([runs["cars"]], [runs["rooms"], runs["cars"]], [runs["rooms"], "--precision", "bf16"]):
        capsys.readouterr()
        assert predict(*words, photos, "--out", out) == 2
        output = capsys.readouterr().err
        assert "--out" in output and "--overwrite" in output and str(out) in output
    after = masks(out)
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
    assert predict(runs["rooms"], runs["cars"], photos / "1.png", "--out", out, "--overwrite") == 0
    assert sorted(masks(out)) == ["1_cars_mask.png", "1_rooms_mask.png"] and (out / "mine.txt").exists()


def test_a_retrained_bundle_is_another_bundle(runs: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    again = shutil.copytree(runs["rooms"].parent, tmp_path / "rooms")
    out = tmp_path / "out"
    assert predict(again, photos, "--out", out) == 0
    assert predict(runs["rooms"], photos, "--out", out) == 0  # a copy is the same bundle
    card = json.loads((again / "best" / "head.json").read_text())
    card["config"]["task"]["image_scale"] = [32, 24]
    (again / "best" / "head.json").write_text(json.dumps(card))
    assert predict(again, photos, "--out", out) == 2


def test_unreadable_images_are_listed_at_the_end(
    runs: dict[str, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "empty.jpg").touch()
    (photos / "broken.png").write_bytes((photos / "1.png").read_bytes()[:300])
    assert predict(runs["rooms"], photos, "--out", tmp_path / "out", "--batch-size", 4) == 1
    output = capsys.readouterr()
    assert "8 of 10 images" in output.out and "Traceback" not in output.err
    assert output.err.count("skipped: ") == 2 and "empty.jpg" in output.err and "broken.png" in output.err
    # The next command retries only these.
    assert predict(runs["rooms"], photos, "--out", tmp_path / "out") == 1
    assert "8 of 10 images, 8 of them predicted earlier" in capsys.readouterr().out


@pytest.mark.parametrize("batch_size", [1, 2])
def test_images_of_extreme_shapes(runs: dict[str, Path], tmp_path: Path, batch_size: int) -> None:
    (tmp_path / "in").mkdir()
    for width, height in ((1, 1), (30_000, 10), (10, 3000), (2, 1)):
        Image.new("RGB", (width, height), (200, 100, 50)).save(tmp_path / "in" / f"{width}.png")
    words = (runs["rooms"], runs["cars"], tmp_path / "in", "--out", tmp_path / "out", "--batch-size", batch_size)
    assert predict(*words) == 0
    for width, height in ((1, 1), (30_000, 10), (10, 3000), (2, 1)):
        assert read_mask(tmp_path / "out" / f"{width}_cars_mask.png").shape == (height, width)


def test_large_images_are_tiled_with_the_same_file_names(runs: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyvips")
    words = (runs["rooms"], runs["cars"], photos / "1.png", "--tile", 32, 48)
    assert predict(*words, "--out", tmp_path / "both") == 0
    assert sorted(masks(tmp_path / "both")) == ["1_cars_mask.png", "1_rooms_mask.png"]
    assert predict(runs["rooms"], *words[2:], "--out", tmp_path / "one") == 0
    assert sorted(masks(tmp_path / "one")) == ["1_mask.png"]
    assert read_mask(tmp_path / "one" / "1_mask.png").shape == (60, 80)


def test_a_large_image_is_skipped_without_libvips(
    runs: dict[str, Path], photos: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("vitsplit.inference.strips.LARGE_PIXELS", 80 * 60)
    Image.new("RGB", (81, 60)).save(photos / "huge.png")
    monkeypatch.setitem(sys.modules, "pyvips", None)
    assert predict(runs["rooms"], photos, "--out", tmp_path / "out") == 1
    output = capsys.readouterr()
    assert "8 of 9 images" in output.out and "huge.png" in output.err and "vitsplit[large]" in output.err
    # With --tile it is an error.
    assert predict(runs["rooms"], photos, "--out", tmp_path / "tiles", "--tile", 32, 48) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN"], "No inputs after the run"),
        (["RUN", "photos", "RUN"], "follows the input"),
        (["photos", "RUN"], "no head bundle"),
        (["RUN", "photos", "typo"], "typo"),
        (["RUN", "empty"], "no images"),
        (["RUN", "unfinished", "photos"], "has no evaluation"),
        (["RUN", "photos", "--batch-size", "0"], "--batch-size"),
        (["RUN", "photos", "--out", "photos"], "--out"),
        (["RUN", "photos", "photos/1.png"], "same result name '1'"),
        (["RUN", "OTHER", "photos"], "vit_tiny_patch16_384"),
    ],
)
def test_errors_are_raised_before_anything_is_written(
    words: list[str], message: str, runs: dict[str, Path], photos: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.json").write_text("{}")
    if "OTHER" in words:
        write_segmentation_bundle(tmp_path / "other", backbone="vit_tiny_patch16_384")
    words = [{"RUN": str(runs["rooms"]), "OTHER": "other"}.get(word, word) for word in words]
    try:
        status = main(["predict", *words, *([] if "--out" in words else ["--out", "out"])])
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    shown = capsys.readouterr().err
    assert status == 2 and message in shown and "Traceback" not in shown
    assert not (tmp_path / "out").exists()


def test_results_inside_the_image_folder_are_not_inputs(runs: dict[str, Path], photos: Path) -> None:
    assert predict(runs["rooms"], photos, "--out", photos / "results") == 0
    count = len(list((photos / "results").rglob("*")))
    assert predict(runs["rooms"], photos, "--out", photos / "results") == 0
    assert len(list((photos / "results").rglob("*"))) == count
