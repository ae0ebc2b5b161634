"""Values of flags: every verb rejects invalid values with status 2 and one message that names the flag."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitsplit.cli import values
from vitsplit.cli.main import main
from vitsplit.errors import ConfigError, RunError
from vitsplit.inference.loading import choose_device


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(4):
        Image.fromarray(np.full((40, 50, 3), 60 * k, dtype=np.uint8)).save(folder / f"{k}.png")
    return folder


HUGE = "9" * 30
BUNDLE = [
    *[("predict RUN PHOTOS --out OUT", flag) for flag in (
        "--scale 1000", "--scale 0", "--scale nan", "--scale -1", "--scale x", f"--batch-size {HUGE}", "--batch-size 0",
        "--tile 0 5", "--tile 5 100000", "--overlap -1", f"--overlap {HUGE}", "--max-new-tokens 0",
        f"--max-new-tokens {HUGE}", "--device foo", "--device cuda:9", "--device mps", "--device meta", "--device",
        "--precision fp8", "--batch-size 1e3", "--batch-size " + "9" * 5000)],
    *[("evaluate RUN --data DATA", flag) for flag in (
        "--pictures -1", f"--pictures {HUGE}", "--pictures x", "--test-scales nan", "--test-scales 1000",
        "--dice-weight -1", "--crop-size 0 5", f"--crop-size 5 {HUGE}", "--image-scale 8000 8000", "--split ../x",
        "--split a/b", "--device cuda:9", "--split .")],
    *[("train segmentation --data DATA --random-weights", flag) for flag in (
        "--steps 9e29", f"--steps {HUGE}", "--steps 0", "--workers 1000000", "--workers -2", "--seed -1",
        f"--batch-size {HUGE}", "--lr nan", "--lr -1", "--accumulate 0", "--dice-weight -1", "--dice-weight inf",
        "--test-scales nan", "--scale-range 2 1", "--cache-limit-gb -1", "--ema 1", "--patience 0", "--clip-norm 0",
        "--max-seconds -3", "--num-tuned-layers -1", "--gate-temperature 0", "--patch-size 100000")],
    *[("info ade20k-small", flag) for flag in (
        "--size 0 5", f"--size 5 {HUGE}", "--num-classes 0", "--num-classes 1000000", "--steps 0")],
    *[("info ade20k-small laptop-depth", flag) for flag in ("--size 0 5", f"--size 5 {HUGE}")],
    *[("bench predict", flag) for flag in (
        "--turns 0", f"--turns {HUGE}", "--bundles 1000000", "--warmup -1", "--threads 100000", "--device foo",
        "--size 0 0", "--num-classes 256", "--batch-size 0")],
    *[("bench train-step", flag) for flag in ("--steps 0", f"--steps {HUGE}", "--warmup -1", "--device cuda:9")],
    *[("bench accuracy segmentation --data DATA --out OUT", flag) for flag in (
        "--minutes 0", "--minutes nan", "--minutes 1e30", "--seeds -1", "--processes 0", "--processes 1000000")],
    *[("analyze sweep segmentation --data DATA --out OUT", flag) for flag in ("--tuned -1", "--prior 100000")],
    *[("analyze ablate segmentation --data DATA --out OUT", flag) for flag in ("--prior 0", f"--seeds {HUGE}")],
    *[("analyze cka PHOTOS --random-weights", flag) for flag in (
        "--size 0 5", f"--size 5 {HUGE}", "--limit -1", "--batch-size 3", f"--batch-size {HUGE}", "--device foo")],
    *[("analyze features PHOTOS --random-weights", flag) for flag in ("--size 0 5", "--limit -1", "--device cuda:9")],
    *[("analyze layers PHOTOS --random-weights", flag) for flag in (
        "--size 5 100000", "--num-prior-layers -1", "--device foo", "--batch-size 1")],
    *[("data check DATA", flag) for flag in ("--workers -1", "--workers 1000000", "--depth-scale nan",
                                             "--depth-scale 0")],
    *[("demo --random-weights", flag) for flag in ("--train-scenes 0", "--size 1 1", "--steps 0", f"--seed {HUGE}")],
]  # fmt: skip


@pytest.mark.parametrize(("words", "flag"), BUNDLE, ids=[f"{w.split()[0]} {f}"[:60] for w, f in BUNDLE])
def test_invalid_numbers_and_devices(
    words: str, flag: str, run: Path, scenes: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    places = {"RUN": str(run), "DATA": str(scenes), "PHOTOS": str(photos), "OUT": str(tmp_path / "out")}
    argv = [places.get(word, word) for word in f"{words} {flag}".split()]
    try:
        status = main(argv)
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    output = capsys.readouterr().err
    assert status == 2 and flag.split()[0] in output and "Traceback" not in output
    assert len(output) < 6000 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        "predict RUN PHOTOS --out @", "predict RUN PHOTOS --out=", "predict RUN PHOTOS --out o --weights @",
        "evaluate RUN --data @", "evaluate RUN --data DATA --out @", "train segmentation --data @",
        "train segmentation --data DATA --out @", "train segmentation --data DATA --config @", "data check @",
        "train segmentation --data DATA --cache-folder=", "analyze cka PHOTOS --out @", "analyze cka @",
        "info @", "demo --out @", "predict RUN PHOTOS --out a\0b",
    ],
)  # fmt: skip
def test_empty_paths_are_rejected(
    words: str, run: Path, scenes: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    places = {"RUN": str(run), "DATA": str(scenes), "PHOTOS": str(photos), "@": ""}
    before = sorted(tmp_path.rglob("*"))
    assert main([places.get(word, word) for word in words.split(" ")]) == 2
    assert "empty" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before, "nothing was written"


def test_texts_may_be_empty() -> None:
    values.check_arguments(["x", "--answer-hint", "", "--system-prompt=", "--ask", ""])
    with pytest.raises(ConfigError, match="--out"):
        values.check_arguments(["--answer-hint", "", "--out", ""])


@pytest.mark.parametrize("where", ["file/inside", "file"])
@pytest.mark.parametrize(
    "verb", ["analyze cka PHOTOS --random-weights --backbones vit_tiny_patch16_224 --batch-size 4",
             "analyze features PHOTOS --random-weights --backbones vit_tiny_patch16_224"]
)  # fmt: skip
def test_an_unwritable_folder_is_reported_before_computing(
    verb: str, where: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "file").touch()
    monkeypatch.setattr("vitsplit.backbone.load_backbone", lambda *_, **__: pytest.fail("a model was loaded"))
    words = [str(photos) if word == "PHOTOS" else word for word in verb.split()]
    assert main([*words, "--out", str(tmp_path / where)]) == 2
    output = capsys.readouterr().err
    assert str(tmp_path / where) in output and "--out" in output and "Traceback" not in output


def test_make_writable_leaves_no_files(tmp_path: Path) -> None:
    assert list(values.make_writable(tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file.*--out"):
        values.make_writable(tmp_path / "file")


def test_system_errors_name_file_and_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import errno

    for number, remedy in ((errno.ENOSPC, "--out"), (errno.EROFS, "--out"), (errno.EIO, "Check")):
        error = OSError(number, "refused", "/a/page.html")

        def fail(name: str, error: OSError = error) -> int:
            raise error

        monkeypatch.setattr("vitsplit.cli.recipes.describe", fail)
        assert main(["recipes"]) == 2
        output = capsys.readouterr().err
        assert "/a/page.html" in output and remedy in output


def test_devices() -> None:
    assert choose_device("cpu") == choose_device(torch.device("cpu")) == torch.device("cpu")
    assert choose_device(None) == torch.device("cpu")
    for device in ("", "cuda", "cuda:0", "cpu:1", "mps", "meta", "gpu", "cuda:x", "x" * 500):
        with pytest.raises(ConfigError, match="--device") as error:
            choose_device(device)
        assert "cpu" in str(error.value) and len(str(error.value)) < 250
