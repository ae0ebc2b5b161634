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
def test_a_run_goes_on_as_its_own_task_and_no_other(tmp_path, task):
    config = recipe(f"laptop-{task}")
    write(tmp_path / "config.json", config_to_dict(config))
    assert starting_config(task, resumed=tmp_path) == config
    for other in set(TASKS.names()) - {task}:
        with pytest.raises(ConfigError, match=rf"config\.json.* {task}, not for {other}.*train {task}`"):
            starting_config(other, resumed=tmp_path)


def test_a_joint_run_is_no_run_of_one_task(tmp_path):
    file = write(
        tmp_path / "config.json", config_to_dict(starting_heads({"segmentation": "segmentation", "depth": "depth"}))
    )
    with pytest.raises(ConfigError, match="--head NAME=TASK:FOLDER"):
        starting_config("depth", config_file=file)


def test_a_few_settings_fit_every_task_that_has_them(tmp_path):
    file = write(tmp_path / "few.json", {"task": {"crop_size": [70, 98]}})
    for task in TASKS.built_in:
        assert starting_config(task, config_file=file).task.crop_size == (70, 98)
    with pytest.raises(ConfigError, match=r"no setting 'task\.crop_sise'\. Did you mean crop_size"):
        starting_config("depth", config_file=write(file, {"task": {"crop_sise": [70, 98]}}))
    with pytest.raises(ConfigError, match="must be an object"):
        starting_config("depth", config_file=write(file, [1]))


def test_a_recipe_of_another_task_is_refused(tmp_path, capsys):
    assert main(["train", "segmentation", "--recipe", "nyuv2-small", "--data", str(tmp_path)]) == 2
    assert "--recipe nyuv2-small is for depth, not for segmentation" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--recipe nyuv2-small is for depth, not for detection"):
        vitsplit.train(task="detection", recipe="nyuv2-small", data=tmp_path, out=tmp_path / "run")


def test_a_recipe_alone_says_the_task(tmp_path):
    with pytest.raises(DataError, match="depth"):
        vitsplit.train(recipe="nyuv2-small", data=tmp_path, out=tmp_path / "run")


def test_only_a_runs_own_settings_say_where_is_written(tmp_path, caplog):
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


@pytest.mark.parametrize(("left", "said"), [(None, "does not exist"), ("log.txt", "without --resume")])
def test_what_to_do_where_there_are_no_settings_to_go_on_with(tmp_path, left, said):
    if left is not None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / left).touch()
    with pytest.raises(ConfigError, match=rf"run holds no run to resume.*{said}"):
        starting_config("depth", resumed=tmp_path / "run")
    if left is not None:  # as they were given, until the run has its own
        given = override(recipe("laptop-depth"), {"lr": 3e-4})
        write(tmp_path / "run" / ".start.json", config_to_dict(given))
        assert starting_config("depth", resumed=tmp_path / "run") == given
        write(tmp_path / "run" / "config.json", config_to_dict(recipe("laptop-depth")))
        assert starting_config("depth", resumed=tmp_path / "run") == recipe("laptop-depth")
