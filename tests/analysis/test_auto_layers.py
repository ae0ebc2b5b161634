"""``--layers auto``: what is looked at, what is chosen, and that a run which goes on keeps its choice."""

import json

import numpy as np
import pytest

import vitsplit
from small_run import SMALL_RUN
from vitsplit.analysis import auto_layers
from vitsplit.analysis.auto_layers import cached_similarity, training_images, with_advised_layers
from vitsplit.analysis.cka import Similarity
from vitsplit.backbone import load_backbone
from vitsplit.engine.override import override
from vitsplit.engine.run_tasks import RunTasks
from vitsplit.errors import ConfigError, DataError, RunError
from vitsplit.recipes import recipe
from vitsplit.tasks import open_task


def blocks(first_late=8):
    is_late = np.arange(12) >= first_late
    cka = np.where(is_late[:, None] == is_late, 0.9, 0.2)
    np.fill_diagonal(cka, 1.0)
    cka[3, 9] = cka[9, 3] = 0.1  # of all pairs from layer 2 on the least alike
    return Similarity({"backbone": 12}, cka, 20)


def test_a_run_takes_the_choice_says_so_and_keeps_it(scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(auto_layers, "training_similarity", lambda *_, **__: blocks())
    out = tmp_path / "run"
    result = vitsplit.train(data=scenes, out=out, layers="auto", **{**SMALL_RUN, "steps": 1, "num_prior_layers": 2})
    split = json.loads((out / "config.json").read_text())["heads"]["segmentation"]["method"]
    assert (split["num_tuned_layers"], split["selection"], split["prior_layers"]) == (4, "explicit", [3, 9])
    card = json.loads((out / "best" / "head.json").read_text())
    assert card["prior_layers"] == [3, 9] and card["config"]["method"] == split
    said = " ".join(capsys.readouterr().out.split())
    assert "layers auto: K_t = 4: the late block is layers 8 to 11" in said and "layers 3 9 are least alike" in said
    monkeypatch.setattr(auto_layers, "training_similarity", None)  # a run that goes on asks nothing anew
    settings = {**SMALL_RUN, "steps": 1, "num_prior_layers": 2}
    again = vitsplit.train(data=scenes, out=out, layers="auto", resume=True, **settings)
    assert again.metrics == result.metrics


def test_the_training_images_are_looked_at_each_once(scenes):
    config = override(recipe("laptop-segmentation"), SMALL_RUN)
    task = RunTasks(config, {"segmentation": open_task(config.task, scenes)})
    (batch,) = training_images(task, 64)  # six, too few for a second batch
    assert batch.shape == (6, 3, 48, 64)
    assert len({image.numpy().tobytes() for image in batch}) == 6
    (four,) = training_images(task, 4)
    assert len(four) == 4
    assert list(training_images(task, 3)) == []


def test_the_similarity_is_that_of_the_maps_that_heads_read(scenes, tmp_path, monkeypatch):
    config = override(recipe("laptop-segmentation"), SMALL_RUN)
    backbone = load_backbone("vit_tiny_patch16_224", random_weights=True)
    monkeypatch.setattr(auto_layers, "open_backbone", lambda _: backbone)
    found = cached_similarity(config, scenes, tmp_path / "cka.json")
    (batch,) = training_images(RunTasks(config, {"segmentation": open_task(config.task, scenes)}), 64)
    pixels = (batch / 255 - 0.5) / 0.5
    assert backbone.info.mean == backbone.info.std == (0.5, 0.5, 0.5)
    maps = backbone.model.forward_intermediates(pixels, indices=12, norm=True, intermediates_only=True)
    x, y = (maps[layer].flatten(1).double() for layer in (2, 9))
    k, m = x @ x.T, y @ y.T
    assert found.cka_MM[2, 9] == pytest.approx(unbiased_cka(k.numpy(), m.numpy()), abs=1e-4)
    monkeypatch.setattr(auto_layers, "open_backbone", None)
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


def test_every_head_of_a_joint_run_has_a_choice_of_its_own(monkeypatch):
    from vitsplit.recipes.starting_point import starting_heads

    monkeypatch.setattr(auto_layers, "training_similarity", lambda *_, **__: blocks(first_late=3))
    config = starting_heads({"segmentation": "segmentation", "detection": "detection"})
    chosen = with_advised_layers(config, {"segmentation": "a", "detection": "b"})
    assert chosen.heads["segmentation"].method.num_tuned_layers == 6  # at most half of the layers
    assert chosen.heads["detection"].method.num_tuned_layers == 9
    assert {head.method.selection for head in chosen.heads.values()} == {"explicit"}


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("laptop-segmentation", {"method": "linear-probe"}, "--method linear-probe"),
        ("laptop-vqa", {"connector": "mlp2x"}, "--connector mlp2x"),
    ],
)
def test_methods_without_layers(name, settings, said):
    with pytest.raises(ConfigError, match=said):
        config = override(recipe(name), settings)
        with_advised_layers(config, dict.fromkeys(config.heads, "data"))


def test_no_other_way_of_choosing(scenes):
    with pytest.raises(ConfigError, match="layers='gate'"):
        vitsplit.train(data=scenes, layers="gate")


def test_too_few_images(scenes):
    config = override(recipe("laptop-segmentation"), SMALL_RUN)
    with pytest.raises(DataError, match="at least 4 training images"):
        with_advised_layers(config, {"segmentation": scenes}, most_images=3)


@pytest.mark.parametrize(
    "change",
    [{"cka": []}, {"cka": [[1, 0], [0]]}, {"cka": [[1, 0], [0, "1"]]}, {"cka": [[1, 7], [7, 1]]}, {"cka": 3},
     {"images": 0}, {"images": "20"}, {"images": True}, None],
)  # fmt: skip
def test_a_remembered_comparison_that_is_none_is_named(scenes, tmp_path, monkeypatch, change):
    monkeypatch.setattr(auto_layers, "training_similarity", lambda *_, **__: blocks())
    config, file = override(recipe("laptop-segmentation"), SMALL_RUN), tmp_path / "similarity.json"
    found = cached_similarity(config, scenes, file)
    monkeypatch.setattr(auto_layers, "training_similarity", None)
    assert np.array_equal(cached_similarity(config, scenes, file).cka_MM, found.cka_MM)
    saved = json.loads(file.read_text())
    file.write_text("{" if change is None else json.dumps(saved | change))
    with pytest.raises(RunError, match=r"similarity\.json.*Delete it"):
        cached_similarity(config, scenes, file)
