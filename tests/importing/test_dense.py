"""Imported segmentation and depth bundles predict what the release's models do, and tensors pass unchanged."""

import pytest
import torch
from release_models import (
    CLASSES,
    PALETTE,
    Dense,
    DepthHead,
    Dino,
    SegmentationHead,
    SplitBackbone,
    backbone_text,
    imported,
    meta,
    randomized,
)
from tiny_backbones import image

from vitsplit.backbone.models import build_model
from vitsplit.bundle import read_card, read_weights
from vitsplit.importing.keys import TABLES, renamed

DATA = """dict(test=dict(pipeline=[dict(type='LoadImageFromFile'), dict(type='MultiScaleFlipAug',
    img_scale=(480, 640), flip={flip}, transforms=[{steps}dict(type='RandomFlip'), dict(type='Collect')])]))"""
FORMS = [{}, {"gate": 2}, {"fusion": "fusion_net", "tuned": 1, "prior": (3,), "dead_norm": False}]
NAMES = [
    ("head.task_head.blocks.", "backbone.split_head."),
    ("head.prior_head.block.reduce.", "backbone.frozen_conv.0."),
    ("head.prior_head.block.mix.offset.", "backbone.frozen_conv.2.offsets."),
    ("head.prior_head.block.mix.weight", "backbone.frozen_conv.2.deform_conv.weight"),
    ("head.fusion.block.reduce.", "backbone.fusion_conv.0."),
    ("head.fusion.block.mix.offset.", "backbone.fusion_conv.2.offsets."),
    ("head.fusion.block.mix.weight", "backbone.fusion_conv.2.deform_conv.weight"),
    ("head.gate.scores_LJ", "backbone.learnable_gate.scores"),
    ("decoder.up1.", "decode_head.up.0."),
    ("decoder.norm1.", "decode_head.up.1."),
    ("decoder.up2.", "decode_head.up.3."),
    ("decoder.norm2.", "decode_head.up.4."),
    ("decoder.last_norm.", "decode_head.bn."),
    ("decoder.classify.", "decode_head.conv_seg."),
    ("decoder.regress.", "decode_head.conv_depth."),
]


def record(form, flip=False, steps="", **settings):
    known = {name: form[name] for name in ("tuned", "prior") if name in form}
    return meta(backbone_text(**known), data=DATA.format(flip=flip, steps=steps), **settings)


@pytest.mark.parametrize("size", [(70, 70), (61, 83)])
@pytest.mark.parametrize("form", FORMS, ids=["fusion_conv", "gate", "fusion_net"])
def test_segmentation_equals_the_release(form, size, tiny, tmp_path):
    model = randomized(Dense(SplitBackbone(**form), SegmentationHead()))
    known = record(form) | {"CLASSES": CLASSES, "PALETTE": PALETTE}
    bundle, predictor = imported(model, known, tmp_path)
    image_BCHW = image(*size, batch=1)
    with torch.no_grad():
        want_BKHW = model.whole(image_BCHW)
        logits_BKhw, _ = predictor["segmentation"].forward(image_BCHW)
    have_BKHW = torch.nn.functional.interpolate(logits_BKhw, size=size, mode="bilinear")
    assert (have_BKHW - want_BKHW).abs().max() < 1e-5 * want_BKHW.abs().max().clamp(min=1)
    prediction = predictor.predict(image_BCHW[0].permute(1, 2, 0).numpy())["segmentation"]
    assert (torch.from_numpy(prediction.mask) == want_BKHW[0].argmax(0)).all(), "every pixel"
    assert prediction.classes.names == CLASSES
    assert [list(color) for color in prediction.classes.colors] == PALETTE
    task = read_card(bundle).config.task
    assert (task.pad_logits, task.test_mode) == ("stretch", "whole")


def test_segmentation_in_windows_equals_the_release(tiny, tmp_path):
    model = randomized(Dense(SplitBackbone(), SegmentationHead()))
    known = record({}, test_cfg="dict(mode='slide', crop_size=(56, 56), stride=(37, 37))")
    bundle, predictor = imported(model, known | {"CLASSES": CLASSES}, tmp_path)
    assert read_card(bundle).config.task.crop_size == (56, 56)
    image_BCHW = image(90, 131, batch=1)
    with torch.no_grad():
        want_HW = model.slide(image_BCHW, 56, 37)[0].argmax(0)
    prediction = predictor.predict(image_BCHW[0].permute(1, 2, 0).numpy())["segmentation"]
    assert (torch.from_numpy(prediction.mask) == want_HW).all()


@pytest.mark.parametrize("size", [(70, 70), (61, 83)])
def test_depth_equals_the_release(size, tiny, tmp_path):
    model = randomized(Dense(SplitBackbone(), DepthHead()))
    bundle, predictor = imported(model, record({}, flip=True), tmp_path)
    image_BCHW = image(*size, batch=1)
    model.double()  # in float32 the two differ by the rounding of both
    with torch.no_grad():
        want_HW = ((model.whole(image_BCHW) + model.whole(image_BCHW.flip(-1)).flip(-1)) / 2)[0, 0]
    have_HW = torch.from_numpy(predictor.predict(image_BCHW[0].permute(1, 2, 0).numpy())["depth"].depth)
    assert (have_HW - want_HW).abs().max() < 1e-5
    assert want_HW.std() > 0.1
    assert read_card(bundle).config.backbone.position_resample == "release"


@pytest.mark.parametrize("decode_head", [SegmentationHead, DepthHead])
@pytest.mark.parametrize("gate", [0, 2])
def test_a_round_trip_keeps_every_bit(gate, decode_head, tiny, tmp_path):
    model = randomized(Dense(SplitBackbone(gate=gate), decode_head()), seed=3)
    known = record({}) | {"CLASSES": CLASSES}
    bundle, _ = imported(model, known, tmp_path)
    state = read_weights(bundle)
    released = {}
    for name, tensor in state.items():
        ours, theirs = next(pair for pair in NAMES if name.startswith(pair[0]))
        released[name.replace(ours, theirs)] = tensor
    twin = randomized(Dense(SplitBackbone(Dino(), gate=gate, dead_norm=False), decode_head()), seed=4)
    twin.backbone.backbone = model.backbone.backbone
    lacking = twin.load_state_dict(released, strict=False)
    assert not lacking.unexpected_keys
    assert all(name.startswith("backbone.backbone.") for name in lacking.missing_keys)
    (tmp_path / "again").mkdir()
    again, _ = imported(twin, known, tmp_path / "again")
    state_again = read_weights(again)
    assert state.keys() == state_again.keys()
    assert all(torch.equal(state[name], state_again[name]) for name in state)


def test_the_gated_mlp_of_the_giant_model_has_the_names_of_timm():
    names = [f"backbone.split_head.0.mlp.{layer}.{kind}" for layer in ("w12", "w3") for kind in ("weight", "bias")]
    found, left_over = renamed({name: torch.ones(1) for name in names}, TABLES["segmentation"])
    with torch.device("meta"):
        block = build_model("dinov2-giant", depth=1).blocks[0]
    assert not left_over
    ours = {name.removeprefix("head.task_head.blocks.0.") for name in found}
    assert ours == {name for name, _ in block.named_parameters() if name.startswith("mlp.")}
