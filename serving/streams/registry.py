"""All streams of a replica: how many, how much they may remember, and which must go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from serving.errors import OverloadedError, PolyheadError, StreamEvictedError, UnavailableError
from serving.streams.stream import FrameDecoder, StreamConfig, VideoStream

if TYPE_CHECKING:
    from serving.service import SegmentationService


class StreamRegistry:
    """Opens streams and ends those that are idle, or too many for the memory set aside.

    A stream that was ended no longer counts, even if its client does not know yet: it holds nothing any more.

    Args:
        service: of the replica; its settings hold the limits.
    """

    def __init__(self, service: SegmentationService) -> None:
        self._service = service
        self._streams: set[VideoStream] = set()
        self._stopping: PolyheadError | None = None
        self._sweeper: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def state_bytes(self) -> int:
        """Memory that all streams keep between frames."""
        return sum(stream.state_bytes for stream in list(self._streams))

    @property
    def stopping(self) -> bool:
        """Whether `end_all` was called: the replica stops, and no stream is opened any more."""
        return self._stopping is not None

    @asynccontextmanager
    async def open(self, config: StreamConfig, decoder: FrameDecoder) -> AsyncIterator[VideoStream]:
        """A stream for as long as the caller holds it; everything of it is freed afterwards, however it ended.

        Raises:
            OverloadedError: there are as many streams as are let in.
            UnavailableError: the replica is not ready, or stops.
        """
        self._service.check_ready()
        if self._stopping is not None:
            raise self._stopping.with_traceback(None)
        limit = self._service.settings.max_streams
        if len(self._streams) >= limit:
            raise OverloadedError(
                f"{limit} streams are open, as many as are let in",
                remedy="close one, or raise POLYHEAD_MAX_STREAMS",
                retry_after_s=self._service.settings.stream_idle_s,
            )
        stream = VideoStream(self._service, config, decoder, self._keep_within_memory)
        del decoder  # the stream lets go of it when it is ended
        self._streams.add(stream)
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.create_task(self._sweep(), name="stream sweeper")
        try:
            yield stream
        finally:
            self._streams.discard(stream)
            await stream.close()

    def end_all(self, error: PolyheadError | None = None) -> None:
        """End every stream and open no other, since the replica stops. In any thread.

        Clients open another elsewhere and begin without state.
        """
        self._stopping = error or UnavailableError(
            "this replica is stopping", remedy="open a new stream", retry_after_s=1
        )
        for stream in list(self._streams):
            self._evict(stream, "stopping", self._stopping)

    def evict_idle(self, now_s: float) -> None:
        """End the streams whose clients have neither sent a frame nor read a waiting answer for too long."""
        idle_s = self._service.settings.stream_idle_s
        for stream in list(self._streams):
            since_s = stream.idle_since_s
            if since_s is not None and now_s - since_s > idle_s:
                what, why = ("answers were not read", "unread") if stream.busy else ("no frame came", "idle")
                self._evict(
                    stream,
                    why,
                    StreamEvictedError(
                        f"{what} for {idle_s:g} s", remedy="open a new stream, or raise POLYHEAD_STREAM_IDLE_S"
                    ),
                )

    def _evict(self, stream: VideoStream, why: str, error: PolyheadError) -> None:
        self._streams.discard(stream)
        self._service.metrics.stream_evictions.labels(why).inc()
        stream.evict(error)

    def _keep_within_memory(self, changed: VideoStream) -> None:
        """End streams, the longest inactive first and `changed` last, until the others fit."""
        limit = self._service.settings.max_stream_state_bytes
        for stream in sorted(self._streams, key=lambda stream: (stream is changed, stream.active_s)):
            if self.state_bytes <= limit:
                return
            if stream.state_bytes:
                self._evict(
                    stream,
                    "memory",
                    StreamEvictedError(
                        f"the streams of this replica remember more than {limit} bytes, and this one was idle longest",
                        remedy="open fewer streams, or raise POLYHEAD_MAX_STREAM_STATE_BYTES",
                    ),
                )

    async def _sweep(self) -> None:
        while self._streams:
            await asyncio.sleep(min(1.0, self._service.settings.stream_idle_s / 4))
            self.evict_idle(time.monotonic())
