"""``vitsplit predict --ask``: output files, printed answers, resuming and errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bundles import write_segmentation_bundle
from PIL import Image
from vqa_bundles import answers_of, write_language_model, write_vqa_bundle

import vitsplit
from vitsplit.cli.main import main

WHAT, WHERE = "What is it?", "Where is it?"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bundles")
    language = write_language_model(root / "tiny")
    return {
        "rooms": write_segmentation_bundle(root / "rooms", seed=1),
        "asked": write_vqa_bundle(root / "asked", language, seed=3),
        "tiny": language,
    }


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(pixels.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


def predict(*words: object) -> int:
    given = [
        f"--language-weights={run.parent / 'tiny'}" for run in words if isinstance(run, Path) and run.name == "asked"
    ]
    return main(["predict", *map(str, words), *given])


def expected(runs: dict[str, Path], image: Path, questions: list[str], tokens: int = 8) -> list[dict[str, str]]:
    model = vitsplit.load(runs["asked"], language_weights=runs["tiny"])
    return [{"question": each, "answer": model.ask(image, each, max_new_tokens=tokens)} for each in questions]


def test_answers_and_results_of_other_bundles_from_one_pass(
    runs: dict[str, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = (runs["rooms"], runs["asked"], photos, "--out", out, "--ask", WHAT, "--ask", WHERE)
    assert predict(*words) == 0
    assert {path.name for path in out.iterdir()} == {"predictions.jsonl"} | {
        f"{name}_{ending}" for name in "ab" for ending in ("mask.png", "overlay.jpg", "answers.json", "answers.jpg")
    }
    output = [answers_of(out / f"{name}_answers.json") for name in "ab"]
    assert output == [expected(runs, photos / f"{name}.png", [WHAT, WHERE]) for name in "ab"]
    assert len({json.dumps(each) for each in output}) == 2, "the same for every image"
    assert Image.open(out / "a_answers.jpg").size == (80, 60)
    assert "2 passes at 48x64 for segmentation and vqa" in capsys.readouterr().out
    # Again: nothing to do. Another question: other predictions.
    assert predict(*words) == 0
    assert "2 of them predicted earlier" in capsys.readouterr().out
    for others in (["--ask", "Why?"], ["--max-new-tokens", 3]):
        assert predict(*words, *others) == 2
        assert "--overwrite" in capsys.readouterr().err
    assert predict(*words[:-2], "--max-new-tokens", 3, "--overwrite") == 0
    assert answers_of(out / "a_answers.json") == expected(runs, photos / "a.png", [WHAT], 3)


def test_without_out_answers_are_printed(
    runs: dict[str, Path], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "broken.png").write_bytes(b"not an image")
    answer = {name: expected(runs, photos / f"{name}.png", [WHAT])[0]["answer"] for name in "ab"}
    capsys.readouterr()
    assert predict(runs["asked"], photos / "a.png", "--ask", WHAT) == 0
    assert capsys.readouterr().out == f"{WHAT}\n  {answer['a']}\n"
    assert predict(runs["asked"], photos, "--ask", WHAT) == 1
    output = capsys.readouterr()
    assert output.out == "".join(f"{photos}/{name}.png\n{WHAT}\n  {answer[name]}\n" for name in "ab")
    assert "broken.png" in output.err and "Traceback" not in output.err
    assert not list(photos.glob("*.jsonl"))


def test_questions_are_about_the_whole_image_with_tiles(
    runs: dict[str, Path], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyvips")
    words = (photos / "a.png", "--tile", 32, 48, "--ask", WHAT, "--out")
    assert predict(runs["rooms"], runs["asked"], *words, tmp_path / "both") == 0
    assert sorted(path.name for path in (tmp_path / "both").glob("a_*")) == [
        "a_answers.jpg", "a_answers.json", "a_mask.png", "a_overlay.jpg"
    ]  # fmt: skip
    assert predict(runs["rooms"], *words[:4], "--out", tmp_path / "alone") == 0
    masks = [np.asarray(Image.open(tmp_path / out / "a_mask.png")) for out in ("both", "alone")]
    assert np.array_equal(*masks)
    assert answers_of(tmp_path / "both" / "a_answers.json") == expected(runs, photos / "a.png", [WHAT])
    # A very large image is downscaled for questions.
    monkeypatch.setattr("vitsplit.inference.strips.LARGE_PIXELS", 1000)
    monkeypatch.setattr("vitsplit.inference.asking.LARGE_SIDE", 40)
    assert predict(runs["asked"], photos / "a.png", "--ask", WHAT, "--out", tmp_path / "large") == 0
    assert Image.open(tmp_path / "large" / "a_answers.jpg").size == (40, 30)
    assert answers_of(tmp_path / "large" / "a_answers.json")[0]["answer"]


def test_videos_are_predicted_by_other_bundles_only(
    runs: dict[str, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    av = pytest.importorskip("av")
    with av.open(str(photos / "film.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 80, 60, "yuv420p"
        for gray in (50, 200):
            frame = av.VideoFrame.from_ndarray(np.full((60, 80, 3), gray, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert predict(runs["rooms"], runs["asked"], photos, "--ask", WHAT, "--out", tmp_path / "both") == 0
    assert (tmp_path / "both" / "film_overlay.mp4").is_file() and not list((tmp_path / "both").glob("film_answers*"))
    capsys.readouterr()
    assert predict(runs["asked"], photos, "--ask", WHAT, "--out", tmp_path / "alone") == 1
    output = capsys.readouterr()
    assert "2 of 3" in output.out and "film.mp4: " in output.err
    assert predict(runs["asked"], photos / "film.mp4", "--ask", WHAT) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ASKED", "photos", "--out", "out"], "--ask"),
        (["ASKED", "photos"], "--ask"),
        (["ROOMS", "photos", "--out", "out", "--ask", "What?"], "--ask"),
        (["ROOMS", "photos"], "--out"),
        (["ROOMS", "ASKED", "photos", "--ask", "What?"], "--out"),
        (["ASKED", "photos", "--ask", " "], "empty"),
        (["ROOMS", "photos", "--out", "out", "--max-new-tokens", "4"], "--max-new-tokens"),
        (["ASKED", "photos", "--ask", "What?", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["ASKED", "photos", "--ask", "What?", "--language-weights", "photos"], "photos"),
        (["ROOMS", "photos", "--out", "out", "--language-weights", "photos"], "--language-weights"),
    ],
)
def test_errors_are_one_message(
    words: list[str], message: str, runs: dict[str, Path], photos: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    words = [{"ASKED": str(runs["asked"]), "ROOMS": str(runs["rooms"])}.get(word, word) for word in words]
    try:
        status = main(["predict", *words])
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    shown = capsys.readouterr().err
    assert status == 2 and message in shown and "Traceback" not in shown
    assert not (tmp_path / "out").exists()
