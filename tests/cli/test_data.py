"""``vitsplit data`` from the command line."""

import pytest

from vitsplit.cli.main import main

FORMATS = {
    "segmentation": "cityscapes",
    "depth": "kitti",
    "detection": "yolo",
}
"""One format per task that no other task has."""


@pytest.mark.parametrize(("task", "format"), [(t, f) for t in FORMATS for own, f in FORMATS.items() if own != t])
def test_a_format_of_another_task_is_one_clear_error(task, format, scenes, capsys):
    assert main(["data", "check", str(scenes), "--task", task, "--format", format]) == 2
    output = capsys.readouterr().err.strip()
    assert "\n" not in output and f"'{format}'" in output and "auto, " in output and FORMATS[task] in output


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_a_depth_scale_is_for_depth(task, scenes, capsys):
    assert main(["data", "check", str(scenes), "--task", task, "--depth-scale", "0.001"]) == 2
    output = capsys.readouterr().err
    assert "--depth-scale 0.001" in output and task in output


@pytest.mark.parametrize("task", ["segmentation", "depth", "detection"])
def test_generated_scenes_pass_the_check_of_every_task(task, scenes, capsys):
    assert main(["data", "check", str(scenes), "--task", task]) == 0
    output = capsys.readouterr().out
    assert f": {task}, format " in output and "all 64x48" in output and "\nready: 0 errors" in output


def test_prepare_names_missing_options(capsys):
    assert main(["data", "prepare", "nyuv2", "file.mat"]) == 2
    output = capsys.readouterr().err
    assert "--mapping" in output and "--splits" in output and "--out" in output
