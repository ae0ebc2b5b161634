"""The similarity of layers on training images: which images, which maps, and the file that caches it."""

import json

import numpy as np
import pytest

from small_run import SMALL_RUN
from vitsplit.analysis import training_similarity as similarity_module
from vitsplit.analysis.cka import Similarity
from vitsplit.analysis.training_similarity import cached_similarity, training_images, training_similarity
from vitsplit.backbone import load_backbone
from vitsplit.engine.override import override
from vitsplit.engine.run_tasks import RunTasks
from vitsplit.errors import DataError, RunError
from vitsplit.recipes import recipe
from vitsplit.tasks import open_task


def blocks(first_late=8):
    is_late = np.arange(12) >= first_late
    cka = np.where(is_late[:, None] == is_late, 0.9, 0.2)
    np.fill_diagonal(cka, 1.0)
    cka[3, 9] = cka[9, 3] = 0.1  # the least similar of all pairs from layer 2
    return Similarity({"backbone": 12}, cka, 20)


def test_every_training_image_is_used_once(scenes):
    config = override(recipe("laptop-segmentation"), SMALL_RUN)
    task = RunTasks(config, {"segmentation": open_task(config.task, scenes)})
    (batch,) = training_images(task, 64)  # six, too few for a second batch
    assert batch.shape == (6, 3, 48, 64)
    assert len({image.numpy().tobytes() for image in batch}) == 6
    (four,) = training_images(task, 4)
    assert len(four) == 4
    assert list(training_images(task, 3)) == []


def test_the_similarity_is_computed_on_the_maps_that_heads_read(scenes, tmp_path, monkeypatch):
    config = override(recipe("laptop-segmentation"), SMALL_RUN)
    backbone = load_backbone("vit_tiny_patch16_224", random_weights=True)
    monkeypatch.setattr(similarity_module, "open_backbone", lambda _: backbone)
    found = cached_similarity(config, scenes, tmp_path / "cka.json")
    (batch,) = training_images(RunTasks(config, {"segmentation": open_task(config.task, scenes)}), 64)
    pixels = (batch / 255 - 0.5) / 0.5
    assert backbone.info.mean == backbone.info.std == (0.5, 0.5, 0.5)
    maps = backbone.model.forward_intermediates(pixels, indices=12, norm=True, intermediates_only=True)
    x, y = (maps[layer].flatten(1).double() for layer in (2, 9))
    k, m = x @ x.T, y @ y.T
    assert found.cka_MM[2, 9] == pytest.approx(unbiased_cka(k.numpy(), m.numpy()), abs=1e-4)
    monkeypatch.setattr(similarity_module, "open_backbone", None)
    assert (cached_similarity(config, scenes, tmp_path / "cka.json").cka_MM == found.cka_MM).all()


def unbiased_cka(k, m):
    """From the estimator of Song et al. (2012), Eq. 5, written out for one pair."""

    def hsic(a, b):
        n = len(a)
        a, b = a - np.diag(np.diag(a)), b - np.diag(np.diag(b))
        one = np.ones(n)
        total = (one @ a @ one) * (one @ b @ one) / ((n - 1) * (n - 2))
        return (np.trace(a @ b) + total - 2 / (n - 2) * one @ a @ b @ one) / (n * (n - 3))

    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def test_too_few_images(scenes):
    config = override(recipe("laptop-segmentation"), SMALL_RUN)
    with pytest.raises(DataError, match="4 training images"):
        training_similarity(config, {"segmentation": scenes}, most_images=3)


@pytest.mark.parametrize(
    "change",
    [{"cka": []}, {"cka": [[1, 0], [0]]}, {"cka": [[1, 0], [0, "1"]]}, {"cka": [[1, 7], [7, 1]]}, {"cka": 3},
     {"images": 0}, {"images": "20"}, {"images": True}, None],
)  # fmt: skip
def test_an_invalid_cached_comparison_is_named(scenes, tmp_path, monkeypatch, change):
    monkeypatch.setattr(similarity_module, "training_similarity", lambda *_, **__: blocks())
    config, file = override(recipe("laptop-segmentation"), SMALL_RUN), tmp_path / "similarity.json"
    found = cached_similarity(config, scenes, file)
    monkeypatch.setattr(similarity_module, "training_similarity", None)
    assert np.array_equal(cached_similarity(config, scenes, file).cka_MM, found.cka_MM)
    saved = json.loads(file.read_text())
    file.write_text("{" if change is None else json.dumps(saved | change))
    with pytest.raises(RunError, match=r"similarity\.json.*Delete it"):
        cached_similarity(config, scenes, file)
