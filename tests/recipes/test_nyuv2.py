from dataclasses import replace

import pytest
import torch

from vitsplit.backbone import meta_backbone
from vitsplit.engine.override import override
from vitsplit.methods.split.layers import select_layers
from vitsplit.model import build_head
from vitsplit.recipes import RECIPES, recipe
from vitsplit.tasks import bare_task
from vitsplit.tasks.depth.metrics import crop_box

# Table 10: backbone, its layers, K_t, K_p, b; the layers of Eq. 2 counted by hand.
PAPER = {
    "nyuv2-small": ("dinov2-small", 12, 3, 4, 2, [2, 5, 8, 11]),
    "nyuv2-base": ("dinov2-base", 12, 4, 4, 2, [2, 5, 8, 11]),
    "nyuv2-large": ("dinov2-large", 24, 3, 4, 6, [6, 12, 17, 23]),
}


def trainable(config):
    with torch.device("meta"):
        model = build_head(config, meta_backbone(config.backbone.backbone), bare_task(config.task, {}))
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def by_hand(width, block, num_tuned):
    """Section 3.2 and the release: K_t blocks; 1x1, offsets and 3x3 of prior head and of fusion; the depth head."""
    offsets, deformable = 162 * width + 18, 9 * width**2
    prior = 4 * width**2 + width + offsets + deformable
    fusion = 2 * width**2 + width + offsets + deformable
    half = width // 2
    up = 4 * width * half + half + 2 * half + 4 * half * 64 + 64 + 2 * 64
    return num_tuned * block + prior + fusion + up + 2 * 64 + 9 * 64 + 1


@pytest.mark.parametrize("name", PAPER)
def test_recipe_matches_table_10(name):
    backbone, num_layers, num_tuned, num_prior, first, layers = PAPER[name]
    config = recipe(name)
    split = config.method
    assert (config.name, config.backbone.backbone, config.task.name) == (name, backbone, "depth")
    assert (split.num_tuned_layers, split.num_prior_layers, split.first_prior_layer) == (num_tuned, num_prior, first)
    assert list(select_layers(split, num_layers)) == layers
    optim = config.optim
    assert (optim.lr, optim.weight_decay, optim.task_head_lr_scale, optim.clip_norm) == (3e-4, 1e-2, 0.1, 35.0)
    assert (optim.schedule, optim.final_div_factor) == ("one-cycle", 100)
    assert (config.loop.steps, config.loop.batch_size) == (38_400, 16)


@pytest.mark.parametrize("name", PAPER)
def test_unspecified_settings_follow_the_release(name):
    task = recipe(name).task
    assert task.crop_size == (416, 544) and task.image_scale is None
    top, left, bottom, right = task.border
    assert (top, 480 - bottom, left, 640 - right) == (45, 472, 43, 608)
    assert (task.rotate, task.rotate_share, task.flip, task.color_share) == (2.5, 0.5, 0.5, 0.5)
    assert (task.start_depth, task.smooth_upsampling) == (2.5, False)
    assert task.color_values == "0-255"
    assert (task.loss_weight, task.variance_focus, task.decoder_norm) == (10.0, 0.15, "batch")
    assert (task.min_depth, task.max_depth, task.test_flip, task.median_scaling) == (1e-3, 10.0, True, False)
    assert crop_box(task.eval_crop, (480, 640)) == (45, 41, 471, 601)


# What Table 11 counts in millions: the release's sums, without a norm of 2 D that it has and never uses.
@pytest.mark.parametrize(
    ("name", "num_tuned", "counted", "width", "block"),
    [
        ("nyuv2-small", 3, 9_336_165 - 2 * 384, 384, 1_775_232),
        ("nyuv2-base", 4, 44_045_349 - 2 * 768, 768, 7_089_408),
        ("nyuv2-base", 3, 36_955_941 - 2 * 768, 768, 7_089_408),
        ("nyuv2-large", 3, 65_527_205 - 2 * 1024, 1024, 12_598_272),
    ],
)
def test_trainable_parameters(name, num_tuned, counted, width, block):
    config = recipe(name)
    config = config.change(method=replace(config.method, num_tuned_layers=num_tuned))
    assert trainable(config) == counted == by_hand(width, block, num_tuned)


def test_linear_probe_parameters():
    assert trainable(override(recipe("nyuv2-small"), {"method": "linear-probe"})) == 2 * 384 + 384 + 1


def test_laptop_recipe():
    config = recipe("laptop-depth")
    assert (config.backbone.backbone, config.task.name) == ("dinov2-small", "depth")
    assert config.task.crop_size == (238, 322)
    assert (config.loop.steps, config.loop.batch_size, config.optim.schedule) == (200, 8, "one-cycle")
    assert config.task.crop_size[0] % 14 == config.task.crop_size[1] % 14 == 0
    assert (config.task.start_depth, config.task.smooth_upsampling) == (None, True)
    assert (RECIPES["laptop-depth"].__doc__ or "").startswith("Depth of custom data")
    # One head for all laptop recipes of dense maps, so that they share a pass from the same block on.
    assert config.method == recipe("laptop-segmentation").method


def test_the_papers_model_for_the_laptop():
    own, paper = recipe("laptop-depth-paper"), recipe("nyuv2-small")
    for name in ("num_tuned_layers", "num_prior_layers", "first_prior_layer", "tune_blocks", "fusion_form"):
        assert getattr(own.method, name) == getattr(paper.method, name)
    assert own.optim.task_head_lr_scale == 0.3
