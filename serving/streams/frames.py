"""What a stream's frames may be: picture files, raw pixels, or the access units of a video codec."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import av
import numpy as np
from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext
from PIL import Image

from serving.errors import InvalidImageError, InvalidOptionError, TooLargeError, UnusableImageError
from serving.pictures import MAX_ASPECT_RATIO, MAX_PIXELS, MIN_SIDE, decode_picture
from serving.streams.stream import DecodedFrame, Frame, FrameDecoder

FrameFormat = Literal["image", "rgb24", "h264", "hevc"]

_MAX_REORDERED = 16
"""Access units after which a picture has come out, or never will: what H.264 and H.265 can hold back at most."""


def frame_decoder(form: FrameFormat, max_pixels: int = MAX_PIXELS) -> FrameDecoder:
    """The decoder of a new stream.

    The size of the frames may change at any time; what the stream's heads remember is kept.

    Args:
        form: of its frames: picture files (JPEG, PNG, WebP …), raw RGB, or Annex-B access units.
        max_pixels: largest frame.
    """
    match form:
        case "image":
            return ImageFrames(max_pixels)
        case "rgb24":
            return RawFrames(max_pixels)
        case "h264" | "hevc":
            return CodecFrames(form, max_pixels)


class ImageFrames:
    """Every frame is a picture file."""

    keeps_state = False

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels

    def decode(self, frame: Frame) -> list[DecodedFrame]:
        """As in `FrameDecoder`."""
        return [(frame, decode_picture(frame.data, max_pixels=self._max_pixels))]

    def flush(self) -> list[DecodedFrame]:
        """As in `FrameDecoder`."""
        return []


class RawFrames:
    """Every frame is height * width * 3 bytes, RGB, row by row."""

    keeps_state = False

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels

    def decode(self, frame: Frame) -> list[DecodedFrame]:
        """As in `FrameDecoder`."""
        if frame.size is None or min(frame.size) < 1:
            raise InvalidOptionError("a raw frame came without height and width", remedy="give both with every frame")
        height, width = frame.size
        _check_size(frame.size, self._max_pixels)
        if len(frame.data) != height * width * 3:
            raise InvalidImageError(
                f"{len(frame.data)} bytes are no {width} x {height} RGB frame, which has {height * width * 3}",
                remedy="send 3 bytes a pixel, row by row, without padding",
            )
        return [(frame, Image.fromarray(np.frombuffer(frame.data, np.uint8).reshape(height, width, 3)))]

    def flush(self) -> list[DecodedFrame]:
        """As in `FrameDecoder`."""
        return []


class CodecFrames:
    """Every frame is one access unit (Annex B) of a stream that begins with a key frame; decoded by PyAV.

    Pictures come out in the order of presentation: with B-frames that is not the order in which their units came, and
    the first ones come late. A unit that can't be decoded fails alone, as does one that H.264's decoder finds damaged;
    what is predicted from it may look wrong until the next key frame, or, in H.265, not come out.
    """

    keeps_state = True

    def __init__(self, codec: Literal["h264", "hevc"], max_pixels: int) -> None:
        self._codec = codec
        self._max_pixels = max_pixels
        self._context: VideoCodecContext | None = av.CodecContext.create(codec, "r")
        self._context.thread_count = 1  # a stream must not take the cores of the others, nor hold pictures back
        self._context.options = {"max_pixels": str(max_pixels)}  # refuses before it allocates
        self._inside: dict[int, Frame] = {}
        self._count = 0
        self._one_at_a_time = threading.Lock()

    def decode(self, frame: Frame) -> list[DecodedFrame]:
        """As in `FrameDecoder`."""
        if not frame.data:  # FFmpeg would take it for the end of the stream, and go no further
            raise InvalidImageError(f"frame {frame.frame_id} is empty", remedy="send one access unit with each frame")
        with self._one_at_a_time:
            context = self._context
            if context is None:
                raise InvalidOptionError("a frame came after the last one", remedy="open a new stream")
            number = self._count
            self._count += 1
            packet = av.Packet(frame.data)
            packet.pts = packet.dts = number  # comes back on the picture
            try:
                pictures = context.decode(packet)
            except FFmpegError as error:
                _check_size((context.height, context.width), self._max_pixels)
                raise self._undecodable(frame, str(error)) from None
            self._inside[number] = replace(frame, data=b"")
            out = [decoded for picture in pictures for decoded in self._hand_out(picture)]
            held_back = _MAX_REORDERED if context.reorder_depth else 0
            return self._give_up(self._count - held_back) + out

    def flush(self) -> list[DecodedFrame]:
        """As in `FrameDecoder`."""
        with self._one_at_a_time:
            if self._context is None:
                return []
            try:
                pictures: Sequence[av.VideoFrame] = self._context.decode(None)
            except FFmpegError:
                pictures = []
            self._context = None
            out = [decoded for picture in pictures for decoded in self._hand_out(picture)]
            return out + self._give_up(self._count)

    def _hand_out(self, picture: av.VideoFrame) -> list[DecodedFrame]:
        frame = None if picture.pts is None else self._inside.pop(picture.pts, None)
        if frame is None:  # it was given up, or is a second picture from one unit
            return []
        if picture.is_corrupt:
            return [(frame, self._undecodable(frame, "it is damaged or cut short"))]
        try:
            _check_size((picture.height, picture.width), self._max_pixels)
            return [(frame, rgb_image(picture))]
        except (TooLargeError, UnusableImageError) as error:
            return [(frame, error.with_traceback(None))]

    def _give_up(self, end: int) -> list[DecodedFrame]:
        """The frames before number `end` that are still inside: they will give no picture."""
        lost = [number for number in self._inside if number < end]
        return [
            (frame, self._undecodable(frame, "it gave no picture"))
            for frame in (self._inside.pop(number) for number in lost)
        ]

    def _undecodable(self, frame: Frame, why: str) -> InvalidImageError:
        return InvalidImageError(
            f"frame {frame.frame_id} is no {self._codec} access unit that can be decoded here ({why})",
            remedy="send whole Annex-B access units in their order, the first a key frame with its parameter sets",
        )


def rgb_image(picture: av.VideoFrame) -> Image.Image:
    """A decoded picture in RGB; three times as fast as PyAV's `to_image`, which copies row by row in Python."""
    return Image.fromarray(picture.to_ndarray(format="rgb24", threads=1))


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    """As `decode_picture` does it for files."""
    height, width = size
    if height * width > max_pixels:
        raise TooLargeError(
            f"{width} x {height} pixels; at most {max_pixels} are taken", remedy="scale the frames down before sending"
        )
    if min(size) and (min(size) < MIN_SIDE or max(size) > MAX_ASPECT_RATIO * min(size)):
        raise UnusableImageError(
            f"{width} x {height} pixels: the shorter side is under {MIN_SIDE}, or the longer one more than "
            f"{MAX_ASPECT_RATIO} times as long",
            remedy="send larger frames, or cut them into pieces",
        )
