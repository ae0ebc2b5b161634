"""Head bundles: their contents, and errors of invalid ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import vitsplit
from small_run import SMALL_RUN
from vitsplit.backbone import load_backbone
from vitsplit.bundle import read_card, save_bundle
from vitsplit.data.classes import ClassList, default_colors
from vitsplit.engine.override import override
from vitsplit.errors import BundleError
from vitsplit.model import build_head
from vitsplit.recipes import recipe
from vitsplit.tasks.segmentation.task import SegmentationTask


def copy_of(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def test_bundle_has_only_trainable_tensors_and_no_pickle(run: Path) -> None:
    assert {file.name for file in (run / "best").iterdir()} == {"head.safetensors", "head.json", "README.md"}
    names = load_file(run / "best" / "head.safetensors").keys()
    # The frozen norm and the backbone are rebuilt from the backbone's own weights.
    assert not [name for name in names if "final_norm" in name or "backbone" in name or "patch_embed" in name]
    assert [name for name in names if name.startswith("head.task_head.blocks.1.")]
    assert not [name for name in names if name.startswith("head.task_head.blocks.2.")]  # K_t = 2


@pytest.mark.parametrize(("precision", "most_mb"), [("fp32", 42), ("bf16", 21)])
def test_small_ade20k_bundle_size(tmp_path: Path, precision: str, most_mb: int) -> None:
    config = override(recipe("ade20k-small"), {"random_weights": True, "bundle_precision": precision})
    classes = ClassList(names=tuple(f"c{index}" for index in range(150)), colors=default_colors(150))
    task = SegmentationTask(config.task, classes)
    backbone = load_backbone("dinov2-small", random_weights=True)
    model = build_head(config, backbone, task)
    save_bundle(tmp_path, config=config, task=task, backbone=backbone, head=model, metrics={})
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    # 10,230,330 parameters of Table 6 in 4 or 2 bytes, and little else.
    assert 10_230_330 * (4 if precision == "fp32" else 2) < size <= most_mb * 1e6


def test_a_loaded_bundle_equals_the_trained_model(run: Path, scenes: Path) -> None:
    first, second = vitsplit.load(run, precision="fp32"), vitsplit.load(run / "best", precision="fp32")
    image = torch.randint(0, 256, (1, 3, 50, 70), dtype=torch.uint8)
    logits_first, logits_second = first.forward(image)[0], second.forward(image)[0]
    assert torch.equal(logits_first, logits_second)
    stored = load_file(run / "best" / "head.safetensors")
    live = first.model.state_dict()
    assert all(torch.equal(live[name], tensor) for name, tensor in stored.items())
    # The model is the trained one: it differs from the initial weights of the same seed.
    fresh = build_head(first.card.config, first.backbone, first.task).state_dict()
    assert not torch.equal(fresh["decoder.classify.weight"], live["decoder.classify.weight"])


def test_only_the_same_backbone_is_accepted(run: Path, tmp_path: Path) -> None:
    bundle = copy_of(run / "best", tmp_path)
    card = json.loads((bundle / "head.json").read_text())
    trained_on = card["backbone"]["weights_hash"]
    card["backbone"]["weights_hash"] = "0" * 64
    (bundle / "head.json").write_text(json.dumps(card))
    with pytest.raises(BundleError) as error:
        vitsplit.load(bundle)
    assert "0" * 16 in str(error.value) and trained_on[:16] in str(error.value)
    assert "vit_tiny_patch16_224" in str(error.value)


@pytest.mark.parametrize("damage", ["truncated", "missing", "renamed tensor"])
def test_damaged_weights_name_the_file(run: Path, tmp_path: Path, damage: str) -> None:
    bundle = copy_of(run / "best", tmp_path)
    file = bundle / "head.safetensors"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1000])
    elif damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes().replace(b"decoder.classify", b"decoder.klassify"))
    with pytest.raises(BundleError, match=r"head\.safetensors"):
        vitsplit.load(bundle)


@pytest.mark.parametrize(
    ("content", "expected"),
    [("{", "not valid JSON"), ('{"format": 99, "vitsplit": "9.0"}', "newer"), ("{}", "format")],
)
def test_invalid_cards_are_rejected(run: Path, tmp_path: Path, content: str, expected: str) -> None:
    bundle = copy_of(run / "best", tmp_path)
    (bundle / "head.json").write_text(content)
    with pytest.raises(BundleError, match=expected) as error:
        read_card(bundle)
    assert "head.json" in str(error.value)


def test_a_folder_without_a_bundle_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no head bundle here"):
        vitsplit.load(tmp_path)


def test_card_has_the_configuration_and_metrics(run: Path) -> None:
    card = read_card(run)
    assert card.task == "segmentation"
    assert card.config.method.num_tuned_layers == 2 and card.config.task.crop_size == (48, 64)
    assert card.prior_layers == (2, 5, 8, 11)  # Eq. 2 with L = 12, b = 2, K_p = 4
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert card.metrics["miou"] == max(row["eval"]["miou"] for row in rows if "eval" in row)


def test_data_with_other_classes_are_rejected(run: Path, scenes: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(scenes, tmp_path / "data"))
    names = json.loads((data / "classes.json").read_text())
    (data / "classes.json").write_text(json.dumps([*names[:-1], "pyramid"]))
    with pytest.raises(BundleError) as error:
        vitsplit.evaluate(run, data=data)
    assert "only in the bundle: ['cone']" in str(error.value) and "only in the data: ['pyramid']" in str(error.value)


@pytest.mark.parametrize("form", ["path", "text", "pil", "array", "tensor"])
def test_every_image_type_gives_the_same_mask(run: Path, scenes: Path, form: str) -> None:
    predictor = vitsplit.load(run, precision="fp32")
    path = next((scenes / "images" / "val").iterdir())
    picture = Image.open(path).convert("RGB")
    array = np.asarray(picture)
    forms = {"path": path, "text": str(path), "pil": picture, "array": array,
             "tensor": torch.from_numpy(array.copy()).permute(2, 0, 1)}  # fmt: skip
    prediction = predictor.predict(forms[form])
    assert prediction.mask.shape == array.shape[:2] and prediction.mask.dtype == np.uint8
    assert np.array_equal(prediction.mask, predictor.predict(path)["segmentation"].mask)
    assert prediction.classes.names == ("wall", "floor", "ceiling", "ball", "box", "cylinder", "cone")


def test_saved_prediction_can_be_read_by_pillow(run: Path, scenes: Path, tmp_path: Path) -> None:
    prediction = vitsplit.load(run).predict(next((scenes / "images" / "val").iterdir()))
    mask_path, overlay_path = prediction.save(tmp_path, "one")
    with Image.open(mask_path) as saved:
        assert saved.mode == "P" and np.array_equal(np.asarray(saved), prediction.mask)
        row, column = 20, 30
        expected = prediction.classes.colors[prediction.mask[row, column]]
        assert saved.convert("RGB").getpixel((column, row)) == expected
    with Image.open(overlay_path) as overlay:
        assert overlay.size == (64, 48)
    mixed = np.asarray(prediction.overlay(opacity=0.5)).astype(int)
    colors = np.array(prediction.classes.colors)[prediction.mask]
    assert np.abs(mixed - (prediction.image.astype(int) + colors) / 2).max() <= 1
    assert sum(prediction.shares().values()) == pytest.approx(1)


def test_rounding_to_bf16_excludes_the_gate(scenes: Path, tmp_path: Path) -> None:
    settings = {**SMALL_RUN, "selection": "gate", "bundle_precision": "bf16"}
    result = vitsplit.train(data=scenes, out=tmp_path / "run", **settings)
    stored = load_file(result.run / "best" / "head.safetensors")
    assert stored["head.gate.scores_LJ"].dtype == torch.float32
    assert stored["head.prior_head.block.reduce.weight"].dtype == torch.bfloat16
    assert stored["decoder.last_norm.running_var"].dtype == torch.float32
    predictor = vitsplit.load(result.run)
    assert tuple(sorted(predictor.model.head.request(train=False).maps)) == predictor.card.prior_layers
