"""Settings of heads: own and shared settings, flags and checks."""

import dataclasses
import json

import pytest

from vitsplit.cli.flags import from_flags
from vitsplit.cli.train import named_heads
from vitsplit.engine.override import override
from vitsplit.errors import ConfigError
from vitsplit.heads import check_heads, sharing_tasks
from vitsplit.recipes import recipe
from vitsplit.recipes.starting_point import starting_heads
from vitsplit.saved_config import config_from_dict, config_to_dict, flat_from_dict, flat_to_dict
from vitsplit.tasks import TASKS
from vitsplit.train_config import GeometryConfig, TrainConfig

BASE = starting_heads({"segmentation": "segmentation", "depth": "depth"})
ALL = starting_heads({task: task for task in sharing_tasks()})


def changed(flags: str) -> TrainConfig:
    return from_flags(BASE, flags.split())


def test_two_heads_can_have_one_task():
    config = starting_heads({"rooms": "segmentation", "parts": "segmentation", "depth": "depth"})
    config = from_flags(config, ["--lr", "1e-4", "--parts.lr", "3e-4", "--rooms.dice-weight", "0.5"])
    assert {name: optim.lr for name, optim in config.optims().items()} == {"rooms": 1e-4, "parts": 3e-4, "depth": 1e-4}
    assert [config.heads[name].task.dice_weight for name in ("rooms", "parts")] == [0.5, 0.0]
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config))), "file") == config


@pytest.mark.parametrize("name", ["", "9", "a.b", "a/b", "best", "x" * 65])
def test_invalid_head_names_are_rejected(name):
    with pytest.raises(ConfigError, match="--head"):
        starting_heads({name: "depth"})


def test_every_head_starts_from_the_recipe_of_its_task():
    for name in sharing_tasks():
        own, alone = ALL.for_head(name), recipe(TASKS.load(name).default_recipe)
        assert (own.name, own.method, own.optim, own.backbone) == (
            alone.name,
            alone.method,
            alone.optim,
            alone.backbone,
        )


def test_no_flag_changes_nothing():
    assert changed("") == BASE


def test_flags_apply_to_all_heads_or_to_the_named_one():
    config = changed("--lr 1e-4 --num-tuned-layers 2 --steps 7 --depth.lr 3e-4 --segmentation.dice-weight 0.5")
    assert {name: optim.lr for name, optim in config.optims().items()} == {"segmentation": 1e-4, "depth": 3e-4}
    assert [head.method.num_tuned_layers for head in config.heads.values()] == [2, 2]
    assert config.loop.steps == 7
    assert config.heads["segmentation"].task.dice_weight == 0.5
    expected = dataclasses.replace(BASE.heads["depth"].optim, lr=3e-4)
    assert config.heads["depth"].optim == expected, "its schedule and clipping stay its own"


@pytest.mark.parametrize("flags", ["--depth.no-test-flip --flip 0", "--flip 0.0 --depth.no-test-flip"])
def test_the_augmentation_reaches_every_head(flags):
    config = changed(f"{flags} --crop-size 70 98 --scale-range 1 1 --no-photometric --image-scale None")
    assert config.geometry == GeometryConfig(
        crop_size=(70, 98), image_scale=None, scale_range=(1.0, 1.0), flip=0.0, photometric=False
    )
    for name in ("segmentation", "depth"):
        task = config.heads[name].task
        assert (task.crop_size, task.image_scale, task.flip) == ((70, 98), None, 0.0)
    assert not config.heads["depth"].task.test_flip


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--segmentation.flip 0.1", r"--segmentation\.flip 0\.1: .*--flip\."),
        ("--depth.crop-size 14 14", r"--depth\.crop-size \(14, 14\): .*--crop-size\."),
        ("--segmentation.max-class-ratio 0.9", r"--segmentation\.max-class-ratio 0\.9: .*Omit it"),
        ("--depth.rotate-share 1", r"--depth\.rotate-share 1\.0: .*Omit it"),
    ],
)
def test_shared_flags_of_one_head_are_rejected(flags, expected):
    with pytest.raises(ConfigError, match=expected):
        changed(flags)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--detection.masks off", "--detection.masks"),
        ("--dice-weight 1", "--dice-weight"),
        ("--depth.test-flop", "--test-flip"),
        ("--depth.steps 5", "--steps"),
        ("100", "100"),
    ],
)
def test_flags_that_do_not_exist_are_named(flags, expected, capsys):
    with pytest.raises(SystemExit) as stop:
        changed(flags)
    assert stop.value.code == 2 and expected in capsys.readouterr().err


def test_repeating_the_shared_value_is_accepted():
    assert changed("--flip 0.25 --depth.flip 0.25") == changed("--flip 0.25")


def test_dots_in_values_are_not_head_names():
    assert changed("--weights=depth.pth").backbone.weights == "depth.pth"


def test_detection_requires_an_image_scale():
    with pytest.raises(ConfigError, match="--image-scale None"):
        from_flags(starting_heads({"detection": "detection"}), ["--image-scale", "None"])


def test_settings_of_a_head_are_under_its_name_in_python():
    by_name = override(BASE, {"lr": 1e-4, "crop_size": (70, 98), "depth": {"lr": 3e-4, "test_flip": False}})
    assert by_name == changed("--lr 1e-4 --crop-size 70 98 --depth.lr 3e-4 --depth.no-test-flip")
    with pytest.raises(ConfigError, match=r"no setting 'detection'"):
        override(BASE, {"detection": {"lr": 1e-4}})
    with pytest.raises(ConfigError, match="no setting 'dice_weight'"):
        override(BASE, {"dice_weight": 1.0})


def test_settings_round_trip_through_json():
    assert config_from_dict(json.loads(json.dumps(config_to_dict(ALL))), "test") == ALL
    alone = recipe("nyuv2-small")
    assert config_from_dict(json.loads(json.dumps(config_to_dict(alone))), "test") == alone
    broken = config_to_dict(BASE)
    broken["heads"]["depth"]["optim"]["rate"] = 1.0
    with pytest.raises(ConfigError, match=r"heads\.depth: .*no setting 'optim\.rate'"):
        config_from_dict(broken, "test")


@pytest.mark.parametrize("name", sharing_tasks())
def test_a_bundle_records_the_settings_of_a_single_head(name):
    own = ALL.for_head(name)
    assert flat_from_dict(json.loads(json.dumps(flat_to_dict(own))), name, "test") == own
    assert own.geometry is None


def test_a_file_is_used_for_the_named_heads(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config_to_dict(changed("--steps 7 --depth.lr 3e-4"))))
    alone = starting_heads({"depth": "depth"}, config_file=file)
    assert list(alone.heads) == ["depth"]
    assert (alone.loop.steps, alone.optim.lr) == (7, 3e-4)
    with pytest.raises(ConfigError, match=r"detection.*segmentation, depth"):
        starting_heads({"detection": "detection"}, config_file=file)
    with pytest.raises(ConfigError, match=r"segmentation.*depth"):
        starting_heads({"segmentation": "depth"}, config_file=file)


def flat_of_before(config: TrainConfig) -> dict:
    """``config.json`` as earlier versions wrote it."""
    values = config_to_dict(config)
    heads = values.pop("heads")
    for head in heads.values():
        del head["task"]["kind"]
    if values["geometry"] is None:
        del values["geometry"]
        (head,) = heads.values()
        return {**head, **values}
    return {**values, **dict.fromkeys(sharing_tasks()), **heads}


def test_files_of_earlier_versions_are_read():
    assert config_from_dict(flat_of_before(ALL), "file") == ALL
    assert config_from_dict(flat_of_before(BASE), "file") == BASE
    alone = recipe("nyuv2-small")
    assert config_from_dict(flat_of_before(alone), "file", task="depth") == alone


def test_heads_with_different_crops_are_rejected():
    values = config_to_dict(BASE)
    values["heads"]["depth"]["task"]["flip"] = 0.1
    with pytest.raises(ConfigError, match=r"--depth\.flip 0\.1"):
        check_heads(config_from_dict(values, "test"))


def test_heads_with_tasks_and_folders():
    heads = named_heads(["depth:a", "rooms=segmentation:b=c:d"])
    assert {name: (task, str(path)) for name, (task, path) in heads.items()} == {
        "depth": ("depth", "a"),
        "rooms": ("segmentation", "b=c:d"),
    }
    for given, expected in (
        (["depth"], r"\[NAME=\]TASK:FOLDER"),
        (["depth:"], r"\[NAME=\]TASK:FOLDER"),
        (["deph:a"], "'deph'"),
        (["depth:a", "depth:b"], "NAME=depth:FOLDER"),
    ):
        with pytest.raises(ConfigError, match=expected):
            named_heads(given)


def test_help_has_every_setting_of_every_head(capsys):
    with pytest.raises(SystemExit):
        from_flags(BASE, ["--help"], prog="vitsplit train")
    text = capsys.readouterr().out
    shared, segmentation, depth = text.split("usage:")[1:]
    assert "--crop-size" in shared and "--batch-size" in shared and "--dice-weight" not in shared
    assert "--dice-weight" in segmentation and "vitsplit train --segmentation." in segmentation
    assert "--max-depth" in depth and "--dice-weight" not in depth


def test_earlier_joint_runs_have_black_padding():
    values = flat_of_before(BASE)
    for group in (values["geometry"], *(values[name]["task"] for name in sharing_tasks() if values[name])):
        del group["pad_color"]
    config = config_from_dict(values, "config.json")
    check_heads(config)
    assert config == BASE and config.geometry.pad_color == "black"
    mean = changed("--pad-color mean")
    assert {head.task.pad_color for head in mean.heads.values()} == {"mean"}
    with pytest.raises(ConfigError, match=r"--segmentation\.pad-color mean: .*--pad-color\."):
        changed("--segmentation.pad-color mean")
