"""Clips, and a server's video streams as a test plays them."""

from __future__ import annotations

import io
import json
import struct
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from playground_driver import PATIENCE_MS
from playground_results import HEIGHT, WIDTH, answer_of, square_of
from playwright.sync_api import Page, WebSocketRoute


def make_clip(path: Path, frames: int = 30, rate: int = 10, codec: str = "libvpx") -> Path:
    """A clip (VP8, which every Chromium plays) of a white square that wanders over black, 10 pixels a frame."""
    with av.open(str(path), "w") as clip:
        stream = clip.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.bit_rate = 4_000_000
        stream.options = {"deadline": "realtime", "cpu-used": "8"}
        for number in range(frames):
            pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            left = 10 * number % (WIDTH - 60)
            pixels[90:150, left : left + 60] = 255
            clip.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        clip.mux(stream.encode())
    return path


class FakeStreams:
    """Stands in for `WS /video`: answers each frame with the square in it, and notes what the page does.

    Attributes:
        configs: of the streams that were opened.
        sockets: of them.
        closed: how many the page has left.
        unanswered: the largest number of frames without an answer that there ever was.
        sizes: (width, height) of the frames.
        held: answers are kept in here while it is a list.
        refusal: the problem that new streams get, if any.
        broken: ids of the frames that fail.
    """

    def __init__(self, page: Page) -> None:
        self.configs: list[dict[str, Any]] = []
        self.sockets: list[WebSocketRoute] = []
        self.closed = 0
        self.unanswered = 0
        self.sizes: list[tuple[int, int]] = []
        self.held: list[tuple[WebSocketRoute, str]] | None = None
        self.refusal: dict[str, Any] | None = None
        self.broken: set[int] = set()
        page.route_web_socket("**/video", self._open)

    def release(self) -> None:
        """Send what is held; what comes from now on is held again."""
        held, self.held = self.held or [], []
        for socket, text in held:
            socket.send(text)

    def _open(self, socket: WebSocketRoute) -> None:
        self.sockets.append(socket)
        socket.on_message(lambda message: self._take(socket, message))
        socket.on_close(lambda code, reason: self._left())

    def _left(self) -> None:
        self.closed += 1

    def _take(self, socket: WebSocketRoute, message: str | bytes) -> None:
        if isinstance(message, str):
            self.configs.append(json.loads(message))
            if self.refusal is not None:
                socket.send(json.dumps({"problem": self.refusal}))
                socket.close(code=1008, reason=self.refusal["title"])
            else:
                socket.send(json.dumps({"started": {}}))
            return
        frame_id, captured_at_us = struct.unpack_from("<QQ", message)
        picture = Image.open(io.BytesIO(message[16:]))
        self.sizes.append(picture.size)
        told = {"frame_id": frame_id, "captured_at_us": captured_at_us, "dropped_since_last": 0, "age_ms": 1}
        if frame_id in self.broken:
            told["error"] = {"title": "Not a readable image", "detail": "frame broke", "remedy": "r"}
        else:
            told |= answer_of({"tracks": square_of(picture)}, (picture.height, picture.width))
        if self.held is None:
            socket.send(json.dumps(told))
        else:
            self.held.append((socket, json.dumps(told)))
            self.unanswered = max(self.unanswered, len(self.held))


def frames_until_quiet(page: Page, streams: FakeStreams) -> int:
    """Let the page go on until it has sent no frame for half a second; how many it sent till then."""
    sent = -1
    until_s = time.monotonic() + PATIENCE_MS / 1000
    while sent != len(streams.sizes):
        assert time.monotonic() < until_s, "frames went on coming"
        sent = len(streams.sizes)
        page.wait_for_timeout(500)
    return sent
