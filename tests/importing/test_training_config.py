"""Settings are read from the text of the release's configurations as mmcv writes it."""

import math

import pytest
import torch
from release_configs import RELEASE, SEGMENTATION, pretty_text

from vitsplit.errors import ConfigError
from vitsplit.importing.settings import task_settings
from vitsplit.importing.training_config import parsed

LATERAL = {"decoder.pyramid.fpn.inner_blocks.0.0.weight": torch.empty(16, 64, 1, 1)}
WANT = {
    "segmentation": {
        "test_mode": "slide", "crop_size": (896, 896), "test_stride": (341, 341), "dropout": 0,
        "image_scale": (3584, 896), "test_scales": (1.0,), "test_flip": False,
    },
    "depth": {"max_depth": 10, "min_depth": 1e-3, "image_scale": None, "test_flip": True},
    "detection": {
        "image_scale": (1333, 800), "anchor_sizes": (32, 64, 128, 256, 512), "score_threshold": 0.07,
        "nms_threshold": 0.45, "max_detections": 90,
    },
}  # fmt: skip


@pytest.mark.parametrize("task", RELEASE)
def test_the_text_of_a_release_has_its_settings(task):
    text = pretty_text(RELEASE[task])
    assert "gpu_ids = range(0, 4)" in text and "custom_keys=dict({'backbone.split_head': dict(lr_mult=0.1)})" in text
    config = parsed(text, "file")
    assert config.values == RELEASE[task] | {"gpu_ids": (0, 1, 2, 3)}
    settings = task_settings(task, config, LATERAL, "file")
    assert {name: getattr(settings, name) for name in WANT[task]} == WANT[task]


def test_other_forms_of_values():
    text = "a = dict(**{'x': 1, **dict(y=2)}, z=-1.5)\nb = (nan, -inf, {'c.d': None, 3: True}, range(5, 1, -2))\n"
    config = parsed(text, "file")
    assert config.get("a") == {"x": 1, "y": 2, "z": -1.5}
    first, *others = config.get("b")
    assert math.isnan(first) and others == [-math.inf, {"c.d": None, 3: True}, (5, 3)]


@pytest.mark.parametrize("value", ["f(1)", "x", "1 + 1", "[i for i in y]", "dict(1)", "range(10**9)", "-'a'", "b'a'"])
def test_a_value_that_is_computed_matters_only_where_it_is_read(value):
    text = pretty_text(SEGMENTATION | {"lr_mult": 0}).replace("lr_mult = 0", f"lr_mult = {value}")
    assert parsed(text, "file").get("model") == SEGMENTATION["model"]
    config = parsed(text.replace("stride=(341, 341)", f"stride=({value}, 341)"), "file")
    assert config.get("model.test_cfg.mode") == "slide"
    with pytest.raises(ConfigError, match=r"file: line \d+ sets model\.test_cfg\.stride"):
        task_settings("segmentation", config, LATERAL, "file")


def test_names_in_other_statements_are_unreadable():
    text = "import os\na = 1\nb = dict(c=1)\nd = 2\nfor i in x:\n    b['c'] = 2\na, e = 1, 2\ndel d\nd = 4\n"
    config = parsed(text, "file")
    assert config.get("d") == 4
    for name in ("a", "b.c", "e"):
        with pytest.raises(ConfigError, match="line"):
            config.get(name)
