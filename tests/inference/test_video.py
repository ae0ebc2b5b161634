"""Videos, encoded here and read back."""

from __future__ import annotations

import os
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from bundles import write_segmentation_bundle
from PIL import Image

import vitsplit
from vitsplit.backbone.backbone import Backbone
from vitsplit.cli.main import main
from vitsplit.inference.side_by_side import side_by_side

av = pytest.importorskip("av")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("bundles")
    return [write_segmentation_bundle(root / "rooms", seed=1),
            write_segmentation_bundle(root / "cars", num_tuned_layers=3, num_classes=3, seed=2)]  # fmt: skip


def write_clip(path: Path, size: tuple[int, int], times: list[int], *, rotation: int = 0) -> Path:
    """Frames of soft colors that change, at ``times`` tenths of a second; without loss of color resolution."""
    height, width = size
    y, x = np.mgrid[0:height, 0:width]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv444p"
        stream.codec_context.time_base = Fraction(1, 10)
        if rotation:
            stream.set_display_rotation(rotation)
        for index, time in enumerate(times):
            array = np.stack([255 * x / width, 255 * y / height, np.full(size, 30 * index)], -1).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read_clip(path: Path) -> tuple[list[np.ndarray], list[Fraction]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [frame.to_ndarray(format="rgb24") for frame in frames], [frame.pts * frame.time_base for frame in frames]


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """Mean difference of the colors of blocks of 4 x 4 pixels: H.264 keeps less of single pixels' colors."""
    assert first.shape == second.shape
    height, width = (side // 4 * 4 for side in first.shape[:2])
    blocks = (first.astype(float) - second)[:height, :width].reshape(height // 4, 4, width // 4, 4, 3)
    return float(np.abs(blocks.mean((1, 3))).mean())


def test_overlay_of_one_bundle_on_every_frame(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", (48, 64), list(range(7)))
    assert main(["predict", str(runs[0]), str(clip), "--out", str(tmp_path / "out"), "--batch-size", "3"]) == 0
    output = capsys.readouterr().out
    assert "7 frames" in output and "without sound" in output
    painted, times = read_clip(tmp_path / "out" / "clip_overlay.mp4")
    frames, _ = read_clip(clip)
    assert times == [Fraction(index, 10) for index in range(7)]
    model = vitsplit.load(runs[0])
    for index in (0, 3, 6):
        expected = np.asarray(model.predict(frames[index])["segmentation"].overlay())
        assert difference(painted[index], expected) < 4 < difference(painted[index], frames[index]) / 3


def test_grid_of_several_bundles_from_one_pass_per_frame(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    original = Backbone.forward
    monkeypatch.setattr(Backbone, "forward", lambda self, *args: (calls.append(1), original(self, *args))[1])
    clip = write_clip(tmp_path / "clip.mp4", (48, 64), list(range(4)))
    assert main(["predict", *map(str, runs), str(clip), "--out", str(tmp_path / "out")]) == 0
    assert len(calls) == 4
    painted, _ = read_clip(tmp_path / "out" / "clip_overlay.mp4")
    frames, _ = read_clip(clip)
    # Three pictures of 4:3 are largest on a screen of 16:9 in two rows of two.
    assert len(painted) == 4 and painted[0].shape == (96, 128, 3)
    cells = [painted[2][:48, :64], painted[2][:48, 64:], painted[2][48:, :64]]
    wanted = [frames[2], *(np.asarray(vitsplit.load(run).predict(frames[2]).overlay()) for run in runs)]
    for cell, picture in zip(cells, wanted, strict=True):
        assert difference(cell[20:], picture[20:]) < 4  # below the names
    assert painted[2][48:, 64:].mean() < 40


def test_variable_rate_odd_size_and_rotation(runs: list[Path], tmp_path: Path) -> None:
    times = [0, 1, 5, 6, 20]
    clip = write_clip(tmp_path / "clip.mp4", (47, 63), times, rotation=90)
    assert main(["predict", str(runs[0]), str(clip), "--out", str(tmp_path / "out")]) == 0
    painted, seen = read_clip(tmp_path / "out" / "clip_overlay.mp4")
    assert seen == [Fraction(time, 10) for time in times]
    upright = np.rot90(read_clip(clip)[0][0])  # by 90 degrees counter-clockwise: red grows upwards
    assert upright[0, 30, 0] > 200 > 50 > upright[-1, 30, 0]
    expected = np.asarray(vitsplit.load(runs[0]).predict(upright.copy()).overlay())
    assert painted[0].shape == (64, 48, 3)
    assert difference(painted[0][:63, :47], expected) < 4
    assert difference(painted[0][60:], np.pad(expected, ((0, 1), (0, 1), (0, 0)), mode="edge")[60:]) < 8


@pytest.mark.parametrize("kind", ["text", "empty", "headless", "sound"])
def test_broken_videos_are_listed_like_unreadable_images(
    runs: list[Path], tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = tmp_path / "in" / "clip.mp4"
    clip.parent.mkdir()
    if kind == "sound":
        with av.open(str(clip), "w") as container:
            stream = container.add_stream("aac", rate=44100)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
            frame.sample_rate = 44100
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    else:
        whole = write_clip(clip, (48, 64), list(range(8))).read_bytes()
        clip.write_bytes({"text": b"not a video", "empty": b"", "headless": whole[: len(whole) // 2]}[kind])
    Image.new("RGB", (64, 48)).save(clip.parent / "fine.png")
    assert main(["predict", str(runs[0]), str(clip.parent), "--out", str(tmp_path / "out")]) == 1
    output = capsys.readouterr()
    assert "1 of 2 images" in output.out and "clip.mp4" in output.err and "Traceback" not in output.err
    assert (tmp_path / "out" / "fine_mask.png").exists() and not list((tmp_path / "out").glob("*.mp4"))


def test_without_pyav_the_error_names_the_extra(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"any")
    monkeypatch.setitem(sys.modules, "av", None)
    assert main(["predict", str(runs[0]), str(clip), "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'vitsplit[video]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "count", "expected"),
    [((160, 90), 4, (320, 180)), ((90, 160), 3, (270, 160)), ((1920, 1080), 9, (3840, 2160)), ((7, 5), 1, (7, 5))],
)
def test_grid_shapes_fill_the_screen(size: tuple[int, int], count: int, expected: tuple[int, int]) -> None:
    pictures = {str(index): Image.new("RGB", size, (20 * index, 0, 200)) for index in range(count)}
    sheet = side_by_side(pictures)
    assert sheet.size == expected
    last = sheet.getpixel((size[0] * ((count - 1) % 3) + size[0] - 1, size[1] - 1)) if count == 3 else None
    assert last in (None, (40, 0, 200))


@pytest.mark.parametrize("kind", ["hls", "concat"])
def test_playlists_are_not_followed(runs, tmp_path, kind, capsys):
    write_clip(tmp_path / "private.ts", (32, 32), [0, 1, 2])
    playlist = tmp_path / "clip.mp4"
    text = {
        "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nprivate.ts\n#EXT-X-ENDLIST\n",
        "concat": "ffconcat version 1.0\nfile private.ts\n",
    }
    playlist.write_text(text[kind])
    if kind == "concat":  # FFmpeg by itself follows it
        assert len(read_clip(playlist)[0]) == 3
    status = main(["predict", str(runs[0]), str(playlist), "--out", str(tmp_path / "out")])
    assert status == 1 and "clip.mp4" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.mp4"))


def test_a_pipe_is_rejected(runs, tmp_path, capsys):
    os.mkfifo(tmp_path / "clip.mp4")
    assert main(["predict", str(runs[0]), str(tmp_path / "clip.mp4"), "--out", str(tmp_path / "out")]) in (1, 2)
    assert "clip.mp4" in capsys.readouterr().err


def test_frame_size_is_limited(runs, tmp_path, capsys, monkeypatch):
    clip = write_clip(tmp_path / "clip.mp4", (32, 48), [0, 1])
    monkeypatch.setattr("vitsplit.inference.video.LARGE_PIXELS", 32 * 48 - 1)
    assert main(["predict", str(runs[0]), str(clip), "--out", str(tmp_path / "out")]) == 1
    assert "48x32" in capsys.readouterr().err
