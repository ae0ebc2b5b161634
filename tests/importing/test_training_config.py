"""Settings are read from the text of the release's configurations as mmcv writes it."""

import copy
import logging
import math

import pytest
import torch
from release_configs import RELEASE, SEGMENTATION, TRAINING, log_text, pretty_text
from release_models import CLASSES, Dense, SegmentationHead, SplitBackbone, imported, meta, randomized

from vitsplit.bundle import read_card
from vitsplit.cli.main import main
from vitsplit.errors import ConfigError
from vitsplit.importing.task_settings import task_settings
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
    with pytest.raises(ConfigError, match=r"file: line \d+ .* model\.test_cfg\.stride"):
        task_settings("segmentation", config, LATERAL, "file")


def test_names_in_other_statements_are_unreadable():
    text = "import os\na = 1\nb = dict(c=1)\nd = 2\nfor i in x:\n    b['c'] = 2\na, e = 1, 2\ndel d\nd = 4\n"
    config = parsed(text, "file")
    assert config.get("d") == 4
    for name in ("a", "b.c", "e"):
        with pytest.raises(ConfigError, match="line"):
            config.get(name)


@pytest.fixture
def segmentation():
    return randomized(Dense(SplitBackbone(), SegmentationHead()))


@pytest.fixture
def tiny_config():
    """The release's configuration with the layers of ``SplitBackbone``."""
    config = copy.deepcopy(SEGMENTATION)
    config["model"]["backbone"] |= {"out_indices": [0, 1, 3], "select_layers": [2, 3]}
    return config


@pytest.mark.parametrize("written", [pretty_text, log_text], ids=["dump", "log"])
def test_a_given_configuration_is_used(written, segmentation, tiny_config, tiny, tmp_path, caplog):
    file = tmp_path / "config.txt"
    file.write_text(written(tiny_config))
    bundle, _ = imported(segmentation, {"CLASSES": CLASSES}, tmp_path, config=file)
    card = read_card(bundle)
    assert card.prior_layers == (0, 1, 3)
    assert {name: getattr(card.config.task, name) for name in WANT["segmentation"]} == WANT["segmentation"]
    assert not [each for each in caplog.records if "defaults" in each.message]


def test_without_a_configuration_the_assumed_settings_are_stated(segmentation, tiny_config, tiny, tmp_path, caplog):
    (tmp_path / "config.py").write_text(pretty_text(tiny_config))  # not read unless it is given
    with pytest.raises(ConfigError, match=r"--config.*--prior-layers"):
        imported(segmentation, {"CLASSES": CLASSES}, tmp_path)
    with caplog.at_level(logging.WARNING):
        imported(segmentation, {"CLASSES": CLASSES}, tmp_path, prior_layers=(0, 1, 3))
    (line,) = [each.message for each in caplog.records if "--config" in each.message]
    assert "crop_size (512, 512)" in line and "image_scale (2048, 512)" in line


@pytest.mark.parametrize(
    ("text", "record", "message"),
    [
        ("_base_ = ['a.py']\nmodel = dict()\n", {}, "Config.dump"),
        ("2024-10-28 10:15:00 - mmseg - INFO - Config:\nmodel = dict()", {}, "not readable"),
        (pretty_text(TRAINING), {}, "Config.dump"),
        (log_text([1]), {}, "Config.dump"),
        ("layers = [1]\nmodel = dict(backbone=dict(out_indices=layers))", {}, r"--config .*: line 2 .*out_indices"),
        (pretty_text(SEGMENTATION), meta("out_indices=[0, 1, 3]"), "records its configuration itself"),
        (None, {}, "file not found"),
    ],
    ids=["bases", "another text", "no model", "no dictionary", "computed", "recorded", "no file"],
)
def test_given_configurations_that_are_refused(text, record, message, segmentation, tiny, tmp_path):
    file = tmp_path / "config.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        imported(segmentation, {"CLASSES": CLASSES} | record, tmp_path, config=file)


def test_a_configuration_replaces_one_that_is_unreadable(segmentation, tiny_config, tiny, tmp_path):
    file = tmp_path / "config.py"
    file.write_text(pretty_text(tiny_config))
    bundle, _ = imported(segmentation, {"CLASSES": CLASSES, "config": "model = dict("}, tmp_path, config=file)
    assert read_card(bundle).prior_layers == (0, 1, 3)


def test_the_flag_of_the_command_line(segmentation, tiny_config, tiny, tmp_path):
    imported(segmentation, {"CLASSES": CLASSES}, tmp_path, prior_layers=(0, 1, 3))
    file = tmp_path / "20241028_101500.log"
    file.write_text(log_text(tiny_config))
    options = ["--backbone", "dinov2-small", "--weights", str(tmp_path / "dinov2.pth"), "--config", str(file)]
    assert main(["import", str(tmp_path / "iter_40000.pth"), "--out", str(tmp_path / "other"), *options]) == 0
    assert read_card(tmp_path / "other").config.task.crop_size == (896, 896)
