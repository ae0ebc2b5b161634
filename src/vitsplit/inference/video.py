"""Annotated videos: predicts every frame with all bundles and writes their overlays in a grid.

Timestamps are preserved (also for variable frame rates), the rotation metadata is applied, and audio is dropped.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vitsplit.errors import DataError
from vitsplit.extras import require
from vitsplit.files import is_file
from vitsplit.inference.batches import in_background
from vitsplit.inference.predictor import Predictor
from vitsplit.inference.side_by_side import side_by_side
from vitsplit.inference.strips import LARGE_PIXELS

DEFAULT_RATE = 25
"""Default frame rate of a video without one."""
OPENING = {
    "format_whitelist": "mov,matroska,avi,mpegts,mpeg,mpegvideo,asf",
    "protocol_whitelist": "file",
}
"""Containers of ``VIDEO_SUFFIXES``. FFmpeg detects formats from the content, and playlists could refer to other
files."""
CODECS = ("libx264", "mpeg4")
"""The first one available in FFmpeg is used; both are widely supported."""
CODEC_OPTIONS = {"libx264": {"crf": "18", "preset": "veryfast"}, "mpeg4": {"qscale": "3"}}


@dataclass(frozen=True)
class Frame:
    """A frame of a video.

    Attributes:
        image: (H, W, 3) uint8, RGB, upright.
        time: Ticks since the first frame.
    """

    image: NDArray[np.uint8]
    time: int


def predict_video(
    model: Predictor,
    path: str | Path,
    target: Path,
    *,
    batch_limit: Callable[[int, int], int] = lambda height, width: 1,
    on_frame: Callable[[int, int | None], None] | None = None,
) -> int:
    """Writes an annotated video: the overlay of one bundle, or a grid of the frame and the overlays of several.

    Args:
        model: The bundles; each frame takes one backbone pass per input size.
        path: The video.
        target: The file to write, MP4 with H.264. Odd sizes are padded by repeating the last row or column; a grid is
            scaled down to at most 3840 x 2160.
        batch_limit: Function from H and W to the maximum batch size.
        on_frame: Called with the number of frames written, and the total if known.

    Returns:
        The number of frames.

    Raises:
        ConfigError: PyAV is not installed.
        DataError: The video cannot be read completely.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _Reader(path) as reader:
        done = 0
        writer: _Writer | None = None
        pictures = in_background(_draw_overlays, _predicted(model, reader.frames(), batch_limit), threads=1, ahead=8)
        try:
            for picture_HWC, time in pictures:
                if writer is None:
                    writer = _Writer(target, (picture_HWC.shape[0], picture_HWC.shape[1]), reader)
                writer.write(picture_HWC, time)
                done += 1
                if on_frame is not None:
                    on_frame(done, reader.num_frames)
        finally:
            if writer is not None:
                writer.close()
    if done == 0:
        raise DataError(f"{path}: the video has no frames. Download it again, or remove it.")
    return done


def require_av(path: str | Path) -> Any:
    """Imports PyAV, or raises ConfigError."""
    require(f"{path}: reading a video", "av", extra="video")
    import av

    return av


def _predicted(
    model: Predictor, frames: Iterator[Frame], batch_limit: Callable[[int, int], int]
) -> Iterator[tuple[Frame, dict[str, Any]]]:
    for group in _groups(frames, batch_limit):
        image_BHWC = torch.from_numpy(np.stack([frame.image for frame in group]))
        yield from zip(group, model.predict_batch(image_BHWC.permute(0, 3, 1, 2)), strict=True)


def _groups(frames: Iterator[Frame], batch_limit: Callable[[int, int], int]) -> Iterator[list[Frame]]:
    """Consecutive frames of one size."""
    group: list[Frame] = []
    for frame in frames:
        height, width, _ = frame.image.shape
        if group and (group[0].image.shape != frame.image.shape or len(group) >= batch_limit(height, width)):
            yield group
            group = []
        group.append(frame)
    if group:
        yield group


def _draw_overlays(predicted: tuple[Frame, Mapping[str, Any]]) -> tuple[NDArray[np.uint8], int]:
    frame, predictions = predicted
    overlays = {name: prediction.overlay().convert("RGB") for name, prediction in predictions.items()}
    if len(overlays) == 1:
        picture = next(iter(overlays.values()))
    else:
        picture = side_by_side({"video": Image.fromarray(frame.image), **overlays})
    array_HWC = np.asarray(picture)
    odd_rows, odd_columns = array_HWC.shape[0] % 2, array_HWC.shape[1] % 2
    # H.264 subsamples colors by 2 x 2 pixels.
    return np.pad(array_HWC, ((0, odd_rows), (0, odd_columns), (0, 0)), mode="edge"), frame.time


class _Reader:
    """A video opened for reading."""

    def __init__(self, path: str | Path) -> None:
        self._av = require_av(path)
        self.path = Path(path)
        if not is_file(self.path):
            raise DataError(f"{path}: file not found, or not a regular file. Check the path.")
        try:
            if self.path.stat().st_size == 0:
                raise DataError(f"{path}: the file is empty (0 bytes). Download it again, or remove it.")
            self._container = self._av.open(str(path), options=OPENING)
        except (self._av.error.FFmpegError, OSError) as error:
            raise DataError(f"{path}: FFmpeg cannot read the video ({error}). Replace or remove it.") from error
        if not self._container.streams.video:
            self._container.close()
            raise DataError(f"{path}: the file has no video stream. Remove it.")
        self._stream = self._container.streams.video[0]
        context = self._stream.codec_context
        if context.width * context.height > LARGE_PIXELS:
            self._container.close()
            raise DataError(
                f"{path}: frames of {context.width}x{context.height} pixels exceed the limit of "
                f"{LARGE_PIXELS / 1e6:.0f} million. Scale the video down."
            )
        # For frames larger than stated in the header; decoders include their padding.
        context.options = {"max_pixels": str(2 * LARGE_PIXELS)}
        self._stream.thread_type = "AUTO"
        self.rate = Fraction(self._stream.average_rate or DEFAULT_RATE)
        self.time_base = Fraction(self._stream.time_base or 1 / self.rate)
        self.num_frames: int | None = self._stream.frames or self._estimated_frames()

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def frames(self) -> Iterator[Frame]:
        """Yields the frames in presentation order.

        Raises:
            DataError: The video is corrupt.
        """
        first, last = None, -1
        step = max(1, round(1 / (self.rate * self.time_base)))
        try:
            for frame in self._container.decode(self._stream):
                time = last + step if frame.pts is None else frame.pts
                first = time if first is None else first
                last = max(time - first, last + 1)  # players need increasing timestamps
                image_HWC = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                yield Frame(np.ascontiguousarray(image_HWC), last)
        except self._av.error.FFmpegError as error:
            raise DataError(
                f"{self.path}: the video is truncated or corrupt ({error}). Download it again, or remove it."
            ) from error

    def _estimated_frames(self) -> int | None:
        if self._stream.duration is not None:
            return round(self._stream.duration * self.time_base * self.rate)
        if self._container.duration is not None:
            return round(Fraction(self._container.duration, self._av.time_base) * self.rate)
        return None


class _Writer:
    """An MP4 written frame by frame, with the timestamps of the input video."""

    def __init__(self, target: Path, size: tuple[int, int], reader: _Reader) -> None:
        self._av = require_av(target)
        codec = next(name for name in CODECS if name in self._av.codecs_available)
        self.size = size
        self._container = self._av.open(str(target), "w")
        self._stream = self._container.add_stream(codec, rate=reader.rate, options=CODEC_OPTIONS[codec])
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv420p"
        self._stream.time_base = self._stream.codec_context.time_base = reader.time_base
        self._time_base = reader.time_base

    def write(self, picture_HWC: NDArray[np.uint8], time: int) -> None:
        """Adds a frame; frames of another size than the first one are resized."""
        if picture_HWC.shape[:2] != self.size:
            picture_HWC = np.asarray(Image.fromarray(picture_HWC).resize(self.size[::-1]))
        frame = self._av.VideoFrame.from_ndarray(picture_HWC, format="rgb24")
        frame.pts, frame.time_base = time, self._time_base
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Finalizes the file."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
