import dataclasses

import pytest
import torch
from tiny_detector import SMALL, decoder, targets
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

from vitsplit.analysis.cost import count_parameters, gmacs, shape_model
from vitsplit.backbone.config import BackboneConfig
from vitsplit.methods.last_layer import LinearProbeConfig
from vitsplit.methods.split.config import SplitConfig
from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.detection.decoder import LOSSES, DetectionDecoder
from vitsplit.tasks.detection.pyramid import POOLED_LEVELS
from vitsplit.train_config import one_head

BACKGROUND = 4 * 1025 + 257
"""torchvision's box and mask of the background, which mmdetection's last layers do not have."""


@pytest.mark.parametrize(
    ("width", "maps_and_pyramid"),
    [(384, 4_530_560), (768, 10_238_720), (1024, 16_010_240)],
    ids=["small", "base", "large"],
)
def test_parameters_equal_the_release_plus_background(width, maps_and_pyramid):
    with torch.device("meta"):
        model = DetectionDecoder(width, 16, 80, DetectionConfig(), masks=True)
    assert sum(p.numel() for p in model.pyramid.parameters()) == maps_and_pyramid
    assert sum(p.numel() for p in model.parameters()) == maps_and_pyramid + 17_543_920 + BACKGROUND


def test_coco_small_has_the_parameters_of_the_paper():
    config = one_head(
        task=DetectionConfig(),
        backbone=BackboneConfig(backbone="dinov2-small"),
        method=SplitConfig(num_tuned_layers=11, num_prior_layers=4),
    )
    backbone, model = shape_model(config, 80)
    trainable = count_parameters(model, backbone)["trainable"]
    assert trainable == 45_266_196 + BACKGROUND


def test_cost_is_counted_from_shapes():
    """At 1000 proposals and 100 masks, as mmdetection's counter."""
    config = one_head(task=DetectionConfig(), method=LinearProbeConfig())
    boxes_only = config.change(task=DetectionConfig(masks="off"))
    with_masks, without, one_class_more = (
        gmacs(each, (28, 28), num_classes=classes)["total"] * 1e9
        for each, classes in ((config, 80), (boxes_only, 80), (boxes_only, 81))
    )
    mask_head = 100 * (14**2 * (4 * 9 * 256**2 + 4 * 256**2) + 28**2 * 256 * 81)
    assert with_masks - without == pytest.approx(mask_head, rel=1e-6)
    assert one_class_more - without == pytest.approx(1000 * 1024 * 5, rel=1e-3)
    assert without > 1000 * (12544 * 1024 + 1024**2 + 1024 * 81 * 5)


class Maps(nn.Module):
    """Replaces torchvision's backbone: returns the maps of the pyramid for any image."""

    def __init__(self, maps):
        super().__init__()
        self.maps, self.out_channels = maps, 32

    def forward(self, image_BCHW):
        return self.maps


def torchvisions(model, maps, masks):
    """torchvision's whole detector with the weights of ``model``, where strides are powers of two."""

    def pool(bins):
        return MultiScaleRoIAlign([*POOLED_LEVELS], bins, 2)

    anchors = AnchorGenerator(tuple((side,) for side in SMALL.anchor_sizes), ((0.5, 1.0, 2.0),) * 5)
    kind, mask_pool = (MaskRCNN, {"mask_roi_pool": pool(14)}) if masks else (FasterRCNN, {})
    other = kind(
        Maps(maps),
        4,
        rpn_anchor_generator=anchors,
        box_roi_pool=pool(7),
        rpn_post_nms_top_n_train=1000,
        box_batch_size_per_image=64,
        **mask_pool,
    )
    if masks:
        other.roi_heads.mask_head = type(other.roi_heads.mask_head)(32, (32,) * 4, 1)
        other.roi_heads.mask_predictor = type(other.roi_heads.mask_predictor)(32, 32, 4)
    other.rpn.load_state_dict(model.rpn.state_dict())
    other.roi_heads.load_state_dict(model.roi_heads.state_dict())
    return other


def run_torchvisions(other, objects=None):
    """Losses in training, results else, on two images of 128 x 128."""
    images = ImageList(torch.zeros(2, 3, 128, 128), [(128, 128)] * 2)
    maps = other.backbone(images.tensors)
    proposals, first = other.rpn(images, maps, objects)
    results, second = other.roi_heads(maps, proposals, images.image_sizes, objects)
    return {**first, **second} if objects else results


@pytest.mark.parametrize("masks", [True, False])
def test_losses_at_patch_16_equal_torchvision(masks):
    model = decoder(masks).train()
    fused_BDhw, wanted = torch.randn(2, 32, 8, 8), targets(128, 128, masks)
    objects = [{"boxes": b, "labels": n + 1} for b, n in zip(wanted.boxes, wanted.labels, strict=True)]
    for entry, masks_NHW in zip(objects, wanted.masks or [], strict=masks):
        entry["masks"] = masks_NHW
    with torch.no_grad():
        other = torchvisions(model, model.pyramid(fused_BDhw), masks).train()
        torch.manual_seed(7)
        losses = model(fused_BDhw, wanted)
        torch.manual_seed(7)
        theirs = run_torchvisions(other, objects)
    assert {LOSSES[name] for name in theirs} == losses.keys()
    assert ("mask" in losses) is masks
    for name, loss in theirs.items():
        torch.testing.assert_close(losses[LOSSES[name]], loss, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("masks", [True, False])
def test_detections_at_patch_16_equal_torchvision(masks):
    model = decoder(masks).eval()
    fused_BDhw = torch.randn(2, 32, 8, 8)
    with torch.no_grad():
        found = model(fused_BDhw)
        theirs = run_torchvisions(torchvisions(model, model.pyramid(fused_BDhw), masks).eval())
    for mine, their in zip(found, theirs, strict=True):
        assert 0 < len(mine.boxes_N4) <= SMALL.max_detections
        torch.testing.assert_close(mine.boxes_N4, their["boxes"], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(mine.labels_N + 1, their["labels"])
        torch.testing.assert_close(mine.scores_N, their["scores"])
        assert (mine.masks_Nmm is not None) is masks
        if masks:
            torch.testing.assert_close(mine.masks_Nmm[:, None], their["masks"])


@pytest.mark.parametrize("masks", [True, False])
def test_all_parameters_get_gradients_without_objects(masks):
    model = decoder(masks, patch_size=14).train()
    wanted = targets(126, 154, masks)
    empty = dataclasses.replace(
        wanted,
        boxes=[wanted.boxes[1]] * 2,
        labels=[wanted.labels[1]] * 2,
        masks=[wanted.masks[1]] * 2 if masks else None,
    )
    for objects in (wanted, empty):
        model.zero_grad(set_to_none=True)
        losses = model(torch.randn(2, 32, 9, 11), objects)
        sum(losses.values()).backward()
        assert all(torch.isfinite(loss) for loss in losses.values())
        # Data-parallel training waits for every parameter's gradient.
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert losses["proposal_box"] == losses["box"] == 0


def test_boxes_are_float32_in_bf16():
    """With no offsets to add, every detection is an anchor cut at the image's edge, at coordinates bf16 cannot hold."""
    model = decoder(patch_size=14, score_threshold=0.0).eval()
    for layer in (model.rpn.head.bbox_pred, model.roi_heads.box_predictor.bbox_pred):
        nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (found,) = model(torch.randn(1, 32, 31, 41))
    assert {found.boxes_N4.dtype, found.scores_N.dtype, found.masks_Nmm.dtype} == {torch.float32}
    maps = [torch.zeros(1, 1, -(-31 * 4 // s), -(-41 * 4 // s)) for s in (1, 2, 4, 8, 16)]
    anchors_A4 = model.rpn.anchor_generator(ImageList(maps[0], [(434, 574)]), maps)[0]
    anchors_A4 = anchors_A4.clamp(torch.zeros(4), torch.tensor([574.0, 434.0] * 2))
    nearest_N = torch.cdist(found.boxes_N4, anchors_A4, p=float("inf")).min(1).values
    assert found.boxes_N4.max() > 300 and nearest_N.max() < 1e-3
    assert not torch.equal(found.boxes_N4.bfloat16().float(), found.boxes_N4)


def test_limits_are_applied():
    model = decoder(score_threshold=0.3, max_detections=5).eval()
    with torch.no_grad():
        found = model(torch.randn(2, 32, 8, 8))
    for each in found:
        assert len(each.boxes_N4) <= 5 and bool((each.scores_N > 0.3).all())
        assert each.limits == (0.3, 0.5, 5)
        assert torch.equal(each.scores_N, each.scores_N.sort(descending=True).values)


@pytest.mark.parametrize("grid", [(1, 1), (1, 96), (3, 2)], ids=str)
def test_detections_on_tiny_and_narrow_images(grid):
    for learned in (True, False):
        torch.manual_seed(0)
        model = DetectionDecoder(32, 14, 3, SMALL, masks=True, learned_maps=learned).eval()
        with torch.no_grad():
            (found,) = model(torch.randn(1, 32, *grid))
        edge = torch.tensor([grid[1] * 14.0, grid[0] * 14.0] * 2)
        assert bool((found.boxes_N4 <= edge).all()) and found.masks_Nmm.shape[1:] == (28, 28)
