"""A package with a backbone, a method and a task is installed, and used like the built-in ones."""

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

from vitsplit.cli.main import main
from vitsplit.errors import ConfigError
from vitsplit.extensions import Table

TOY = Path(__file__).parent / "toy_plugin"
FLAGS = ["--backbone", "toy-vit", "--random-weights", "--steps", "3", "--batch-size", "2", "--crop-size", "48", "64",
         "--workers", "0", "--precision", "fp32", "--track", "--log-every", "1"]  # fmt: skip


def install(package: Path, target: Path) -> Path:
    """Installs a package into a folder: its modules, and ``NAME.dist-info`` with its entry points."""
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
    """Images with white dots, and the positions of the dots."""
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


ONE_AFTER_ANOTHER = """
import contextlib, io, json, sys
from vitsplit.cli.main import main
printed = []
for words in json.loads(sys.argv[1]):
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        status = main(words)
    assert status == 0, text.getvalue()
    printed.append(text.getvalue())
print(json.dumps(printed))
"""


def run_python(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs Python where the packages of a folder are installed."""
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def done(site, points, scenes, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A folder in which commands were run, in one process that has the package, and what each printed by its output."""
    out, image = tmp_path_factory.mktemp("out"), next((points / "images" / "val").iterdir())
    train = ["train", "counting", "--data", points, *FLAGS]
    commands = {
        "backbones": ["backbones"],
        "check": ["data", "check", points, "--task", "counting", "--json"],
        "counting": [*train, "--out", out / "counting", "--method", "channel-scale"],
        "plain": [*train, "--out", out / "plain", "--num-tuned-layers", "1"],
        "page": ["evaluate", out / "counting", "--data", points, "--out", out / "page"],
        "rooms": ["train", "segmentation", "--data", scenes, "--out", out / "rooms", *FLAGS,
                  "--num-tuned-layers", "2", "--image-scale", "None"],
        "together": ["predict", out / "counting", out / "rooms", image, "--out", out / "together"],
        "tiles": ["predict", out / "counting", image, "--out", out / "tiles", "--tile", "32", "32", "--overlap", "16"],
    }  # fmt: skip
    words = json.dumps([[str(word) for word in each] for each in commands.values()])
    finished = run_python(site, "-c", ONE_AFTER_ANOTHER, words)
    assert finished.returncode == 0, finished.stderr
    return out, dict(zip(commands, json.loads(finished.stdout), strict=True))


def test_extensions_of_another_package_are_used(points, done):
    out, printed = done
    report = json.loads(printed["check"])
    assert report["ok"] and report["splits"]["train"]["images"] == 4
    assert "toy-vit" in printed["backbones"]
    card = json.loads((out / "counting" / "best" / "head.json").read_text())
    assert card["task"] == "counting" and card["config"]["method"]["name"] == "channel-scale"
    assert "mean absolute error" in printed["page"]
    assert json.loads((out / "page" / "metrics.json").read_text())["images"] == 2
    assert "1 pass" in printed["together"]
    name = next((points / "images" / "val").iterdir()).stem
    assert {path.name for path in (out / "together").rglob("*") if path.is_file()} >= {
        f"{name}_density.npy", f"{name}_mask.png"
    }  # fmt: skip
    assert list((out / "tiles").rglob("*_density.tif"))


def test_a_bundle_of_a_missing_task_is_reported(done, capsys):
    assert main(["info", str(done[0] / "plain")]) == 2
    assert "install the package" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("broken_package.method:Missing", "ModuleNotFoundError"),
        ("vitsplit.methods.lora:LoraConfig", "name = 'lora'"),
    ],
)
def test_a_broken_package_is_named(tmp_path, monkeypatch, value, expected):
    info = tmp_path / "broken_package-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-package\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text(f"[vitsplit.tests]\nmine = {value}\nlora = vitsplit.methods.lora:Other\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=rf"broken-package 0\.3.*{expected}"):
        Table("method", "vitsplit.tests", {}).load("mine")
    with pytest.raises(ConfigError, match=r"'lora' .*broken-package 0\.3"):
        Table("method", "vitsplit.tests", {"lora": "vitsplit.methods.lora:LoraConfig"}).names()
    with pytest.raises(ConfigError, match=r"'min'.*mine"):
        Table("method", "vitsplit.tests", {}).load("min")
