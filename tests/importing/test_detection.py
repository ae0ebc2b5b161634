"""An imported detector finds what the release's finds."""

import pytest
import torch
from release_detector import CLASSES, SETTINGS, Detector, resampled
from release_models import Dino, backbone_text, randomized, write, write_frozen
from tiny_backbones import image

import vitsplit
from vitsplit.bundle import read_card, read_weights
from vitsplit.data.public_classes import COCO
from vitsplit.errors import ConfigError, WeightsError
from vitsplit.importing.openmmlab import _description

RECORD = {"config": SETTINGS.format(backbone=backbone_text()), "CLASSES": CLASSES}


def imported(folder, record=RECORD, **options):
    """A random detector, and the bundle of its checkpoint."""
    dino = randomized(Dino(), seed=1)
    model = randomized(Detector(Dino(patch_size=16, side=4), **options), seed=2)
    model.backbone.backbone = resampled(dino).eval()
    with torch.no_grad():
        for convolution in model.neck.fpn_convs:  # so that proposals differ in their class
            convolution.conv.weight *= 2
        # mmdet shrinks boxes by at most 62.5, torchvision without limit: no difference to a trained model.
        model.rpn_head.rpn_reg.weight *= 0.1
    weights = write_frozen(folder / "dinov2.pth", dino)
    file = write(folder / "epoch_12.pth", model, record)
    bundle = vitsplit.import_checkpoint(file, out=folder / "bundle", backbone="dinov2-small", weights=weights)
    return model, bundle, vitsplit.load(bundle, weights=weights, device="cpu")


@pytest.mark.parametrize("masks", [True, False])
def test_detections_equal_the_release(masks, tiny, tmp_path):
    model, bundle, predictor = imported(tmp_path, masks=masks)
    image_BCHW = image(96, 128, batch=1)
    with torch.no_grad():
        boxes, scores, labels, probabilities = model.double().detect(image_BCHW)
    seen = (boxes[:, 2:] - boxes[:, :2] > 0.01).all(1)  # torchvision omits smaller ones
    found = predictor.predict(image_BCHW[0].permute(1, 2, 0).numpy())["detection"]
    assert len(found.boxes) == seen.sum() > 100
    assert labels[seen].bincount(minlength=3).min() > 5, "every class"
    # Not in order, since many scores are nearly equal.
    own = torch.cat([1000 * torch.from_numpy(found.labels)[:, None], torch.from_numpy(found.boxes)], 1).double()
    nearest = torch.cdist(torch.cat([1000 * labels[seen, None], boxes[seen]], 1), own).argmin(1)
    assert len(nearest.unique()) == len(nearest)
    assert (torch.from_numpy(found.labels)[nearest] == labels[seen]).all()
    assert (torch.from_numpy(found.scores)[nearest] - scores[seen]).abs().max() < 1e-5
    assert (torch.from_numpy(found.boxes)[nearest] - boxes[seen]).abs().max() < 1e-5 * 128, "of the image's width"
    assert (found.mask_bins is None) is not masks
    if masks:
        assert (torch.from_numpy(found.mask_bins)[nearest] - probabilities[seen]).abs().max() < 1e-5
    config = read_card(bundle).config
    assert (config.backbone.patch_size, config.backbone.patch_resample) == (16, "release")
    assert (config.task.anchor_sizes, config.task.max_detections) == ((8, 16, 32, 64, 128), 2000)


def test_rows_of_the_background_are_moved_and_added(tiny, tmp_path):
    model, bundle, _ = imported(tmp_path)
    state, heads = read_weights(bundle), "decoder.roi_heads"
    for kind in ("weight", "bias"):
        released = model.roi_head.bbox_head.fc_cls.get_parameter(kind)
        ours = state[f"{heads}.box_predictor.cls_score.{kind}"]
        assert torch.equal(ours[0], released[-1]) and torch.equal(ours[1:], released[:-1])
        released = model.roi_head.bbox_head.fc_reg.get_parameter(kind)
        ours = state[f"{heads}.box_predictor.bbox_pred.{kind}"]
        assert not ours[:4].any() and torch.equal(ours[4:], released)
        released = model.roi_head.mask_head.conv_logits.get_parameter(kind)
        ours = state[f"{heads}.mask_predictor.mask_fcn_logits.{kind}"]
        assert not ours[:1].any() and torch.equal(ours[1:], released)


def test_a_frozen_model_that_was_resampled_otherwise_is_refused(tiny, tmp_path, monkeypatch):
    def otherwise(dino, resampled=resampled):
        other = resampled(dino)
        with torch.no_grad():
            other.patch_embed.proj.weight *= (16 / 14) ** 2
            other.pos_embed *= 1.001
        return other

    monkeypatch.setitem(globals(), "resampled", otherwise)
    with pytest.raises(WeightsError, match=r": pos_embed, patch_embed\.proj\.weight differ"):
        imported(tmp_path)


@pytest.mark.parametrize(
    ("recorded", "other"),
    [("ratios=[0.5, 1.0, 2.0]", "ratios=[1.0, 2.0, 0.5]"), ("nms_pre=1000", "nms_pre=2000"), ("0.2, 0.2", "0.3, 0.3")],
)
def test_settings_that_bundles_do_not_have_are_refused(recorded, other, tiny, tmp_path):
    assert recorded in RECORD["config"]
    with pytest.raises(ConfigError, match="for which bundles have no setting"):
        imported(tmp_path, RECORD | {"config": RECORD["config"].replace(recorded, other)})


def test_the_classes_of_coco_have_their_ids():
    found = {"decoder.roi_heads.box_predictor.cls_score.bias": torch.empty(81)}
    ids = _description("detection", found, {"CLASSES": COCO}, None, "file")["category_ids"]
    assert (ids[0], ids[11], ids[79]) == (1, 13, 90)
    assert "category_ids" not in _description("detection", found, {"CLASSES": COCO[::-1]}, None, "file")
