import dataclasses
import itertools
import json
import re

import pytest

from vitsplit.backbone.catalog import CATALOG
from vitsplit.engine.resume import check_same_config
from vitsplit.engine.run_folder import RunFolder
from vitsplit.errors import ConfigError, RunError
from vitsplit.methods.split.layers import select_layers
from vitsplit.recipes import DATASET_CLASSES, RECIPES, count_classes, recipe
from vitsplit.saved_config import config_from_dict, config_to_dict, flat_from_dict, flat_to_dict

EVERY_THIRD = [2, 5, 8, 11, 14, 17, 20, 23]
# Table 10, and the settings that follow from the counts where it has no row:
# name -> backbone, K_t, K_p, b, layers, crop, steps, lr.
PAPER = {
    "ade20k-small": ("dinov2-small", 3, 4, 2, [2, 5, 8, 11], 512, 40_000, 2e-4),
    "ade20k-base": ("dinov2-base", 3, 4, 2, [2, 5, 8, 11], 512, 40_000, 2e-4),
    "ade20k-large": ("dinov2-large", 4, 8, 2, EVERY_THIRD, 512, 40_000, 2e-4),
    "ade20k-large-896": ("dinov2-large", 4, 8, 2, EVERY_THIRD, 896, 40_000, 2e-4),
    "ade20k-giant-896": ("dinov2-giant", 8, 14, 26, list(range(26, 40)), 896, 50_000, 2e-4),
    "ade20k-mae-base": ("mae-base", 8, 4, 2, [2, 5, 8, 11], 512, 40_000, 2e-4),
    "ade20k-sam-base": ("sam-base", 8, 4, 2, [2, 5, 8, 11], 512, 40_000, 2e-4),
    "ade20k-siglip-base": ("siglip-base", 8, 4, 2, [2, 5, 8, 11], 512, 40_000, 2e-4),
    "cityscapes-small": ("dinov2-small", 5, 5, 2, [2, 4, 6, 9, 11], 896, 20_000, 2e-4),
    "cityscapes-base": ("dinov2-base", 5, 5, 2, [2, 4, 6, 9, 11], 896, 20_000, 2e-4),
    "cityscapes-large": ("dinov2-large", 10, 8, 2, EVERY_THIRD, 896, 20_000, 2e-4),
    "pascal-context-base": ("dinov2-base", 4, 4, 2, [2, 5, 8, 11], 480, 20_000, 1e-4),
    "pascal-context-large": ("dinov2-large", 6, 10, 2, [2, 4, 7, 9, 11, 14, 16, 18, 21, 23], 480, 20_000, 1e-4),
}
GATES = ("ade20k-small", "ade20k-base", "ade20k-large", "cityscapes-large")
RELEASE_SCALES = {"ade20k": (2048, 512), "cityscapes": (2048, 1024), "pascal-context": (520, 520)}


@pytest.mark.parametrize("name", PAPER)
def test_recipe_matches_table_10(name):
    backbone, num_tuned, num_prior, first, layers, crop, steps, lr = PAPER[name]
    config = recipe(name)
    assert config.name == name
    assert config.backbone.backbone == backbone
    split = config.method
    assert (split.num_tuned_layers, split.num_prior_layers, split.first_prior_layer) == (num_tuned, num_prior, first)
    assert (split.selection, split.rounding) == ("uniform", "round")
    assert list(select_layers(split, CATALOG[backbone].num_layers)) == layers
    assert config.task.crop_size == (crop, crop)
    assert (config.loop.steps, config.loop.batch_size) == (steps, 16)
    assert (config.optim.lr, config.optim.weight_decay, config.optim.task_head_lr_scale) == (lr, 1e-2, 0.1)


@pytest.mark.parametrize("name", PAPER)
def test_unspecified_settings_follow_the_release(name):
    config = recipe(name)
    task, data = config.task, config.task.format
    assert name.startswith(data)
    scale = (3584, 896) if name.endswith("-896") else RELEASE_SCALES[data]
    assert task.image_scale == scale
    assert (task.dropout or 0.0) == (0.0 if data == "ade20k" else 0.1)
    assert (task.scale_range, task.max_class_ratio, task.flip, task.photometric) == ((0.5, 2.0), 0.75, 0.5, True)
    assert (task.pad_color, task.loss_average) == ("mean", "all")
    assert (task.test_mode, task.test_scales, task.test_flip) == ("slide", (1.0,), False)
    optim = config.optim
    assert (optim.schedule, optim.warmup_steps, optim.warmup_start, optim.poly_power) == ("poly", 1500, 1e-6, 0.9)
    assert optim.decay_norms and optim.betas == (0.9, 0.999)


def test_layers_of_the_release_are_available():
    for name, last in (("cityscapes-base", [7, 8, 9, 10, 11]), ("pascal-context-large", list(range(14, 24)))):
        config = recipe(name)
        split = dataclasses.replace(config.method, selection="last")
        assert list(select_layers(split, CATALOG[config.backbone.backbone].num_layers)) == last
        assert "last" in (RECIPES[name].__doc__ or "") or "release uses" in (RECIPES[name].__doc__ or "")


@pytest.mark.parametrize("name", GATES)
def test_gate_recipes_differ_only_in_the_layers(name):
    plain, gate = recipe(name), recipe(f"{name}-gate")
    assert gate.name == f"{name}-gate"
    assert (gate.method.selection, gate.method.num_prior_layers) == ("gate", 4)
    back = dataclasses.replace(gate.method, selection="uniform", num_prior_layers=plain.method.num_prior_layers)
    assert gate.change(name=name, method=back) == plain


def test_segmentation_recipes_are_complete():
    gates = {f"{name}-gate" for name in GATES}
    found = {name for name in RECIPES if recipe(name).task.name == "segmentation"}
    assert found == {*PAPER, *gates, "laptop-segmentation", "laptop-segmentation-paper"}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_round_trip_and_fit_their_backbone(name):
    config = recipe(name)
    assert type(config)(**vars(config)) == config
    assert config_from_dict(config_to_dict(config), "test") == config
    num_layers = CATALOG[config.backbone.backbone].num_layers
    layers = select_layers(config.method, num_layers)
    assert all(a < b for a, b in itertools.pairwise(layers)) and layers[-1] == num_layers - 1
    summary = (RECIPES[name].__doc__ or "").partition("\n")[0]
    assert summary.endswith(".") and len(summary) < 120


def test_laptop_recipe():
    config = recipe("laptop-segmentation")
    assert config.backbone.backbone == "dinov2-small"
    assert (config.task.crop_size, config.task.image_scale, config.task.test_mode) == ((252, 336), (1024, 252), "whole")
    assert (config.loop.steps, config.loop.batch_size) == (300, 8)
    assert config.optim.warmup_steps * 10 <= config.loop.steps
    assert config.task.crop_size[0] % 14 == config.task.crop_size[1] % 14 == 0


def test_laptop_recipe_of_the_paper_has_the_papers_model():
    own, paper = recipe("laptop-segmentation-paper"), recipe("ade20k-small")
    assert own.method == dataclasses.replace(paper.method, num_prior_layers=own.method.num_prior_layers)
    assert own.method.num_prior_layers == 4 and not own.task.smooth_upsampling


def test_number_of_classes():
    assert DATASET_CLASSES == {"ade20k": 150, "cityscapes": 19, "pascal-context": 59, "coco": 80}
    assert count_classes(recipe("cityscapes-large-gate")) == 19
    assert count_classes(recipe("laptop-segmentation")) == 150
    assert count_classes(recipe("coco-base")) == count_classes(recipe("laptop-detection")) == 80
    assert count_classes(recipe("laptop-depth")) == count_classes(recipe("nyuv2-large")) == 0


def test_unknown_recipe_names_suggest_close_ones():
    with pytest.raises(ConfigError, match=r"'ade20k-smal'.*ade20k-small"):
        recipe("ade20k-smal")
    with pytest.raises(ConfigError, match=r"Recipes: laptop-segmentation, .*ade20k-small"):
        recipe("zzz")


# Settings that recipes set to the release's values, and their values in earlier runs and bundles.
SINCE = {
    "optim": {"final_div_factor": 1e4},
    "task": {
        "pad_color": "black",
        "loss_average": "valid",
        "color_values": "0-1",
        "rcnn": "torchvision",
    },
}


@pytest.mark.parametrize("name", RECIPES)
def test_earlier_configurations_keep_their_meaning(name):
    """config.json and head.json without the new settings are read with the earlier values."""
    config = recipe(name)
    values = flat_to_dict(config)
    for group, settings in SINCE.items():
        for setting in settings:
            values[group].pop(setting, None)
    old = flat_from_dict(values, config.task.name, "config.json")
    for group, settings in SINCE.items():
        for setting, before in settings.items():
            assert getattr(getattr(old, group), setting, before) == before
    if name.startswith("laptop") and name != "laptop-detection":
        assert old == config


def test_runs_of_changed_recipes_resume_with_their_own_settings_only(tmp_path):
    """It resumes with its own config.json, and is rejected with the recipe, whose settings have changed."""
    run = RunFolder(tmp_path)
    for name, setting in (
        ("nyuv2-small", "optim.final_div_factor: 10000.0 in the run, 100.0 now"),
        ("ade20k-small", 'task.loss_average: "valid" in the run, "all" now'),
        ("coco-small", 'task.rcnn: "torchvision" in the run, "mmdet" now'),
        ("llava15-7b-align", 'optim.schedule: "cosine" in the run, "warmup-cosine" now'),
    ):
        config = recipe(name)
        values = flat_to_dict(config)
        for group, settings in SINCE.items():
            for each in settings:
                values[group].pop(each, None)
        if name.startswith("llava"):
            values["optim"]["schedule"] = "cosine"
        run.config_file.write_text(json.dumps(values))
        check_same_config(flat_from_dict(values, config.task.name, "config.json"), run)
        with pytest.raises(RunError, match=re.escape(setting)) as error:
            check_same_config(config, run)
        assert f"--config {run.config_file}" in str(error.value)
