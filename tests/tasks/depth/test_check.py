"""The check of depth data on maps with known statistics."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitsplit.cli.main import main
from vitsplit.errors import ConfigError
from vitsplit.tasks import check_data

RNG = np.random.default_rng(0)
RAMP = np.arange(1000, 1080, dtype=np.uint16).reshape(8, 10)
"""Millimeters."""


@pytest.fixture
def root(tmp_path):
    """Three images per split, with depths of 1 m to 1.079 m."""
    for split in ("train", "val"):
        for k in range(3):
            write(tmp_path, split, k)
    (tmp_path / "depth.json").write_text(json.dumps({"scale": 0.001}))
    return tmp_path


def write(root, split, name, depth=RAMP, image=None):
    image = RNG.integers(0, 256, (8, 10, 3), dtype=np.uint8) if image is None else image
    for kind in ("images", "depth"):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(root / "images" / split / f"{name}.png")
    Image.fromarray(depth).save(root / "depth" / split / f"{name}.png")


def save_as_floats(root):
    """Every map as float meters, without a scale."""
    (root / "depth.json").unlink()
    for path in root.glob("depth/*/*.png"):
        np.save(path.with_suffix(".npy"), RAMP.astype(np.float32) / 1000)
        path.unlink()


def only(root, level, kind, **options):
    """The only finding of a check."""
    report = check_data(root, "depth", workers=1, **options)
    (finding,) = report.findings
    assert (finding.level, finding.kind) == (level, kind)
    scale = [f"--depth-scale={options['depth_scale']}"] if options else []
    assert main(["data", "check", str(root), "--task", "depth", "--workers", "1", *scale]) == (level == "error")
    return finding


def test_a_valid_set_has_no_findings(root):
    far = np.zeros((8, 10), np.uint16)
    far[:, :5] = 20_000
    far[0, 0] = 500
    write(root, "train", "far", far)
    report = check_data(root, "depth", workers=1)
    assert report.findings == [] and report.format == "folder" and report.task == "depth"
    train, val = report.splits["train"], report.splits["val"]
    assert (train.images, val.images) == (4, 3) and train.sizes == [(10, 8, 4)] and train.classes == []
    # Three maps of 80 pixels with median 1.039 (the lower of the two in the middle), one of 40 of 80 with median 20.
    assert train.facts == pytest.approx(
        {
            "least depth, m": 0.5,
            "median of the maps' medians, m": 1.039,
            "largest depth, m": 20.0,
            "pixels with a depth, %": 100 * 280 / 320,
            "metres of one unit of the files": 0.001,
        }
    )
    assert val.facts["largest depth, m"] == pytest.approx(1.079) and val.facts["pixels with a depth, %"] == 100.0


def test_depth_scale_flag_is_used(root):
    facts = check_data(root, "depth", workers=1, depth_scale=0.01).splits["val"].facts
    assert facts["least depth, m"] == pytest.approx(10.0) and facts["metres of one unit of the files"] == 0.01


def test_integers_without_a_scale_are_an_error(root, capsys):
    (root / "depth.json").unlink()
    report = check_data(root, "depth", workers=1)
    assert len(report.errors) == 2 and all("--depth-scale" in error.message for error in report.errors)
    assert main(["data", "check", str(root), "--task", "depth"]) == 1
    assert "--depth-scale" in capsys.readouterr().out


def test_an_integer_map_among_floats_is_an_error(root):
    save_as_floats(root)
    np.save(root / "depth/train/1.npy", RAMP)
    error = only(root, "error", "unit not known")
    assert error.file.endswith("1.npy") and "--depth-scale" in error.message


def test_floats_are_meters(root):
    save_as_floats(root)
    report = check_data(root, "depth", workers=1)
    assert report.findings == []
    assert report.splits["train"].facts["largest depth, m"] == pytest.approx(1.079)
    assert report.splits["train"].facts["metres of one unit of the files"] == 1.0


def test_size_mismatch_is_reported(root):
    write(root, "val", 1, depth=RAMP[:4, :4])
    error = only(root, "error", "size mismatch")
    assert error.file == str(root / "depth/val/1.png") and "4x4" in error.message and "10x8" in error.message


def test_truncated_files_are_reported(root):
    path = root / "images" / "val" / "2.png"
    path.write_bytes(path.read_bytes()[:90])
    assert only(root, "error", "unreadable image").file == str(path)
    write(root, "val", 2)
    path = root / "depth" / "val" / "2.png"
    path.write_bytes(path.read_bytes()[:60])
    assert only(root, "error", "unreadable depth map").file == str(path)


def test_an_rgb_image_as_depth_map_is_reported(root):
    Image.fromarray(RNG.integers(0, 256, (8, 10, 3), dtype=np.uint8)).save(root / "depth/train/1.png")
    assert "mode RGB is not a depth map" in only(root, "error", "unreadable depth map").message


def test_a_map_without_valid_pixels_is_reported(root):
    write(root, "train", 2, depth=np.zeros((8, 10), np.uint16))
    error = only(root, "error", "no valid depth")
    assert error.file == str(root / "depth/train/2.png") and "no pixel has a depth" in error.message
    assert check_data(root, "depth").splits["train"].facts["pixels with a depth, %"] == pytest.approx(200 / 3)


def test_a_constant_map_is_reported(root):
    depth = np.full((8, 10), 2000, np.uint16)
    depth[:2] = 0  # invalid pixels do not count as a second value
    write(root, "train", 2, depth)
    assert "every depth is 2 m" in only(root, "warning", "constant depth").message


@pytest.mark.parametrize(("meters", "warned"), [(0.004, True), (0.011, False), (999.0, False), (1100.0, True)])
def test_an_unlikely_unit_is_warned_about(root, meters, warned):
    """The bounds of the median are 0.01 m and 1000 m."""
    save_as_floats(root)
    depth = np.full((8, 10), meters, np.float32)
    depth[0] = 2.0
    np.save(root / "depth/train/2.npy", depth)
    if not warned:
        assert check_data(root, "depth", workers=1).findings == []
        return
    warning = only(root, "warning", "unlikely unit")
    assert f"{meters:g} m, outside 0.01..1000 m" in warning.message and "--depth-scale" in warning.message


def test_an_image_in_two_splits_is_reported(root):
    image = RNG.integers(0, 256, (8, 10, 3), dtype=np.uint8)
    write(root, "train", 0, image=image)
    write(root, "val", 0, image=image)
    error = only(root, "error", "image in two splits")
    assert str(root / "images/train/0.png") in error.message and str(root / "images/val/0.png") in error.message


def test_images_without_a_map_are_reported(root):
    (root / "depth/train/1.png").unlink()
    assert "1 of 3 images" in only(root, "error", "split train cannot be opened").message


def test_json_output(root, capsys):
    assert main(["data", "check", str(root), "--task", "depth", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True and report["splits"]["val"]["facts"]["pixels with a depth, %"] == 100.0


@pytest.mark.parametrize("scale", [0.0, -0.001, float("nan"), float("inf")])
def test_an_invalid_scale_is_rejected(root, scale):
    with pytest.raises(ConfigError, match="--depth-scale"):
        check_data(root, "depth", depth_scale=scale)


@pytest.mark.realdata
def test_nyuv2():
    folder = os.environ.get("VITSPLIT_DATA")
    if not folder or not (Path(folder) / "nyuv2").is_dir():
        pytest.skip("nyuv2: set VITSPLIT_DATA to the folder that holds it")
    report = check_data(Path(folder) / "nyuv2", "depth", depth_scale=1 / 25.5, workers=1)
    assert report.findings == []
    assert {split: data.images for split, data in report.splits.items()} == {"train": 636, "val": 159}
    for data in report.splits.values():
        assert 0.69 < data.facts["least depth, m"] < data.facts["largest depth, m"] <= 10.0
        assert data.facts["pixels with a depth, %"] == 100.0
