import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitsplit.analysis.cost import MMCV_RULES, _Counter, count_parameters, gmacs, shape_model, step_gmacs
from vitsplit.backbone import meta_backbone
from vitsplit.engine.override import override
from vitsplit.model import Head
from vitsplit.nn.deformable_convolution import DeformConv3x3
from vitsplit.recipes import recipe

# Recipe -> the count of its parts by hand (Tables 1, 2, 3, 8 and 16 print them in millions).
PARAMETERS = {
    "ade20k-small": 10_230_330,
    "ade20k-base": 40_514_490,
    "ade20k-large": 88_637_626,
    "ade20k-large-896": 88_637_626,
    "ade20k-giant-896": 326_527_162,
    "cityscapes-base": 55_182_391,
    "cityscapes-large": 164_092_983,
    "pascal-context-base": 47_533_919,
    "pascal-context-large": 115_838_047,
    # Four mixtures instead of eight layers, each D^2 less; and 24 x 4 scores.
    "ade20k-large-gate": 88_637_626 - 4 * 1024**2 + 96,
    "cityscapes-large-gate": 164_092_983 - 4 * 1024**2 + 96,
    "ade20k-small-gate": 10_230_330 + 48,
    "ade20k-base-gate": 40_514_490 + 48,
    # The release's 45,266,196, and the background's boxes and masks that torchvision predicts.
    "coco-small": 45_266_196 + 4 * 1025 + 257,
}

# Figures of Table 6: switches -> by hand, S and B.
TABLE_6 = {
    "frozen last layer": ({"prior_head": False, "task_head": False, "fusion": False}, 1_240_470, 4_840_086),
    "prior": ({"task_head": False, "fusion": False}, 3_220_008, 12_633_000),
    "task": ({"prior_head": False, "fusion": False}, 6_566_166, 26_108_310),
    "prior and task": ({"fusion": False}, 8_545_704, 33_901_224),
    "all": ({}, 10_230_330, 40_514_490),
}

# (recipe, side) -> multiply-adds in 10^9 by mmcv's rules, and with attention and the deformable product.
MULTIPLY_ADDS = {
    ("ade20k-small", 896): (129.87, 334.1),
    ("ade20k-base", 896): (508.63, 938.9),
    ("ade20k-large", 896): (1587.0, 2626.9),
    ("ade20k-small", 512): (43.43, 68.68),
    ("ade20k-base", 512): (170.07, 227.9),
    ("ade20k-large", 512): (530.66, 664.1),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_trainable_parameters(name):
    backbone, model = shape_model(recipe(name))
    counts = count_parameters(model, backbone)
    assert counts["trainable"] == PARAMETERS[name]
    assert counts["trainable"] == sum(counts[part] for part in ("task_head", "prior_head", "fusion", "decoder"))


@pytest.mark.parametrize(("switches", "small", "base"), TABLE_6.values(), ids=TABLE_6.keys())
def test_trainable_parameters_of_table_6(switches, small, base):
    for name, expected in (("ade20k-small", small), ("ade20k-base", base)):
        config = recipe(name)
        config = config.change(method=dataclasses.replace(config.method, **switches))
        backbone, model = shape_model(config)
        assert count_parameters(model, backbone)["trainable"] == expected


def test_parts_and_frozen_parameters():
    backbone, model = shape_model(recipe("ade20k-small-gate"))
    counts = count_parameters(model, backbone)
    assert counts["task_head"] == 3 * 1_775_232
    assert counts["prior_head"] == (4 + 9) * 384**2 + 384 + 62_226 + 12 * 4
    assert counts["fusion"] == (2 + 9) * 384**2 + 384 + 62_226
    assert counts["decoder"] == 1_240_470
    # The release's 22,056,576 without its mask token.
    assert counts["frozen"] == 22_056_576 - 384


def test_a_linear_probe_trains_its_decoder_only():
    config = override(recipe("ade20k-small"), {"method": "linear-probe"})
    backbone, model = shape_model(config, num_classes=39)
    counts = count_parameters(model, backbone)
    decoder = 2 * 384 + 384 * 39 + 39
    assert counts == {
        "task_head": 0,
        "prior_head": 0,
        "fusion": 0,
        "decoder": decoder,
        "trainable": decoder,
        "frozen": 22_056_192,
    }


@pytest.mark.parametrize(("name", "side"), MULTIPLY_ADDS)
def test_multiply_adds(name, side):
    by_rules, total = MULTIPLY_ADDS[name, side]
    cost = gmacs(recipe(name), (side, side))
    assert cost["mmcv_rules"] == pytest.approx(by_rules, rel=2e-4)
    assert cost["total"] == pytest.approx(total, rel=0.005)


def _products_by_hand(
    width: int, depth: int, num_tuned: int, num_prior: int, num_classes: int, grid: tuple[int, int]
) -> float:
    """Every product of ViT-Split on a DINOv2 of patch 14, written out."""
    positions = grid[0] * grid[1]
    tokens = positions + 1
    block = tokens * 12 * width**2 + 2 * tokens**2 * width
    mix = positions * (9 * width * 18 + 9 * width**2)
    return (
        positions * width * 3 * 14**2
        + (depth + num_tuned) * block
        + positions * (num_prior + 2) * width**2
        + 2 * mix
        + positions * (1 + 4) * 4 * width**2
        + 16 * positions * width * num_classes
    )


@pytest.mark.parametrize(
    ("name", "size", "grid", "dimensions"),
    [
        ("ade20k-small", (512, 512), (37, 37), (384, 12, 3, 4, 150)),
        ("cityscapes-base", (240, 322), (18, 23), (768, 12, 5, 5, 19)),
        ("ade20k-large-gate", (14, 15), (1, 2), (1024, 24, 4, 4, 150)),
    ],
)
def test_the_total_equals_the_sum_of_all_products(name, size, grid, dimensions):
    cost = gmacs(recipe(name), size)
    assert cost["total"] * 1e9 == pytest.approx(_products_by_hand(*dimensions, grid), rel=1e-12)
    width, depth, *_ = dimensions
    patches = grid[0] * grid[1]
    frozen = patches * width * 3 * 14**2 + depth * ((patches + 1) * 12 * width**2 + 2 * (patches + 1) ** 2 * width)
    assert (cost["total"] - cost["head"]) * 1e9 == pytest.approx(frozen, rel=1e-12)


def _detector_by_hand(patches: float, width: int, num_classes: int) -> float:
    """Every product of the pyramid and Mask R-CNN at full load, for 1000 proposals and 100 masks."""
    pooled = 16 + 4 + 1 + 1 / 4
    pyramid = patches * (4 + 16 + 4) * width**2 + pooled * patches * (width * 256 + 9 * 256**2)
    proposals = (pooled + 1 / 16) * patches * (9 * 256**2 + 256 * 3 * 5)
    boxes = 1000 * (49 * 256 * 1024 + 1024**2 + 1024 * (num_classes + 1) * 5)
    masks = 100 * 14**2 * (4 * 9 * 256**2 + 4 * 256**2 + 4 * 256 * (num_classes + 1))
    return pyramid + proposals + boxes + masks


def test_a_detector_is_counted_with_the_maximum_number_of_proposals():
    cost = gmacs(recipe("coco-small"), (1024, 1024))
    patches, tokens, width = 64**2, 64**2 + 1, 384
    block = tokens * 12 * width**2 + 2 * tokens**2 * width
    head = patches * (6 * width**2 + 2 * (9 * width * 18 + 9 * width**2))
    expected = patches * width * 3 * 16**2 + (12 + 11) * block + head + _detector_by_hand(patches, width, 80)
    assert cost["total"] * 1e9 == pytest.approx(expected, rel=1e-12)


def test_the_description_of_a_bundle_is_counted():
    config = recipe("laptop-detection")
    described = {"classes": ["a", "b"], "colours": [[0, 0, 0]] * 2, "category_ids": [1, 2], "masks": False}
    counts = [count_parameters(*reversed(shape_model(config, 2, details))) for details in (None, described)]
    channels = config.task.pyramid_width
    mask_branch = 4 * (9 * channels**2 + channels) + 4 * channels**2 + channels + (channels + 1) * 3
    assert counts[0]["trainable"] - counts[1]["trainable"] == mask_branch
    boxes_only = gmacs(config, (336, 448), description=described)["total"]
    masks = 100 * 14**2 * (4 * 9 * channels**2 + 4 * channels**2 + 4 * channels * 3)
    assert (gmacs(config, (336, 448), num_classes=2)["total"] - boxes_only) * 1e9 == pytest.approx(masks)


def test_depth_equals_the_sum_of_its_parts():
    patches, width = 18 * 24, 384
    config = recipe("laptop-depth-paper")
    without_decoder = _products_by_hand(width, 12, 3, 4, 0, (18, 24)) - patches * (1 + 4) * 4 * width**2
    decoder = patches * 4 * (width * width / 2) + 4 * patches * 4 * (width / 2 * 64) + 16 * patches * 9 * 64
    assert gmacs(config, (252, 336))["total"] * 1e9 == pytest.approx(without_decoder + decoder, rel=1e-12)


def test_windows_reduce_the_cost_of_attention():
    config = recipe("coco-small")
    windowed = config.change(method=dataclasses.replace(config.method, task_head_window=16))
    saved = gmacs(config, (1024, 1024))["total"] - gmacs(windowed, (1024, 1024))["total"]
    per_block = 2 * 384 * (4097**2 - 16 * 257**2) - 15 * 12 * 384**2  # and fifteen more class tokens
    assert saved * 1e9 == pytest.approx(10 * per_block, rel=1e-9)


def test_only_required_blocks_are_counted():
    config = recipe("ade20k-small")
    block = 1370 * 12 * 384**2 + 2 * 1370**2 * 384
    explicit = dataclasses.replace(config.method, selection="explicit", prior_layers=(0, 1, 2, 3))
    full, short = gmacs(config, (518, 518)), gmacs(config.change(method=explicit), (518, 518))
    # The task head branches off after nine blocks; the last three run only for the prior head.
    assert (full["total"] - short["total"]) * 1e9 == pytest.approx(3 * block, rel=1e-9)


def test_a_trained_gate_counts_blocks_up_to_its_last_selected_layer():
    config = recipe("ade20k-small-gate")
    block = 1370 * 12 * 384**2 + 2 * 1370**2 * 384
    open_gate = gmacs(config, (518, 518))["total"]
    assert open_gate == pytest.approx(gmacs(recipe("ade20k-small"), (518, 518))["total"])
    assert gmacs(config, (518, 518), used_layers=(0, 3, 4, 5, 9, 11))["total"] == pytest.approx(open_gate)
    saved = open_gate - gmacs(config, (518, 518), used_layers=(1, 3, 4, 5, 7, 9))["total"]
    assert saved * 1e9 == pytest.approx(2 * block, rel=1e-9)


@pytest.mark.parametrize("name", ["dinov3-small", "eva02-large", "sam-base", "siglip2-base", "dinov2-small-reg"])
def test_every_family_can_be_counted(name):
    config = recipe("ade20k-small")
    config = config.change(backbone=dataclasses.replace(config.backbone, backbone=name))
    cost = gmacs(config, (256, 256))
    backbone = meta_backbone(name)
    # Only linear layers: all blocks and K_t copies, on the patches.
    blocks = sum(
        p.numel() for block in backbone.blocks for n, p in block.named_parameters() if p.dim() == 2 and "rel" not in n
    )
    share = 1 + config.method.num_tuned_layers / backbone.num_layers
    positions = (-(-256 // backbone.patch_size)) ** 2
    assert cost["mmcv_rules"] * 1e9 > blocks * share * positions
    assert cost["total"] > cost["mmcv_rules"] * 1.02


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 5, 7), 2 * 35 * 6 * (4 * 9 + 1)),
        (nn.Conv2d(4, 6, 3, stride=2, groups=2, bias=False), (1, 4, 9, 9), 16 * 6 * 2 * 9),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (2, 4, 5, 7), 2 * 35 * 4 * 6 * 4 + 2 * 140 * 6),
        (nn.Linear(4, 6), (2, 5, 4), 2 * 5 * 4 * 6),
        (nn.LayerNorm(8), (3, 5, 8), 2 * 120),
        (nn.GroupNorm(2, 8), (3, 8, 5, 2), 2 * 240),
        (nn.BatchNorm2d(8), (3, 8, 5, 2), 0),
        (nn.GELU(), (3, 8), 0),
        (DeformConv3x3(4), (1, 4, 5, 7), 35 * 18 * (4 * 9 + 1)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_mmcv_counting_rules(module, shape, expected):
    with torch.no_grad(), _Counter(MMCV_RULES) as counted:
        module(torch.randn(shape))
    assert counted.macs == expected


def test_mmcv_rules_exclude_attention():
    query = torch.randn(1, 2, 5, 4)
    with _Counter(MMCV_RULES) as counted:
        F.scaled_dot_product_attention(query, query, query)
        query @ query.transpose(-1, -2)
    assert counted.macs == 0


def test_counting_allocates_no_weights():
    backbone, model = shape_model(recipe("ade20k-giant-896"))
    assert isinstance(model, Head) and not model.training
    assert all(tensor.is_meta for tensor in [*backbone.parameters(), *model.parameters(), *model.buffers()])


# Multiply-adds of a training step at 512 pixels by an independent count (S, B, L), and the share of the frozen pass.
@pytest.mark.parametrize(
    ("name", "step", "share"),
    [
        ("ade20k-small", 111.3, 0.42),
        ("ade20k-base", 376.1, 0.40),
        ("ade20k-large", 965.7, 0.52),
        ("ade20k-small-gate", 111.3, 0.42),  # four mixtures cost what four layers do
    ],
)
def test_a_training_step_costs_the_frozen_pass_and_three_trainable_passes(name, step, share):
    config = recipe(name)
    parts = step_gmacs(config, (512, 512))
    assert parts["step"] == pytest.approx(step, rel=0.015)
    assert parts["frozen"] / parts["step"] == pytest.approx(share, abs=0.01)
    assert parts["frozen"] + parts["trained"] == pytest.approx(gmacs(config, (512, 512))["total"])
