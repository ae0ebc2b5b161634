"""Compatibility with earlier versions: bundles predict, runs resume and flags are parsed as before.

The oracle is the earlier version: its predictions, metrics and weights are stored with its files (``fixtures``).
"""

from __future__ import annotations

import functools
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import vitsplit
from earlier import FIXTURES, TIME, restored, run_command, samples
from vitsplit.errors import BundleError

BUNDLES = sorted(folder.name for folder in (FIXTURES / "bundles").iterdir())
STOPPED = sorted(folder.name for folder in (FIXTURES / "stopped").iterdir())
QUESTIONS = ["What is on the floor?", "How many balls are there?"]
DATA = {"segmentation": ["--data", "data"], "joint": ["--task", "segmentation=data", "--task", "depth=data",
                                                      "--task", "detection=data"]}  # fmt: skip
TASK = {"segmentation": "segmentation", "joint": "multi"}
WEIGHTS = "backbones/test_vit.safetensors"
SAME_WEIGHT = 1e-5
"""How far a weight may end from the earlier one: a hundredth of an optimizer step at the learning rate of 1e-3."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, frozen models and a tiny language model, as used by the earlier version."""
    folder = tmp_path_factory.mktemp("earlier")
    for part in ("data", "backbones", "language"):
        restored(part, folder)
    return folder


@pytest.fixture(autouse=True)
def inside(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)


@pytest.fixture(scope="module")
def dense(world: Path) -> list[str]:
    """Bundles of three tasks on one backbone."""
    return [str(restored(f"bundles/{name}", world / "dense")) for name in ("segmentation", "depth", "detection")]


@pytest.fixture(scope="module")
def image(world: Path) -> Path:
    return min((world / "data" / "images" / "val").iterdir())


def loaded(folder: Path) -> Any:
    card = json.loads((folder / "head.json").read_text())
    language = {"language_weights": "language"} if card["task"] == "vqa" else {}
    return vitsplit.load(folder, weights=f"backbones/{card['backbone']['name']}.safetensors", **language)


def assert_close(found: Any, expected: Any, place: str = "", within: float = 1e-4) -> None:
    """Compares JSON, without what depends on the machine's speed."""
    if isinstance(expected, dict):
        for key in expected.keys() - {"seconds", "images_per_second", "peak_memory_gb"}:
            # One pixel at a tie is 1 % of a rare class.
            assert_close(found[key], expected[key], f"{place}.{key}", 1e-2 if key == "eval" else within)
    elif isinstance(expected, list):
        assert len(found) == len(expected), place
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_close(one, other, f"{place}[{index}]", within)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=within, abs=within), place
    else:
        assert found == expected, place


def assert_same_classes(found: np.ndarray, expected: np.ndarray) -> None:
    """Near a tie the class of a pixel can depend on the machine, so one in a thousand may differ."""
    assert found.shape == expected.shape and (found == expected).mean() >= 0.999


@pytest.mark.parametrize("name", BUNDLES)
def test_earlier_bundles_give_equal_predictions(name: str, image: Path, tmp_path: Path) -> None:
    predictor = loaded(restored(f"bundles/{name}", tmp_path))
    if name == "vqa":
        answers = json.loads((FIXTURES / "bundles" / name / "prediction.json").read_text())
        assert predictor.ask(image, QUESTIONS) == answers
        return
    prediction = predictor.predict(image)
    expected = dict(np.load(FIXTURES / "bundles" / name / "prediction.npz"))
    if "mask" in expected:
        assert_same_classes(prediction.mask, expected["mask"])
    elif "depth" in expected:
        np.testing.assert_allclose(prediction.depth, expected["depth"], rtol=1e-4)
    else:
        assert len(expected["boxes"]) > 0 and np.array_equal(prediction.labels, expected["labels"])
        np.testing.assert_allclose(prediction.boxes, expected["boxes"], atol=1e-2)  # pixels
        np.testing.assert_allclose(prediction.scores, expected["scores"], rtol=1e-3)
        assert_same_classes(prediction.masks, expected["masks"])


def test_several_earlier_bundles_predict_by_command(dense: list[str], image: Path, tmp_path: Path) -> None:
    status, text = run_command(["predict", *dense, str(image), "--out", str(tmp_path / "o"), "--weights", WEIGHTS])
    assert status == 0, text
    mask = np.array(Image.open(tmp_path / "o" / f"{image.stem}_mask.png"))
    assert_same_classes(mask, np.load(FIXTURES / "bundles" / "segmentation" / "prediction.npz")["mask"])
    depth = np.load(tmp_path / "o" / f"{image.stem}_depth.npy")
    np.testing.assert_allclose(depth, np.load(FIXTURES / "bundles" / "depth" / "prediction.npz")["depth"], rtol=1e-4)
    assert (tmp_path / "o" / f"{image.stem}_detections.json").is_file()
    asked = [word for question in QUESTIONS for word in ("--ask", question)]
    words = ["predict", str(restored("bundles/vqa", tmp_path)), str(image), *asked]
    status, text = run_command([*words, "--weights", WEIGHTS, "--language-weights", "language"])
    assert status == 0, text
    for answer in json.loads((FIXTURES / "bundles" / "vqa" / "prediction.json").read_text()):
        assert f"  {answer}\n" in text


@pytest.mark.parametrize("name", STOPPED)
def test_earlier_runs_are_evaluated_and_resumed(name: str, tmp_path: Path) -> None:
    run = restored(f"stopped/{name}", tmp_path)
    ended = json.loads((FIXTURES / "stopped" / name / "ended.json").read_text())
    (run / "ended.json").unlink()
    for bundle, metrics in ended["evaluated"].items():
        words = ["evaluate", str(run / bundle), "--data", "data", "--weights", WEIGHTS]
        status, text = run_command([*words, "--json", "--out", str(tmp_path / "page"), "--pictures", "1"])
        assert status == 0, text
        assert_close(json.loads(next(line for line in text.splitlines() if line.startswith("{"))), metrics)
    words = ["train", TASK[name], *DATA[name], "--out", str(run), "--resume"]
    changed = min(Path("data/images/train").iterdir())
    os.utime(changed, (TIME + 60, TIME + 60))
    status, text = run_command(words)
    assert status == 2 and changed.name in text and "--allow-changed-data" in text
    os.utime(changed, (TIME, TIME))
    status, text = run_command(words)
    assert status == 0, text
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert_close(rows, ended["rows"])
    for file, expected in ended["weights"].items():
        assert_close(samples(run / file), expected, within=SAME_WEIGHT)


def test_settings_of_earlier_runs_can_start_new_ones(tmp_path: Path) -> None:
    for name in STOPPED:
        config, run = FIXTURES / "stopped" / name / "config.json", tmp_path / name
        words = ["train", TASK[name], *DATA[name], "--config", str(config), "--out", str(run), "--steps", "1"]
        status, text = run_command(words)
        assert status == 0, text
        assert (run / "config.json").is_file()


@pytest.mark.parametrize("name", ["depth", "detection", "segmentation"])
def test_task_settings_are_flags_of_evaluate(name: str, dense: list[str]) -> None:
    bundle = next(folder for folder in dense if Path(folder).name == name)
    flags: list[str] = []
    for setting, value in json.loads((Path(bundle) / "head.json").read_text())["config"]["task"].items():
        flag = setting.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif value != []:
            flags += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    status, text = run_command(["evaluate", bundle, "--data", "nowhere", "--weights", WEIGHTS, *flags])
    assert status == 2 and "nowhere" in text, text


@pytest.mark.parametrize("command", [
    "recipes --json", "backbones --json", "info RUN --json", "info RUN OTHER", "data check DATA --json",
    "data check DATA --task depth", "data check DATA --task detection", "data check DATA --task vqa",
])  # fmt: skip
def test_former_commands_succeed(command: str, dense: list[str]) -> None:
    status, text = run_command(
        [{"RUN": dense[0], "OTHER": dense[1], "DATA": "data"}.get(word, word) for word in command.split()]
    )
    assert status == 0 and text


def test_a_tensor_under_both_names_is_rejected(tmp_path: Path) -> None:
    """Otherwise the order in the file would decide which of the two is loaded."""
    folder = restored("bundles/lora", tmp_path)
    state = load_file(folder / "head.safetensors")
    former = next(name for name in state if name.startswith("head.trunk.model.blocks."))
    current = former.replace("head.trunk.model.blocks.", "head.task_head.blocks.").replace(".default.", ".")
    save_file({**state, current: state[former] + 1}, folder / "head.safetensors")
    with pytest.raises(BundleError, match=re.escape(current)):
        loaded(folder)


def is_known(flag: str, words: list[str]) -> bool:
    """Whether a verb takes a flag that its help does not list, such as an old name."""
    text = flag_error(flag, tuple(words))
    unknown = re.search(r"(?i)unrecognized|unknown|no (such )?(flag|option|argument|setting)", text)
    return unknown is None and text != flag_error("--no-such-thing-here", tuple(words))


@functools.cache
def flag_error(flag: str, words: tuple[str, ...]) -> str:
    """The error of a command for an invalid value of a flag, without the flag's name."""
    return run_command([*words, flag, "\x7f"])[1].replace(flag, "FLAG")


@pytest.mark.parametrize(("command", "flags"), json.loads((FIXTURES / "flags.json").read_text()).items())
def test_former_flags_are_accepted(command: str, flags: list[str], dense: list[str], image: Path) -> None:
    named = {"RUN": dense[0], "DATA": "data", "IMAGE": str(image)}
    words = [re.sub(r"\b(RUN|DATA|IMAGE)\b", lambda found: named[found[0]], word) for word in command.split()]
    status, text = run_command([*words, "--help"])
    assert status == 0, text
    unlisted = [flag for flag in flags if not re.search(rf"(?<![\w-]){flag}(?![\w-])", text)]
    # The help of several heads lists the flags of each without its name.
    heads = ("segmentation.", "depth.", "detection.") if "multi" in words else ("",)
    assert [flag for flag in unlisted if not any(is_known(f"--{head}{flag[2:]}", words) for head in heads)] == []


def test_an_unknown_flag_is_rejected() -> None:
    assert not is_known("--invented", ["train", "segmentation", "--data", "data"])
    assert is_known("--steps", ["train", "segmentation", "--data", "data"])
