"""Logs of predictions: invalid content, links, and folders that cannot be written."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import write_segmentation_bundle
from PIL import Image

from vitsplit.cli.main import main
from vitsplit.folder_lock import hold_folder
from vitsplit.inference.prediction_log import LOG
from vitsplit.inference.predictor import Predictor


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("bundles")
    return (
        write_segmentation_bundle(root / "one" / "best", seed=1),
        write_segmentation_bundle(root / "two" / "best", seed=2),
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(0)
    for index in range(4):
        Image.fromarray(pixels.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


Predict = Callable[..., tuple[int, str]]


@pytest.fixture
def predict(capsys: pytest.CaptureFixture[str]) -> Predict:
    def call(*words: object) -> tuple[int, str]:
        capsys.readouterr()
        status = main(["predict", *map(str, words)])
        output = capsys.readouterr().err
        assert "Traceback" not in output
        return status, output

    return call


def change_row(log: Path, **values: Any) -> None:
    lines = log.read_text().splitlines()
    row = json.loads(lines[2]) | values
    lines[2] = json.dumps({name: value for name, value in row.items() if value is not ...})
    log.write_text("\n".join(lines) + "\n")


FORGED: list[dict[str, Any]] = [
    {"files": ["../outside.txt"]},
    {"files": ["a/../../outside.txt"]},
    {"files": ["OUTSIDE"]},
    {"files": [7]},
    {"files": "outside.txt"},
    {"files": ...},
    {"name": 3},
    {"name": ...},
    {"name": "x" * 5000},
    {"bytes": "1_0"},
    {"bytes": True},
    {"modified_ns": 1.5},
    {"modified_ns": None},
]


@pytest.mark.parametrize("forged", FORGED, ids=str)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_forged_line_is_rejected_and_removes_nothing_outside(
    bundles: tuple[Path, Path], photos: Path, tmp_path: Path, predict: Predict, forged: dict[str, Any], overwrite: bool
) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside.txt"
    outside.write_text("precious")
    assert predict(bundles[0], photos, "--out", out)[0] == 0
    if forged.get("files") == ["OUTSIDE"]:
        forged = {"files": [str(outside)]}
    change_row(out / LOG, **forged)
    before = sorted(path.name for path in out.iterdir())
    status, output = predict(bundles[1], photos, "--out", out, *["--overwrite"] * overwrite)
    assert status == 2 and f"{LOG}: line 3" in output
    assert outside.read_text() == "precious" and sorted(path.name for path in out.iterdir()) == before


@pytest.mark.parametrize(
    ("content", "expected_text"),
    [
        (b"\xff\xfe", "UTF-8"),
        (b"[1]\n", "line 1"),
        (b'{"bundles": 3}\n', "line 1"),
        (b'{"bundles": {"a": "x", "a": "y"}}\n', "line 1"),
        (b"{}\n", "line 1"),
        (b'{"bundles": {"a": "b"}}\n{"name": \n{"name": "c"}\n', "line 2"),
    ],
)
def test_an_invalid_log_is_named(
    bundles: tuple[Path, Path], photos: Path, tmp_path: Path, predict: Predict, content: bytes, expected_text: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / LOG).write_bytes(content)
    status, message = predict(bundles[0], photos, "--out", out)
    assert status == 2 and f"{out / LOG}: " in message and expected_text in message
    assert [path.name for path in out.iterdir()] == [LOG]


def test_a_pipe_in_place_of_the_log_does_not_block(
    bundles: tuple[Path, Path], photos: Path, tmp_path: Path, predict: Predict
) -> None:
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / LOG)
    assert predict(bundles[0], photos, "--out", tmp_path / "out")[0] == 2


@pytest.mark.parametrize("link", [".partial", "deep", ".lock"])
def test_links_are_not_followed(
    bundles: tuple[Path, Path], photos: Path, tmp_path: Path, predict: Predict, link: str
) -> None:
    (photos / "deep").mkdir()
    (photos / "0.png").rename(photos / "deep" / "0.png")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "0_mask.png").write_text("precious")
    out = tmp_path / "out"
    out.mkdir()
    (out / link).symlink_to(outside)
    status, output = predict(bundles[0], photos, "--out", out)
    assert status == 2 and str(out) in output
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"0_mask.png": "precious"}


def test_overwrite_removes_nothing_through_a_link(
    bundles: tuple[Path, Path], photos: Path, tmp_path: Path, predict: Predict
) -> None:
    (photos / "deep").mkdir()
    (photos / "0.png").rename(photos / "deep" / "0.png")
    out, outside = tmp_path / "out", tmp_path / "outside"
    assert predict(bundles[0], photos, "--out", out)[0] == 0
    (out / "deep").rename(outside)
    (out / "deep").symlink_to(outside)
    kept = sorted(path.name for path in outside.iterdir())
    status, output = predict(bundles[1], photos / "1.png", "--out", out, "--overwrite")
    assert status == 2 and "is a link out of" in output
    assert sorted(path.name for path in outside.iterdir()) == kept and (out / "1_mask.png").exists()


def test_the_folder_can_be_a_link(bundles: tuple[Path, Path], photos: Path, tmp_path: Path, predict: Predict) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    for bundle in bundles:
        assert predict(bundle, photos, "--out", tmp_path / "out", "--overwrite")[0] == 0
    assert (tmp_path / "disk" / "3_mask.png").exists()


def test_a_locked_folder_is_rejected(
    bundles: tuple[Path, Path], photos: Path, tmp_path: Path, predict: Predict
) -> None:
    with hold_folder(tmp_path / "out") as out:
        status, output = predict(bundles[0], photos, "--out", out)
        assert status == 2 and f"process {os.getpid()} on " in output
        assert [path.name for path in out.iterdir()] == [".lock"]


@pytest.mark.parametrize("verb", ["predict", "evaluate"])
@pytest.mark.parametrize("place", ["file", "file/in it"])
def test_an_invalid_output_folder_is_reported_before_predicting(
    bundles: tuple[Path, Path], photos: Path, tmp_path: Path, scenes: Path, verb: str, place: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("vitsplit.api.evaluate", lambda *_, **__: pytest.fail("evaluated"))
    (tmp_path / "file").write_text("mine")
    words = ["predict", str(bundles[0]), str(photos)] if verb == "predict" else ["evaluate", str(bundles[0])]
    words += ["--data", str(scenes)] if verb == "evaluate" else []
    assert main([*words, "--out", str(tmp_path / place)]) == 2
    output = capsys.readouterr().err
    assert str(tmp_path / place) in output and "--out" in output and "Traceback" not in output
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def largest_file() -> Iterator[Callable[[int], None]]:
    """Limits the size of files: writing more fails in the kernel, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_one_message_and_the_command_can_be_resumed(
    bundles: tuple[Path, Path], photos: Path, tmp_path: Path, predict: Predict,
    largest_file: Callable[[int], None], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert predict(bundles[0], photos, "--out", whole)[0] == 0
    seen: list[int] = []
    original = Predictor.predict_batch

    def predict_batch(self: Predictor, image_BCHW: Any) -> Any:
        seen.append(1)
        if len(seen) == 3:
            largest_file(600)
        return original(self, image_BCHW)

    monkeypatch.setattr(Predictor, "predict_batch", predict_batch)
    status, output = predict(bundles[0], photos, "--out", out)
    assert status == 2 and str(out) in output and "could not be written" in output and "--out" in output
    largest_file(resource.RLIM_INFINITY)
    before = len(seen)
    assert predict(bundles[0], photos, "--out", out)[0] == 0
    assert len(seen) - before < 4, "what was done was done again"
    for file in whole.glob("*.png"):
        assert (out / file.name).read_bytes() == file.read_bytes()
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_an_evaluation_on_a_full_disk_prints_its_metrics(
    run: Path, scenes: Path, tmp_path: Path, largest_file: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    largest_file(200)
    status = main(["evaluate", str(run), "--data", str(scenes), "--out", str(tmp_path / "page"), "--json"])
    largest_file(resource.RLIM_INFINITY)
    output = capsys.readouterr()
    assert (
        status == 2 and "page" in output.err and "could not be written" in output.err and "Traceback" not in output.err
    )
    assert 0 <= json.loads(output.out)["miou"] <= 1
    assert not (tmp_path / "page" / ".lock").exists()


def test_a_non_utf8_name_is_rejected_before_writing(
    bundles: tuple[Path, Path], photos: Path, tmp_path: Path, predict: Predict
) -> None:
    (photos / "0.png").rename(photos / os.fsdecode(b"\xff.png"))
    status, output = predict(bundles[0], photos, "--out", tmp_path / "out")
    assert status == 2 and "not UTF-8" in output and not (tmp_path / "out").exists()


def test_concurrent_evaluations_use_separate_folders(run: Path, scenes: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(run, tmp_path / "run"))  # other tests read the shared run
    with hold_folder(own / "evaluation-val"):
        assert main(["evaluate", str(own), "--data", str(scenes), "--pictures", "1"]) == 0
    (new,) = {path.name for path in own.iterdir() if path.name.startswith("evaluation-")}
    assert new != "evaluation-val"


def test_a_folder_in_the_log_is_not_removed(
    bundles: tuple[Path, Path], photos: Path, tmp_path: Path, predict: Predict
) -> None:
    out = tmp_path / "out"
    assert predict(bundles[0], photos, "--out", out)[0] == 0
    (out / "mine").mkdir()
    change_row(out / LOG, files=["mine"])
    before = sorted(path.name for path in out.iterdir())
    status, output = predict(bundles[1], photos, "--out", out, "--overwrite")
    assert status == 2 and "mine" in output
    assert sorted(path.name for path in out.iterdir()) == before


@pytest.mark.parametrize("name", ["a\tb.png", "a\nb.png"])
def test_unprintable_names_are_rejected(
    bundles: tuple[Path, Path], photos: Path, tmp_path: Path, predict: Predict, name: str
) -> None:
    image = next(photos.iterdir())
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / name).write_bytes(image.read_bytes())
    status, output = predict(bundles[0], tmp_path / "odd", "--out", tmp_path / "out")
    assert status == 2 and repr(name)[1:-1] in output and not (tmp_path / "out").exists()
