"""``vitsplit analyze cka``."""

import json

import pytest

from vitsplit.cli.main import main

TINY = ["--backbones", "vit_tiny_patch16_224", "--random-weights", "--size", "32", "48", "--batch-size", "4"]


def test_cka_writes_a_page_a_picture_and_json(scenes, tmp_path, capsys):
    assert main(["analyze", "cka", str(scenes / "images"), *TINY, "--out", str(tmp_path / "cka")]) == 0
    output = capsys.readouterr().out
    found = json.loads((tmp_path / "cka" / "cka.json").read_text())
    assert found["images"] == 9  # of nine images a batch of four and one of five
    (pair,) = found["cka"].values()
    assert len(pair) == 12 and all(row[layer] == 1.0 for layer, row in enumerate(pair))
    point = found["split"]["vit_tiny_patch16_224"]
    assert f"layers 0 to {point['first_late_layer'] - 1} and" in output
    page = (tmp_path / "cka" / "index.html").read_text()
    assert "<svg" in page and 'src="http' not in page and 'href="http' not in page
    assert (tmp_path / "cka" / "cka.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch-size", "3"], "--batch-size must be "),
        (["--batch-size", "16"], "9 images are fewer than --batch-size 16"),
    ],
)
def test_too_few_images(scenes, words, message, capsys):
    assert main(["analyze", "cka", str(scenes / "images"), *TINY, *words]) == 2
    assert message in capsys.readouterr().err
