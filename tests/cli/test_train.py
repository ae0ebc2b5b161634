"""``vitsplit train``: which words say what to learn from what."""

import json
import os
import re

import pytest

from small_run import SMALL_RUN
from vitsplit.cli.main import main
from vitsplit.engine.folder_lock import hold_folder
from vitsplit.engine.override import override
from vitsplit.engine.serialise import to_dict
from vitsplit.recipes import recipe


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("multi", "Give --task TASK=FOLDER for each"),
        ("multi --task depth=DATA --data DATA", r"--data DATA: every head of a joint run has its own data"),
        ("multi --task depth=DATA --recipe ade20k-small", r"--recipe ade20k-small: every head of a joint run"),
        ("multi --task vqa=DATA", "'vqa' is no task that others are trained with"),
        ("multi --task depth=DATA --segmentation.lr 1", "this run has no segmentation head"),
        ("multi --task depth=DATA --depth.flip 0.1", "Give it to all: --flip"),
        ("depth --task depth=DATA", "--task depth=DATA goes with `vitsplit train multi`"),
        ("depth", "Give their folder with --data FOLDER"),
        ("depth --data DATA --depth.lr 1", "There is no flag --depth.lr"),
    ],
)
def test_one_message_says_what_is_wrong(words, said, capsys):
    assert main(["train", *words.split()]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error) and error.startswith("error: ") and error.count("\n") == 1


def test_a_folder_that_another_process_trains_in_is_refused(tmp_path, scenes, capsys):
    with hold_folder(tmp_path / "run"):
        words = ["train", "segmentation", "--data", str(scenes), "--out", str(tmp_path / "run")]
        assert main(words) == 2
        assert f"process {os.getpid()} on " in capsys.readouterr().err
        (tmp_path / "run" / "config.json").write_text(json.dumps(to_dict(recipe("laptop-segmentation"))))
        assert main([*words, "--resume"]) == 2
        assert f"process {os.getpid()} on " in capsys.readouterr().err


def test_a_start_that_failed_on_its_data_can_be_repeated_and_resumed(tmp_path, scenes, capsys):
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(to_dict(override(recipe("laptop-segmentation"), {**SMALL_RUN, "steps": 1}))))
    out = tmp_path / "run"
    words = ["train", "segmentation", "--config", str(settings), "--out", str(out), "--data"]
    assert main([*words, str(tmp_path / "typo")]) == 2
    assert {path.name for path in out.iterdir()} == {"log.txt", ".start.json"}
    resume = ["train", "segmentation", "--out", str(out), "--resume", "--data"]
    assert main([*resume, str(scenes)]) == 0
    assert "starting from the beginning" in capsys.readouterr().out
    assert json.loads((out / "config.json").read_text())["backbone"]["backbone"] == SMALL_RUN["backbone"]
    assert not (out / ".start.json").exists() and not (out / ".lock").exists()
