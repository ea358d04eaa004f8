"""What a stream's frames may be: picture files, raw pixels, or the access units of a video codec."""

from __future__ import annotations

from typing import Literal

import av
import numpy as np
from av.error import FFmpegError
from PIL import Image

from serving.errors import InvalidImageError, InvalidOptionError, TooLargeError
from serving.pictures import MAX_PIXELS, decode_picture
from serving.streams import Frame, FrameDecoder

FrameFormat = Literal["image", "rgb24", "h264", "hevc"]


def frame_decoder(form: FrameFormat, max_pixels: int = MAX_PIXELS) -> FrameDecoder:
    """The decoder of a new stream.

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

    def decode(self, frame: Frame) -> list[tuple[Frame, Image.Image]]:
        """As in `FrameDecoder`."""
        return [(frame, decode_picture(frame.data, max_pixels=self._max_pixels))]


class RawFrames:
    """Every frame is height * width * 3 bytes, RGB, row by row."""

    keeps_state = False

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels

    def decode(self, frame: Frame) -> list[tuple[Frame, Image.Image]]:
        """As in `FrameDecoder`."""
        if frame.size is None or min(frame.size) < 1:
            raise InvalidOptionError("a raw frame came without height and width", remedy="give both with every frame")
        height, width = frame.size
        if height * width > self._max_pixels:
            raise TooLargeError(
                f"{width} x {height} pixels; at most {self._max_pixels} are taken", remedy="send smaller frames"
            )
        if len(frame.data) != height * width * 3:
            raise InvalidImageError(
                f"{len(frame.data)} bytes are no {width} x {height} RGB frame, which has {height * width * 3}",
                remedy="send 3 bytes a pixel, row by row, without padding",
            )
        return [(frame, Image.fromarray(np.frombuffer(frame.data, np.uint8).reshape(height, width, 3)))]


class CodecFrames:
    """Every frame is one access unit (Annex B) of a stream that begins with a key frame; decoded by PyAV."""

    keeps_state = True

    def __init__(self, codec: Literal["h264", "hevc"], max_pixels: int) -> None:
        self._codec = codec
        self._max_pixels = max_pixels
        self._context = av.CodecContext.create(codec, "r")
        self._context.thread_count = 1  # a stream must not take the cores of the others
        self._frames: dict[int, Frame] = {}
        self._count = 0

    def decode(self, frame: Frame) -> list[tuple[Frame, Image.Image]]:
        """As in `FrameDecoder`; a codec that reorders gives its pictures in the order of presentation."""
        packet = av.Packet(frame.data)
        packet.pts = packet.dts = self._count
        self._frames[self._count] = frame
        self._count += 1
        try:
            pictures = self._context.decode(packet)
        except FFmpegError as error:
            self._frames.clear()
            raise InvalidImageError(
                f"frame {frame.frame_id} is no {self._codec} access unit that can be decoded here ({error})",
                remedy="send Annex-B access units, the first of them a key frame with its parameter sets",
            ) from None
        out = []
        for picture in pictures:
            if picture.width * picture.height > self._max_pixels:
                raise TooLargeError(
                    f"{picture.width} x {picture.height} pixels; at most {self._max_pixels} are taken",
                    remedy="send smaller frames",
                )
            origin = self._frames.pop(picture.pts, frame) if picture.pts is not None else frame
            out.append((origin, picture.to_image()))
        self._frames = {number: kept for number, kept in self._frames.items() if number > self._count - 32}
        return out
