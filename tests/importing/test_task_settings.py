"""Every recorded value that predictions depend on becomes a setting or is refused."""

import copy

import pytest
import torch
from mutations import VALUES
from release_configs import RELEASE

from vitsplit.errors import ConfigError
from vitsplit.importing.task_settings import task_settings
from vitsplit.importing.training_config import TrainingConfig

LATERAL = {"decoder.pyramid.fpn.inner_blocks.0.0.weight": torch.empty(16, 64, 1, 1)}
STEP = ("data", "test", "pipeline", 1)
RESIZE = (*STEP, "transforms", 0)
ANCHORS = ("model", "rpn_head", "anchor_generator")
LIMITS = ("model", "test_cfg", "rcnn")


def same(value):
    return tuple(value) if isinstance(value, list) else value


def listed(value):
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def size(value):
    sides = value[0] if len(value) == 1 else value
    return max(sides), min(sides)


def sides(scales):
    return tuple(scales[0] * stride for stride in (4, 8, 16, 32, 64))


# Of a task: the place of a value, the setting that it becomes, and how.
SETTINGS = {
    "segmentation": [
        (("model", "test_cfg", "mode"), "test_mode", same),
        (("model", "test_cfg", "crop_size"), "crop_size", same),
        (("model", "test_cfg", "stride"), "test_stride", same),
        (("model", "decode_head", "dropout_ratio"), "dropout", same),
        ((*STEP, "flip"), "test_flip", same),
        ((*STEP, "img_ratios"), "test_scales", listed),
        ((*STEP, "img_scale"), "image_scale", size),
    ],
    "depth": [
        (("model", "decode_head", "min_depth"), "min_depth", same),
        (("model", "decode_head", "max_depth"), "max_depth", same),
        ((*STEP, "flip"), "test_flip", same),
    ],
    "detection": [
        ((*ANCHORS, "scales"), "anchor_sizes", sides),
        ((*LIMITS, "score_thr"), "score_threshold", same),
        ((*LIMITS, "nms", "iou_threshold"), "nms_threshold", same),
        ((*LIMITS, "max_per_img"), "max_detections", same),
        ((*STEP, "img_scale"), "image_scale", size),
    ],
}
# The place of a value, and the only one that bundles have, besides None for "not set".
FIXED = {
    "segmentation": [
        (("model", "decode_head", "align_corners"), False),
        (("test_cfg",), False),
        ((*STEP, "scale_factor"), None),
        ((*RESIZE, "keep_ratio"), True),
        ((*RESIZE, "min_size"), None),
    ],
    "depth": [
        (("model", "decode_head", "classify"), False),
        (("model", "decode_head", "scale_up"), False),
        (("model", "test_cfg", "mode"), "whole"),
        ((*STEP, "flip_direction"), "horizontal"),
        ((*STEP, "img_ratios"), 1),
    ],
    "detection": [
        ((*ANCHORS, "strides"), [4, 8, 16, 32, 64]),
        ((*ANCHORS, "ratios"), [0.5, 1, 2]),
        ((*ANCHORS, "octave_base_scale"), False),
        ((*ANCHORS, "center_offset"), 0),
        (("model", "neck", "add_extra_convs"), False),
        (("model", "rpn_head", "bbox_coder", "target_means"), [0, 0, 0, 0]),
        (("model", "test_cfg", "rpn", "nms_pre"), 1000),
        (("model", "test_cfg", "rpn", "nms", "iou_threshold"), 0.7),
        ((*LIMITS, "mask_thr_binary"), 0.5),
        ((*LIMITS, "nms", "type"), "nms"),
        ((*STEP, "flip"), False),
        ((*RESIZE, "type"), "Resize"),
    ],
}
# Dictionaries and lists of them, which must not be anything else.
OUTER = {
    "segmentation": ["model", "data", "model.test_cfg", "model.decode_head"],
    "depth": ["data.test", "model.decode_head"],
    "detection": ["model.rpn_head", "model.rpn_head.anchor_generator", "model.test_cfg.rpn", "model.test_cfg.rcnn.nms"],
}
STRANGE = (
    *VALUES, 0.5, 3.0, 100, 4096, -3, float("inf"), float("nan"), "whole", "slide", "horizontal", "soft_nms",
    [8.0], [4.5], [0.3], [8, 9], (8.0,), [(1333, 800)], [(1333, 800), (800, 600)], [640.0, 480.0], (640, 480), [640],
    (48, 10**9), [0.5, "a"], [0.5, 1.5], (), [4, 8, 16, 32, 64], [{"type": "Resize"}], {"rcnn": 3},
)  # fmt: skip


def changed(task, place, value):
    """The settings with another value in a place, or the error."""
    values = copy.deepcopy(RELEASE[task])
    *outer, last = place
    inner = values
    for name in outer:
        inner = inner[name]
    inner[last] = value
    try:
        return task_settings(task, TrainingConfig(values, "file"), LATERAL, "file")
    except ConfigError as error:
        return error


@pytest.mark.parametrize("task", SETTINGS)
def test_any_value_in_the_configuration_is_a_setting_or_an_error(task):
    for place, name, converted in SETTINGS[task]:
        used = 0
        for value in STRANGE:
            found = changed(task, place, value)
            if isinstance(found, ConfigError) or value is None:
                continue
            have, want = getattr(found, name), converted(value)
            assert have == want and isinstance(have, bool) == isinstance(want, bool), (place, value)
            used += 1
        assert used, place


@pytest.mark.parametrize("task", FIXED)
def test_values_that_bundles_do_not_have_are_refused(task):
    for place, only in FIXED[task]:
        assert changed(task, place, only) == changed(task, ("other",), 0), place
        for value in STRANGE:
            if value is not None and value is not False and same(value) != same(only) and listed(value) != (only,):
                assert isinstance(changed(task, place, value), ConfigError), (place, value)


@pytest.mark.parametrize("task", OUTER)
def test_something_else_than_a_dictionary_is_refused(task):
    for value in STRANGE:
        if value is not None and not isinstance(value, dict):
            for place in OUTER[task]:
                assert isinstance(changed(task, place.split("."), value), ConfigError), (place, value)
            if value not in ([], ()) and value != [{"type": "Resize"}]:
                assert isinstance(changed(task, (*STEP, "transforms"), value), ConfigError), value
            assert isinstance(changed(task, STEP[:3], value), ConfigError), value


@pytest.mark.parametrize(
    "step",
    [
        {"type": "CenterCrop"},
        {"type": "Normalize", "mean": [0, 0, 0], "std": [1, 1, 1]},
        {"type": "Normalize", "to_rgb": False},
        {"type": "Resize", "keep_ratio": False},
        {"type": "Resize", "override": True, "img_scale": (64, 48)},
    ],
    ids=["crop", "mean", "order of colors", "ratio", "size"],
)
@pytest.mark.parametrize("task", RELEASE)
def test_steps_that_change_images_otherwise_are_refused(task, step):
    assert isinstance(changed(task, (*RESIZE[:-1], 0), step), ConfigError)
