"""``--rcnn mmdet`` against mmdetection's formulas, written out in loops. Boxes are (x1, y1, x2, y2)."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_detector import GRID, SIZES, SMALL, coordinate_maps, corner_boxes, decoder, targets
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from vitsplit.config import from_dict, to_dict
from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.detection.decoder import DetectionDecoder
from vitsplit.tasks.detection.mmdet_form import BestBoxMatcher, box_loss, mask_loss, mask_targets
from vitsplit.tasks.detection.pyramid import POOLED_LEVELS, STRIDES
from vitsplit.tasks.detection.strides import ExactAnchors, exact_pool


def encoded(box, target, stds):
    """mmdet's DeltaXYWHBBoxCoder with means of zero."""
    (x1, y1, x2, y2), (u1, v1, u2, v2) = box, target
    width, height = x2 - x1, y2 - y1
    deltas = [
        ((u1 + u2) / 2 - (x1 + x2) / 2) / width,
        ((v1 + v2) / 2 - (y1 + y2) / 2) / height,
        math.log((u2 - u1) / width),
        math.log((v2 - v1) / height),
    ]
    return [delta / std for delta, std in zip(deltas, stds, strict=True)]


def test_anchors_equal_mmdet():
    """AnchorGenerator(scales=[8], ratios=[0.5, 1, 2], strides=[4, 8, 16, 32, 64]) at patch 16, in float64."""
    maps = [torch.zeros(1, 1, -(-24 // k), -(-40 // k)) for k in (1, 2, 4, 8, 16)]
    (ours,) = ExactAnchors(SIZES, 16, rounded=False)(ImageList(maps[0], [(96, 160)]), maps)
    expected = []
    for level, stride in zip(maps, (4, 8, 16, 32, 64), strict=True):
        for row in range(level.shape[-2]):
            for column in range(level.shape[-1]):
                for ratio in (0.5, 1.0, 2.0):
                    width, height = stride * 8 / math.sqrt(ratio), stride * 8 * math.sqrt(ratio)
                    x, y = column * stride, row * stride
                    expected.append((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    assert np.abs(ours.numpy() - np.array(expected)).max() < 1e-4
    assert not torch.equal(ours, ours.round())


@pytest.mark.parametrize("patch_size", [14, 16])
@pytest.mark.parametrize("bins", [7, 14])
def test_aligned_pooling_treats_cells_as_areas(patch_size, bins):
    """A map of its cells' own coordinates, counted from cell 0: a bin's center is half a cell less than in pixels."""
    boxes_N4 = corner_boxes(patch_size, GRID)
    size = (GRID[0] * patch_size, GRID[1] * patch_size)
    pooled = exact_pool(patch_size, bins, aligned=True)(coordinate_maps(patch_size, GRID), [boxes_N4], [size])
    level_N = pooled[:, 2, 0, 0].round().long()
    assert level_N.unique().tolist() == [0, 1, 2, 3]
    half_N1 = torch.tensor(STRIDES)[level_N][:, None] * patch_size / 2
    steps = (torch.arange(bins) + 0.5) / bins
    for axis in (0, 1):
        low, high = boxes_N4[:, axis, None], boxes_N4[:, axis + 2, None]
        found = pooled[:, axis].mean(1 if axis == 0 else 2)
        torch.testing.assert_close(found, low + (high - low) * steps - half_N1, rtol=0, atol=2e-3)


def test_pooling_averages_one_sample_per_cell():
    torch.manual_seed(0)
    maps = {
        name: torch.randn(2, 4, int(32 / stride), int(48 / stride))
        for name, stride in zip((*POOLED_LEVELS, "pool"), STRIDES, strict=True)
    }
    corners_N2 = torch.rand(40, 2) * torch.tensor([500.0, 300.0])
    boxes_N4 = torch.cat([corners_N2, corners_N2 + 5 + torch.rand(40, 2) ** 3 * 600], 1).clamp(max=511)
    boxes_N4[0] = torch.tensor([3.0, 5, 500, 490])
    pooled = exact_pool(16, 7, aligned=True)(maps, [boxes_N4[:25], boxes_N4[25:]], [(512, 768)] * 2)
    levels, numbers = set(), set()
    for n, (x1, y1, x2, y2) in enumerate(boxes_N4.tolist()):
        # mmdet's SingleRoIExtractor: 56 pixels is the finest scale.
        level = min(max(math.floor(math.log2(math.sqrt((x2 - x1) * (y2 - y1)) / 56 + 1e-6)), 0), 3)
        map_1Chw = maps[POOLED_LEVELS[level]][int(n >= 25)][None]
        stride = 4 * 2**level
        across, down = (math.ceil(side / stride / 7) for side in (x2 - x1, y2 - y1))
        x = x1 + (x2 - x1) * (torch.arange(7 * across) + 0.5) / (7 * across)
        y = y1 + (y2 - y1) * (torch.arange(7 * down) + 0.5) / (7 * down)
        # grid_sample without align_corners has cells as areas too: -1 and 1 are the edges of the map.
        share_2 = [2 * axis / (stride * size) - 1 for axis, size in ((x, map_1Chw.shape[3]), (y, map_1Chw.shape[2]))]
        grid_1HW2 = torch.stack(torch.meshgrid(*share_2, indexing="xy"), -1)[None]
        samples_1CHW = F.grid_sample(map_1Chw, grid_1HW2, padding_mode="border", align_corners=False)
        torch.testing.assert_close(pooled[n], F.avg_pool2d(samples_1CHW, (down, across))[0], rtol=0, atol=1e-4)
        levels.add(level)
        numbers |= {across, down}
    assert levels == {0, 1, 2, 3} and {1, 2, 3} <= numbers


def assigned(overlaps_GN, high, low, least):
    """mmdet's MaxIoUAssigner: index of the object, -1 background, -2 neither."""
    result = []
    for n in range(overlaps_GN.shape[1]):
        best = int(overlaps_GN[:, n].argmax())
        overlap = overlaps_GN[best, n]
        result.append(best if overlap >= high else -1 if overlap < low else -2)
    for g in range(overlaps_GN.shape[0]):
        best = overlaps_GN[g].max()
        if best >= least:
            for n in range(overlaps_GN.shape[1]):
                if overlaps_GN[g, n] == best:
                    result[n] = g
    return result


@pytest.mark.parametrize(("high", "low", "least"), [(0.7, 0.3, 0.3), (0.5, 0.5, 0.5)])
def test_matching_equals_mmdet(high, low, least):
    rng = np.random.default_rng(0)
    kinds = set()
    for _ in range(60):
        overlaps_GN = rng.integers(0, 20, (3, 12)) / 20  # coarse, so that there are ties
        overlaps_GN[0] *= rng.choice([0.25, 1])  # an object that no box overlaps much
        ours = BestBoxMatcher(high, low, least)(torch.tensor(overlaps_GN)).tolist()
        expected = assigned(overlaps_GN, high, low, least)
        assert ours == expected
        kinds |= {*expected}
    assert kinds >= {-1, 0, 1, 2}


def test_box_loss_is_l1_over_all_samples():
    deltas_NK4 = torch.tensor([[9.0] * 4 + [1, 2, 3, 4] + [0] * 4, [9.0] * 12, [9.0] * 8 + [0.5, 0, 0, -0.01]])
    target_N4 = torch.tensor([[0.0, 0, 0, 0], [5, 5, 5, 5], [0, 0, 0, 0]])
    # Of three samples the second is background: (1 + 2 + 3 + 4) + (0.5 + 0.01), over three.
    assert float(box_loss(deltas_NK4, torch.tensor([1, 0, 2]), target_N4)) == pytest.approx(10.51 / 3)
    assert float(box_loss(deltas_NK4, torch.tensor([0, 0, 0]), target_N4)) == 0


def test_mask_targets_equal_the_pixels_at_full_resolution():
    masks_GHW = (torch.rand(2, 60, 50, generator=torch.Generator().manual_seed(0)) < 0.4).to(torch.uint8)
    boxes_N4 = torch.tensor([[4.0, 9, 32, 37], [20, 30, 48, 58]])
    cut = mask_targets(masks_GHW, boxes_N4, torch.tensor([1, 0]), 28)
    expected = torch.stack([masks_GHW[1, 9:37, 4:32], masks_GHW[0, 30:58, 20:48]]).float()
    assert torch.equal(cut, expected)
    # Two pixels a bin: half of it covered is enough.
    rows = torch.zeros(1, 8, 8, dtype=torch.uint8)
    rows[0, 1:6] = 1
    (half,) = mask_targets(rows, torch.tensor([[0.0, 0, 8, 8]]), torch.tensor([0]), 4)
    assert half[:, 0].tolist() == [1, 1, 1, 0]
    logits_NKmm = torch.randn(2, 3, 28, 28)
    own = F.binary_cross_entropy_with_logits(torch.stack([logits_NKmm[0, 2], logits_NKmm[1, 1]]), cut)
    torch.testing.assert_close(mask_loss(logits_NKmm, torch.tensor([2, 1]), cut), own)
    empty = mask_loss(logits_NKmm[:0].requires_grad_(), torch.zeros(0, dtype=torch.int64), cut[:0])
    assert empty == 0 and empty.requires_grad


def test_proposal_loss_is_l1_over_sampled_anchors():
    model = decoder(rcnn="mmdet").train()
    wanted = targets(128, 128)
    seen = []
    sampler = model.rpn.fg_bg_sampler

    def remember(labels):
        seen.append(sampler(labels))
        return seen[-1]

    model.rpn.fg_bg_sampler = remember
    fused_BDhw = torch.randn(2, 32, 8, 8)
    losses = model(fused_BDhw, wanted)
    positive, negative = seen[0]
    maps = model.pyramid(fused_BDhw)
    logits, deltas = model.rpn.head([*maps.values()])
    flat = lambda levels, last: torch.cat(
        [x.unflatten(1, (3, last)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in levels], 1
    )
    logits_BA, deltas_BA4 = flat(logits, 1)[..., 0], flat(deltas, 4)
    anchors_A4 = ExactAnchors(SMALL.anchor_sizes, 16, rounded=False)(
        ImageList(torch.zeros(1), [(128, 128)]), [*maps.values()]
    )[0].double()
    distance, entropy, count = 0.0, 0.0, 0
    for b, boxes in enumerate(wanted.boxes):
        overlaps_GA = box_iou(boxes.double(), anchors_A4).numpy() if len(boxes) else np.zeros((1, len(anchors_A4)))
        matched = assigned(overlaps_GA, 0.7, 0.3, 0.3 if len(boxes) else 2.0)
        for n in positive[b].nonzero()[:, 0].tolist():
            target = encoded(anchors_A4[n].tolist(), boxes[matched[n]].tolist(), (1, 1, 1, 1))
            distance += np.abs(deltas_BA4[b, n].detach().numpy() - np.array(target)).sum()
            entropy += float(F.softplus(-logits_BA[b, n].detach()))
        for n in negative[b].nonzero()[:, 0].tolist():
            assert matched[n] == -1
            entropy += float(F.softplus(logits_BA[b, n].detach()))
        count += int(positive[b].sum() + negative[b].sum())
    assert positive[0].sum() > 0 and count == 2 * 256
    assert losses["proposal_box"].item() == pytest.approx(distance / count, rel=1e-4)
    assert losses["objectness"].item() == pytest.approx(entropy / count, rel=1e-4)


@pytest.mark.parametrize("masks", [True, False])
def test_head_losses_equal_their_equations(masks):
    model = decoder(masks, rcnn="mmdet").train()
    wanted = targets(128, 128, masks)
    heads, seen = model.roi_heads, {}
    select = heads.select_training_samples
    heads.select_training_samples = lambda *given: seen.setdefault("samples", select(*given))
    heads.box_predictor.register_forward_hook(lambda module, given, out: seen.update(box=out))
    if masks:
        heads.mask_predictor.register_forward_hook(lambda module, given, out: seen.update(mask=out))
    losses = model(torch.randn(2, 32, 8, 8), wanted)
    boxes, objects, labels, _ = seen["samples"]
    logits_NK, deltas_NK4 = seen["box"]
    log_shares = logits_NK.double().log_softmax(1)
    distance, entropy, row, positives, bits = 0.0, 0.0, 0, 0, []
    for b in range(2):
        for box, index, label in zip(boxes[b].tolist(), objects[b].tolist(), labels[b].tolist(), strict=True):
            entropy -= log_shares[row, label].item()
            if label:
                assert label == int(wanted.labels[b][index]) + 1
                target = encoded(box, wanted.boxes[b][index].tolist(), (0.1, 0.1, 0.2, 0.2))
                own = deltas_NK4[row, 4 * label : 4 * label + 4].detach().numpy()
                distance += np.abs(own - np.array(target)).sum()
                if masks:
                    cut = mask_targets(wanted.masks[b], torch.tensor([box]), torch.tensor([index]), 28)
                    bits.append(F.binary_cross_entropy_with_logits(seen["mask"][positives, label], cut[0]))
                positives += 1
            row += 1
    assert positives >= 2 and row == len(logits_NK)
    assert losses["box"].item() == pytest.approx(distance / row, rel=1e-4)
    assert losses["classifier"].item() == pytest.approx(entropy / row, rel=1e-5)
    if masks:
        assert losses["mask"].item() == pytest.approx(float(torch.stack(bits).mean().detach()), rel=1e-5)


@pytest.mark.parametrize("masks", [True, False])
def test_all_parameters_get_gradients_without_objects(masks):
    model = decoder(masks, patch_size=14, rcnn="mmdet").train()
    wanted = targets(126, 154, masks)
    empty = dataclasses.replace(
        wanted,
        boxes=[wanted.boxes[1]] * 2,
        labels=[wanted.labels[1]] * 2,
        masks=[wanted.masks[1]] * 2 if masks else None,
    )
    for objects in (wanted, empty):
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(torch.randn(2, 32, 9, 11), objects)
        sum(losses.values()).backward()
        assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert losses["proposal_box"] == losses["box"] == 0


def test_earlier_bundles_keep_the_torchvision_form():
    """The card lacks the setting; the weights fit both forms, whose predictions differ."""
    old = to_dict(SMALL)
    del old["rcnn"]
    config = from_dict(DetectionConfig, old, "head.json")
    assert config == SMALL
    torch.manual_seed(0)
    kept = DetectionDecoder(32, 14, 3, config, masks=True).eval()
    other = DetectionDecoder(32, 14, 3, dataclasses.replace(config, rcnn="mmdet"), masks=True).eval()
    other.load_state_dict(kept.state_dict())
    fused_BDhw = torch.randn(1, 32, 9, 11)
    with torch.no_grad():
        same, aligned = kept(fused_BDhw)[0], other(fused_BDhw)[0]
    assert type(kept.roi_heads.box_roi_pool).__name__ == "MultiScaleRoIAlign"
    assert not torch.equal(same.scores_N[:5], aligned.scores_N[:5])
