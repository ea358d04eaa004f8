"""Video files for the command line: a clip's frames, upright and in RGB, and pictures written as a clip."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
from av.error import FFmpegError
from av.stream import Disposition
from av.video.frame import VideoFrame
from PIL import Image

from serving.errors import StartError
from serving.streams.frames import rgb_image

_FALLBACK_RATE = Fraction(25)
"""Frames per second of a clip that does not tell."""

_ENCODERS = {"libx264": {"crf": "18", "preset": "veryfast"}, "mpeg4": {"qscale": "3"}}
"""What clips are written with, the first that is there; H.264 plays everywhere."""

_MAX_RATE = 65535
"""Largest numerator of a frame rate that MPEG-4 can tell."""

_BT709, _LIMITED_RANGE = 1, 1
"""How colours are told in what is written, as players expect it of HD video."""

_UPRIGHT = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
"""Degrees counterclockwise by which a frame is to be turned."""


@dataclass(frozen=True)
class ClipFrame:
    """One frame of a clip. `number` counts from 0, `time_s` from the clip's beginning; the picture is upright RGB."""

    number: int
    time_s: float
    picture: Image.Image


class ClipReader:
    """A clip that is open for reading; its sound is left aside.

    Args:
        path: any file that FFmpeg reads.

    Attributes:
        frame_rate: frames per second; of a clip with a varying rate the mean.
        num_frames: as far as the file tells.
        num_broken: packets met so far that could not be decoded.

    Raises:
        StartError: the file holds no video.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_broken = 0
        try:
            self._container = av.open(str(path), "r")
        except FFmpegError as error:
            raise StartError(f"{path} is no video that can be read ({error.strerror})") from None
        streams = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            self.close()
            raise StartError(f"{path} holds no video, only sound or other data")
        self._stream = streams[0]
        rate = self._stream.average_rate or self._stream.guessed_rate or _FALLBACK_RATE
        self.frame_rate = Fraction(rate)
        self.num_frames = self._stream.frames or self._frames_by_duration()

    def __enter__(self) -> ClipReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def frames(self, every: int = 1) -> Iterator[ClipFrame]:
        """The first frame and every `every`-th after it. Of a broken clip what can be decoded; once only."""
        first_s = None
        for number, picture in enumerate(self._decoded()):
            time_s = picture.time if picture.time is not None else float(number / self.frame_rate)
            first_s = time_s if first_s is None else first_s
            if number % every == 0:
                turn = _UPRIGHT.get(picture.rotation % 360)
                image = rgb_image(picture)
                yield ClipFrame(number, time_s - first_s, image if turn is None else image.transpose(turn))

    def _decoded(self) -> Iterator[VideoFrame]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except FFmpegError:  # cut short
                self.num_broken += 1
                return
            if packet is None:
                return
            try:
                pictures = self._stream.decode(packet)
            except FFmpegError:
                self.num_broken += 1
            else:
                yield from pictures

    def _frames_by_duration(self) -> int | None:
        if self._stream.duration is not None and self._stream.time_base is not None:
            seconds = float(self._stream.duration * self._stream.time_base)
        elif self._container.duration is not None:
            seconds = self._container.duration / av.time_base
        else:
            return None
        return max(1, round(seconds * self.frame_rate))


class ClipWriter:
    """A clip that is open for writing: H.264 where PyAV has it, else MPEG-4, at a fixed rate, without sound.

    The first picture sets the size, cut to even numbers as 4:2:0 needs them; others are resized to it. A clip without
    any picture leaves no file.

    Args:
        path: its suffix sets the container, e.g. ``.mp4``; the folder is made if absent.
        frame_rate: frames per second.

    Raises:
        StartError: no container of that name, or none for H.264.
        OSError: the file can't be written.
    """

    def __init__(self, path: Path, frame_rate: Fraction) -> None:
        self.path = path
        self.num_frames = 0
        self._size = (0, 0)
        encoder = next(name for name in _ENCODERS if name in av.codecs_available)
        path.parent.mkdir(parents=True, exist_ok=True)
        existed = path.exists()
        path.open("ab").close()  # tells at once what stands in the way; FFmpeg would with the first picture
        try:
            self._container = av.open(str(path), "w")
            rate = frame_rate.limit_denominator(_MAX_RATE // math.ceil(frame_rate))
            self._stream: Any = self._container.add_stream(encoder, rate=rate, options=_ENCODERS[encoder])
        except ValueError as error:
            if not existed:
                path.unlink()
            raise StartError(f"can't write video to {path}: {error}; choose another suffix, .mp4 say") from None

    def __enter__(self) -> ClipWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, picture: Image.Image) -> None:
        """Add a picture, RGB.

        Raises:
            StartError: the disk is full, say.
        """
        if not self.num_frames:
            self._set_size(picture.size)
        if picture.size != self._size:
            even = (picture.width - picture.width % 2, picture.height - picture.height % 2)
            picture = picture.crop((0, 0, *self._size)) if even == self._size else picture.resize(self._size)
        frame = av.VideoFrame.from_image(picture).reformat(format="yuv420p", dst_colorspace="ITU709")
        frame.pts = self.num_frames
        self._encode(frame)
        self.num_frames += 1

    def close(self) -> None:
        """Finish the file, or remove it if nothing was written."""
        try:
            if self.num_frames:
                self._encode(None)
        finally:
            self._container.close()
            if not self.num_frames:
                self.path.unlink(missing_ok=True)

    def _encode(self, frame: VideoFrame | None) -> None:
        try:
            self._container.mux(self._stream.encode(frame))
        except FFmpegError as error:
            raise StartError(f"writing {self.path} failed: {error.strerror}") from None

    def _set_size(self, size: tuple[int, int]) -> None:
        self._size = (size[0] - size[0] % 2, size[1] - size[1] % 2)
        context = self._stream.codec_context
        context.width, context.height = self._size
        context.pix_fmt = "yuv420p"
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE
