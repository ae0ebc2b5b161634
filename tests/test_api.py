"""The public functions, used as a user would."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitsplit
from small_run import SMALL_RUN
from vitsplit.data.images import read_image, read_mask
from vitsplit.errors import ConfigError, DataError, RunError, WeightsError


def test_training_reduces_the_loss(scenes: Path, tmp_path: Path) -> None:
    result = vitsplit.train(data=scenes, out=tmp_path / "run", **{**SMALL_RUN, "steps": 40, "lr": 1e-3, "flip": 0.0})
    rows = [json.loads(line) for line in (result.run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    # Predicting the class frequencies would give their entropy, about 1.4.
    assert losses[0] > 1.5 and np.mean(losses[-5:]) < 1.3


def test_backbone_is_unchanged(scenes: Path, run: Path) -> None:
    from vitsplit.backbone import load_backbone

    fresh = load_backbone("vit_tiny_patch16_224", random_weights=True)
    card = json.loads((run / "best" / "head.json").read_text())
    assert card["backbone"]["weights_hash"] == fresh.info.weights_hash


def test_evaluation_counts_pixels(run: Path, scenes: Path) -> None:
    evaluation, _ = vitsplit.evaluate(run, data=scenes)
    predictor = vitsplit.load(run)
    right = total = 0
    intersection, union = np.zeros(7), np.zeros(7)
    for path in sorted((scenes / "images" / "val").iterdir()):
        truth = read_mask(scenes / "masks" / "val" / f"{path.stem}.png").numpy()
        mask = predictor.predict(path)["segmentation"].mask
        right, total = right + (mask == truth).sum(), total + truth.size
        for index in range(7):
            intersection[index] += ((mask == index) & (truth == index)).sum()
            union[index] += ((mask == index) | (truth == index)).sum()
    assert evaluation.metrics["pixel_accuracy"] == pytest.approx(right / total)
    assert evaluation.score == pytest.approx(np.mean(intersection[union > 0] / union[union > 0]))


def test_linear_probe_trains_only_norm_and_classifier(scenes: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    result = vitsplit.train(data=scenes, out=tmp_path / "probe", **{**SMALL_RUN, "method": "linear-probe"})
    state = load_file(result.run / "best" / "head.safetensors")
    parameters = {name: tensor for name, tensor in state.items() if "running" not in name and "num_batches" not in name}
    assert sum(tensor.numel() for tensor in parameters.values()) == 2 * 192 + 192 * 7 + 7
    assert vitsplit.load(result.run).predict(next((scenes / "images" / "val").iterdir()))[
        "segmentation"
    ].mask.shape == (48, 64)


@pytest.mark.parametrize("settings", [{"selection": "gate"}, {"dice_weight": 1.0, "class_weights": "auto"},
                                      {"test_mode": "slide", "test_flip": True, "test_scales": (0.75, 1.0)},
                                      {"prior_head": False, "fusion": False}, {"ema": 0.9}])  # fmt: skip
def test_variants_train_evaluate_and_predict(scenes: Path, tmp_path: Path, settings: dict) -> None:
    result = vitsplit.train(data=scenes, out=tmp_path / "run", **{**SMALL_RUN, **settings})
    evaluation, _ = vitsplit.evaluate(result.run, data=scenes)
    assert evaluation.score == pytest.approx(result.metrics["miou"], abs=1e-6)


def test_gate_bundle_requests_its_selected_layers(scenes: Path, tmp_path: Path) -> None:
    settings = {**SMALL_RUN, "selection": "gate", "num_prior_layers": 2}
    result = vitsplit.train(data=scenes, out=tmp_path / "run", **settings)
    predictor = vitsplit.load(result.run)
    scores = predictor.model.head.gate.scores_LJ
    kept = {int(layer) for layer in scores.topk(2, dim=0).indices.flatten()}
    assert predictor.model.head.request(train=False).maps == kept
    assert predictor.card.prior_layers == tuple(sorted(kept))


def test_a_gate_trains_on_cached_features(scenes: Path, tmp_path: Path) -> None:
    settings = {**SMALL_RUN, "steps": 2, "cache_features": 1, "cache_folder": str(tmp_path / "kept")}
    vitsplit.train(data=scenes, out=tmp_path / "run", selection="gate", **settings)
    assert any((tmp_path / "kept").rglob("*.safetensors"))


def test_an_existing_run_is_not_overwritten(run: Path, scenes: Path) -> None:
    before = (run / "best" / "head.safetensors").read_bytes()
    with pytest.raises(RunError, match="already holds a run") as error:
        vitsplit.train(data=scenes, out=run, **SMALL_RUN)
    assert "--resume" in str(error.value) and "--out" in str(error.value)
    assert (run / "best" / "head.safetensors").read_bytes() == before


def test_unknown_settings_and_recipes_suggest_the_right_one(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        vitsplit.train(data=scenes, out=tmp_path / "a", batchsize=2)
    with pytest.raises(ConfigError, match="laptop-segmentation"):
        vitsplit.train(data=scenes, out=tmp_path / "a", recipe="laptop-segmentaton")
    with pytest.raises(ConfigError, match="steps"):
        vitsplit.train(data=scenes, out=tmp_path / "a", steps="many")
    assert not (tmp_path / "a").exists()


def test_class_weights_by_name(scenes: Path) -> None:
    from vitsplit.data.classes import ClassList
    from vitsplit.tasks.segmentation.layouts import open_segmentation_set
    from vitsplit.tasks.segmentation.task import class_weights

    train = open_segmentation_set(scenes, "train")
    classes: ClassList = train.classes
    assert class_weights("none", classes, train) is None
    named = class_weights("ball=3, cone=0.5", classes, train)
    by_dict = class_weights({"ball": 3, "cone": 0.5}, classes, train)
    assert by_dict is not None and named is not None and torch.equal(by_dict, named)
    assert named is not None and named.tolist() == [1, 1, 1, 3, 1, 1, 0.5]
    counts = np.zeros(7)
    for path in (scenes / "masks" / "train").iterdir():
        counts += np.bincount(read_mask(path).numpy().flatten(), minlength=7)
    expected = np.where(counts > 0, 1 / np.sqrt(np.maximum(counts, 1)), np.nan)
    expected = np.nan_to_num(expected / np.nanmean(expected), nan=1.0)
    auto = class_weights("auto", classes, train)
    assert auto is not None and np.allclose(auto.numpy(), expected, rtol=1e-5)
    for wrong in ("ballon=3", "ball", "ball=many", "ball=-1", {"ballon": 1.0}):
        with pytest.raises(ConfigError, match="class_weights"):
            class_weights(wrong, classes, train)


def test_importing_the_package_is_cheap() -> None:
    code = "import vitsplit, sys; assert 'torch' not in sys.modules and 'timm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_image_of_one_pixel_and_of_odd_sizes(run: Path) -> None:
    predictor = vitsplit.load(run)
    for height, width in ((1, 1), (7, 300), (129, 65)):
        image = torch.zeros(3, height, width, dtype=torch.uint8)
        assert predictor.predict(image)["segmentation"].mask.shape == (height, width)


def test_read_image_is_what_predict_sees(run: Path, scenes: Path) -> None:
    path = next((scenes / "images" / "val").iterdir())
    assert np.array_equal(
        vitsplit.load(run).predict(path)["segmentation"].image, read_image(path).permute(1, 2, 0).numpy()
    )


def test_evaluation_on_the_training_split(run: Path, scenes: Path) -> None:
    evaluation, task = vitsplit.evaluate(run, data=scenes, split="train")
    assert len(task.val_images()) == 6 and 0 <= evaluation.score <= 1


def test_resume_in_python_uses_the_settings_of_the_run(run: Path, scenes: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    result = vitsplit.train(data=scenes, out=copy, resume=True)
    assert result.metrics["miou"] == json.loads((run / "best" / "head.json").read_text())["metrics"]["miou"]
    with pytest.raises(ConfigError, match="--out"):
        vitsplit.train(data=scenes, resume=True)
    with pytest.raises(ConfigError, match="holds no run"):
        vitsplit.train(data=scenes, out=tmp_path / "nothing", resume=True)


def test_validation_without_labels_is_an_error(run: Path, scenes: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(scenes, tmp_path / "data"))
    for mask in (data / "masks" / "val").iterdir():
        Image.new("L", (64, 48), 255).save(mask)
    with pytest.raises(DataError, match="val split"):
        vitsplit.evaluate(run, data=data)


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"crop_size": (0, 48)}, "--crop-size"),
        ({"test_stride": (0, 0)}, "--test-stride"),
        ({"test_scales": (0.0,)}, "--test-scales"),
        ({"scale_range": (2.0, 0.5)}, "--scale-range"),
        ({"flip": 1.5}, "--flip"),
        ({"prior_layers": (1, 2)}, "--selection explicit"),
    ],
)
def test_invalid_settings_name_their_flag(scenes: Path, tmp_path: Path, settings: dict, flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        vitsplit.train(data=scenes, out=tmp_path / "run", **{**SMALL_RUN, **settings})


def test_recipe_and_configuration_are_mutually_exclusive(scenes: Path, tmp_path: Path) -> None:
    from vitsplit.recipes import recipe

    with pytest.raises(ConfigError, match="recipe"):
        vitsplit.train(recipe("ade20k-small"), recipe="ade20k-base", data=scenes, out=tmp_path / "run")


def test_moved_weights_of_the_backbone_must_be_given(scenes: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from vitsplit.backbone import load_backbone

    file = tmp_path / "weights" / "mine.safetensors"
    file.parent.mkdir()
    backbone = load_backbone("vit_tiny_patch16_224", random_weights=True)
    save_file(backbone.model.state_dict(), file)
    settings = {**SMALL_RUN, "random_weights": False, "weights": file}
    result = vitsplit.train(data=scenes, out=tmp_path / "run", **settings)
    file.rename(tmp_path / "moved.safetensors")
    with pytest.raises(WeightsError, match="--weights") as error:
        vitsplit.load(result.run)
    assert file.name in str(error.value)
    assert vitsplit.load(result.run, weights=tmp_path / "moved.safetensors").task.name == "segmentation"
    # Shared files must not name a local folder.
    for name in ("README.md", "head.json"):
        assert str(tmp_path) not in (result.run / "best" / name).read_text()
    assert (
        json.loads((result.run / "best" / "head.json").read_text())["backbone"]["source"] == "the file mine.safetensors"
    )
