"""A package that adds a backbone, a method and a task is installed, and used like what is built in."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitsplit.errors import ConfigError
from vitsplit.extensions import Table

TOY = Path(__file__).parent / "toy_plugin"
FLAGS = ["--backbone", "toy-vit", "--random-weights", "--steps", "3", "--batch-size", "2", "--crop-size", "48", "64",
         "--workers", "0", "--precision", "fp32", "--track", "--log-every", "1"]  # fmt: skip


def install(package: Path, target: Path) -> Path:
    """Puts a package into a folder as an installer does: its modules, and ``NAME.dist-info`` with its entry points."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    module = project["name"].replace("-", "_")
    for folder in (path for path in package.iterdir() if (path / "__init__.py").is_file()):
        shutil.copytree(folder, target / folder.name)
    info = target / f"{module}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in each.items()) for group, each in groups]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return target


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(TOY, tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with white dots, and where these are."""
    root, rng = tmp_path_factory.mktemp("points"), np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for folder in ("images", "points"):
            (root / folder / split).mkdir(parents=True)
        for index in range(count):
            pixels = np.full((48, 64, 3), 60, np.uint8)
            places = [[int(x), int(y)] for x, y in rng.integers(2, (62, 46), (3, 2))]
            for x, y in places:
                pixels[y - 2 : y + 2, x - 2 : x + 2] = 255
            Image.fromarray(pixels).save(root / "images" / split / f"{index}.png")
            (root / "points" / split / f"{index}.json").write_text(json.dumps(places))
    return root


def vitsplit(site: Path, *words: object, status: int = 0) -> str:
    """Runs the command line where the package is installed; returns what it printed."""
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "vitsplit", *map(str, words)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def test_a_task_a_method_and_a_backbone_of_another_package(site, points, scenes, tmp_path):
    counting, rooms, image = tmp_path / "counting", tmp_path / "rooms", next((points / "images" / "val").iterdir())
    report = json.loads(vitsplit(site, "data", "check", points, "--task", "counting", "--json"))
    assert report["ok"] and report["splits"]["train"]["images"] == 4
    assert "toy-vit" in vitsplit(site, "backbones")
    vitsplit(site, "train", "counting", "--data", points, "--out", counting, "--method", "channel-scale", *FLAGS)
    card = json.loads((counting / "best" / "head.json").read_text())
    assert card["task"] == "counting" and card["config"]["method"]["name"] == "channel-scale"
    assert "mean absolute error" in vitsplit(site, "evaluate", counting, "--data", points, "--out", tmp_path / "page")
    assert json.loads((tmp_path / "page" / "metrics.json").read_text())["images"] == 2
    more = ["--num-tuned-layers", "2", "--image-scale", "None"]
    vitsplit(site, "train", "segmentation", "--data", scenes, "--out", rooms, *FLAGS, *more)
    said = vitsplit(site, "predict", counting, rooms, image, "--out", tmp_path / "together")
    assert "1 pass" in said
    assert {path.name for path in (tmp_path / "together").rglob("*") if path.is_file()} >= {
        f"{image.stem}_density.npy", f"{image.stem}_mask.png"
    }  # fmt: skip
    tiles = ["--tile", "32", "32", "--overlap", "16"]
    vitsplit(site, "predict", counting, image, "--out", tmp_path / "tiles", *tiles)
    assert list((tmp_path / "tiles").rglob("*_density.tif"))


def test_a_bundle_of_a_task_that_is_not_installed_says_so(site, points, tmp_path):
    vitsplit(site, "train", "counting", "--data", points, "--out", tmp_path / "run", *FLAGS, "--num-tuned-layers", "1")
    assert "install the package" in vitsplit(tmp_path, "info", tmp_path / "run", status=2)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("broken_package.method:Missing", "ModuleNotFoundError"),
        ("vitsplit.methods.lora:LoraConfig", "name = 'lora'"),
    ],
)
def test_a_broken_package_is_named(tmp_path, monkeypatch, value, said):
    info = tmp_path / "broken_package-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-package\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text(f"[vitsplit.tests]\nmine = {value}\nlora = vitsplit.methods.lora:Other\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=rf"broken-package 0\.3.*{said}"):
        Table("method", "vitsplit.tests", {}).load("mine")
    with pytest.raises(ConfigError, match=r"'lora' of the package broken-package 0\.3 has"):
        Table("method", "vitsplit.tests", {"lora": "vitsplit.methods.lora:LoraConfig"}).names()
    with pytest.raises(ConfigError, match=r"no method 'min'\. Did you mean mine"):
        Table("method", "vitsplit.tests", {}).load("min")
