"""Settings of a joint run: which head a setting is for, and what all heads must share."""

import dataclasses
import json

import pytest

from vitsplit.cli.multi_options import multi_config_from_cli, print_settings
from vitsplit.cli.train import task_folders
from vitsplit.engine.override import override
from vitsplit.engine.serialise import from_dict, to_dict
from vitsplit.engine.starting_point import starting_multi_config
from vitsplit.errors import ConfigError
from vitsplit.recipes import recipe
from vitsplit.tasks import TASKS, config_type
from vitsplit.tasks.multi.config import HEAD_NAMES, GeometryConfig, MultiConfig

BASE = starting_multi_config(["segmentation", "depth"])


def changed(flags: str) -> MultiConfig:
    return multi_config_from_cli(BASE, flags.split())


def test_there_is_a_head_for_every_task():
    assert (
        set(HEAD_NAMES)
        == set(TASKS) - {"vqa"}
        == {each.name for each in dataclasses.fields(MultiConfig)}
        - {
            "geometry",
            "backbone",
            "loop",
        }
    )


def test_every_head_starts_from_its_tasks_own_recipe():
    for name in HEAD_NAMES:
        own, alone = starting_multi_config(HEAD_NAMES).own(name), recipe(TASKS[name].default_recipe)
        assert (own.name, own.split, own.optim, own.backbone) == (alone.name, alone.split, alone.optim, alone.backbone)


def test_no_flag_changes_nothing():
    assert changed("") == BASE


def test_a_flag_without_a_name_is_for_all_heads_and_one_with_a_name_for_one():
    config = changed("--lr 1e-4 --num-tuned-layers 2 --steps 7 --depth.lr 3e-4 --segmentation.dice-weight 0.5")
    assert {name: optim.lr for name, optim in config.optims().items()} == {"segmentation": 1e-4, "depth": 3e-4}
    assert [head.split.num_tuned_layers for head in config.heads().values()] == [2, 2]
    assert config.loop.steps == 7
    assert config.segmentation.task.dice_weight == 0.5
    expected = dataclasses.replace(BASE.depth.optim, lr=3e-4)
    assert config.depth.optim == expected, "its schedule and clipping stay its own"


@pytest.mark.parametrize("flags", ["--depth.no-test-flip --flip 0", "--flip 0.0 --depth.no-test-flip"])
def test_the_augmentation_reaches_every_head(flags):
    config = changed(f"{flags} --crop-size 70 98 --scale-range 1 1 --no-photometric --image-scale None")
    assert config.geometry == GeometryConfig(
        crop_size=(70, 98), image_scale=None, scale_range=(1.0, 1.0), flip=0.0, photometric=False
    )
    for name in ("segmentation", "depth"):
        task = config.own(name).task
        assert (task.crop_size, task.image_scale, task.flip) == ((70, 98), None, 0.0)
    assert not config.depth.task.test_flip


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--segmentation.flip 0.1", r"--segmentation\.flip 0\.1: all heads.*--flip without 'segmentation\.'"),
        ("--depth.crop-size 14 14", r"--depth\.crop-size \(14, 14\): all heads.*--crop-size without"),
        ("--segmentation.max-class-ratio 0.9", r"--segmentation\.max-class-ratio 0\.9: .*Leave it away"),
        ("--depth.rotate-share 1", r"--depth\.rotate-share 1\.0: .*one augmentation.*Leave it away"),
        ("--detection.masks off", r"no detection head.*--task detection=FOLDER"),
        ("--dice-weight 1", "no flag --dice-weight"),
        ("--depth.test-flop", r"no flag --depth\.test-flop\. Did you mean --depth\.test-flip"),
        ("--depth.steps 5", r"no flag --depth\.steps"),
        ("100", "'100' stands without a flag"),
    ],
)
def test_flags_that_cannot_be_are_refused(flags, said):
    with pytest.raises(ConfigError, match=said):
        changed(flags)


def test_the_same_value_as_all_heads_have_is_no_mistake():
    assert changed("--flip 0.25 --depth.flip 0.25") == changed("--flip 0.25")


def test_a_dot_in_a_value_is_no_head():
    assert changed("--weights=depth.pth").backbone.weights == "depth.pth"


def test_detection_has_a_size_of_its_own_to_be_tested_at():
    with pytest.raises(ConfigError, match="--image-scale None: detection needs a size"):
        multi_config_from_cli(starting_multi_config(["detection"]), ["--image-scale", "None"])


def test_in_python_a_heads_settings_stand_under_its_name():
    by_name = override(BASE, {"lr": 1e-4, "crop_size": (70, 98), "depth": {"lr": 3e-4, "test_flip": False}})
    assert by_name == changed("--lr 1e-4 --crop-size 70 98 --depth.lr 3e-4 --depth.no-test-flip")
    with pytest.raises(ConfigError, match="no detection head, only segmentation, depth"):
        override(BASE, {"detection": {"lr": 1e-4}})
    with pytest.raises(ConfigError, match="no setting 'dice_weight'"):
        override(BASE, {"dice_weight": 1.0})


def test_it_can_be_written_down_and_read_back():
    config = starting_multi_config(HEAD_NAMES)
    assert from_dict(MultiConfig, json.loads(json.dumps(to_dict(config))), "test") == config
    assert from_dict(MultiConfig, to_dict(BASE), "test") == BASE
    broken = to_dict(BASE)
    broken["depth"]["optim"]["rate"] = 1.0
    with pytest.raises(ConfigError, match=r"no setting 'depth\.optim\.rate'"):
        from_dict(MultiConfig, broken, "test")


@pytest.mark.parametrize("name", HEAD_NAMES)
def test_what_a_bundle_records_is_an_ordinary_configuration(name):
    own = starting_multi_config(HEAD_NAMES).own(name)
    assert from_dict(config_type(name), to_dict(own), "test") == own


def test_a_file_is_used_for_the_tasks_that_are_named(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(to_dict(changed("--steps 7 --depth.lr 3e-4"))))
    alone = starting_multi_config(["depth"], config_file=file)
    assert list(alone.heads()) == ["depth"]
    assert (alone.loop.steps, alone.depth.optim.lr) == (7, 3e-4)
    with pytest.raises(ConfigError, match="no head for detection, only for segmentation, depth"):
        starting_multi_config(["detection"], config_file=file)


def test_a_file_whose_heads_see_other_crops_is_refused():
    values = to_dict(BASE)
    values["depth"]["task"]["flip"] = 0.1
    with pytest.raises(ConfigError, match=r"--depth\.flip 0\.1"):
        from_dict(MultiConfig, values, "test").check()


def test_tasks_and_their_folders():
    assert {name: str(path) for name, path in task_folders(["depth=a", "segmentation=b=c"]).items()} == {
        "depth": "a",
        "segmentation": "b=c",
    }
    for given, said in (
        (["depth"], "as TASK=FOLDER"),
        (["depth="], "as TASK=FOLDER"),
        (["deph=a"], "'deph' is no task"),
        (["depth=a", "depth=b"], "depth has a already"),
    ):
        with pytest.raises(ConfigError, match=said):
            task_folders(given)


def test_help_has_every_setting_of_every_head(capsys):
    print_settings(BASE, prog="vitsplit train multi")
    text = capsys.readouterr().out
    shared, segmentation, depth = text.split("usage:")[1:]
    assert "--crop-size" in shared and "--batch-size" in shared and "--dice-weight" not in shared
    assert "--dice-weight" in segmentation and "vitsplit train multi --segmentation." in segmentation
    assert "--max-depth" in depth and "--dice-weight" not in depth


def test_a_joint_run_of_before_has_black_padding():
    values = to_dict(BASE)
    for group in (values["geometry"], *(values[name]["task"] for name in HEAD_NAMES if values[name])):
        del group["pad_color"]
    config = from_dict(MultiConfig, values, "config.json")
    config.check()
    assert config == BASE and config.geometry.pad_color == "black"
    mean = changed("--pad-color mean")
    assert {head.task.pad_color for head in mean.heads().values()} == {"mean"}
    with pytest.raises(ConfigError, match=r"--segmentation\.pad-color mean: all heads"):
        changed("--segmentation.pad-color mean")
