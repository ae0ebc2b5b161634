"""Annotated videos: every frame through all bundles, and their pictures side by side.

Frames keep their times (a variable frame rate stays one), a rotation that the camera noted is carried out, and sound is
left out.

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

from vitsplit.errors import ConfigError, DataError
from vitsplit.files import is_file
from vitsplit.inference.batches import in_background
from vitsplit.inference.predictor import Predictor
from vitsplit.inference.side_by_side import side_by_side
from vitsplit.inference.strips import LARGE_PIXELS

DEFAULT_RATE = 25
"""Frames per second of a video that does not say."""
OPENING = {
    "format_whitelist": "mov,matroska,avi,mpegts,mpeg,mpegvideo,asf",
    "protocol_whitelist": "file",
}
"""The containers of ``VIDEO_SUFFIXES``. FFmpeg goes by the content, and would follow a playlist to other files."""
CODECS = ("libx264", "mpeg4")
"""The first that the installed FFmpeg has; both play everywhere."""
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
    """Writes an annotated video: the overlay of one bundle, or the frame and the overlays of several in a grid.

    Args:
        model: The bundles; each frame takes one pass of their backbone (and one more per further input size).
        path: The video.
        target: The file to write, MP4 with H.264. Sides are made even by repeating the last row or column; a grid that
            would be larger than 3840 x 2160 is shrunk.
        batch_limit: From H and W to the most frames that go through the network together.
        on_frame: Called with the frames written, and of the whole video if it says.

    Returns:
        The number of frames.

    Raises:
        ConfigError: PyAV is not installed.
        DataError: The video cannot be read to its end.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _Reader(path) as reader:
        done = 0
        writer: _Writer | None = None
        pictures = in_background(_draw, _predicted(model, reader.frames(), batch_limit), threads=1, ahead=8)
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
        raise DataError(f"{path}: the video has no frames. Copy it again from its source, or remove it.")
    return done


def require_av(path: str | Path) -> Any:
    """PyAV, or a ConfigError that says how to install it."""
    try:
        import av
    except ImportError as error:
        raise ConfigError(f"{path}: reading a video needs PyAV. Install it: pip install 'vitsplit[video]'") from error
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


def _draw(answer: tuple[Frame, Mapping[str, Any]]) -> tuple[NDArray[np.uint8], int]:
    frame, predictions = answer
    overlays = {name: prediction.overlay().convert("RGB") for name, prediction in predictions.items()}
    if len(overlays) == 1:
        picture = next(iter(overlays.values()))
    else:
        picture = side_by_side({"video": Image.fromarray(frame.image), **overlays})
    array_HWC = np.asarray(picture)
    odd_rows, odd_columns = array_HWC.shape[0] % 2, array_HWC.shape[1] % 2
    # H.264 keeps colours for two by two pixels.
    return np.pad(array_HWC, ((0, odd_rows), (0, odd_columns), (0, 0)), mode="edge"), frame.time


class _Reader:
    """A video that is open for reading."""

    def __init__(self, path: str | Path) -> None:
        self._av = require_av(path)
        self.path = Path(path)
        if not is_file(self.path):
            raise DataError(f"{path}: there is no such file, or it is not a regular one. Check the path.")
        try:
            if self.path.stat().st_size == 0:
                raise DataError(f"{path}: the file is empty (0 bytes). Copy it again from its source, or remove it.")
            self._container = self._av.open(str(path), options=OPENING)
        except (self._av.error.FFmpegError, OSError) as error:
            raise DataError(f"{path}: not a video that FFmpeg can read ({error}). Replace or remove it.") from error
        if not self._container.streams.video:
            self._container.close()
            raise DataError(f"{path}: there is no picture in this file, only sound or data. Remove it.")
        self._stream = self._container.streams.video[0]
        context = self._stream.codec_context
        if context.width * context.height > LARGE_PIXELS:
            self._container.close()
            raise DataError(
                f"{path}: frames of {context.width}x{context.height} pixels, and at most {LARGE_PIXELS / 1e6:.0f} "
                "million are possible. Scale the video down."
            )
        # For frames that are larger than the file says. Decoders count the margins that they add, too.
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
        """The frames in the order in which they are shown.

        Raises:
            DataError: The video is broken in the middle.
        """
        first, last = None, -1
        step = max(1, round(1 / (self.rate * self.time_base)))
        try:
            for frame in self._container.decode(self._stream):
                time = last + step if frame.pts is None else frame.pts
                first = time if first is None else first
                last = max(time - first, last + 1)  # players want times that rise
                image_HWC = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                yield Frame(np.ascontiguousarray(image_HWC), last)
        except self._av.error.FFmpegError as error:
            raise DataError(
                f"{self.path}: the video is truncated or corrupt ({error}). Copy it again, or remove it."
            ) from error

    def _estimated_frames(self) -> int | None:
        if self._stream.duration is not None:
            return round(self._stream.duration * self.time_base * self.rate)
        if self._container.duration is not None:
            return round(Fraction(self._container.duration, self._av.time_base) * self.rate)
        return None


class _Writer:
    """An MP4 that is written frame by frame, with the times of a video that is read."""

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
        """Adds a picture; one of another size (the video's size changed) is brought to that of the first."""
        if picture_HWC.shape[:2] != self.size:
            picture_HWC = np.asarray(Image.fromarray(picture_HWC).resize(self.size[::-1]))
        frame = self._av.VideoFrame.from_ndarray(picture_HWC, format="rgb24")
        frame.pts, frame.time_base = time, self._time_base
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Completes the file."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
