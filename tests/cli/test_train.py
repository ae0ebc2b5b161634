"""Options of ``vitsplit train``."""

import json
import os
import re

import pytest

from small_run import SMALL_RUN
from vitsplit.cli.main import main
from vitsplit.engine.override import override
from vitsplit.folder_lock import hold_folder
from vitsplit.recipes import recipe
from vitsplit.saved_config import config_to_dict


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("multi", "Missing required option --head"),
        ("--head depth:DATA --data DATA", "--data DATA"),
        ("--head depth:DATA --recipe ade20k-small", "--recipe ade20k-small"),
        ("--head vqa:DATA", "'vqa'"),
        ("--lr 1 --head depth:DATA --segmentation.lr 1", "--segmentation.lr"),
        ("--head depth:DATA --depth.flip 0.1", "--flip"),
        ("--head rooms=segmentation:A --head rooms=depth:B", "--head rooms=depth:B"),
        ("depth --task depth=DATA", "--head depth"),
        ("depth", "Missing required option --data"),
        ("depth --data DATA --lrr 1", "--lrr"),
    ],
)
def test_invalid_options_are_one_message(words, message, capsys):
    assert main(["train", *words.split()]) == 2
    error = capsys.readouterr().err
    assert re.search(message, " ".join(error.split())) and "Traceback" not in error


def test_a_folder_in_use_by_another_process_is_rejected(tmp_path, scenes, capsys):
    with hold_folder(tmp_path / "run"):
        words = ["train", "segmentation", "--data", str(scenes), "--out", str(tmp_path / "run")]
        assert main(words) == 2
        assert f"process {os.getpid()} on " in capsys.readouterr().err
        (tmp_path / "run" / "config.json").write_text(json.dumps(config_to_dict(recipe("laptop-segmentation"))))
        assert main([*words, "--resume"]) == 2
        assert f"process {os.getpid()} on " in capsys.readouterr().err


def test_a_run_that_failed_on_its_data_can_be_restarted_and_resumed(tmp_path, scenes, capsys):
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(config_to_dict(override(recipe("laptop-segmentation"), {**SMALL_RUN, "steps": 1}))))
    out = tmp_path / "run"
    words = ["train", "segmentation", "--config", str(settings), "--out", str(out), "--data"]
    assert main([*words, str(tmp_path / "typo")]) == 2
    assert {path.name for path in out.iterdir()} == {"log.txt", ".start.json"}
    resume = ["train", "segmentation", "--out", str(out), "--resume", "--data"]
    assert main([*resume, str(scenes)]) == 0
    assert "starting from the beginning" in capsys.readouterr().out
    assert json.loads((out / "config.json").read_text())["backbone"]["backbone"] == SMALL_RUN["backbone"]
    assert not (out / ".start.json").exists() and not (out / ".lock").exists()


def test_heads_on_one_crop_with_current_and_former_options(tmp_path, scenes, capsys):
    flags = [word for name, value in SMALL_RUN.items() for word in words_of(name, value)]
    flags += ["--steps", "1", "--depth.lr", "3e-4", "--image-scale", "64", "48"]
    heads = ["--head", f"rooms=segmentation:{scenes}", "--head", f"depth:{scenes}"]
    assert main(["train", *flags, *heads, "--out", str(tmp_path / "new")]) == 0
    assert {path.name for path in (tmp_path / "new" / "best").iterdir()} == {"rooms", "depth"}
    saved = json.loads((tmp_path / "new" / "config.json").read_text())
    assert saved["heads"]["depth"]["optim"]["lr"] == 3e-4 != saved["heads"]["rooms"]["optim"]["lr"]
    assert saved["heads"]["rooms"]["task"]["kind"] == "segmentation"
    capsys.readouterr()
    assert main(["train", "multi", "--task", f"depth={scenes}", *flags, "--out", str(tmp_path / "old")]) == 0
    assert "--head" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "old" / "best").iterdir()] == ["depth"]


def words_of(name, value):
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))]
