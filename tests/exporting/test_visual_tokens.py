"""Visual question answering in a graph: its visual tokens are those that the bundle's language model reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bundles import SMALL, write_segmentation_bundle
from PIL import Image
from tiny_backbones import image
from vqa_bundles import WIDTH, write_language_model, write_vqa_bundle

import vitsplit
from vitsplit.cli.main import main
from vitsplit.errors import ConfigError
from vitsplit.nn.bins import pool_by_matrix
from vitsplit.runtime import Runtime


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path]:
    """A predictor of a bundle for questions and of one for classes, and the folders of both, and of the first alone."""
    root = tmp_path_factory.mktemp("tokens")
    language = write_language_model(root / "language")
    write_vqa_bundle(root / "ask" / "best", language, backbone=SMALL)
    write_segmentation_bundle(root / "rooms" / "best", backbone=SMALL, num_prior_layers=1)
    predictor = vitsplit.load(
        {"ask": root / "ask", "rooms": root / "rooms"}, language_weights=language, device="cpu", precision="fp32"
    )
    vitsplit.export(predictor, out=root / "both")
    command = ["export", str(root / "ask"), "--out", str(root / "alone"), "--precision", "int8", "--size", "48", "64"]
    assert main([*command, "--language-weights", str(language)]) == 0
    return predictor, root / "both", root / "alone"


def test_tokens_are_those_that_the_language_model_reads(exported: tuple[Any, Path, Path]) -> None:
    predictor, folder, alone = exported
    pixels = image(48, 64, batch=2)
    visual, _ = predictor["ask"].forward(pixels)
    expected = visual.tokens_INW.numpy()
    found = Runtime(folder).outputs(pixels.permute(0, 2, 3, 1).numpy(), ["ask"])
    assert expected.shape == (2, 2 * 3, WIDTH)
    np.testing.assert_allclose(np.stack([each["ask"]["tokens"] for each in found]), expected, atol=1e-4)
    quantized = Runtime(alone).outputs(pixels.permute(0, 2, 3, 1).numpy())
    error = np.stack([each["vqa"]["tokens"] for each in quantized]) - expected
    assert 0 < np.sqrt(np.square(error).mean() / np.square(expected).mean()) < 0.05


def test_the_card_says_what_is_missing(exported: tuple[Any, Path, Path]) -> None:
    head = json.loads((exported[1] / "card.json").read_text())["heads"]["ask"]
    (output,) = head["outputs"].values()
    assert output["kind"] == "features" and output["shape"] == ["batch", "tokens", WIDTH]
    assert "48 x 64" in output["meaning"] and "not in the graph" in output["meaning"]
    assert head["input_size"] == [48, 64]
    assert "image.resize((64, 48)" in (exported[2] / "README.md").read_text()


def test_only_the_other_head_predicts(exported: tuple[Any, Path, Path], tmp_path: Path) -> None:
    _, folder, alone = exported
    photo = image(90, 120, batch=1)[0].permute(1, 2, 0).numpy()
    assert list(Runtime(folder).predict(photo)) == ["rooms"]
    assert list(vitsplit.load(folder)) == ["rooms"]
    for use in (vitsplit.load, lambda folder: Runtime(folder).predict(photo)):
        with pytest.raises(ConfigError, match=r"alone.*Runtime\.outputs"):
            use(alone)
    assert main(["predict", str(alone), str(tmp_path)]) == 2


def test_questions_to_a_graph_are_refused(exported: tuple[Any, Path, Path], tmp_path: Path) -> None:
    """Instead of images that are logged as done without answers."""
    _, folder, _ = exported
    photo = tmp_path / "photo.png"
    Image.fromarray(image(90, 120, batch=1)[0].permute(1, 2, 0).numpy()).save(photo)
    out = ["--out", str(tmp_path / "out")]
    assert main(["predict", str(folder), str(photo), *out, "--ask", "What is it?"]) == 2
    runs = [str(folder.parent / name) for name in ("ask", "rooms")]
    assert main(["predict", *runs, str(photo), *out, "--ask", "What is it?", "--runtime", "onnx"]) == 2
    assert not (tmp_path / "out").exists()
    assert main(["predict", str(folder), str(photo), *out]) == 0
    assert (tmp_path / "out" / "photo_mask.png").exists()


@pytest.mark.parametrize("size", [(7, 9), (5, 3), (12, 4)])
def test_pooling_by_matrices(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    map_BDhw = torch.randn(2, 3, *size)
    for bins in ((2, 3), (5, 3), (1, 1)):
        torch.testing.assert_close(pool_by_matrix(map_BDhw, bins), F.adaptive_avg_pool2d(map_BDhw, bins))
