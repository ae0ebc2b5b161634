"""Every ``vitsplit`` command of README and docs/features.md runs, in order, on generated scenes and with few steps."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from tiny_language import WIDTH, tiny_folder

from vitsplit.cli.main import main
from vitsplit.tasks.vqa.language_models import LANGUAGE_MODELS, LanguageSpec

README = Path(__file__).parents[1] / "README.md"
FEATURES = README.parent / "docs" / "features.md"

# Settings that make a command fast; all other words are those of the README.
QUICK = ["--backbone", "test_vit", "--random-weights", "--steps", "2", "--batch-size", "2",
         "--crop-size", "48", "64", "--workers", "0", "--precision", "fp32"]  # fmt: skip
QUICK_BENCH = ["--backbone", "vit_tiny_patch16_224", "--size", "32", "48", "--num-classes", "3", "--steps", "1",
               "--warmup", "0", "--no-memory", "--no-product", "--precision", "fp32"]  # fmt: skip
QUICK_EXPORT = ["--size", "48", "64"]
QUICK_DETECTION = ["--image-scale", "64", "48", "--train-sides", "32", "48"]
QUICK_PYTHON = (
    "steps=300",
    "steps=2, backbone='test_vit', random_weights=True, batch_size=2, crop_size=(48, 64), workers=0, precision='fp32'",
)


def blocks(language: str) -> list[str]:
    text = "".join(path.read_text(encoding="utf-8") for path in (README, FEATURES))
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("vitsplit ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.fixture
def home(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that the README uses."""
    shutil.copytree(scenes, tmp_path / "my_data")
    shutil.copy(next((scenes / "images" / "val").iterdir()), tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_commands_and_python(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    language = tiny_folder(tmp_path / "language").name
    # This language model is in the catalog, like the one of the README.
    monkeypatch.setitem(LANGUAGE_MODELS, language, LanguageSpec(WIDTH, "mit", language))
    served: list[list[str]] = []
    monkeypatch.setattr("vitsplit.api.serve", lambda runs, **options: served.append(list(runs)) or 0)
    verbs = [command[0] for command in commands()]
    assert {"train", "evaluate", "predict", "info", "recipes", "backbones", "data", "export", "serve"} <= set(verbs)
    for command in commands():
        quick = QUICK * (command[0] == "train") + QUICK_DETECTION * (command[:2] == ["train", "detection"])
        quick = {"bench": QUICK_BENCH, "export": QUICK_EXPORT}.get(command[0], quick)
        if command[:2] == ["train", "vqa"]:
            quick = [*quick, "--language-model", language, "--language-width", str(WIDTH), "--max-new-tokens", "2"]
        assert main(command + quick) == 0, " ".join(command)
    assert served == [["runs/rooms", "runs/depth"]]
    assert (home / "predictions" / "photo_mask.png").is_file()
    written = {path.name for path in (home / "together").iterdir()}
    assert {"photo_mask.png", "photo_depth.png", "photo_detections.json"} <= written
    assert (home / "runs" / "rooms" / "evaluation-val" / "index.html").is_file()
    assert (home / "runs" / "both" / "best" / "depth" / "head.json").is_file()
    assert [
        entry["question"] for entry in json.loads((home / "asked" / "photo_answers.json").read_text(encoding="utf-8"))
    ] == ["is there a cone?"]
    snippets = "".join(blocks("python"))
    assert QUICK_PYTHON[0] in snippets
    exec(snippets.replace(*QUICK_PYTHON), {})


def test_setup_commands_match_the_makefile() -> None:
    named = re.findall(r"^make (\w+)", "\n".join(blocks("bash")), flags=re.MULTILINE)
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    assert named == ["demo", "test"] and all(f"\n{target}:" in makefile for target in named)


def test_relative_links_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (README.parent / link).exists()]
    assert not missing


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 120


def test_no_placeholders() -> None:
    for document in (README, *(README.parent / "docs").glob("*.md")):
        left = re.findall(
            r"\b(?:[A-Z0-9]+_PART|MINUTES(?!=)|MEASURED|TODO|FIXME)\b", document.read_text(encoding="utf-8")
        )
        assert not left, f"{document.name}: {left}"
