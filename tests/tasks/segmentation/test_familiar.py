"""Distances to the training images' features; the oracles are searches over all tokens, and the backbone's own maps."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

import vitsplit
from small_run import SMALL_RUN
from vitsplit.backbone import load_backbone
from vitsplit.data.images import read_image
from vitsplit.errors import DataError
from vitsplit.exporting.graph import ExportGraph
from vitsplit.exporting.parity import model_outputs
from vitsplit.nn.familiarity import Familiarity
from vitsplit.tasks.segmentation.config import SegmentationConfig
from vitsplit.tasks.segmentation.familiar import familiar_tokens
from vitsplit.tasks.segmentation.layouts import open_segmentation_set
from vitsplit.types import TapRequest

GENERATOR = torch.Generator().manual_seed(0)


def nearest(x_ND: torch.Tensor, known_MD: torch.Tensor) -> np.ndarray:
    """Cosine distance of each token to the nearest known one."""
    x, known = (
        each.double().numpy() / np.linalg.norm(each.numpy(), axis=1, keepdims=True) for each in (x_ND, known_MD)
    )
    return np.array([min(1 - token @ other for other in known) for token in x])


def test_few_tokens_are_their_own_centroids() -> None:
    known_MD, x_ND = (torch.randn(count, 8, generator=GENERATOR) for count in (90, 24))
    familiarity = Familiarity(8, 0)
    familiarity.fit(known_MD)
    distance_Bhw = familiarity(torch.cat([x_ND, known_MD[:6]]).T.reshape(1, 8, 5, 6))
    assert distance_Bhw.dtype == torch.float32 and distance_Bhw.shape == (1, 5, 6)
    expected = np.concatenate([nearest(x_ND, known_MD), np.zeros(6)])
    assert distance_Bhw.flatten().numpy() == pytest.approx(expected, abs=1e-5)


def test_clusters_are_familiar_and_other_directions_are_not() -> None:
    center_KD = torch.eye(16)[:5]
    known_ND = center_KD.repeat(400, 1) * 7 + 0.3 * torch.randn(2000, 16, generator=GENERATOR)
    familiarity = Familiarity(16, 0)
    familiarity.fit(known_ND)
    assert familiarity.centroids_CD.norm(dim=1) == pytest.approx(1, abs=1e-5)
    inside, outside = (familiarity(each.T[None, :, :, None]) for each in (3 * center_KD, torch.eye(16)[5:]))
    assert inside.max() < 0.02 and outside.min() > 0.7


def data_with_ignored(scenes: Path, to: Path, ignored: slice) -> Path:
    """The first training and validation scene, with some columns of the mask ignored."""
    for kind in ("images", "masks"):
        for split in ("train", "val"):
            (to / kind / split).mkdir(parents=True)
            shutil.copy(sorted((scenes / kind / split).iterdir())[0], to / kind / split)
    shutil.copy(scenes / "classes.json", to)
    for file in (to / "masks").rglob("*.png"):
        mask_HW = np.asarray(Image.open(file)).copy()
        mask_HW[:, ignored] = 255
        Image.fromarray(mask_HW).save(file)
    return to


def test_tokens_are_of_labeled_patches(scenes: Path, tmp_path: Path) -> None:
    backbone = load_backbone("vit_tiny_patch16_224", random_weights=True)
    config = SegmentationConfig(image_scale=None)
    # Of four patches of 16 columns, the first is ignored, and of the second less than half.
    images = open_segmentation_set(data_with_ignored(scenes, tmp_path / "some", slice(0, 23)), "train")
    (image_path, _) = images.items[0]
    map_Dhw = backbone(read_image(image_path)[None], TapRequest(maps=frozenset({11}))).maps[11][0]
    found_ND = familiar_tokens(images, config, backbone, 11)
    torch.testing.assert_close(found_ND, map_Dhw[:, :, 1:].flatten(1).T, rtol=1e-4, atol=1e-4)
    images = open_segmentation_set(data_with_ignored(scenes, tmp_path / "none", slice(None)), "train")
    with pytest.raises(DataError, match="none"):
        familiar_tokens(images, config, backbone, 11)


@pytest.fixture(scope="module")
def familiar_run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "familiar"
    settings = {**SMALL_RUN, "unfamiliarity": True, "ema": 0.9, "selection": "explicit", "prior_layers": (2, 5)}
    return vitsplit.train(data=scenes, out=out, test_mode="whole", **settings).run


def test_predictions_of_a_run_have_the_map(familiar_run: Path, scenes: Path) -> None:
    centroids_CD = load_file(familiar_run / "best" / "head.safetensors")["familiarity.centroids_CD"]
    assert centroids_CD.norm(dim=1) == pytest.approx(1, abs=1e-5), "an average does not change them"
    model = vitsplit.load(familiar_run, precision="fp32")
    file = sorted((scenes / "images" / "val").iterdir())[0]
    prediction = model.predict(file)["segmentation"]
    map_Dhw = model.backbone(read_image(file)[None], TapRequest(maps=frozenset({11}))).maps[11][0]
    distance_N = nearest(map_Dhw.flatten(1).T, centroids_CD)
    expected_HW = F.interpolate(
        torch.from_numpy(distance_N).view(1, 1, *map_Dhw.shape[1:]), size=(48, 64), mode="bilinear"
    )[0, 0]
    assert prediction.unfamiliarity.dtype == np.float32
    np.testing.assert_allclose(prediction.unfamiliarity, expected_HW.numpy(), atol=1e-5)
    assert sum(model.passes.values()) == 1, "one pass for mask and map"
    flipped = vitsplit.load(familiar_run, precision="fp32")
    flipped["segmentation"].task.config = SegmentationConfig(
        crop_size=(48, 64), image_scale=None, test_mode="slide", test_flip=True, test_scales=(0.5, 1.5)
    )
    np.testing.assert_allclose(flipped.predict(file)["segmentation"].unfamiliarity, expected_HW.numpy(), atol=1e-5)


def test_graphs_do_not_read_the_layer(familiar_run: Path) -> None:
    predictor = vitsplit.load(familiar_run, precision="fp32", device="cpu")
    graph = ExportGraph(predictor).eval()
    assert set(graph.depths) == {3, 6, 10}, "two prior layers, and the input of two tuned blocks"
    image_BCHW = torch.randint(0, 256, (1, 3, 48, 64), dtype=torch.uint8, generator=GENERATOR)
    with torch.inference_mode():
        logits_BKHW = graph(image_BCHW)[0]
    expected = model_outputs(predictor, image_BCHW)["segmentation.logits"]
    np.testing.assert_allclose(logits_BKHW.numpy(), expected, atol=1e-4)


def test_without_the_setting_there_is_no_map(run: Path, scenes: Path) -> None:
    prediction = vitsplit.load(run).predict(next((scenes / "images" / "val").iterdir()))["segmentation"]
    assert prediction.unfamiliarity is None
