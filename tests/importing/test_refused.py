"""Checkpoints that cannot be imported, or not without further information."""

import json
import logging
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from release_detector import CLASSES as DETECTED
from release_detector import SETTINGS, Detector, resampled
from release_models import (
    CLASSES,
    LAYERS,
    PRIOR,
    TUNED,
    WIDTH,
    Dense,
    DepthHead,
    Dino,
    SegmentationHead,
    SplitBackbone,
    backbone_text,
    imported,
    meta,
    randomized,
    write,
    write_frozen,
)

import vitsplit
from vitsplit.backbone import CATALOG
from vitsplit.bundle import read_card
from vitsplit.cli.main import main
from vitsplit.errors import ConfigError, DataError, VitsplitError, WeightsError
from vitsplit.importing.frozen import backbone_name
from vitsplit.importing.openmmlab import build_openmmlab

RECORD = meta(backbone_text())


@pytest.fixture
def depth():
    return randomized(Dense(SplitBackbone(), DepthHead()))


def without(model, *names):
    """The model as it is written, without some tensors."""
    state = {name: value for name, value in model.state_dict().items() if name not in names}
    return type("Written", (), {"backbone": model.backbone, "state_dict": lambda self: state})()


def test_tensors_left_over_and_missing_are_listed_in_one_error(depth, tiny, tmp_path):
    depth.backbone.bn_other = torch.nn.BatchNorm2d(WIDTH)
    lost = "backbone.fusion_conv.2.offsets.bias"
    with pytest.raises(WeightsError) as error:
        imported(without(depth, lost, "decode_head.up.4.weight"), RECORD, tmp_path)
    message = str(error.value)
    assert "backbone.bn_other.running_mean" in message and "bn_norm" not in message
    assert "head.fusion.block.mix.offset.bias" in message and "decoder.norm2.weight" in message
    assert not (tmp_path / "bundle").exists()


def test_tensors_of_other_shapes_are_listed(depth, tiny, tmp_path):
    depth.decode_head.conv_depth = torch.nn.Conv2d(64, 80, 3, padding=1)  # bins of depth
    with pytest.raises(WeightsError, match=r"decoder\.regress\.weight is float32 \(80, 64, 3, 3\)"):
        imported(depth, RECORD, tmp_path)


@pytest.mark.parametrize("wrong", ["a number", "one more", "nothing", "NaN"])
@pytest.mark.parametrize("kind", ["segmentation", "detection"])
def test_tensors_are_checked(kind, wrong, tiny, tmp_path):
    dino, record = randomized(Dino(), seed=1), RECORD | {"CLASSES": CLASSES}
    model = Dense(SplitBackbone(dino), SegmentationHead())
    if kind == "detection":
        model, record = Detector(resampled(dino)), {"CLASSES": DETECTED}
        record["config"] = SETTINGS.format(backbone=backbone_text())
    given = {"backbone": "dinov2-small", "weights": write_frozen(tmp_path / "dinov2.pth", dino)}
    none = dict.fromkeys(("config", "prior_layers", "classes"))
    state = model.state_dict()
    # Sizes are read from some; others are converted; the rest are alike.
    parts = r"cls_token|pos_embed|patch_embed.proj.weight|backbone.frozen_conv.0.weight|split_head.1.attn.qkv.bias"
    heads = r"conv_seg.bias|bn.num_batches_tracked|lateral_convs.0.conv.weight|fc_(cls|reg).bias|conv_logits.weight"
    names = [name for name in state if re.search(f"({parts}|{heads})$", name)]
    assert len(names) > 6
    for name in names:
        value = state[name]
        changed = {
            "a number": value.new_zeros(1 if value.dim() == 0 else ()),
            "one more": torch.cat([value.flatten(), value.flatten()[:1]]),
            "NaN": value * torch.nan,
            "nothing": value[:0] if value.dim() else value.new_zeros(0),
        }[wrong]
        with pytest.raises(VitsplitError):
            build_openmmlab(kind, state | {name: changed}, record, "file", **none, **given)
            pytest.fail(name)


@pytest.mark.parametrize("wrong", ["expanded", "sparse", "complex"])
def test_tensors_whose_numbers_are_not_in_the_file_are_refused(wrong, depth, tiny, tmp_path):
    name = "backbone.fusion_conv.0.weight"
    value = depth.state_dict()[name]
    changes = {"expanded": torch.ones(()).expand(value.shape), "sparse": value.to_sparse(), "complex": value + 0j}
    file = write(tmp_path / "file.pth", depth, RECORD, **{name: changes[wrong]})
    with pytest.raises(WeightsError, match=rf"unsupported: {name}"):
        vitsplit.import_checkpoint(file, out=tmp_path / "bundle")


@pytest.mark.parametrize("lost", ["backbone.frozen_conv.0.weight", "decode_head.conv_seg.bias"])
def test_a_missing_tensor_that_has_a_size_is_named(lost, tiny, tmp_path):
    model = randomized(Dense(SplitBackbone(), SegmentationHead()))
    with pytest.raises(WeightsError, match=r"missing: (head\.prior_head.*reduce\.weight|decoder\.classify\.bias)"):
        imported(without(model, lost), RECORD | {"CLASSES": CLASSES}, tmp_path)


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("value", ["code", "array"])
def test_nothing_but_tensors_plain_values_and_numbers_is_read(value, depth, tiny, tmp_path):
    file = tmp_path / "ran"
    record = RECORD | {"extra": Touch(file) if value == "code" else np.zeros(3)}
    with pytest.raises(WeightsError, match="not executed"):
        imported(depth, record, tmp_path)
    assert not file.exists()
    pickle.loads(pickle.dumps(Touch(file)))
    assert file.exists(), "what loading it would have done"


def test_another_frozen_model_is_refused(depth, tiny, tmp_path):
    weights = write_frozen(tmp_path / "other.pth", randomized(Dino(), seed=9))
    with pytest.raises(WeightsError, match=r"blocks\.0\.attn\.proj\.bias.* differ"):
        imported(depth, RECORD, tmp_path, weights=weights)


def test_a_tuned_frozen_model_is_refused(depth, tiny, tmp_path):
    weights = write_frozen(tmp_path / "dino.pth", depth.backbone.backbone)
    with torch.no_grad():
        depth.backbone.backbone.blocks[3].mlp.fc2.bias[0] += 1e-6
    with pytest.raises(WeightsError, match=r": blocks\.3\.mlp\.fc2\.bias differ"):
        imported(depth, RECORD, tmp_path, weights=weights)


def test_a_frozen_model_that_is_missing_is_refused(depth, tiny, tmp_path):
    frozen = [name for name in depth.state_dict() if name.startswith("backbone.backbone.")]
    with pytest.raises(WeightsError, match=r"missing: backbone\.backbone\.cls_token"):
        imported(without(depth, *frozen), RECORD, tmp_path)


@pytest.mark.parametrize(
    "record",
    [
        {},
        meta("type='DINOViTSplitFusion'"),
    ],
    ids=["no meta", "no layers"],
)
def test_unrecorded_prior_layers_have_to_be_given(record, depth, tiny, tmp_path):
    with pytest.raises(ConfigError, match="--prior-layers"):
        imported(depth, record, tmp_path)
    bundle, _ = imported(depth, record, tmp_path, prior_layers=(3, 0, 1))
    assert read_card(bundle).prior_layers == (0, 1, 3)


@pytest.mark.parametrize(
    ("record", "given", "message"),
    [
        (RECORD, (1, 2, 3), r"trained with out_indices \[0, 1, 3\]"),
        ({}, (0, 3), "reads 3 layers, but 2 are given"),
        ({}, (0, 1, 9), "exceed the range"),
        ({}, (0, 1, 1), "strictly increasing"),
        (meta(backbone_text().replace("[2, 3]", "[0, 1]")), None, r"copies the blocks \[0, 1\]"),
        ({"config": RECORD["config"].replace("align_corners=False", "align_corners=True")}, None, "align_corners=true"),
    ],
)
def test_settings_that_do_not_fit(record, given, message, depth, tiny, tmp_path):
    with pytest.raises(ConfigError, match=message):
        imported(depth, record, tmp_path, prior_layers=given)


@pytest.mark.parametrize(
    "config",
    [
        f"import os\nmodel = dict(backbone=dict({backbone_text()}), decode_head=os.system('false'))",
        f"model = dict(backbone=dict({backbone_text()}))\nmodel.update(decode_head=None)",
        "model = dict(" * 5000,
        "a = 1" + " + 1" * 200_000,
        f"a = {[1] * 500_000}",
        3,
    ],
    ids=["code", "statement", "unfinished", "deep", "long", "a number"],
)
def test_a_configuration_that_cannot_be_read_is_refused(config, depth, tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"configuration.*Give it with --config|line [12] .* model"):
        imported(depth, {"config": config}, tmp_path, prior_layers=PRIOR)


def test_a_gate_has_no_prior_layers(tiny, tmp_path):
    model = randomized(Dense(SplitBackbone(gate=2), DepthHead()))
    with pytest.raises(ConfigError, match="Omit it"):
        imported(model, {}, tmp_path, prior_layers=(0, 1))


def test_unrecorded_classes_have_to_be_given(tiny, tmp_path):
    model = randomized(Dense(SplitBackbone(), SegmentationHead()))
    file = tmp_path / "classes.json"
    file.write_text(json.dumps(["a", "b", "c", "d", "e"]))
    for record in (RECORD, RECORD | {"CLASSES": CLASSES[:4]}, RECORD | {"CLASSES": (1, 2, 3, 4, 5)}):
        with pytest.raises(ConfigError, match="--classes"):
            imported(model, record, tmp_path)
    _, predictor = imported(model, RECORD, tmp_path, classes=file)
    assert predictor["segmentation"].task.classes.names == ("a", "b", "c", "d", "e")
    file.write_text(json.dumps(["a", "b"]))
    with pytest.raises(ConfigError, match="has 2 names"):
        imported(model, RECORD, tmp_path / "..", classes=file, out=tmp_path / "other")


def test_other_checkpoints_are_refused(tiny, tmp_path):
    torch.save({"state_dict": {"backbone.conv1.weight": torch.zeros(2)}}, tmp_path / "resnet.pth")
    with pytest.raises(WeightsError, match=r"backbone\.conv1\.weight"):
        vitsplit.import_checkpoint(tmp_path / "resnet.pth", out=tmp_path / "bundle")
    with pytest.raises(WeightsError, match="does not exist"):
        vitsplit.import_checkpoint(tmp_path / "none.pth", out=tmp_path / "bundle")


def test_the_backbone_is_recognized_by_its_size():
    for name in (
        f"dinov2-{size}{registers}" for size in ("small", "base", "large", "giant") for registers in ("", "-reg")
    ):
        spec = CATALOG[name]
        frozen = {"cls_token": torch.empty(1, 1, spec.width)}
        frozen |= {f"blocks.{index}.norm1.weight": torch.empty(spec.width) for index in range(spec.num_layers)}
        if name.endswith("-reg"):
            frozen["register_tokens"] = torch.empty(1, 4, spec.width)
        assert backbone_name(frozen, "file") == name
    with pytest.raises(ConfigError, match=r"of 0 blocks of width 64.*--backbone"):
        backbone_name({"cls_token": torch.empty(1, 1, WIDTH)}, "file")


def test_the_command_line(depth, tiny, tmp_path, capsys, caplog):
    weights = write_frozen(tmp_path / "dinov2.pth", depth.backbone.backbone)
    file = write(tmp_path / "best.pth", depth, {})
    flags = ["--backbone", "dinov2-small", "--weights", str(weights), "--prior-layers", "0", "1", "3"]
    with caplog.at_level(logging.INFO):
        assert main(["import", str(file), "--out", str(tmp_path / "bundle"), *flags]) == 0
    assert f"K_t {TUNED}, prior layers 0 1 3" in caplog.text
    assert read_card(tmp_path / "bundle").config.method.num_tuned_layers == LAYERS - 2
    assert main(["import", str(file), "--out", str(tmp_path / "bundle"), *flags]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    with pytest.raises(DataError):
        vitsplit.import_checkpoint(
            file, out=tmp_path / "bundle", prior_layers=(0, 1, 3), backbone="dinov2-small", weights=weights
        )
