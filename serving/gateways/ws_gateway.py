"""Web socket: video of a browser, `WS /video`, on the same streams as gRPC. Knows nothing of Ray.

1. The client's first message is text: a JSON object, `VideoConfig`. An unknown key is an error.
2. The server answers ``{"started": {"bundle", "tasks", "max_in_flight", "max_frame_bytes", "max_ahead_bytes"}}``.
3. Each further message of the client is one frame, binary, integers little-endian:

       0   8  frame_id, unsigned; the client's own, given back
       8   8  captured_at_us, unsigned, on the client's clock; given back
      16   4  height, unsigned, pixels   } with format "rgb24" only
      20   4  width, unsigned, pixels    }
      16 or 24   the picture file, the pixels, or the access unit

4. The server sends one text message for each frame that it did not drop, in their order:
   ``{"frame_id", "captured_at_us", "dropped_since_last", "age_ms"}`` (from the frame's arrival to its answer) with
   ``{"image", "results", "errors", "timing"}`` as in `POST /segment`, or, if the frame as a whole failed, with
   ``{"error": problem}``; the stream goes on.
5. The text ``{"end": true}`` ends the input: the frames inside are answered, then the socket is closed with 1000.
   To leave at once, close it.

If the stream itself fails, the last message is ``{"problem": …}`` (RFC 9457), and the socket is closed with

    1008  the client's mistake: config, header, a text where a frame belongs (400, 404, 415, 422)
    1009  a message over 16 MiB (no problem is told; a frame over ``max_frame_bytes`` within that fails alone)
    1011  a bug here (500)
    1013  try again later, or more slowly: too many streams, too far ahead, not ready, stopping (429, 503)
    4409  ended by the server: idle, answers not read, one too many for the memory set aside (409)

Frames are always read as they come, so that a leaving client and its pongs are seen at once, and since the host's own
queue has no bound (Ray Serve reads ahead of the application). ``drop_policy`` ``block`` drops nothing: what waits for
its turn is kept, up to ``max_ahead_bytes``, so whoever sends faster than answers come must wait for answers.
"""

from __future__ import annotations

import asyncio
import json
import logging
import struct
import time
from contextlib import suppress
from functools import partial
from typing import Any

from fastapi import FastAPI
from pydantic import ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from serving.answers.render import MaskFormat, prediction_json
from serving.errors import (
    InternalError,
    InvalidOptionError,
    OverloadedError,
    PolyheadError,
    StreamEvictedError,
)
from serving.metrics import FORBIDDEN, SWITCHED
from serving.options import MAX_IN_FLIGHT, TIMEOUT_S, RequestOptions
from serving.request_context import add_stage
from serving.service import SegmentationService
from serving.streams.frames import FrameFormat, frame_decoder
from serving.streams.stream import DropPolicy, Frame, FrameAnswer, StreamConfig, VideoStream

_HEADER = struct.Struct("<QQ")
_RAW_HEADER = struct.Struct("<QQII")
_HOST_MAX_MESSAGE_BYTES = 16 * 2**20
"""uvicorn closes a socket on which a larger message comes, and Ray Serve leaves no say in it."""
_FRAME_OVERHEAD_BYTES = 1024
"""What a waiting frame counts beyond its data, so that tiny ones have a bound too."""
_GOODBYE_S = 5.0
"""How long a client has to take the last message and the close."""
_ROUTE = "/video"
_CLOSE_CODES = {409: 4409, 429: 1013, 503: 1013}
_DEFAULT_PORTS = {"http": 80, "https": 443}

logger = logging.getLogger("polyhead.ws")


class VideoConfig(RequestOptions):
    """The first message on `WS /video`; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)

    tasks: list[str] | None = Field(None, description="Default: the bundle's.")
    format: FrameFormat = Field("image", description="Picture files, raw RGB, or Annex-B access units.")
    drop_policy: DropPolicy = Field("block", description="When max_in_flight frames are inside: wait, drop or refuse.")
    max_in_flight: int = Field(StreamConfig.max_in_flight, **MAX_IN_FLIGHT.limits, description="Frames inside at once.")
    frame_timeout_s: float | None = Field(
        None, **TIMEOUT_S.limits, description="An older frame is answered with an error."
    )


_KEYS = ", ".join(VideoConfig.model_fields)


def add_video_socket(app: FastAPI, service: SegmentationService) -> None:
    """Let `app` answer `WS /video`."""

    @app.websocket(_ROUTE)
    async def video(socket: WebSocket) -> None:
        status = SWITCHED
        try:
            if refusal := _cross_site(socket.headers):
                status = FORBIDDEN
                service.metrics.rejected.labels(_ROUTE, "forbidden").inc()
                await socket.send_denial_response(JSONResponse(refusal, status, media_type="application/problem+json"))
            else:
                await socket.accept()
                status = await _Session(socket, service).run()
        finally:  # also if the host cancels this, as Ray Serve does when a client leaves
            service.metrics.count_request(_ROUTE, status)


def _cross_site(headers: Headers) -> dict[str, Any] | None:
    """Why a page of another site can't have a socket; browsers ask nobody, and send the page's site as Origin."""
    origin = headers.get("origin")
    if origin is None:
        return None  # no browser
    scheme, _, site = origin.lower().partition("://")
    host = headers.get("host", "")
    if site and site == host.lower().removesuffix(f":{_DEFAULT_PORTS.get(scheme)}"):
        return None
    return {
        "type": "about:blank",
        "title": "Forbidden",
        "status": FORBIDDEN,
        "detail": f"a page of {origin} may not open a video socket of {host}",
        "remedy": "use the page that this server gives; a proxy in between must pass the Host header on as it is",
    }


class _Session:
    """One socket from its first message to its end."""

    def __init__(self, socket: WebSocket, service: SegmentationService) -> None:
        self._socket = socket
        self._service = service
        self._idle_s = service.settings.stream_idle_s
        self._max_ahead_bytes = service.settings.max_upload_bytes
        self._ahead: asyncio.Queue[Frame | None] = asyncio.Queue()  # read, but not in the stream yet; None: the end
        self._ahead_bytes = 0

    async def run(self) -> int:
        """Serve until the end, whoever brings it; returns the status under which it is counted."""
        error: PolyheadError | None = None
        try:
            await self._serve()
        except WebSocketDisconnect:
            self._service.metrics.cancelled.labels(_ROUTE).inc()
            return SWITCHED
        except asyncio.CancelledError:
            self._service.metrics.cancelled.labels(_ROUTE).inc()
            raise
        except PolyheadError as failure:
            error = failure
        except Exception:
            logger.exception("unexpected failure of a video socket")
            error = InternalError("an unexpected failure; the server's log has it", remedy="open a new stream")
        if error is not None:
            self._service.metrics.count_failure(_ROUTE, error)
            self._socket.scope.setdefault("state", {})["error"] = error
        await self._say_goodbye(error)
        return error.status if error else SWITCHED

    async def _serve(self) -> None:
        config = await self._read_config()
        tasks = tuple(self._service.engine.check_tasks(config.tasks))
        stream_config = StreamConfig(
            tasks, config.options, config.drop_policy, config.max_in_flight, config.frame_timeout_s
        )
        decoder = frame_decoder(config.format, self._service.settings.max_pixels)
        async with self._service.streams.open(stream_config, decoder) as stream:
            await self._send(
                json.dumps(
                    {
                        "started": {
                            "bundle": self._service.engine.bundle.name,
                            "tasks": tasks,
                            "max_in_flight": config.max_in_flight,
                            "max_frame_bytes": min(self._max_ahead_bytes, _HOST_MAX_MESSAGE_BYTES - _RAW_HEADER.size),
                            "max_ahead_bytes": self._max_ahead_bytes,
                        }
                    }
                )
            )
            try:
                async with asyncio.TaskGroup() as group:
                    others = (group.create_task(self._read(config.format)), group.create_task(self._feed(stream)))
                    await self._answer(stream, config.masks)
                    for task in others:
                        task.cancel()
            except BaseExceptionGroup as failures:
                raise failures.exceptions[0] from None  # the first one ended the others

    async def _read_config(self) -> VideoConfig:
        try:
            async with asyncio.timeout(self._idle_s):
                text = await self._receive()
        except TimeoutError:
            raise StreamEvictedError(
                f"no config came for {self._idle_s:g} s", remedy="send it as the first message"
            ) from None
        if not isinstance(text, str):
            raise InvalidOptionError("the first message is binary", remedy="send the config first, as JSON text")
        try:
            return VideoConfig.model_validate_json(text)
        except ValidationError as error:
            wrong = "; ".join(_wrong_field(field) for field in error.errors())
            raise InvalidOptionError(f"the config: {wrong}", remedy=f"its keys: {_KEYS}") from None

    async def _receive(self) -> str | bytes:
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        return message["text"] if message.get("text") is not None else message["bytes"]

    async def _read(self, form: FrameFormat) -> None:
        """Take frames as they come, whether there is room in the stream or not."""
        ended = False
        while True:
            message = await self._receive()
            if ended:
                raise InvalidOptionError("a message came after the end", remedy="open a new stream")
            if isinstance(message, str):
                _check_end(message)
                ended = True
                self._ahead.put_nowait(None)
                continue
            frame = _parse_frame(message, form)
            self._ahead_bytes += len(frame.data) + _FRAME_OVERHEAD_BYTES
            if self._ahead_bytes > self._max_ahead_bytes and not self._ahead.empty():
                raise OverloadedError(
                    f"{self._ahead.qsize() + 1} frames wait for their turn, more than the {self._max_ahead_bytes:,} "
                    "bytes that are kept",
                    remedy="wait for answers before you send more, or choose drop_policy latest or reject",
                )
            self._ahead.put_nowait(frame)

    async def _feed(self, stream: VideoStream) -> None:
        while (frame := await self._ahead.get()) is not None:
            await stream.push(frame)
            self._ahead_bytes -= len(frame.data) + _FRAME_OVERHEAD_BYTES
        await stream.end_input()

    async def _answer(self, stream: VideoStream, masks: MaskFormat) -> None:
        async for answer in stream.answers():
            await self._send(await self._service.in_pool(partial(self._render, answer, masks)))

    def _render(self, answer: FrameAnswer, masks: MaskFormat) -> str:
        begun = time.perf_counter()
        told: dict[str, Any] = {
            "frame_id": answer.frame.frame_id,
            "captured_at_us": answer.frame.captured_at_us,
            "dropped_since_last": answer.dropped_since_last,
            "age_ms": round(1e3 * answer.age_s, 3),
        }
        if answer.prediction is None:
            assert answer.error is not None
            told["error"] = answer.error.problem()
        else:
            whole = prediction_json(answer.prediction, request_id="", bundle="", masks=masks)
            told |= {name: whole[name] for name in ("image", "results", "errors", "timing")}
        text = json.dumps(told, separators=(",", ":"))
        self._service.metrics.render_s.observe(time.perf_counter() - begun)
        add_stage("render", begun)
        return text

    async def _send(self, text: str) -> None:
        try:
            async with asyncio.timeout(self._idle_s):
                await self._socket.send_text(text)
        except TimeoutError:  # the stream's own eviction does not reach whoever waits here
            raise StreamEvictedError(
                f"answers were not read for {self._idle_s:g} s",
                remedy="open a new stream and read its answers, or raise POLYHEAD_STREAM_IDLE_S",
            ) from None

    async def _say_goodbye(self, error: PolyheadError | None) -> None:
        code, reason = 1000, ""
        with suppress(TimeoutError, WebSocketDisconnect):
            async with asyncio.timeout(_GOODBYE_S):
                if error is not None:
                    code, reason = _close_code(error.status), error.title
                    await self._socket.send_text(json.dumps({"problem": error.problem()}))
                await self._socket.close(code, reason)


def _close_code(status: int) -> int:
    return _CLOSE_CODES.get(status, 1008 if status < 500 else 1011)


def _wrong_field(field: ErrorDetails) -> str:
    path = ".".join(map(str, field["loc"]))
    return f"{path}={field['input']!r:.80}: {field['msg']}" if path else field["msg"]


def _check_end(text: str) -> None:
    try:
        is_end = json.loads(text) == {"end": True}
    except (ValueError, RecursionError):
        is_end = False
    if not is_end:
        raise InvalidOptionError(
            f"a text message where a frame belongs: {text!r:.80}",
            remedy='the config comes once and first; after it, send frames as binary messages, and {"end": true}',
        )


def _parse_frame(message: bytes, form: FrameFormat) -> Frame:
    header = _RAW_HEADER if form == "rgb24" else _HEADER
    if len(message) < header.size:
        raise InvalidOptionError(
            f"a message of {len(message)} bytes; the header of a frame alone has {header.size} with format {form}",
            remedy="send frame_id, captured_at_us and, with rgb24, height and width, then the data",
        )
    frame_id, captured_at_us, *size = header.unpack_from(message)
    return Frame(frame_id, message[header.size :], captured_at_us, (size[0], size[1]) if size else None)
