import json

import pytest

import vitsplit
from vitsplit.cli.main import main
from vitsplit.engine.override import override
from vitsplit.errors import ConfigError, DataError
from vitsplit.recipes import recipe
from vitsplit.recipes.starting_point import starting_config, starting_heads
from vitsplit.saved_config import config_to_dict
from vitsplit.tasks import TASKS


def write(path, values):
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize("task", TASKS.built_in)
def test_a_run_is_resumed_only_as_its_own_task(tmp_path, task):
    config = recipe(f"laptop-{task}")
    write(tmp_path / "config.json", config_to_dict(config))
    assert starting_config(task, resumed=tmp_path) == config
    for other in set(TASKS.names()) - {task}:
        with pytest.raises(ConfigError, match=rf"config\.json.* {task}, not for {other}.*train {task}`"):
            starting_config(other, resumed=tmp_path)


def test_a_joint_configuration_is_rejected_for_one_task(tmp_path):
    file = write(
        tmp_path / "config.json", config_to_dict(starting_heads({"segmentation": "segmentation", "depth": "depth"}))
    )
    with pytest.raises(ConfigError, match="--head NAME=TASK:FOLDER"):
        starting_config("depth", config_file=file)


def test_partial_settings_apply_to_every_task(tmp_path):
    file = write(tmp_path / "few.json", {"task": {"crop_size": [70, 98]}})
    for task in TASKS.built_in:
        assert starting_config(task, config_file=file).task.crop_size == (70, 98)
    with pytest.raises(ConfigError, match=r"'task\.crop_sise'.*crop_size"):
        starting_config("depth", config_file=write(file, {"task": {"crop_sise": [70, 98]}}))
    with pytest.raises(ConfigError, match="must be an object"):
        starting_config("depth", config_file=write(file, [1]))


def test_a_recipe_of_another_task_is_rejected(tmp_path, capsys):
    assert main(["train", "segmentation", "--recipe", "nyuv2-small", "--data", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in ("--recipe nyuv2-small", "depth", "segmentation"))
    with pytest.raises(ConfigError, match=r"--recipe nyuv2-small .*depth.*detection"):
        vitsplit.train(task="detection", recipe="nyuv2-small", data=tmp_path, out=tmp_path / "run")


def test_the_task_is_inferred_from_the_recipe(tmp_path):
    with pytest.raises(DataError, match="depth"):
        vitsplit.train(recipe="nyuv2-small", data=tmp_path, out=tmp_path / "run")


def test_output_paths_are_read_only_from_the_resumed_run(tmp_path, caplog):
    config = override(recipe("laptop-depth"), {"cache_folder": "/somewhere/else", "cache_features": 2})
    file = write(tmp_path / "config.json", config_to_dict(config))
    assert starting_config("depth", resumed=tmp_path) == config
    assert not caplog.records
    foreign = starting_config("depth", config_file=file)
    assert foreign == override(config, {"cache_folder": None})
    assert "/somewhere/else" in caplog.text and "--cache-folder" in caplog.text
    joint = override(starting_heads({"depth": "depth"}), {"cache_folder": "/somewhere/else"})
    assert starting_heads({"depth": "depth"}, config_file=write(file, config_to_dict(joint))).loop.cache_folder is None
    assert starting_heads({"depth": "depth"}, resumed=tmp_path) == joint


@pytest.mark.parametrize(("left", "expected"), [(None, "does not exist"), ("log.txt", "without --resume")])
def test_missing_settings_to_resume_are_reported_with_a_remedy(tmp_path, left, expected):
    if left is not None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / left).touch()
    with pytest.raises(ConfigError, match=rf"run holds no run to resume.*{expected}"):
        starting_config("depth", resumed=tmp_path / "run")
    if left is not None:  # the given settings, until the run has its config.json
        given = override(recipe("laptop-depth"), {"lr": 3e-4})
        write(tmp_path / "run" / ".start.json", config_to_dict(given))
        assert starting_config("depth", resumed=tmp_path / "run") == given
        write(tmp_path / "run" / "config.json", config_to_dict(recipe("laptop-depth")))
        assert starting_config("depth", resumed=tmp_path / "run") == recipe("laptop-depth")
