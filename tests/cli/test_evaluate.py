"""Evaluation from the command line: settings of the task are flags, other settings are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import vitsplit
from vitsplit.cli.main import main


def test_settings_reach_the_evaluation(run: Path, scenes: Path, tmp_path: Path,
                                       capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    words = ["evaluate", str(run), "--data", str(scenes), "--json", "--out", str(tmp_path / "e"), "--pictures", "1"]
    assert main([*words, "--test-flip", "--test-scales", "0.5", "1"]) == 0
    shown = json.loads(capsys.readouterr().out)
    expected, _ = vitsplit.evaluate(run, data=scenes, test_flip=True, test_scales=(0.5, 1.0))
    plain, _ = vitsplit.evaluate(run, data=scenes)
    assert shown["miou"] == pytest.approx(expected.score) != pytest.approx(plain.score)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lr", "1e-3"], "--lr"),
        (["--num-tuned-layers", "1"], "--num-tuned-layers"),
        (["--test-flop"], "--test-flip"),
        (["--median-scaling"], "--median-scaling"),
        (["--limit", "3"], "--limit 3"),
    ],
)
def test_other_flags_are_rejected(run: Path, scenes: Path, flags: list[str], message: str,
                                  capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    assert main(["evaluate", str(run), "--data", str(scenes), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not list(run.glob("evaluation-*"))


def test_a_joint_run_is_evaluated_per_bundle(run: Path, scenes: Path, tmp_path: Path,
                                             capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    import shutil

    for task in ("segmentation", "depth"):
        shutil.copytree(run / "best", tmp_path / "joint" / "best" / task)
    assert main(["evaluate", str(tmp_path / "joint"), "--data", str(scenes)]) == 2
    output = capsys.readouterr().err
    assert str(tmp_path / "joint" / "best" / "depth") in output
