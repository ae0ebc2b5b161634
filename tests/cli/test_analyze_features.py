"""``vitsplit analyze features``."""

import json

import pytest
from PIL import Image

from vitsplit.cli.main import main


@pytest.mark.parametrize("show", ["channel", "pca"])
def test_a_run_and_its_frozen_backbone(scenes, run, tmp_path, capsys, show):
    out = tmp_path / "features"
    images = scenes / "images" / "val"
    words = [str(images), "--runs", str(run), "--size", "32", "48", "--limit", "2", "--show", show, "--out", str(out)]
    assert main(["analyze", "features", *words]) == 0
    assert "2 images, 2 models" in capsys.readouterr().out
    found = json.loads((out / "features.json").read_text())
    own, trained = found["models"]
    assert own["name"] == "vit_tiny_patch16_224" and trained["name"].startswith("segmentation, vitsplit: ")
    assert [each["label"] for each in own["maps"]] == [f"layer {layer}" for layer in range(12)]
    late = ["tuned 10", "tuned 11", "prior", "fused"]
    assert [each["label"] for each in trained["maps"]] == [*(f"layer {layer}" for layer in range(10)), *late]
    assert own["maps"][0]["grid"] == [2, 3] and own["maps"][0]["channels"] == 192
    assert all(len(each["explained"]) == (3 if show == "pca" else 0) for each in own["maps"])
    pictures = sorted(out.glob("*.png"))
    assert len(pictures) == 2 and {picture.stem for picture in pictures} <= {file.stem for file in images.iterdir()}
    assert Image.open(pictures[0]).width > 7 * 128
    page = (out / "index.html").read_text()
    assert page.count("<img") == 2 and 'src="http' not in page and 'href="http' not in page


def test_one_image_and_two_backbones(scenes, tmp_path):
    file = next((scenes / "images" / "val").iterdir())
    names = ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"]
    words = [str(file), "--backbones", *names, "--random-weights", "--size", "32", "48", "--out", str(tmp_path / "out")]
    assert main(["analyze", "features", *words]) == 0
    found = json.loads((tmp_path / "out" / "features.json").read_text())
    assert [each["name"] for each in found["models"]] == names and found["images"] == [file.name]
