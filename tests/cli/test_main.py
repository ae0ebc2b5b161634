"""The command line: quick help, clear errors, exit statuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from small_run import SMALL_RUN
from vitsplit.cli.main import VERBS, main

FLAGS = ["--backbone", "vit_tiny_patch16_224", "--random-weights", "--num-tuned-layers", "2", "--steps", "2",
         "--batch-size", "2", "--crop-size", "48", "64", "--workers", "0", "--precision", "fp32"]  # fmt: skip


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from vitsplit.cli.main import main; main(['--help']);"
        "heavy = {'torch', 'timm', 'numpy', 'rich', 'tyro', 'matplotlib'} & set(sys.modules); assert not heavy, heavy"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert all(verb in shown for verb in VERBS)


@pytest.mark.parametrize("verb", [*VERBS, "train segmentation", "data check"])
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main([*verb.split(), "--help"])
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    shown = capsys.readouterr().out
    assert status == 0 and f"vitsplit {verb.split()[0]}" in shown and len(shown) > 150


def test_help_of_a_verb_does_not_import_torch() -> None:
    code = (
        "import sys\nfrom vitsplit.cli.main import VERBS, main\n"
        "for verb in VERBS:\n"
        "    try:\n        main([*verb.split(), '--help'])\n    except SystemExit:\n        pass\n"
        "    heavy = {'torch', 'timm'} & set(sys.modules)\n"
        "    assert not heavy, (verb, heavy)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_missing_and_unknown_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0 and "usage: vitsplit" in capsys.readouterr().out
    assert main(["tain"]) == 2
    assert "there is no verb 'tain'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "segmentation"], "--data"),
        (["train", "segmentation", "--data", "nowhere"], "nowhere"),
        (["train", "segmentation", "--data", "DATA", "--recipe", "ade20k-smal"], "ade20k-small"),
        (["train", "segmentation", "--data", "DATA", "--step", "3"], "--steps"),
        (["train", "segmentation", "--data", "DATA", "--num-tuned-layers", "13"], "13"),
        (["train", "segmentation", "--data", "DATA", "--resume"], "--out"),
        (["train", "segmentation", "--data", "DATA", "--config", "nowhere.json"], "nowhere.json"),
        (
            ["train", "segmentation", "--data", "DATA", "--config", "a.json", "--recipe", "ade20k-small"],
            "not from both",
        ),
        (["predict", "nowhere", "a.jpg", "--out", "o"], "nowhere"),
        (["evaluate", "nowhere", "--data", "DATA"], "nowhere"),
        (["info", "no-such-recipe"], "no-such-recipe"),
    ],
)
def test_errors_are_one_line_with_status_2(
    words: list[str], message: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    extra = ["--random-weights", "--workers", "0"] if words[:2] == ["train", "segmentation"] else []
    words = [str(scenes) if word == "DATA" else word for word in words] + extra
    try:
        status = main(words)
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    shown = capsys.readouterr().err
    assert status == 2 and message in shown and "Traceback" not in shown


def test_train_resume_evaluate_predict(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    assert main(["train", "segmentation", "--data", str(scenes), "--out", out, *FLAGS]) == 0
    assert main(["train", "segmentation", "--data", str(scenes), "--out", out, *FLAGS]) == 2
    assert "already holds a run" in capsys.readouterr().err
    # The settings of the run are used, so no flag has to be repeated.
    assert main(["train", "segmentation", "--data", str(scenes), "--out", out, "--resume"]) == 0
    capsys.readouterr()
    assert main(["evaluate", out, "--data", str(scenes), "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["miou"] <= 1
    folder = tmp_path / "photos"
    shutil.copytree(scenes / "images" / "val", folder / "deep")
    (folder / "broken.jpg").write_bytes(b"not an image")
    assert main(["predict", out, str(folder), "--out", str(tmp_path / "o")]) == 1
    predicted = capsys.readouterr()
    assert "3 of 4 images" in predicted.out and "broken.jpg" in predicted.err
    assert len(list((tmp_path / "o" / "deep").glob("*_mask.png"))) == 3


def test_config_of_a_run_can_be_reused(run: Path, scenes: Path, tmp_path: Path) -> None:
    config = str(run / "config.json")
    words = ["train", "segmentation", "--data", str(scenes), "--config", config, "--out", str(tmp_path / "again")]
    assert main(words) == 0
    first, second = (json.loads((folder / "config.json").read_text()) for folder in (run, tmp_path / "again"))
    assert first == second and first["loop"]["steps"] == SMALL_RUN["steps"]


def test_predict_rejects_two_results_with_one_name(run: Path, scenes: Path, tmp_path: Path,
                                                   capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    image = next((scenes / "images" / "val").iterdir())
    (tmp_path / "other").mkdir()
    shutil.copy(image, tmp_path / "other" / image.name)
    words = ["predict", str(run), str(image), str(tmp_path / "other" / image.name), "--out", str(tmp_path / "o")]
    assert main(words) == 2
    assert image.name in capsys.readouterr().err and not (tmp_path / "o").exists()
