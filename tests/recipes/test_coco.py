"""The recipes of detection against Table 10, Table 5 and the release's settings."""

import dataclasses

import pytest

from vitsplit.analysis.cost import count_parameters, shape_model
from vitsplit.backbone.catalog import CATALOG
from vitsplit.data.resizing import fit_size
from vitsplit.engine.optim import lr_factor
from vitsplit.methods.split.layers import select_layers
from vitsplit.recipes import RECIPES, recipe

# Table 10 with Eq. 2's layers, and the release's layer decay: K_t, K_p, b, layers, decay.
ROWS = {
    "coco-small": ("dinov2-small", 11, 4, 2, [2, 5, 8, 11], 0.76),
    "coco-base": ("dinov2-base", 11, 6, 2, [2, 4, 6, 7, 9, 11], 0.70),
    "coco-large": ("dinov2-large", 23, 8, 6, [6, 8, 11, 13, 16, 18, 21, 23], 0.60),
}
# Parameters by hand from the release's shapes, before the 4 * 1025 + 257 that torchvision has for the background.
RELEASE_COUNTS = {"coco-small": 45_266_196, "coco-base": 121_351_956, "coco-large": 353_008_404}


@pytest.mark.parametrize("name", ROWS)
def test_recipe_matches_table_10_and_the_release(name):
    backbone, num_tuned, num_prior, first, layers, decay = ROWS[name]
    config = recipe(name)
    assert (config.name, config.backbone.backbone, config.backbone.patch_size) == (name, backbone, 16)
    split, optim, task = config.method, config.optim, config.task
    assert (split.num_tuned_layers, split.num_prior_layers, split.first_prior_layer) == (num_tuned, num_prior, first)
    assert list(select_layers(split, CATALOG[backbone].num_layers)) == layers
    assert (optim.lr, optim.weight_decay, optim.decay_norms) == (1e-4, 0.05, False)
    assert (optim.layer_decay, optim.task_head_lr_scale) == (decay, 1.0)
    assert (config.loop.steps, config.loop.batch_size) == (88_716, 16)
    assert (task.format, task.jitter, task.crop_size, task.image_scale) == ("coco", "detr", (1024, 1024), (1333, 800))
    assert (task.rcnn, task.pad_color) == ("mmdet", "mean")


def test_learning_rate_drops_after_epochs_8_and_11():
    config = recipe("coco-small")
    epoch = -(-118_287 // 16)
    assert config.loop.steps == 12 * epoch
    factors = [
        lr_factor(step, config.loop.steps, config.optim)
        for step in (0, 500, 8 * epoch - 1, 8 * epoch, 11 * epoch - 1, 11 * epoch)
    ]
    assert factors == pytest.approx([1e-3, 1, 1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize("name", ROWS)
def test_trainable_parameters(name):
    backbone, model = shape_model(recipe(name))
    counts = count_parameters(model, backbone)
    assert counts["trainable"] == RELEASE_COUNTS[name] + 4 * 1025 + 257


def test_layers_of_the_release_are_available_as_flags():
    for name, num_prior, layers in (
        ("coco-small", 5, [2, 4, 6, 8, 11]),
        ("coco-large", 8, [6, 8, 10, 13, 15, 18, 20, 23]),
    ):
        config = recipe(name)
        split = dataclasses.replace(config.method, rounding="int", num_prior_layers=num_prior)
        assert list(select_layers(split, CATALOG[config.backbone.backbone].num_layers)) == layers
    assert "--num-prior-layers 5 --rounding int" in (RECIPES["coco-small"].__doc__ or "")


def test_laptop_recipes_share_one_pass():
    detection, segmentation, depth = (recipe(f"laptop-{task}") for task in ("detection", "segmentation", "depth"))
    assert detection.backbone == segmentation.backbone == depth.backbone
    assert detection.backbone.patch_size is None
    task = detection.task
    assert len(task.anchor_sizes) == 5
    # A photograph goes into the backbone at one size for all three, once: no mirrored or scaled views.
    sizes = {fit_size((480, 640), each.task.image_scale) for each in (detection, segmentation, depth)}
    assert sizes == {(252, 336)}
    assert segmentation.task.test_scales == (1.0,) and not segmentation.task.test_flip and not depth.task.test_flip
    assert max(task.train_sides) * 4 / 3 <= max(task.crop_size)
    assert all(side % 14 == 0 for side in (*task.train_sides, *task.crop_size))
