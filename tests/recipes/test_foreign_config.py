"""Paths in configuration files: input paths outside the data are logged, and output paths are ignored."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from vitsplit.cli.flags import from_flags
from vitsplit.engine.override import override
from vitsplit.errors import ConfigError
from vitsplit.recipes import recipe
from vitsplit.recipes.starting_point import starting_config, starting_heads
from vitsplit.saved_config import config_to_dict


def write(path: Path, config: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config_to_dict(config)))
    return path


def test_output_paths_of_a_given_file_are_ignored(tmp_path, caplog):
    settings = {
        "cache_folder": "/elsewhere/cache",
        "weights": "/mine/w.pth",
        "language_weights": "/mine/llm",
        "val_file": "a",
    }
    config = override(recipe("laptop-vqa"), settings)
    file = write(tmp_path / "config.json", config)
    with caplog.at_level(logging.WARNING):
        read = starting_config("vqa", config_file=file)
    assert read == override(config, {"cache_folder": None})
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3, "names inside the data are not paths outside it"
    for flag, path in (
        ("--cache-folder", "/elsewhere/cache"),
        ("--weights", "/mine/w.pth"),
        ("--language-weights", "/mine/llm"),
    ):
        assert any(flag in line and path in line and str(file) in line for line in messages)
    # A flag of the user is applied.
    assert from_flags(read, ["--cache-folder", "/elsewhere/cache"]) == config


def test_paths_outside_the_data_are_warned_about(tmp_path, caplog):
    file = write(tmp_path / "config.json", override(recipe("laptop-vqa"), {"image_folder": "../../images"}))
    with caplog.at_level(logging.WARNING):
        starting_config("vqa", config_file=file)
    assert "--image-folder" in caplog.text and "../../images" in caplog.text


def test_a_resumed_run_keeps_its_cache_folder(tmp_path, caplog):
    config = override(recipe("laptop-depth"), {"cache_folder": str(tmp_path / "features")})
    file = write(tmp_path / "run" / "config.json", config)
    with caplog.at_level(logging.WARNING):
        assert starting_config("depth", resumed=tmp_path / "run") == config
        assert starting_config("depth", resumed=file) == config
    assert not caplog.records


def test_output_paths_of_joint_runs_are_ignored(tmp_path, caplog):
    config = override(starting_heads({"depth": "depth", "segmentation": "segmentation"}), {"cache_folder": "/x"})
    file = write(tmp_path / "run" / "config.json", config)
    assert starting_heads({"depth": "depth"}, config_file=file).loop.cache_folder is None
    assert "--cache-folder" in caplog.text
    assert starting_heads({"depth": "depth"}, resumed=tmp_path / "run").loop.cache_folder == "/x"


@pytest.mark.parametrize(
    "text",
    ['{"loop": {"steps": 1, "steps": 2}}', '{"loop": {"steps": NaN}}', '{"optim": {"lr": 1e999}}', "[" * 10**5, "{",
     '{"name": "\\ud800"}', '{"loop": {"steps": ' + "9" * 5000 + "}}", '{"loop": {"stepz": 1}}', "[]", "3", "",
     '{"backbone": {"weights": ""}}', '{"loop": {"cache_folder": "a\\u0000b"}}'],
)  # fmt: skip
def test_an_invalid_configuration_file_is_named(tmp_path, text):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json"):
        starting_config("segmentation", config_file=file)


def test_allow_outside_is_not_read_from_a_given_file(tmp_path):
    config = override(recipe("laptop-vqa"), {"allow_outside": True})
    file = write(tmp_path / "run" / "config.json", config)
    assert starting_config("vqa", config_file=file).task.allow_outside is False
    assert starting_config("vqa", resumed=tmp_path / "run").task.allow_outside is True, "the user's run"
    assert from_flags(recipe("laptop-vqa"), ["--allow-outside"]).task.allow_outside is True
